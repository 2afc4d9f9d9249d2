import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rollout
import tasks
import train
import verifiers
from config import Config
from harness import console, evaluation, warm_start
from harness.checkpoint import State, export
from harness.models import build_model
from harness.run import describe
from model import Samples, token_logps
from rlsd import group_advantages, token_advantages
from support import files
from support.micro_batches import micro_batches
from tasks import END, Problem, student_prompt, teacher_prompt

ROOT = Path(train.__file__).parent
TINY = [
    "--hidden_size",
    "32",
    "--num_layers",
    "1",
    "--warm_steps",
    "3",
    "--warm_batch",
    "8",
    "--steps",
    "6",
    "--prompts_per_step",
    "2",
    "--group_size",
    "4",
    "--max_new_tokens",
    "48",
    "--eval_every",
    "3",
    "--eval_problems",
    "5",
    "--save_every",
    "2",
    "--lr",
    "0.01",
]
METHODS = {"rlsd": ["--rlsd_teacher_sync_interval", "2"], "grpo": ["--method", "grpo"]}


def options(tmp_path, name, *more, method="rlsd"):
    return [*TINY, *METHODS[method], "--out", str(tmp_path / name), "--warm_dir", str(tmp_path / "warm"), *more]


def again(out, *more):
    """The command that goes on with a run, as it was told: a verifier's file is run only where it is named."""
    verifier = json.loads((Path(out) / "config.json").read_text())["verifier"]
    return ["--resume", "--out", str(out), *(["--verifier", verifier] if ":" in verifier else []), *more]


def verifier_file(tmp_path, body):
    path = tmp_path / "rules.py"
    path.write_text(f"def check(completion, answer):\n    {body}\n")
    return ["--verifier", f"{path}:check"]


SOME_REWARD = "return float(sum(map(ord, completion)) % 2)"  # an untrained model needs some spread to learn from


def metrics(tmp_path, name):
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens/s")} for row in rows]


