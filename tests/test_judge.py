"""A verifier of the user's own may do anything: it is named, counted, and never becomes a reward."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import judge
import methods
import tasks
import train
from config import Config
from errors import UserError
from model import Samples, token_logps
from rlsd import group_advantages, rlsd_loss
from tasks import Problem, student_prompt

ROOT = Path(train.__file__).parent
TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 3 --warm_batch 8 --steps 4 --prompts_per_step 2 --group_size 4 "
    "--chain 2 --max_new_tokens 32 --eval_every 2 --eval_problems 3 --save_every 2 --lr 0.01"
).split()


def config_of(tmp_path, *more):
    (tmp_path / "out").mkdir(exist_ok=True)
    return train.parse_config([*TINY, "--out", str(tmp_path / "out"), *more])


def judged(verifier, config, said=("one", "two", "three")):
    samples = Samples.of([tasks.encode(text) for text in said])
    problems = [Problem("1+1", "2", origin=f"my.jsonl:{i + 7}") for i in range(len(said))]
    return judge.verify(verifier, samples, problems, config)


class Unfloatable:
    def __float__(self):
        raise OSError("no number here")


def swallows(completion, answer):
    while True:
        try:
            time.sleep(5)
        except Exception:
            pass


def swallows_the_first_alarm(completion, answer):
    try:
        time.sleep(5)
    except BaseException:
        return hangs(completion, answer)


def hangs(completion, answer):
    while True:
        pass


def recurses(completion, answer):
    return recurses(completion, answer)


class NoException(BaseException):
    """As those that func_timeout and Rust's panics raise."""


def raises(error):
    raise error


