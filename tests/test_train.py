import copy
import dataclasses
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
from unittest.mock import Mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from noted import noted
from small_runs import ROOT, again, figures, lines, load, options, refused, same, sharp_state, until

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
from support import processes
from support.micro_batches import micro_batches
from tasks import END, Problem, student_prompt, teacher_prompt

pytestmark = pytest.mark.usefixtures("own_signals", "no_picture")


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_checkpoints_come_every_save_every_updates_and_at_the_end(tmp_path, monkeypatch):
    saved = noted(monkeypatch, State, "save", lambda self, *_: self.step)
    assert train.main(options(tmp_path, "run", "--steps 5 --save_every 2 --eval_every 3", rule="0.0")) == 0
    assert saved == [0, 2, 3, 4, 5]  # and at 3 for a best.pt of it


def test_the_end_tells_first_and_last_evaluation_and_the_seconds_in_between(tmp_path, capsys):
    """And that the last updates were not evaluated: what is exported may be the weights of before them."""
    rows = ['{"step": 0, "pass@1": 0.25, "greedy": 0.5}', '{"step": 1, "seconds": 10.0}']
    rows += ['{"step": 2, "seconds": 5.0, "pass@1": 0.75, "greedy": 1.0}', '{"step": 3, "seconds": 100.0}']
    for made in (4, 3):
        (tmp_path / "metrics.jsonl").write_text("\n".join(rows[:made]) + "\n")
        console.finish(tmp_path)
        out = capsys.readouterr().out
        assert "held-out pass@1 0.250 -> 0.750, greedy 0.500 -> 1.000 in 2 updates (15 s)\n" in out
        assert ("since update 2, no evaluation was due (--eval_every)\n" in out) == (made == 4)


