# make train: environment, installation and the main job; make test: the same for the tests. Needs Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

train: $(VENV)/.train
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -q $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.train: $(VENV)/bin/python requirements.txt requirements-extras.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -r requirements-extras.txt
	@touch $@

$(VENV)/.test: $(VENV)/.train requirements-test.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-test.txt
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .hypothesis

.PHONY: train test clean
