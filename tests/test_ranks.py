"""Several processes do what one does: run by torchrun, compared figure by figure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ranks
import tasks

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--hidden_size",
    "32",
    "--num_layers",
    "1",
    "--warm_steps",
    "3",
    "--warm_batch",
    "4",
    "--steps",
    "3",
    "--prompts_per_step",
    "4",
    "--group_size",
    "4",
    "--max_new_tokens",
    "48",
    "--eval_every",
    "2",
    "--eval_problems",
    "5",
    "--save_every",
    "2",
]
RULE = "def check(completion, answer):\n    return float(sum(map(ord, completion)) % 3 == 0)\n"


def run(folder, name, processes, *options):
    (folder / "rules.py").write_text(RULE)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [
        sys.executable,
        *launcher,
        str(ROOT / "train.py"),
        *TINY,
        "--verifier",
        f"{folder}/rules.py:check",
        "--warm_dir",
        str(folder / "warm"),
        "--out",
        str(folder / name),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def curve(folder, name):
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens/s")} for row in rows]


@pytest.mark.parametrize("options", [["--rlsd_teacher_sync_interval", "2"], ["--method", "opsd", "--micro_batch", "3"]])
def test_two_processes_make_the_run_of_one(tmp_path, options):
    for more in ([], ["--resume", "--steps", "5"]):
        for name, processes in (("one", 1), ("two", 2)):
            done = run(tmp_path, name, processes, *options, *more)
            assert done.returncode == 0, done.stderr
    one, two = curve(tmp_path, "one"), curve(tmp_path, "two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1, 2, 3, 4, 5]
    assert any(row.get("grad_norm", 0) > 0 for row in one)
    for a, b in zip(one, two):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    first, second = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("one", "two"))
    assert all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)


def test_a_verifier_that_fails_in_one_process_ends_all(tmp_path):
    rule = RULE.replace(
        "return", "import os\n    if os.environ.get('RANK') == '1': raise KeyError('no such rule')\n    return"
    )
    (tmp_path / "bad.py").write_text(rule)
    done = run(tmp_path, "x", 2, "--verifier", f"{tmp_path}/bad.py:check")
    assert done.returncode != 0
    assert sum(line.startswith("train.py: verifier, on") for line in done.stderr.splitlines()) == 1


def test_a_users_mistake_is_told_once(tmp_path):
    done = run(tmp_path, "x", 2, "--group_size", "1")
    assert sum(line.startswith("train.py: --group_size 1") for line in done.stderr.splitlines()) == 1


def test_equal_questions_stay_in_one_process(monkeypatch):
    questions = [tasks.Problem(q, "1") for q in ("a", "b", "a", "c", "b", "a")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        shares.append([p.question for p in ranks.share(questions)])
    assert shares == [["a", "a", "c", "a"], ["b", "b"]]