def same_state(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


def checkpoint(tmp_path, name):
    return torch.load(tmp_path / name / "last.pt", weights_only=True)


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_checkpoints_come_every_save_every_updates_and_at_the_end(tmp_path, monkeypatch):
    saved, save = [], State.save
    monkeypatch.setattr(State, "save", lambda self, *args: saved.append(self.step) or save(self, *args))
    assert train.main(options(tmp_path, "run", "--steps", "5", "--save_every", "2")) == 0
    assert saved == [0, 2, 3, 4, 5]  # and at 3 for a best.pt of it


def test_a_run_says_that_its_last_updates_were_not_evaluated(tmp_path, capsys):
    """best.pt, and what is exported of it, may be the weights that a short run began with."""
    said = "since update 2, no evaluation was due (--eval_every)"
    assert train.main(options(tmp_path, "run", "--steps", "3", "--eval_every", "2")) == 0
    out = capsys.readouterr().out
    assert said in out and "best.pt: the policy after update 2" in out
    assert train.main(options(tmp_path, "other", "--steps", "2", "--eval_every", "2")) == 0
    assert "since update" not in capsys.readouterr().out


def test_the_end_tells_first_and_last_evaluation_and_the_seconds_in_between(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console.curves, "curves", lambda runs, out: out)
    rows = [{"step": 0, "pass@1": 0.25, "greedy": 0.5}, {"step": 1, "seconds": 10.0}]
    rows += [{"step": 2, "seconds": 5.0, "pass@1": 0.75, "greedy": 1.0}, {"step": 3, "seconds": 100.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    console.finish(tmp_path)
    assert "held-out pass@1 0.250 -> 0.750, greedy 0.500 -> 1.000 in 2 updates (15 s)\n" in capsys.readouterr().out


def test_a_run_leaves_its_files(tmp_path, capsys):
    assert train.main(options(tmp_path, "run", *verifier_file(tmp_path, SOME_REWARD))) == 0
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert (
        {"config.json", "metrics.jsonl", "samples.jsonl", "last.pt", "best.pt"}
        <= files
        <= {"config.json", "metrics.jsonl", "samples.jsonl", "last.pt", "best.pt", "curves.png"}
    )
    rows = metrics(tmp_path, "run")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if "pass@1" in row and "greedy" in row] == [0, 3, 6]
    assert [row["lambda"] for row in rows[1:]] == pytest.approx([0.5 * (1 - s / 50) for s in range(1, 7)])
    printed = capsys.readouterr().out
    for name in (
        "step",
        "reward",
        "length",
        "entropy",
        "no_spread",
        "grad_norm",
        "lambda",
        "weight",
        "clipped_low",
        "clipped_high",
        "tokens/s",
    ):
        assert len(re.findall(rf"\b{name}=\S+", printed)) >= 5, name
    shown = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in shown} == {3, 6}
    for row in shown:
        assert len(row["tokens"]) == len(row["credit"]) and {"question", "completion", "reward", "step"} <= row.keys()
        assert all((c > 0) == (row["credit"][0] > 0) for c in row["credit"])
    assert (
        torch.load(tmp_path / "run" / "best.pt", weights_only=True).keys()
        == checkpoint(tmp_path, "run")["model"].keys()
    )


def test_the_extras_are_not_needed(tmp_path, monkeypatch, capsys):
    for name in ("matplotlib", "tqdm", "plot"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train.main(options(tmp_path, "run", "--steps", "1", "--eval_every", "1")) == 0
    assert "curves.png left out: " in capsys.readouterr().out
    assert not (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize("method", ["rlsd", "grpo"])
def test_resumed_equals_never_stopped(tmp_path, method):
    more = verifier_file(tmp_path, SOME_REWARD)
    assert train.main(options(tmp_path, "whole", *more, method=method)) == 0
    assert train.main(options(tmp_path, "parts", *more, "--steps", "4", method=method)) == 0
    # lines and samples of steps after the checkpoint, as a kill in between leaves them, the last one torn
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / "parts" / name).open("a") as file:
            file.write('{"step": 5}\n{"step": 6, "rew')
    assert train.main(again(tmp_path / "parts", "--steps", "3")) == 2  # has made 4
    assert train.main(again(tmp_path / "parts")) == 0  # nothing left to do, and the refused option left no trace
    assert train.main(again(tmp_path / "parts", "--steps", "6")) == 0
    assert checkpoint(tmp_path, "whole")["step"] == 6
    assert metrics(tmp_path, "whole") == metrics(tmp_path, "parts")
    assert same_state(checkpoint(tmp_path, "whole"), checkpoint(tmp_path, "parts"))
    samples = [(tmp_path / n / "samples.jsonl").read_text() for n in ("whole", "parts")]
    assert samples[0] == samples[1]


def test_the_same_seed_repeats_and_another_differs(tmp_path):
    more = verifier_file(tmp_path, SOME_REWARD)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train.main(options(tmp_path, name, *more, "--seed", seed)) == 0
    assert metrics(tmp_path, "a") == metrics(tmp_path, "b") != metrics(tmp_path, "c")


def test_warm_start_is_kept_and_found_again(tmp_path, capsys):
    runs = [("a", []), ("b", []), ("c", ["--warm_slip", "0.5"]), ("d", ["--lr", "0.02"])]
    for name, more in runs:
        assert train.main(options(tmp_path, name, "--steps", "1", *more)) == 0
    found = ["found" in part for part in capsys.readouterr().out.split("run folder")[:-1]]
    assert found == [False, True, False, True]  # the slip rate is part of the key, the RL learning rate is not
    assert metrics(tmp_path, "a") == metrics(tmp_path, "b") and len(list((tmp_path / "warm").glob("*.pt"))) == 2


def test_ctrl_c_ends_cleanly_and_resumes(tmp_path):
    args = [
        sys.executable,
        str(ROOT / "train.py"),
        *options(tmp_path, "cut", "--steps", "100000", "--save_every", "99999"),
    ]
    process = subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for line in process.stdout:
        if line.startswith("step=2 "):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    last = checkpoint(tmp_path, "cut")["step"]
    assert f"interrupted after step {last}" in out and metrics(tmp_path, "cut")[-1]["step"] == last >= 2
    assert train.main(["--resume", "--out", str(tmp_path / "cut"), "--steps", str(last + 2)]) == 0
    assert [row["step"] for row in metrics(tmp_path, "cut")] == list(range(last + 3))


def test_own_data_and_own_verifier_in_one_command(tmp_path):
    data = tmp_path / "my data.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"say {i}", "answer": str(i), "rule": f"repeat {i}"}) + "\n" for i in range(30))
    )
    more = [
        "--data",
        str(data),
        "--privileged_key",
        "rule",
        *verifier_file(tmp_path, "return float(answer in completion)"),
    ]
    assert train.main(options(tmp_path, "own", *more)) == 0
    assert len(metrics(tmp_path, "own")) == 7


# ---- the step, taken apart -------------------------------------------------------------------------------------------


def sharp_state(*more):
    """An untrained policy whose distributions are far from uniform."""
    config = train.parse_config([*TINY, *more])
    state = State(config)
    with torch.no_grad():
        for p in state.policy.parameters():
            p.mul_(3) if p.dim() == 2 else None
    return config, state


def prepared(*more):
    config, state = sharp_state(*more)
    train.move(state.teacher, state.policy, 1.0)
    source = tasks.generated("addition", 5)
    return config, state, source


def batch_of(state, source, config, body=lambda c, a: float(sum(map(ord, c)) % 2)):
    return train.rollout(state.policy, source, body, config, 1)


def test_the_model_is_of_the_size_asked_for():
    config = train.parse_config(["--hidden_size", "96", "--num_layers", "3", "--max_seq_len", "200"])
    size = build_model(config).config
    assert (size.vocab_size, size.hidden_size, size.intermediate_size, size.num_layers) == (262, 96, 288, 3)
    assert (size.num_heads, size.num_kv_heads, size.head_dim, size.max_seq_len) == (6, 3, 16, 200)


def test_the_optimizer_is_adam_as_asked_for():
    optimizer = State(train.parse_config([*TINY, "--lr", "0.003"])).optimizer
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == (
        0.003,
        (0.9, 0.99),
        0,
    )


def test_rollout_keeps_each_question_with_its_own_group(monkeypatch):
    """Also where all completions are alike."""
    config, state, source = prepared()
    monkeypatch.setattr(rollout, "sample", lambda *args, **how: Samples.of([[END]] * 8))
    seen = []
    batch = batch_of(state, source, config, lambda *pair: seen.append(pair) or float(len(seen) % 3 == 0))
    assert seen == [("", problem.answer) for problem in batch.problems]
    assert all(len({p.question for p in batch.problems[i : i + 4]}) == 1 for i in (0, 4))
    assert batch.problems[0] != batch.problems[4]
    assert batch.rewards.tolist() == [0, 0, 1, 0, 0, 1, 0, 0]
    assert torch.equal(batch.advantages, group_advantages(batch.rewards, 4))


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from("123")), min_size=1, max_size=30))
def test_a_verifier_is_called_once_a_sample_with_that_problems_own_answer(said):
    """Also for equal texts: rewards may be drawn, and a count is a reward here."""
    samples, seen = Samples.of([tasks.encode(text) + [END] for text, _ in said]), []
    problems = [Problem("q", answer) for _, answer in said]
    rewards = rollout.verify(lambda *pair: seen.append(pair) or len(seen) / 100, samples, problems, Config())
    assert seen == said and rewards == [i / 100 for i in range(1, len(said) + 1)]