def test_a_run_leaves_its_files(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # a picture, too
    schedule = "--rlsd_lambda 0.8 --rlsd_lambda_warmup_steps 2 --rlsd_lambda_decay_steps 8"
    assert train.main(options(tmp_path, "run", schedule)) == 0
    run = tmp_path / "run"
    files = {path.name for path in run.iterdir()} - {"curves.png"}
    assert files == {"config.json", "metrics.jsonl", "samples.jsonl", "last.pt", "best.pt"}
    rows = figures(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows if "pass@1" in row and "greedy" in row] == [0, 2, 4]
    assert [row["lambda"] for row in rows[1:]] == pytest.approx([0.4, 0.8, 0.7, 0.6])
    printed = capsys.readouterr().out
    names = "step reward length entropy no_spread grad_norm lambda weight clipped_low clipped_high tokens/s"
    for name in names.split():
        assert len(re.findall(rf"\b{name}=\S+", printed)) >= 4, name
    shown = lines(run / "samples.jsonl")
    assert [row["step"] for row in shown] == [2, 2, 4, 4]
    for row in shown:
        assert len(row["tokens"]) == len(row["credit"]) and {"question", "completion", "reward"} <= row.keys()
        assert all((c > 0) == (row["credit"][0] > 0) for c in row["credit"])
    assert load(run / "best.pt").keys() == load(run / "last.pt")["model"].keys()


@pytest.mark.parametrize("method", ["rlsd --rlsd_teacher_sync_interval 2", "grpo", "opsd", "sdpo", "grpo+opsd"])
def test_resumed_equals_never_stopped(tmp_path, capsys, method):
    more = f"--method {method} --steps 6 --eval_every 3"
    assert train.main(options(tmp_path, "whole", more)) == 0
    assert train.main(options(tmp_path, "parts", more, "--steps 4")) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # lines and samples of steps after the checkpoint, as a kill in between leaves them, the last one torn
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (parts / name).open("a") as file:
            file.write('{"step": 5}\n{"step": 6, "rew')
    refused(capsys, again(parts, "--steps 3"), "has already made 4")
    assert train.main(again(parts)) == 0  # nothing left to do, and the refused option left no trace
    assert train.main(again(parts, "--steps 6")) == 0
    assert load(whole / "last.pt")["step"] == 6 and same(load(whole / "last.pt"), load(parts / "last.pt"))
    assert figures(whole) == figures(parts)
    assert (whole / "samples.jsonl").read_text() == (parts / "samples.jsonl").read_text()


def test_a_signal_ends_the_program_cleanly(tmp_path):
    args = options(tmp_path, "cut", "--warm_steps 100000")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-u", ROOT / "train.py", *args], **pipes)
    until(process, "warm start: step=")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "interrupted in the warm start" in out and not err


# ---- the step, taken apart -------------------------------------------------------------------------------------------


def prepared(*more):
    config, state = sharp_state(*more)
    train.move(state.teacher, state.policy, 1.0)
    return config, state, tasks.generated("addition", 5)


def batch_of(state, source, config, *rewards):
    given = iter(rewards)
    return train.rollout(state.policy, source, lambda c, a: float(next(given)), config, 1)


def test_model_and_optimizer_are_as_asked_for(monkeypatch):
    """With the highest seed, too: torch takes it. A published model may be just as large as it has to be."""
    seed = Config.__dataclass_fields__["seed"].metadata["high"]
    state = State(Config(hidden_size=256, num_layers=3, max_seq_len=200, lr=0.003, seed=seed))
    size, asked = state.policy.config, {"lr": 0.003, "betas": (0.9, 0.99), "weight_decay": 0}
    assert (size.vocab_size, size.hidden_size, size.intermediate_size, size.num_layers) == (262, 256, 768, 3)
    assert (size.num_heads, size.num_kv_heads, size.head_dim, size.max_seq_len) == (16, 8, 16, 200)
    assert type(state.optimizer) is torch.optim.Adam and asked.items() <= state.optimizer.defaults.items()
    monkeypatch.setattr("published.weights.load", lambda *_: state.policy)  # as many tokens as the tokenizer has
    assert build_model(Config(init="folder", max_seq_len=200)) is state.policy


def test_the_defaults_are_those_of_the_recorded_run():
    """Of python train.py, without an option: steps, evaluations, held-out problems, samples and lambda."""
    rows, config = lines(ROOT / "results" / "make_train" / "rlsd.jsonl"), Config()
    assert [row["step"] for row in rows] == list(range(config.steps + 1))
    scores = {row["step"]: row["pass@1"] * config.eval_problems for row in rows if "pass@1" in row}
    assert list(scores) == list(range(0, config.steps + 1, config.eval_every))
    assert all(right == pytest.approx(round(right)) for right in scores.values())
    for row in rows[1:]:
        samples = row["tokens/s"] * row["seconds"] / row["length"]
        assert samples == pytest.approx(config.prompts_per_step * config.group_size)
        assert row["lambda"] == pytest.approx(0.5 * max(0, 1 - row["step"] / config.rlsd_lambda_decay_steps))


def test_rollout_keeps_each_question_with_its_own_group(monkeypatch):
    """The verifier is called once a sample, with that problem's own answer; also where all completions are alike."""
    config, state, source = prepared()
    monkeypatch.setattr(rollout, "sample", lambda *args, **how: Samples.of([[END]] * 8))
    seen, rule = [], lambda *pair: seen.append(pair) or float(len(seen) % 3 == 0)
    batch = train.rollout(state.policy, source, rule, config, 1)
    assert seen == [("", problem.answer) for problem in batch.problems]
    assert all(len({p.question for p in batch.problems[i : i + 4]}) == 1 for i in (0, 4))
    assert batch.problems[0] != batch.problems[4]
    assert batch.rewards.tolist() == [0, 0, 1, 0, 0, 1, 0, 0]
    assert torch.equal(batch.advantages, group_advantages(batch.rewards, 4))


def test_the_largest_seed_of_torchs_may_be_asked_for():
    assert train.parse_config(f"--seed {2**63 - 1} --warm_seed {2**63 - 1}".split()).warm_seed == 2**63 - 1


def test_equal_questions_stay_two_groups():
    """Two copies of one question: each group is standardised by itself (mistake 12: keyed by text they would merge)."""
    config, state, _ = prepared()
    twice = tasks.Source(lambda rng, n: [Problem("1+1", "2")] * n, [], [], "number", None)
    batch = batch_of(state, twice, config, 1, 0, 0, 0, 1, 1, 1, 0)
    assert torch.allclose(batch.advantages, torch.tensor([1.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -1.5]), atol=1e-4)


def test_a_well_formatted_wrong_answer_earns_nothing():
    """Mistake 13: the reward is the verifier's and nothing else's."""
    problem = Problem("1111+2222", "3333")
    wrong = tasks.target(Problem(problem.question, "3334", "1+2=3\n1+2=3\n1+2=3\n1+2=3"))
    samples = Samples.of([wrong, tasks.target(problem)])
    assert rollout.verify(verifiers.load("number"), samples, [problem, problem], Config()) == [0.0, 1.0]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=20),
    st.sampled_from([0, 0, 1, 3]),
    st.one_of(st.just(0), st.integers(20, 250)),
    st.sampled_from(["rlsd", "grpo"]),
)
@example([(10, 1, 10)] * 3, 0, 43, "grpo")  # two rows hold 2 x (12 + 10)
@example([(10, 1, 10)] * 3, 0, 44, "grpo")
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


