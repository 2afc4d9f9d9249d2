"""What depends on what: one input changed at a time, and which outputs stay the same bits."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import rollout
import tasks
from config import Config
from harness import evaluation, warm_start
from harness.models import build_model
from harness.options import fingerprint_of
from harness.problems import load_source
from model import Samples

ROOT = Path(tasks.__file__).parent
SMALL = {"hidden_size": 32, "num_layers": 1, "warm_steps": 2, "warm_batch": 32, "warm_lr": 0.01}
SMALL |= {"prompts_per_step": 4, "group_size": 2, "eval_problems": 5, "max_new_tokens": 60}
RULE = "def check(completion, answer):\n    return 0.5\n"

# weights: the first ones; warm: those that the warm start makes of them; key: under which these are kept;
# noise: of a rollout, and evaluation: of an evaluation, which problems aside depends on nothing
OUTPUTS = "weights warm key questions noise held_out evaluation fingerprint".split()
MADE = [  # of a built-in task: inputs changed, outputs that differ
    ({"seed": 1}, "weights warm key questions noise"),
    ({"warm_seed": 5}, "weights warm key"),
    ({"seed": 1, "warm_seed": 0}, "questions noise"),
    ({"step": 2}, "questions noise"),
    ({"temperature": 0.6}, ""),
    ({"task": "countdown"}, "warm key questions noise held_out"),
    ({"chain": 2}, "warm key questions noise held_out"),
    ({"filler": 1}, "warm key questions noise held_out"),
    ({"hidden_size": 64}, "weights warm key"),
    ({"num_layers": 2}, "weights warm key"),
    *(({f"warm_{name}": 3}, "warm key") for name in ("steps", "batch")),
    *(({f"warm_{name}": 0.9}, "warm key") for name in "lr teacher_share slip teacher_slip cite solutions".split()),
    ({"privileged": "solution"}, "warm key"),
    ({"privileged": "solution", "warm_solutions": 0.0}, ""),
    ({"max_seq_len": 200}, "key"),
    ({"eval_problems": 7}, "key held_out"),
    ({"method": "grpo", "lr": 1.0, "steps": 3, "group_size": 3, "rlsd_lambda": 0.1, "max_grad_norm": 9.0}, ""),
    ({"eval_every": 1, "save_every": 1, "opsd_beta": 0.1, "evidence": "contrastive", "max_new_tokens": 70}, ""),
    ({"micro_batch": 3, "micro_tokens": 900, "gradient_checkpointing": True, "halve_micro_batch": True}, ""),
    ({"rlsd_reweight_clip_range": 1.0, "rlsd_lambda_warmup_steps": 3, "rlsd_lambda_decay_steps": 9}, ""),
    ({"rlsd_teacher_sync_interval": 1, "rlsd_negative_only": True, "rlsd_thought_only": True}, ""),
    ({"sdpo_ema": 1.0, "opsd_weight": 2.0}, ""),
    ({"prompts_per_step": 5}, "questions noise"),
    ({"out": "elsewhere", "opd_teacher": "other", "look": 1, "export": "last", "resume": True}, ""),
]
ELSEWHERE = "init dtype instruction system thinking date device bf16 fsdp threads warm_dir".split()  # below, or nowhere
FILE = [  # of the user's own problems; a path changed is the same file elsewhere
    ({"seed": 1}, "weights warm key questions noise"),
    ({"temperature": 0.6, "verifier_timeout": 9.0, "on_verifier_error": "drop"}, ""),
    ({"data": "moved/other name.jsonl"}, ""),
    ({"verifier": "moved/other.py:check"}, ""),
    ({"data": "answers.jsonl"}, "warm key fingerprint"),
    ({"data": "reversed.jsonl"}, "warm key questions held_out fingerprint"),
    ({"verifier": "another.py:check"}, "fingerprint"),
    ({"marker": "Answer:"}, "warm key"),
    ({"privileged_key": "hint"}, "warm key"),
    ({"eval_data": "held.jsonl"}, "warm key questions held_out fingerprint"),
]
EVAL = [({"eval_data": "moved/held.jsonl"}, ""), ({"eval_data": "fewer.jsonl"}, "held_out fingerprint")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's files: each as it is, elsewhere under another name, and changed."""
    home = tmp_path_factory.mktemp("depends")
    row = lambda i, answer: json.dumps({"question": f"say {i}", "answer": answer, "hint": f"h{i}"}) + "\n"
    problems, held = [row(i, f"{i}") for i in range(60)], [row(i, "x") for i in range(90, 99)]
    files = {"data.jsonl": problems, "moved/other name.jsonl": problems, "reversed.jsonl": problems[::-1]}
    files |= {"answers.jsonl": [row(i, f"{i}!") for i in range(60)]}
    files |= {"held.jsonl": held, "moved/held.jsonl": held, "fewer.jsonl": held[:-1]}
    files |= {"rule.py": [RULE], "moved/other.py": [RULE], "another.py": [RULE.replace("0.5", "0.25")]}
    (home / "moved").mkdir()
    for name, lines in files.items():
        (home / name).write_text("".join(lines))
    return home