def test_equal_questions_stay_two_groups():
    """Two copies of one question: each group is standardised by itself (mistake 12: keyed by text they would merge)."""
    config, state, source = prepared()
    twice = tasks.Source(lambda rng, n: [Problem("1+1", "2")] * n, [], [], "number", None)
    rewards = iter([1, 0, 0, 0, 1, 1, 1, 0])
    batch = train.rollout(state.policy, twice, lambda c, a: float(next(rewards)), config, 1)
    assert torch.allclose(batch.advantages, torch.tensor([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5]), atol=1e-4)


def test_a_well_formatted_wrong_answer_earns_nothing():
    """Mistake 13: the reward is the verifier's and nothing else's."""
    config, state, source = prepared()
    problem = Problem("1111+2222", "3333")
    wrong = tasks.target(Problem(problem.question, "3334", "1+2=3\n1+2=3\n1+2=3\n1+2=3"))
    samples = Samples.of([wrong, tasks.target(problem)])
    verifier = verifiers.load("number")
    assert rollout.verify(verifier, samples, [problem, problem], Config()) == [0.0, 1.0]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=20),
    st.sampled_from([0, 0, 1, 3]),
    st.one_of(st.just(0), st.integers(20, 250)),
    st.sampled_from(["rlsd", "grpo"]),
)
def test_parts_of_a_batch_stay_within_both_bounds_and_no_row_is_left_out(sizes, rows, tokens, method):
    """Question, answer and completion of each row in tokens; every second row is picked."""
    config = Config(method=method, micro_batch=rows, micro_tokens=tokens)
    problems = [Problem("q" * q, "a" * a) for q, a, _ in sizes]
    batch = train.Rollout(problems, Samples.of([[5] * n for *_, n in sizes]), torch.zeros(0), torch.zeros(0))
    picked = torch.arange(0, len(sizes), 2)
    parts = [part.tolist() for part in micro_batches(batch, picked, config)]
    assert [i for part in parts for i in part] == picked.tolist()

    def too_much(part):
        views = [student_prompt(problems[i]) for i in part]
        views += [teacher_prompt(problems[i], "answer") for i in part] if method == "rlsd" else []
        held = len(part) * (max(map(len, views)) + max(sizes[i][2] for i in part))
        return 0 < rows < len(part) or 0 < tokens < held

    assert all(len(part) == 1 or not too_much(part) for part in parts)
    assert all(too_much(part + after[:1]) for part, after in zip(parts, parts[1:]))  # and no more parts than needed


def test_a_budget_of_tokens_also_bounds_what_an_evaluation_holds(monkeypatch):
    config, state, source = prepared("--micro_tokens", "100")
    seen = []
    original = evaluation.sample
    monkeypatch.setattr(evaluation, "sample", lambda *a, **k: seen.append(k["at_once"]) or original(*a, **k))
    evaluation.evaluate(state.policy, source, verifiers.load("number"), config)
    evaluation.evaluate(state.policy, source, verifiers.load("number"), dataclasses.replace(config, micro_tokens=0))
    assert seen == [8, 8, 0, 0]