def test_with_fsdp_there_are_as_many_parts_as_anywhere_and_two_tokens_in_each(monkeypatch):
    """Where there are fewer: on pads alone, of which no loss is made."""
    completions = [[5], [5, 6, 7], [8, 9]]
    batch = train.Rollout([Problem("q", "a")] * 3, Samples.of(completions), torch.zeros(3), torch.zeros(3))
    monkeypatch.setattr(processes, "most", lambda mine: mine + 2)
    parts = rollout.parts_of(batch, torch.arange(3), Config(fsdp=True, micro_batch=1))
    masks = [[[True, False]], [[True] * 3], [[True] * 2], *[[[False] * 2]] * 2]
    assert [part.samples.mask.tolist() for part in parts] == masks
    assert [part.samples.tokens[part.samples.mask].tolist() for part in parts[:3]] == completions
    assert all(part.samples.logps.shape == part.samples.tokens.shape == part.samples.mask.shape for part in parts)


def test_a_budget_of_tokens_also_bounds_what_an_evaluation_holds(monkeypatch):
    config, state, source = prepared("--micro_tokens", "100")
    seen = noted(monkeypatch, evaluation, "sample", lambda *_, at_once, **how: at_once)
    for config.micro_tokens in (100, 0):
        evaluation.evaluate(state.policy, source, verifiers.load("number"), config)
    assert seen == [8, 8, 0, 0]
    assert not evaluation.held_out_samples(state.policy, [], config, 1.0).completions()  # a process without problems


def test_samples_without_advantage_are_not_scored(monkeypatch):
    config, state, source = prepared()
    batch = batch_of(state, source, config, 1, 1, 1, 1, 0, 1, 0, 1)
    scored = noted(monkeypatch, rollout, "token_logps", lambda model, prompts, *_: len(prompts))
    for lam in (0.5, 0.0):  # at lambda 0 the teacher is not asked
        train.update(state.policy, state.teacher, state.optimizer, batch, config, lam)
    assert scored == [4, 4, 4]


@pytest.mark.parametrize("method, rewards", [("rlsd", [1] * 8), ("sdpo", [0.5, 0] * 4)])  # nobody is right
def test_no_spread_anywhere_moves_nothing(method, rewards):
    config, state, source = prepared("--method", method)
    batch, before = batch_of(state, source, config, *rewards), copy.deepcopy(state.policy.state_dict())
    metrics = train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)
    shown = {"weight", *["abs_advantage", "abs_token_advantage"] * (method == "sdpo")}
    assert metrics["weight"] == 1 and {name for name, value in metrics.items() if value} == shown
    assert same(before, state.policy.state_dict())


def imitated(monkeypatch, *more):
    """Prompts and completions of a step of the warm start, whether each shows a reference; policy and loss."""
    config, state, source = prepared(*more)
    with monkeypatch.context() as inner:
        shown = noted(inner, warm_start, "token_logps", lambda model, prompts, s, _: zip(prompts, s.completions()))
        loss = warm_start.imitation_loss(state.policy, source, config, random.Random(0))
    return [(p, c, tasks.REFERENCE in p) for scored in shown for p, c in scored], state.policy, loss