def bits(model):
    return hashlib.sha256(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()).hexdigest()


@contextlib.contextmanager
def sampler():
    """Temperature and seed of the noise of every call of `sample`, which draws nothing."""
    drawn = []

    def sample(model, prompts, *, group_size, temperature, generator, **rest):
        drawn.append((temperature, generator.initial_seed()))
        return Samples.of([[tasks.END]] * len(prompts) * group_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "sample", sample)
        patch.setattr(evaluation, "sample", sample)
        yield drawn


def outputs(folder, changed, base):
    """Every output of a run with these inputs, as far as it goes before its first update."""
    inputs = SMALL | base | changed
    step = inputs.pop("step", 1)
    paths = {name: str(folder / inputs[name]) for name in ("data", "eval_data", "verifier") if name in inputs}
    config = Config(**inputs | paths | {"warm_dir": str(folder / "warm")})
    source, verifier = load_source(config)
    model = build_model(config)
    found = {"weights": bits(model), "key": warm_start.warm_start_key(config), "fingerprint": fingerprint_of(config)}
    shutil.rmtree(config.warm_dir, ignore_errors=True)
    warm_start.warm_start(model, source, config, SimpleNamespace(signal=0))
    found |= {"warm": bits(model), "held_out": [p.question for p in source.held_out]}
    with sampler() as drawn:
        batch = rollout.rollout(model, source, lambda c, a: 0.0, config, step)
        evaluation.evaluate(model, source, lambda c, a: 0.0, config)
        evaluation.evaluate_teacher(model, source, lambda c, a: 0.0, config)
    getattr(verifier, "close", lambda: None)()
    assert drawn[0][0] == config.temperature
    found |= {"questions": [p.question for p in batch.problems[:: config.group_size]]}
    return found | {"noise": drawn[0][1], "evaluation": drawn[1:]}


@pytest.mark.parametrize(
    "base, table",
    [
        ({"task": "addition", "chain": 3}, MADE),
        ({"data": "data.jsonl", "verifier": "rule.py:check"}, FILE),
        ({"data": "data.jsonl", "verifier": "rule.py:check", "eval_data": "held.jsonl"}, EVAL),
    ],
    ids=["made", "file", "eval"],
)
def test_each_input_changes_what_the_table_says_and_no_bit_else(folder, base, table):
    before = outputs(folder, {}, base)
    assert before == outputs(folder, {}, base) and before.keys() == set(OUTPUTS)
    assert before["evaluation"] == [(1.0, 0), (0.0, 0), (1.0, 0)]
    for changed, differ in table:
        after = outputs(folder, changed, base)
        found = [name for name in OUTPUTS if after[name] != before[name]]
        assert found == [name for name in OUTPUTS if name in differ.split()], changed