def test_samples_without_advantage_count_in_the_mean_but_are_not_scored(monkeypatch):
    config, state, source = prepared()
    rewards = iter([1, 1, 1, 1, 0, 1, 0, 1])
    batch = train.rollout(state.policy, source, lambda c, a: float(next(rewards)), config, 1)
    scored, denominators = [], []
    original, loss = rollout.token_logps, train.rlsd_loss
    monkeypatch.setattr(rollout, "token_logps", lambda m, p, s, t: scored.append(len(p)) or original(m, p, s, t))
    monkeypatch.setattr(train, "rlsd_loss", lambda *a, **k: denominators.append(int(k["denominator"])) or loss(*a, **k))
    train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)
    assert scored == [4, 4] and denominators == [int(batch.samples.mask.sum())]
    scored.clear()
    train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.0)
    assert scored == [4]  # at lambda 0 the teacher is not asked


def test_no_spread_anywhere_moves_nothing():
    config, state, source = prepared()
    batch = batch_of(state, source, config, lambda c, a: 1.0)
    before = [p.detach().clone() for p in state.policy.parameters()]
    metrics = train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)
    assert metrics["weight"] == 1 and all(value == 0 for name, value in metrics.items() if name != "weight")
    assert all(torch.equal(a, b) for a, b in zip(before, state.policy.parameters()))


def test_warm_start_teaches_both_views_and_stopping(monkeypatch):
    config, state, source = prepared("--warm_batch", "200", "--warm_slip", "1", "--warm_teacher_slip", "0.5")
    shown = []
    original = warm_start.token_logps
    monkeypatch.setattr(
        warm_start, "token_logps", lambda m, p, s, t: shown.extend(zip(p, s.completions())) or original(m, p, s, t)
    )
    loss = warm_start.imitation_loss(state.policy, source, config, random.Random(0))
    right = {"teacher": [], "student": []}
    for prompt, completion in shown:
        view = "teacher" if tasks.REFERENCE in prompt else "student"
        question, _, reference = tasks.decode(prompt[1:-1]).partition(tasks.ROLES[1])
        a, b = map(int, question.split("+"))
        text = tasks.decode(completion)
        assert completion[-1] == END
        assert view == "student" or text.endswith(f"#### {reference}")  # slips included, it leads to what is shown
        right[view].append(text.endswith(f"#### {a + b}"))
    assert 60 < len(right["teacher"]) < 140
    assert 0.1 < sum(right["teacher"]) / len(right["teacher"]) < 0.7  # so a reference says more than that it is there
    assert 0 < sum(right["student"]) < 0.5 * len(right["student"])  # right only where nothing was to be carried
    logps = original(state.policy, [p for p, _ in shown], Samples.of([c for _, c in shown]), 1.0)
    assert loss.item() == pytest.approx((-logps.sum() / sum(len(c) for _, c in shown)).item(), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_warm_start_shares_reach_the_view_they_are_of(monkeypatch, share):
    """All or none of the teacher's examples: in its view, citing, shown a solution. The student's never cite."""
    for name in ("warm_teacher_share", "warm_cite", "warm_solutions"):
        shares = {"warm_teacher_share": 0.5, "warm_cite": 0.0, "warm_solutions": 0.0, name: share}
        config, state, source = prepared("--warm_batch", "60", *(f"--{key}={value}" for key, value in shares.items()))
        shown = []
        original = warm_start.token_logps
        spy = lambda m, p, s, t: shown.extend(zip(p, s.completions())) or original(m, p, s, t)
        monkeypatch.setattr(warm_start, "token_logps", spy)
        warm_start.imitation_loss(state.policy, source, config, random.Random(0))
        monkeypatch.undo()
        teachers = [(prompt, tasks.decode(c)) for prompt, c in shown if tasks.REFERENCE in prompt]
        cited = [text.startswith(tasks.CITATION) for _, text in teachers]
        solutions = [tasks.encode("=")[0] in prompt for prompt, _ in teachers]
        expected = {"warm_teacher_share": len(teachers) == 60 * share}
        expected |= {"warm_cite": cited == [bool(share)] * len(cited)}
        expected |= {"warm_solutions": solutions == [bool(share)] * len(solutions)}
        assert expected[name] and (teachers or name == "warm_teacher_share")
        assert not any(tasks.CITATION in tasks.decode(c) for p, c in shown if tasks.REFERENCE not in p)


def test_warm_start_learning_rate_gradient_and_problems_step_by_step(tmp_path, monkeypatch):
    """Up over 20 steps, down to a tenth at the last one; gradients clipped to 1; every step other problems."""
    config, state, source = prepared("--warm_steps", "30", "--warm_lr", "0.5", "--warm_dir", str(tmp_path))
    rates, norms, draws = [], [], []
    step, clip, loss = torch.optim.Adam.step, torch.nn.utils.clip_grad_norm_, warm_start.imitation_loss
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n: norms.append(n) or clip(p, n))
    monkeypatch.setattr(
        warm_start, "imitation_loss", lambda m, s, c, rng: draws.append(rng.getstate()) or loss(m, s, c, rng)
    )
    warm_start.warm_start(state.policy, source, config, SimpleNamespace(signal=0))
    expected = [0.5 * min(1, n / 20) * (1 - 0.9 * n / 30) for n in range(1, 31)]
    assert rates == pytest.approx(expected) and rates[-1] == pytest.approx(0.05)
    assert norms == [1.0] * 30 and len(set(draws)) == 30