def test_warm_start_teaches_both_views_and_stopping(monkeypatch):
    more = ("--warm_batch", "200", "--warm_slip", "1", "--warm_teacher_slip", "0.5")
    shown, policy, loss = imitated(monkeypatch, *more)
    right = {True: [], False: []}
    for prompt, completion, teachers in shown:
        question, _, reference = tasks.decode(prompt[1:-1]).partition(tasks.ROLES[1])
        a, b = map(int, question.split("+"))
        text = tasks.decode(completion)
        assert completion[-1] == END
        assert not teachers or text.endswith(f"#### {reference}")  # slips included, it leads to what is shown
        assert tasks.CITATION not in text  # unless it is asked for
        right[teachers].append(text.endswith(f"#### {a + b}"))
    assert 60 < len(right[True]) < 140
    assert 0.1 < sum(right[True]) / len(right[True]) < 0.7  # so a reference says more than that it is there
    assert 0 < sum(right[False]) < 0.5 * len(right[False])  # right only where nothing was to be carried
    prompts, completions, _ = zip(*shown)
    logps = token_logps(policy, list(prompts), Samples.of(completions), 1.0)
    assert loss.item() == pytest.approx(-logps.sum().item() / sum(map(len, completions)), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", ["warm_teacher_share", "warm_cite", "warm_solutions"])
def test_warm_start_shares_reach_the_view_they_are_of(monkeypatch, name, share):
    """All or none of the teacher's examples: in its view, citing, shown a solution. The student's never cite."""
    shares = {"warm_teacher_share": 0.5, "warm_cite": 0.0, "warm_solutions": 0.0, name: share}
    shown, *_ = imitated(monkeypatch, "--warm_batch", "60", *(f"--{key}={value}" for key, value in shares.items()))
    teachers = [(prompt, tasks.decode(c)) for prompt, c, reference in shown if reference]
    found = {"warm_cite": [text.startswith(tasks.CITATION) for _, text in teachers]}
    found |= {"warm_solutions": [tasks.encode("=")[0] in prompt for prompt, _ in teachers]}
    found |= {"warm_teacher_share": [reference for *_, reference in shown]}
    assert found[name] == [bool(share)] * len(found[name]) != []
    assert not any(tasks.CITATION in tasks.decode(c) for _, c, reference in shown if not reference)


def test_warm_start_learning_rate_gradient_and_problems_step_by_step(tmp_path, monkeypatch):
    """Up over 20 steps, down to a tenth at the last one; gradients clipped to 1; every step other problems."""
    config, state, source = prepared("--warm_steps", "30", "--warm_lr", "0.5", "--warm_dir", str(tmp_path))
    rates = noted(monkeypatch, torch.optim.Adam, "step", lambda self: self.param_groups[0]["lr"])
    norms = noted(monkeypatch, torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: norm)
    draws = noted(monkeypatch, warm_start, "imitation_loss", lambda model, source, config, rng: rng.getstate())
    warm_start.warm_start(state.policy, source, config, SimpleNamespace(signal=0))
    expected = [0.5 * min(1, n / 20) * (1 - 0.9 * n / 30) for n in range(1, 31)]
    assert rates == pytest.approx(expected) and rates[-1] == pytest.approx(0.05)
    assert norms == [1.0] * 30 and len(set(draws)) == 30


# ---- around a run ----------------------------------------------------------------------------------------------------


def test_peak_memory_is_in_gibibytes(monkeypatch):
    """Of this process: more than what torch takes to be imported, less than a machine has."""
    before = console.peak_memory("cpu")
    assert 0.1 < before < 100
    block = torch.ones(2**27)  # half a GiB, written to
    assert console.peak_memory("cpu") > max(before, block.nbytes / 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    assert console.peak_memory("cuda") == 3
    for system, unit in (("linux", 2**20), ("darwin", 2**30)):  # KiB and bytes
        monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * unit))
        monkeypatch.setattr(sys, "platform", system)
        assert console.peak_memory("cpu") == 3
    monkeypatch.setitem(sys.modules, "resource", None)
    assert console.peak_memory("cpu") != console.peak_memory("cpu")  # nan: not told here