BAD = {
    "raises no Exception": (lambda c, a: raises(NoException("stopped")), "NoException: stopped"),
    "says what no file takes": (lambda c, a: raises(ValueError("half a \ud800 pair")), "ValueError: half a"),
    "raises": (lambda c, a: {}["oops"], "KeyError: 'oops'"),
    "ends the program": (lambda c, a: sys.exit(0), "SystemExit: 0"),
    "recurses": (recurses, "RecursionError"),
    "hangs": (hangs, "longer than --verifier_timeout 0.2 seconds"),
    "hangs and swallows": (swallows, "longer than --verifier_timeout 0.2 seconds"),
    "hangs once more": (swallows_the_first_alarm, "longer than --verifier_timeout 0.2 seconds"),
    "nan": (lambda c, a: math.nan, "it returned nan"),
    "infinite": (lambda c, a: math.inf, "it returned inf"),
    "bool": (lambda c, a: True, "it returned True"),
    "numpy's bool": (lambda c, a: np.bool_(True), "it returned"),
    "torch's bool": (lambda c, a: torch.tensor(True), "it returned tensor(True)"),
    "None": (lambda c, a: None, "it returned None"),
    "above 1": (lambda c, a: 1.0000001, "it returned 1.0000001"),
    "below 0": (lambda c, a: -0.1, "it returned -0.1"),
    "text": (lambda c, a: "1.0", "it returned '1.0'"),
    "several": (lambda c, a: np.array([0.0, 1.0]), "Error: "),
    "no float in it": (lambda c, a: Unfloatable(), "OSError: no number here"),
    "a long text": (lambda c, a: "x\n" * 9999, "it returned 'x"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_verifier_stops_the_run_with_one_line_and_keeps_its_traceback(tmp_path, name):
    verifier, words = BAD[name]
    with pytest.raises(UserError) as stopped:
        judged(lambda c, a: verifier(c, a) if c == "two" else 0.5, config_of(tmp_path, "--verifier_timeout", "0.2"))
    line = str(stopped.value)
    assert line.startswith("verifier, on my.jsonl:8 '1+1' with the completion 'two': ") and words in line
    assert "\n" not in line and len(line) < 600
    kept = (tmp_path / "out" / "verifier_error.txt").read_text()
    assert words in kept.splitlines()[0] and kept.endswith("question:\n1+1\ncompletion:\ntwo\n")
    assert ("Traceback" in kept and "test_judge.py" in kept) == ("it returned" not in words and name != "several")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("policy", ["zero", "drop"])
def test_the_run_goes_on_where_that_was_chosen(tmp_path, capsys, name, policy):
    verifier, words = BAD[name]
    config = config_of(tmp_path, "--verifier_timeout", "0.2", "--on_verifier_error", policy)
    rewards = judged(lambda c, a: verifier(c, a) if c == "two" else 0.5, config)
    assert rewards[0] == rewards[2] == 0.5 and math.isnan(rewards[1])
    err = capsys.readouterr().err
    assert words in err and "verifier_error.txt" in err and err.count("\n") == 1
    judged(lambda c, a: 1 / 0, config)
    assert capsys.readouterr().err == ""  # the first one only
    assert words in (tmp_path / "out" / "verifier_error.txt").read_text()


@pytest.mark.parametrize("reward", [0, 1, 0.25, np.float32(0.25), torch.tensor(0.25), np.array(1.0)])
def test_numbers_of_other_libraries_are_rewards(tmp_path, reward):
    assert judged(lambda c, a: reward, config_of(tmp_path)) == [float(reward)] * 3


def test_time_within_the_limit_is_given_to_every_call_anew(tmp_path):
    def slow(completion, answer):
        time.sleep(0.15)
        return 1.0

    before = signal.getsignal(signal.SIGALRM)
    assert judged(slow, config_of(tmp_path, "--verifier_timeout", "0.4"), said=["a"] * 5) == [1.0] * 5
    time.sleep(0.5)  # no alarm is left to go off
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_second_ctrl_c_is_no_failure_of_the_verifier(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        judged(lambda c, a: raises(KeyboardInterrupt()), config_of(tmp_path, "--on_verifier_error", "zero"))


def test_a_verifier_that_lets_nothing_through_ends_the_program_with_one_line(tmp_path):
    (tmp_path / "rules.py").write_text(
        "import time\n\n\ndef check(c, a):\n    while True:\n        try:\n            time.sleep(9)\n"
        "        except BaseException:\n            pass\n"
    )
    paths = ["--out", str(tmp_path / "out"), "--warm_dir", str(tmp_path / "warm"), "--verifier_timeout", "0.2"]
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *paths, "--verifier", f"{tmp_path}/rules.py:check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "goes on after --verifier_timeout 0.2 seconds, whatever is raised in it" in done.stderr


def test_a_failure_is_told_where_the_locale_knows_no_letters(tmp_path):
    """A completion of an untrained model is full of U+FFFD, which ASCII lacks."""
    (tmp_path / "rules.py").write_text("def check(c, a):\n    raise ValueError(c + '\\u00e9')\n")
    paths = ["--out", str(tmp_path / "out"), "--warm_dir", str(tmp_path / "warm")]
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *paths, "--verifier", f"{tmp_path}/rules.py:check"]
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([*command, "--on_verifier_error", "zero", "--steps", "1"], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert "\u00e9" in (tmp_path / "out" / "verifier_error.txt").read_text("utf-8")


def test_what_a_verifier_prints_stays_out_of_the_log(tmp_path, capsys):
    (tmp_path / "rules.py").write_text("def check(c, a):\n    print('step=7 reward=1', end='')\n    return 0.5\n")
    paths = ["--out", str(tmp_path / "out"), "--warm_dir", str(tmp_path / "warm")]
    assert train.main([*TINY, *paths, "--verifier", f"{tmp_path}/rules.py:check"]) == 0
    printed = capsys.readouterr()
    assert "step=7" not in printed.out and "step=7 reward=1" in printed.err
    assert [line.split()[0] for line in printed.out.splitlines() if line.startswith("step=")] == [
        f"step={step}" for step in range(5)
    ]


# ---- zero and drop ---------------------------------------------------------------------------------------------------


def test_a_dropped_sample_leaves_the_advantages_of_the_rest():
    nan = math.nan
    rewards = torch.tensor([1.0, nan, 0.0, 0.0, nan, nan, nan, nan, nan, 1.0, nan, nan, 0.5, 0.5, nan, 0.5])
    advantages = judge.advantages_of(rewards, 4)
    expected = torch.zeros(16)
    expected[[0, 2, 3]] = group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    assert torch.equal(advantages, expected)
    whole = torch.tensor([1.0, 0.0, 0.5, 0.5])
    assert torch.equal(judge.advantages_of(whole, 4), group_advantages(whole, 4))


def some_fail(completion, answer):
    value = sum(map(ord, completion))
    return math.nan if value % 3 == 0 else float(value % 2)


def setup(tmp_path, *more):
    config = config_of(tmp_path, *more)
    state = train.State(config)
    with torch.no_grad():
        for p in state.model.parameters():
            p.mul_(3) if p.dim() == 2 else None  # far from uniform
    state.sync_teacher()
    return config, state, tasks.generated("addition", 3, 2)


@pytest.mark.parametrize("method, micro_batch", [("rlsd", "0"), ("opsd", "1")])
def test_a_dropped_sample_takes_no_part_in_the_update(tmp_path, monkeypatch, method, micro_batch):
    more = ["--group_size", "8", "--method", method, "--micro_batch", micro_batch]
    config, state, source = setup(tmp_path, "--on_verifier_error", "drop", *more)
    batch = train.rollout(state.model, source, some_fail, config, 1)
    kept = (~batch.rewards.isnan()).nonzero().squeeze(1)
    assert 0 < len(kept) < 16 and batch.verifier_errors == 16 - len(kept) and (batch.advantages != 0).any()
    rest = batch.rows(kept)
    if method == "rlsd":
        with torch.no_grad():
            views = [methods.teacher_view(p, config) for p in rest.problems]
            teacher_logps = token_logps(state.teacher, views, rest.samples, 1.0)
        logps = token_logps(state.model, [student_prompt(p) for p in rest.problems], rest.samples, 1.0)
        loss, _ = rlsd_loss(logps, rest.samples.logps, teacher_logps, rest.advantages, rest.samples.mask)
    else:
        loss, _ = train.loss_of(state.model, state.teacher, rest, config, 0.0, rest.samples.mask.sum())
    expected = torch.autograd.grad(loss, list(state.model.parameters()))
    monkeypatch.setattr(config, "max_grad_norm", 1e9)
    train.update(state.model, state.teacher, state.optimizer, batch, config, 0.5 if method == "rlsd" else 0.0)
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(state.model.parameters(), expected))
    figures = train.describe(batch, config)
    assert figures["reward"] == pytest.approx(rest.rewards.mean().item())
    assert figures["length"] == pytest.approx(rest.samples.mask.sum().item() / len(kept))


def test_a_failed_sample_is_worth_nothing_with_zero(tmp_path):
    config, state, source = setup(tmp_path, "--on_verifier_error", "zero")
    batch = train.rollout(state.model, source, some_fail, config, 1)
    texts = [tasks.decode(c) for c in batch.samples.completions()]
    assert batch.rewards.tolist() == [0.0 if math.isnan(some_fail(t, "")) else some_fail(t, "") for t in texts]
    assert torch.equal(batch.advantages, group_advantages(batch.rewards, 4))
    assert batch.verifier_errors == sum(math.isnan(some_fail(t, "")) for t in texts) > 0


def test_held_out_problems_without_a_reward(tmp_path):
    rewards = [1.0, math.nan, 0.5, math.nan]
    assert judge.mean_reward(rewards, config_of(tmp_path, "--on_verifier_error", "zero")) == 0.375
    assert judge.mean_reward(rewards, config_of(tmp_path, "--on_verifier_error", "drop")) == 0.75
    assert judge.mean_reward([math.nan] * 2, config_of(tmp_path, "--on_verifier_error", "zero")) == 0
    assert math.isnan(judge.mean_reward([math.nan] * 2, config_of(tmp_path, "--on_verifier_error", "drop")))


@pytest.mark.parametrize("method", ["rlsd", "sdpo", "opsd"])
def test_a_run_counts_its_failures_and_resumes_with_another_policy(tmp_path, capsys, method):
    """Stopped by its verifier, a run goes on from its checkpoint with the policy that it is resumed with."""
    rule = "def check(c, a):\n    v = sum(map(ord, c))\n    return None if v % 3 == 0 else v % 2 / 1\n"
    (tmp_path / "rules.py").write_text(rule)
    paths = ["--out", str(tmp_path / "out"), "--warm_dir", str(tmp_path / "warm")]
    more = ["--method", method, "--verifier", f"{tmp_path}/rules.py:check", "--eval_problems", "8"]
    assert train.main([*TINY, *paths, *more]) == 2
    assert "it returned None" in capsys.readouterr().err
    assert train.main([*TINY, *paths, *more, "--on_verifier_error", "drop", "--steps", "2"]) == 0
    assert "the sample takes no part" in capsys.readouterr().err
    again = ["--resume", "--out", str(tmp_path / "out"), "--steps", "4", "--on_verifier_error", "zero"]
    assert train.main(again) == 0
    assert "verifier_errors=" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert sum(row["verifier errors"] for row in rows[1:]) > 0 and all(
        "held-out verifier errors" in rows[i] for i in (0, 2, 4)
    )


def test_without_a_run_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = Samples.of([tasks.encode("x")], "cpu")
    with pytest.raises(UserError, match="1 / 0|division"):
        judge.verify(lambda completion, answer: 1 / 0, samples, [tasks.Problem("q", "a")], Config())
    assert not list(tmp_path.iterdir())