# ---- a user's mistakes: one line, exit code 2 ------------------------------------------------------------------------


def bad_data(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    return ["--data", str(path)]


@pytest.mark.parametrize(
    "args, words",
    [
        (lambda p: ["--stepz", "3"], "--stepz"),
        (lambda p: ["--fsdp", "--warm_steps", "0"], "--fsdp needs torchrun"),
        (lambda p: ["--step", "3"], "--step"),
        (lambda p: ["--steps", "many"], "--steps"),
        (lambda p: ["--steps=-1"], "--steps -1"),
        (lambda p: ["--group_size", "1"], "--group_size 1"),
        (lambda p: ["--lr", "nan"], "--lr nan"),
        (lambda p: ["--lr", "-1"], "--lr -1"),
        (lambda p: ["--temperature", "0"], "--temperature 0"),
        (lambda p: ["--rlsd_lambda", "1.5"], "--rlsd_lambda 1.5"),
        (lambda p: ["--rlsd_reweight_clip_range", "-0.1"], "--rlsd_reweight_clip_range -0.1"),
        (lambda p: ["--rlsd_reweight_clip_range", "inf"], "--rlsd_reweight_clip_range inf"),
        (lambda p: ["--hidden_size", "33"], "--hidden_size 33"),
        (lambda p: ["--method", "ppo"], "--method"),
        (lambda p: ["--method", "grpo", "--rlsd_lambda", "0.1"], "grpo"),
        (lambda p: ["--task", "addition", *bad_data(p, "")], "--data and --task"),
        (lambda p: ["--privileged_key", "rule"], "--privileged_key"),
        (lambda p: ["--bf16"], "--device cuda"),
        (lambda p: ["--task", "nothing"], "--task 'nothing' is none of addition, countdown"),
        (lambda p: ["--task", "reasoning_gym:chain_sum", "--chain", "2"], "--chain and --filler"),
        (lambda p: ["--init", "x"], "--hidden_size and --num_layers"),
        (lambda p: ["--dtype", "bfloat16"], "--dtype bfloat16 needs --init"),
        pytest.param(
            lambda p: ["--device", "cuda"],
            "no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        (lambda p: ["--verifier", "nothing"], "nothing"),
        (lambda p: ["--resume"], "--resume"),
        (lambda p: ["--seed", "9" * 30], "--seed 9999"),
        (lambda p: ["--eval_problems", "1", "--max_new_tokens", "35"], "--max_new_tokens 35"),
        (
            lambda p: (
                bad_data(p, '{"question": "a", "answer": "x"}\n{"question": "b", "answer": "twelve"}\n')
                + ["--verifier", "number"]
            ),
            "bad.jsonl:1: no completion can earn",
        ),
        (lambda p: verifier_file(p, "return True"), "returned True"),
        (lambda p: verifier_file(p, "raise ValueError('one\\ntwo')"), "one two"),
        (lambda p: ["--max_new_tokens", "10"], "--max_new_tokens 10"),
        (lambda p: ["--max_seq_len", "60"], "--max_seq_len 60"),
        (lambda p: bad_data(p, '{"question": "a"}\n'), "bad.jsonl:1: no key 'answer'"),
        (lambda p: bad_data(p, ""), "at least 2"),
        (lambda p: ["--data", str(p / "none.jsonl")], "cannot be read"),
        (
            lambda p: [
                "--privileged",
                "solution",
                *bad_data(p, '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n'),
            ],
            "no solution",
        ),
        (lambda p: verifier_file(p, "raise KeyError('oops')"), "KeyError: 'oops'"),
        (lambda p: verifier_file(p, "return 2"), "returned 2"),
        (lambda p: verifier_file(p, "return float('nan')"), "returned nan"),
        (lambda p: verifier_file(p, "return None"), "returned None"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(tmp_path, capsys, args, words):
    args = args(tmp_path)
    assert (
        train.main(
            [
                *TINY,
                "--warm_dir",
                str(tmp_path / "warm"),
                *([] if "--resume" in args else ["--out", str(tmp_path / "x")]),
                *args,
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert words in err and err.startswith("train.py: ") and err.count("\n") == 1, err


def test_a_folder_with_a_run_is_kept(tmp_path, capsys):
    assert train.main(options(tmp_path, "run", "--steps", "1")) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert train.main(options(tmp_path, "run")) == 2
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--seed", "5"]) == 2
    assert "contradicts" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}


def test_a_damaged_checkpoint_is_refused(tmp_path, capsys):
    assert train.main(options(tmp_path, "run", "--steps", "1")) == 0
    whole = (tmp_path / "run" / "last.pt").read_bytes()
    (tmp_path / "run" / "last.pt").write_bytes(whole[: len(whole) // 2])
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 2
    assert "last.pt is no checkpoint" in capsys.readouterr().err


def test_lines_behind_the_checkpoint_are_dropped_and_a_torn_one_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}}}\n' for step in range(4)]
    for text, kept in (("".join(lines), 3), ("".join(lines[:2]) + '{"step', 2), (lines[0] + '{"step": 1', 1)):
        path.write_text(text)
        files.truncate(tmp_path, 2)
        assert path.read_text() == "".join(lines[:kept])
    assert (tmp_path / "samples.jsonl").read_text() == ""  # was lost


def test_peak_memory_is_in_gibibytes(monkeypatch):
    """Of this process: more than what torch takes to be imported, less than a machine has."""
    before = console.peak_memory("cpu")
    assert 0.1 < before < 100
    block = torch.ones(2**27)  # half a GiB, written to
    assert console.peak_memory("cpu") > max(before, block.nbytes / 2**30)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert console.peak_memory("cpu") != console.peak_memory("cpu")  # nan: not told here


def test_a_second_ctrl_c_ends_at_once(monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupt = console.Interrupt()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    assert train.main([]) == 130
    err = capsys.readouterr().err
    assert "interrupted at once" in err and err.count("\n") == 1


def test_without_a_warm_start_the_weights_are_the_seeds(tmp_path):
    config, state, source = prepared("--warm_steps", "0", "--warm_dir", str(tmp_path / "warm"))
    before = [p.detach().clone() for p in state.policy.parameters()]
    warm_start.warm_start(state.policy, source, config, None)
    assert all(torch.equal(a, b) for a, b in zip(before, state.policy.parameters()))
    assert not (tmp_path / "warm").exists()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    files.save({"step": 1}, tmp_path / "last.pt")
    monkeypatch.setattr(torch, "save", lambda state, file: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        files.save({"step": 2}, tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt", weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


# ---- it learns -------------------------------------------------------------------------------------------------------


def test_it_learns(tmp_path):
    """From nothing: bytes are drawn at random, even ones are paid for, and the share of them has to rise."""
    data = tmp_path / "some.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}?", "answer": "x"}) + "\n" for i in range(20)))
    rules = verifier_file(tmp_path, "b = completion.encode(); return sum(c % 2 == 0 for c in b) / max(len(b), 1)")
    more = ["--data", str(data), *rules, "--group_size", "16", "--steps", "40", "--max_new_tokens", "8"]
    assert train.main(options(tmp_path, "run", *more)) == 0
    rewards = [row["reward"] for row in metrics(tmp_path, "run")[1:]]
    assert sum(rewards[:3]) / 3 < 0.6 and sum(rewards[-5:]) / 5 > 0.9


# ---- options reach what they name ------------------------------------------------------------------------------------


def test_options_reach_the_step(tmp_path, monkeypatch):
    """Every option of the loss, off its default, arrives where it belongs."""
    seen = {}
    loss, clip = train.rlsd_loss, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(train, "rlsd_loss", lambda *a, **k: seen.update(k) or loss(*a, **k))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n: seen.update(norm=n) or clip(p, n))
    more = [
        "--rlsd_lambda",
        "0.8",
        "--rlsd_reweight_clip_range",
        "0.3",
        "--rlsd_lambda_warmup_steps",
        "2",
        "--rlsd_lambda_decay_steps",
        "8",
        "--max_grad_norm",
        "0.7",
        "--temperature",
        "0.9",
    ]
    assert train.main(options(tmp_path, "run", *more, *verifier_file(tmp_path, SOME_REWARD))) == 0
    assert [row["lambda"] for row in metrics(tmp_path, "run")[1:]] == pytest.approx([0.4, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert seen["eps_w"] == 0.3 and seen["norm"] == 0.7


def test_the_privileged_text_is_the_one_asked_for(tmp_path):
    """A text of the problem's own is shown as it is, even where it is the name of another choice."""
    for more, own, text in (
        ([], None, "a"),
        (["--privileged", "solution"], None, "worked"),
        (["--data", "x", "--privileged_key", "k"], "answer", "answer"),
    ):
        problem = Problem("q", "a", "worked", own)
        config = train.parse_config([*TINY, *more])
        assert tasks.teacher_view(problem, config.privileged) == tasks.prompt(problem, text)


def test_evaluation_pairs_completions_with_their_problems(monkeypatch):
    """At temperature 1 and greedy whatever the rollout's; the teacher's in the view that --privileged says."""
    config, state, source = prepared("--temperature", "0.6", "--privileged", "solution")
    problems = [Problem(f"{n}+{n}", str(2 * n), f"so {n}") for n in (1, 2, 3, 5)]
    source = tasks.Source(None, problems, problems, "number", None)
    said = {1.0: ["2", "5", f"{tasks.CITATION} 6\n#### 6", "10"], 0.0: ["2", "1", "1", "1"]}
    asked = []

    def stub(model, prompts, *, group_size, temperature, generator, **rest):
        asked.append((model, prompts, group_size, generator.initial_seed()))
        return Samples.of([tasks.encode(text) + [END] for text in said[temperature]])

    monkeypatch.setattr(evaluation, "sample", stub)
    judged, number = [], verifiers.load("number")
    scores = evaluation.evaluate(state.policy, source, lambda *x: judged.append(x) or number(*x), config)
    assert judged == [pair for texts in said.values() for pair in zip(texts, [p.answer for p in problems])]
    assert scores == {"pass@1": 0.75, "greedy": 0.25, "leakage": 0.25}
    assert asked == [(state.policy, [student_prompt(p) for p in problems], 1, 0)] * 2
    assert evaluation.evaluate_teacher(state.policy, source, verifiers.load("number"), config) == {
        "teacher pass@1": 0.75
    }
    assert asked[2][1] == [teacher_prompt(p, "solution") for p in problems]


def test_credited_samples_are_the_best_and_the_worst_of_the_first_group_with_spread():
    config, state, source = prepared(
        "--prompts_per_step", "4", "--rlsd_reweight_clip_range", "0.3", "--temperature", "0.9"
    )
    with torch.no_grad():
        for p in state.teacher.parameters():
            p.mul_(1.1)
    rewards = [1, 1, 1, 1, 0.5, 1, 0, 0.5, 1, 0, 0, 0, 0, 0, 0, 0]
    answers = iter(rewards)
    batch = train.rollout(state.policy, source, lambda c, a: float(next(answers)), config, 1)
    logps = token_logps(state.policy, [student_prompt(p) for p in batch.problems], batch.samples, 0.9).detach()
    by_teacher = token_logps(state.teacher, [teacher_prompt(p) for p in batch.problems], batch.samples, 0.9).detach()
    for lam, teacher in ((0.6, state.teacher), (0.0, None)):
        shown = evaluation.credited_samples(state.policy, teacher, batch, config, lam)
        credit = token_advantages(batch.advantages, by_teacher, logps, batch.samples.mask, lam, 0.3)
        for row, i in zip(shown, (5, 6), strict=True):
            tokens = batch.samples.completions()[i]
            assert row["question"] == batch.problems[i].question and row["reward"] == rewards[i]
            assert row["completion"] == tasks.decode(tokens) and len(row["tokens"]) == len(tokens)
            assert row["tokens"] == [tasks.TOKENIZER.decode([t]) for t in tokens]
            assert row["credit"] == pytest.approx(credit[i, : len(tokens)].tolist(), abs=1e-4)
            assert all(c == round(c, 4) for c in row["credit"])
    batch.advantages = torch.zeros(16)
    shown = evaluation.credited_samples(state.policy, state.teacher, batch, config, 0.5)
    for row, i in zip(shown, (0, 1), strict=True):  # as they are, without credit
        assert row.keys() == {"question", "completion", "reward"} and row["reward"] == rewards[i]
        assert row["completion"] == tasks.decode(batch.samples.completions()[i])


def test_figures_of_a_rollout_by_hand():
    config, _, _ = prepared()
    samples = Samples.of([[1, 2, 3], [4], [5, 6], [7], *[[8, 9]] * 4])
    samples.logps = torch.where(samples.mask, -0.5, -9.0)
    samples.logps[0, 0] = -2.5
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1])
    batch = train.Rollout([None] * 8, samples, rewards, group_advantages(rewards, 4))
    assert describe(batch, config) == pytest.approx(
        {"reward": 5 / 8, "length": 15 / 8, "entropy": (2.5 + 14 * 0.5) / 15, "no_spread": 0.5}
    )


def test_the_best_policy_is_kept_from_the_start(tmp_path):
    """A verifier that pays only at first (20 targets of the warm start, 10 problems): best.pt stays that of step 0."""
    counter = tmp_path / "count"
    body = (
        f"import pathlib; p = pathlib.Path({str(counter)!r}); n = len(p.read_text()) if p.exists() else 0; "
        "p.write_text('x' * (n + 1)); return 1.0 if n < 30 else n % 2 / 2"
    )
    assert train.main(options(tmp_path, "run", *verifier_file(tmp_path, body), "--steps", "3")) == 0
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert train.main(again(tmp_path / "run", "--steps", "6")) == 0
    state = checkpoint(tmp_path, "run")
    assert state["best"] == metrics(tmp_path, "run")[0]["pass@1"] > metrics(tmp_path, "run")[3]["pass@1"]
    assert same_state(best, torch.load(tmp_path / "run" / "best.pt", weights_only=True))
    assert not same_state(best, state["model"])


@pytest.mark.parametrize(
    "rows, best",
    [
        ([{"pass@1": 0.0}, {"pass@1": 0.5}, {"pass@1": 0.25}, {}], (1, 0.5)),
        ([{"pass@1": 0.5}, {"pass@1": 0.5}, {}, {"pass@1": 0.4}], (1, 0.5)),  # of equals the last
        ([{"pass@1": math.nan}, {}, {"pass@1": math.nan}], (0, -1.0)),  # not one reward: the first
        ([{}, {"pass@1": None}, {"pass@1": 0.0}, {"pass@1": math.nan}], (2, 0.0)),
        ([{"pass@1": 0.5, "held-out reward": 0.5}, {"pass@1": 0.4, "held-out reward": 0.6}], (1, 0.6)),
    ],
)
def test_the_best_policy_of_any_row_of_scores(tmp_path, monkeypatch, rows, best):
    """best.pt is there from the first row on, and never of an update that last.pt has not made."""
    config, state, _ = prepared()
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: written.append(Path(b).name) or replace(a, b))
    for state.step, row in enumerate(rows):
        with torch.no_grad():
            state.policy.norm.weight.fill_(state.step)
        state.keep(row, tmp_path, config, due=False)
        assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] >= state.best_step
    assert (state.best_step, state.best) == best
    assert torch.load(tmp_path / "best.pt", weights_only=True)["norm.weight"][0] == best[0]
    assert written == ["last.pt", "best.pt"] * (len(written) // 2)


@pytest.mark.parametrize("which", ["best", "last"])
def test_what_is_exported_is_said_and_update_0_is_warned_of(tmp_path, monkeypatch, capsys, which):
    config, state, _ = prepared()
    config.init, config.export, exported = "folder", which, []
    keep = lambda model, out, init, words: exported.append(model.norm.weight[0].item())
    monkeypatch.setattr("published.weights.save", keep)
    monkeypatch.setattr("harness.checkpoint.served", lambda words, init: {})
    for state.step, score, best in ((0, 0.75, 0), (1, 0.5, 0), (2, 0.75, 2), (3, math.nan, 2)):
        with torch.no_grad():
            state.policy.norm.weight.fill_(state.step)
        state.keep({"pass@1": score}, tmp_path, config, due=True)
        kept = state.policy.norm.weight.clone()
        export(state, config, tmp_path)
        said = capsys.readouterr().out
        assert f"best.pt: the policy after update {best}, held-out score 0.750\n" in said
        assert f"{which}.pt as a folder for transformers and --init: {tmp_path / 'model'}" in said
        assert ("the policy before RL" in said) == (state.step == 1)
        assert exported[-1] == (best if which == "best" else state.step)
        with torch.no_grad():
            state.policy.norm.weight.copy_(kept)
    state.best = -1.0
    export(state, dataclasses.replace(config, init=""), tmp_path)
    assert "no reward" in capsys.readouterr().out and len(exported) == 4


def test_a_damaged_warm_start_is_made_anew(tmp_path):
    assert train.main(options(tmp_path, "a", "--steps", "1")) == 0
    (kept,) = (tmp_path / "warm").glob("*.pt")
    kept.write_bytes(kept.read_bytes()[:100])
    assert train.main(options(tmp_path, "b", "--steps", "1")) == 0
    assert metrics(tmp_path, "a") == metrics(tmp_path, "b")


def test_a_changed_data_file_or_configuration_is_not_resumed(tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    rows = [json.dumps({"question": f"{i}?", "answer": "x"}) for i in range(20)]
    data.write_text("\n".join(rows))
    assert train.main(options(tmp_path, "run", "--data", str(data), "--steps", "1")) == 0
    data.write_text("\n".join(reversed(rows)))
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 2
    assert "has changed" in capsys.readouterr().err
    for text in ("{", "[]", '{"fingerprint": "x", "colour": 1}', '{"fingerprint": "x", "lr": "big"}', "{}"):
        (tmp_path / "run" / "config.json").write_text(text)
        assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert "config.json is no configuration" in err and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_warm_start_says_so(tmp_path, number):
    args = [sys.executable, "-u", str(ROOT / "train.py"), *options(tmp_path, "cut", "--warm_steps", "100000")]
    process = subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for line in process.stdout:
        if line.startswith("warm start: step="):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "interrupted in the warm start" in out and not err
    assert train.main(options(tmp_path, "cut")) == 0  # nothing was begun that could be in the way


@pytest.mark.parametrize("name", ["--out", "--warm_dir"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, capsys, name):
    (tmp_path / "file").write_text("")
    args = [*options(tmp_path, "run"), name, str(tmp_path / "file" / "below")]
    assert train.main(args) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "file") in err and err.count("\n") == 1