def test_every_option_stands_in_the_table():
    said = [name for table in (MADE, FILE, EVAL) for changed, _ in table for name in changed]
    assert {field.name for field in dataclasses.fields(Config)} == {*said, *ELSEWHERE} - {"step"}


def test_no_two_seeds_share_a_step():
    """Not even shifted against each other: 12 and 3 are not 1 and 23."""
    source, pairs = tasks.generated("addition", 5), [(s, t) for s in (0, 1, 2, 12) for t in (1, 2, 3, 12, 23)]
    with sampler() as drawn:
        draw = lambda s, t: rollout.rollout(None, source, lambda c, a: 0.0, Config(seed=s, **SMALL), t).problems
        questions = {str(draw(*pair)) for pair in pairs}
    assert len(questions) == len(set(drawn)) == len(pairs)


def test_the_key_of_a_warm_start_holds_every_file_that_it_runs_through(folder, tmp_path, monkeypatch):
    """All that are called from options to warm weights but to keep and tell; a byte more in any is another key."""
    ran = set()
    sys.setprofile(lambda frame, event, arg: ran.add(frame.f_code.co_filename))
    try:
        for base in ({"task": "addition", "filler": 1}, {"task": "countdown"}, {"data": str(folder / "data.jsonl")}):
            config = Config(**SMALL | base | {"warm_dir": str(tmp_path / "warm")})
            model, source = build_model(config), load_source(config)[0]
            warm_start.warm_start(model, source, config, SimpleNamespace(signal=0))
    finally:
        sys.setprofile(None)
    ran = {str(Path(file).relative_to(ROOT)) for file in ran if Path(file).is_relative_to(ROOT)}
    ran = {file for file in ran if not file.startswith((".venv", "tests", "support", "<"))}
    held = {str(path.relative_to(ROOT)) for pattern in warm_start.RUN_THROUGH for path in ROOT.glob(pattern)}
    assert len(ran) > 8 and ran - held <= {"config.py", "harness/options.py"}, ran - held

    copy = tmp_path / "copy"
    for file in held:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    keys = {warm_start.warm_start_key(Config())}
    monkeypatch.setattr(warm_start, "ROOT", copy)
    assert keys == {warm_start.warm_start_key(Config())}
    for file in sorted(held):
        with (copy / file).open("a") as text:
            text.write("#")
        keys.add(warm_start.warm_start_key(Config()))
    assert len(keys) == len(held) + 1


def test_of_a_published_folder_every_file_counts_that_shapes_model_or_prompts(tmp_path):
    names = "config.json tokenizer.json tokenizer_config.json chat_template.jinja model.safetensors README.md".split()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(name)
    found = lambda config: [warm_start.warm_start_key(config), fingerprint_of(config)]
    before, moved = found(Config(init=str(tmp_path / "a"))), Config(init=str(tmp_path / "b"))
    assert before == found(moved)
    for name in names:
        (tmp_path / "b" / name).write_text("x")
        assert [x != y for x, y in zip(before, found(moved))] == [name != "README.md", name in names[:4]], name
        (tmp_path / "b" / name).write_text(name)


def test_the_key_of_a_warm_start_holds_what_is_not_tried_here():
    """Options, and of torch, the processes and a chat template what they are when it begins."""
    changed = ({}, {"bf16": True}, {"device": "cuda"}, {"task": "reasoning_gym:chain_sum"})
    keys = [warm_start.warm_start_key(Config(**options)) for options in changed]
    there = {"torch.__version__": "0.1", "torch.get_num_threads": lambda: 7, "support.processes.world": lambda: 2}
    for name, value in {**there, "tasks.FORMAT.prompt": lambda *shown: [7]}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, value)
            keys.append(warm_start.warm_start_key(Config()))
    assert len(set(keys)) == 8