def test_a_second_ctrl_c_ends_at_once(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # which is told so at the first one, beside the log
    interrupt = console.Interrupt()
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.signal == signal.SIGINT
    assert capfd.readouterr() == ("", "ending after this step; Ctrl-C again ends at once\n")
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    monkeypatch.setattr(train, "train", Mock(side_effect=KeyboardInterrupt))
    assert train.main([]) == 130
    err = capfd.readouterr().err
    assert "interrupted at once" in err and err.count("\n") == 1


def test_without_a_warm_start_the_weights_are_the_seeds(tmp_path):
    config, state, source = prepared("--warm_steps", "0", "--warm_dir", str(tmp_path / "warm"))
    before = copy.deepcopy(state.policy.state_dict())
    warm_start.warm_start(state.policy, source, config, None)
    assert same(before, state.policy.state_dict()) and not (tmp_path / "warm").exists()


# ---- options reach what they name ------------------------------------------------------------------------------------


def test_evaluation_pairs_completions_with_their_problems(monkeypatch):
    """At temperature 1 and greedy whatever the rollout's; the teacher's in the view that --privileged says."""
    config, state, _ = prepared("--temperature", "0.6", "--privileged", "solution")
    problems = [Problem(f"{n}+{n}", str(2 * n), f"so {n}") for n in (1, 2, 3, 5)]
    source = tasks.Source(None, problems, problems, "number", None)
    said = {1.0: ["2", "5", f"{tasks.CITATION} 6\n#### 6", "10"], 0.0: ["2", "1", "1", "1"]}
    asked, judged, number = [], [], verifiers.load("number")

    def stub(model, prompts, *, group_size, temperature, generator, **rest):
        asked.append((model, prompts, group_size, generator.initial_seed()))
        return Samples.of([tasks.encode(text) + [END] for text in said[temperature]])

    monkeypatch.setattr(evaluation, "sample", stub)
    scores = evaluation.evaluate(state.policy, source, lambda *x: judged.append(x) or number(*x), config)
    assert judged == [pair for texts in said.values() for pair in zip(texts, [p.answer for p in problems])]
    assert scores == {"pass@1": 0.75, "greedy": 0.25, "leakage": 0.25}
    assert asked == [(state.policy, [student_prompt(p) for p in problems], 1, 0)] * 2
    assert evaluation.evaluate_teacher(state.policy, source, number, config) == {"teacher pass@1": 0.75}
    assert asked[2][1] == [teacher_prompt(p, "solution") for p in problems]


def test_credited_samples_are_the_best_and_the_worst_of_the_first_group_with_spread():
    more = "--prompts_per_step 4 --rlsd_reweight_clip_range 0.3 --temperature 0.9"
    config, state, source = prepared(*more.split())
    with torch.no_grad():
        for p in state.teacher.parameters():
            p.mul_(1.1)
    rewards = [1, 1, 1, 1, 0.5, 1, 0, 0.5, 1, 0, 0, 0, 0, 0, 0, 0]
    batch = batch_of(state, source, config, *rewards)
    texts = batch.samples.completions()
    scored = lambda model, view: token_logps(model, [view(p) for p in batch.problems], batch.samples, 0.9).detach()
    logps, by_teacher = scored(state.policy, student_prompt), scored(state.teacher, teacher_prompt)
    for lam, teacher in ((0.6, state.teacher), (0.0, None)):
        shown = evaluation.credited_samples(state.policy, teacher, batch, config, lam)
        credit = token_advantages(batch.advantages, by_teacher, logps, batch.samples.mask, lam, 0.3)
        for row, i in zip(shown, (5, 6), strict=True):
            assert row["question"] == batch.problems[i].question and row["reward"] == rewards[i]
            assert row["completion"] == tasks.decode(texts[i])
            assert row["tokens"] == [tasks.TOKENIZER.decode([t]) for t in texts[i]]
            assert row["credit"] == pytest.approx(credit[i, : len(texts[i])].tolist(), abs=1e-4)
            assert all(c == round(c, 4) for c in row["credit"])
    batch.advantages = torch.zeros(16)
    shown = evaluation.credited_samples(state.policy, state.teacher, batch, config, 0.5)
    for row, i in zip(shown, (0, 1), strict=True):  # as they are, without credit
        question, text = batch.problems[i].question, tasks.decode(texts[i])
        assert row == {"question": question, "completion": text, "reward": rewards[i]}


def test_figures_of_a_rollout_by_hand():
    samples = Samples.of([[1, 2, 3], [4], [5, 6], [7], *[[8, 9]] * 4])
    samples.logps = torch.where(samples.mask, -0.5, -9.0)
    samples.logps[0, 0] = -2.5
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1])
    batch = train.Rollout([None] * 8, samples, rewards, group_advantages(rewards, 4))
    figures = {"reward": 5 / 8, "length": 15 / 8, "entropy": (2.5 + 14 * 0.5) / 15, "no_spread": 0.5}
    assert describe(batch, Config(group_size=4)) == pytest.approx(figures)


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
    written = noted(monkeypatch, os, "replace", lambda half, whole: Path(whole).name)
    for state.step, row in enumerate(rows):
        with torch.no_grad():
            state.policy.norm.weight.fill_(state.step)
        state.keep(row, tmp_path, config, due=False)
        assert load(tmp_path / "last.pt")["step"] >= state.best_step
    assert (state.best_step, state.best) == best
    assert load(tmp_path / "best.pt")["norm.weight"][0] == best[0]
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
