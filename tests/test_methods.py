import dataclasses
import math

import pytest
import torch
from test_train import TINY, checkpoint, metrics, options, same_state, sharp_state, verifier_file

import rollout
import tasks
import train
from baselines import losses, methods, readings
from credit.tokens import right_and_wrong
from harness.checkpoint import State
from harness.models import build_model
from model import Samples
from rlsd import group_advantages
from support.micro_batches import longest_view
from tasks import Problem, prompt, student_prompt, teacher_prompt

HALF = "return float(sum(map(ord, completion)) % 2)"


def prepared(*more):
    config, state = sharp_state(*more)
    if state.teacher is not None:
        with torch.no_grad():
            for p, q in zip(state.teacher.parameters(), state.policy.parameters()):
                p.copy_(1.05 * q)
    batch = train.rollout(
        state.policy, tasks.generated("addition", 5), lambda c, a: float(sum(map(ord, c)) % 2), config, 1
    )
    return config, state, batch


@pytest.mark.parametrize("method", ["opsd", "sdpo", "grpo+opsd"])
def test_every_method_runs_resumes_and_repeats(tmp_path, method):
    more = ["--method", method, *verifier_file(tmp_path, HALF)]
    args = [*TINY, *more, "--warm_dir", str(tmp_path / "warm"), "--out"]
    assert train.main([*args, str(tmp_path / "whole")]) == 0
    assert train.main([*args, str(tmp_path / "parts"), "--steps", "4"]) == 0
    assert train.main(["--resume", "--out", str(tmp_path / "parts"), "--steps", "6", *more[2:]]) == 0
    assert metrics(tmp_path, "whole") == metrics(tmp_path, "parts")
    assert same_state(checkpoint(tmp_path, "whole"), checkpoint(tmp_path, "parts"))


def test_opd_takes_its_teacher_from_another_run(tmp_path, capsys):
    assert train.main(options(tmp_path, "big", "--hidden_size", "96", method="grpo")) == 0
    args = [*TINY, "--method", "opd", "--warm_dir", str(tmp_path / "warm")]
    assert train.main([*args, "--opd_teacher", str(tmp_path / "big"), "--out", str(tmp_path / "run")]) == 0
    best = torch.load(tmp_path / "big" / "best.pt", weights_only=True)
    assert same_state(dict(checkpoint(tmp_path, "run")["teacher"]), dict(best))  # and it stays what it was
    capsys.readouterr()
    for more in (["--opd_teacher", str(tmp_path / "none")], []):
        assert train.main([*args, *more, "--out", str(tmp_path / "x")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("method, expected", [("opsd", "initial"), ("grpo+opsd", "initial"), ("sdpo", "average")])
def test_the_teachers_weights_follow_their_rule(method, expected):
    config, state, batch = prepared("--method", method, *(["--sdpo_ema", "0.25"] if method == "sdpo" else []))
    train.move(state.teacher, state.policy, 1.0)
    initial = [p.detach().clone() for p in state.policy.parameters()]
    batch.hints = ["1"] * len(batch.problems)
    for step in (1, 2):
        assert train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.0)["grad_norm"] > 0
        policy = [p.detach().clone() for p in state.policy.parameters()]
        before = [p.detach().clone() for p in state.teacher.parameters()]
        train.sync(state.teacher, state.policy, step, config)
        for t, b, p, i in zip(state.teacher.parameters(), before, policy, initial):
            assert torch.allclose(t, i if expected == "initial" else 0.75 * b + 0.25 * p, atol=1e-7)


@pytest.mark.parametrize("interval, changes", [("0", []), ("1", [1, 2, 3, 4]), ("2", [2, 4])])
def test_frozen_live_and_synced_teachers(interval, changes):
    config, state, _ = prepared("--rlsd_teacher_sync_interval", interval)
    changed = []
    for step in range(1, 5):
        with torch.no_grad():
            for p in state.policy.parameters():
                p.add_(1.0)
        before = next(state.teacher.parameters()).detach().clone()
        train.sync(state.teacher, state.policy, step, config)
        now = next(state.teacher.parameters())
        if not torch.equal(now, before):
            assert torch.equal(now, next(state.policy.parameters()))
            changed.append(step)
    assert changed == changes


def spied(monkeypatch, room, name):
    calls = []
    original = getattr(room, name)
    monkeypatch.setattr(room, name, lambda *a, **k: calls.append((a, k)) or original(*a, **k))
    return calls


@pytest.mark.parametrize("method", ["opsd", "grpo+opsd"])
def test_distillation_compares_the_two_views_at_every_token(monkeypatch, method):
    config, state, batch = prepared("--method", method, "--temperature", "0.8", "--opsd_beta", "0.25")
    calls = spied(monkeypatch, losses, "opsd_loss")
    train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.0)
    (student, teacher, tokens, beta), _ = calls[0]
    assert len(student) == len(teacher) == int(batch.samples.mask.sum()) == int(tokens) and beta == 0.25
    assert student.requires_grad and not teacher.requires_grad
    # the logits at a sampled token are those that its log-probability comes from
    sampled = student.log_softmax(-1).gather(1, batch.samples.tokens[batch.samples.mask][:, None])[:, 0]
    assert torch.allclose(sampled, batch.samples.logps[batch.samples.mask], atol=1e-4)
    by_teacher = rollout.score(state.teacher, batch, config, teacher_prompt)[batch.samples.mask]
    sampled = teacher.log_softmax(-1).gather(1, batch.samples.tokens[batch.samples.mask][:, None])[:, 0]
    assert torch.allclose(sampled, by_teacher, atol=1e-4)


def test_opd_shows_its_teacher_the_question_alone_and_takes_the_reverse_kl(monkeypatch):
    config, _, batch = prepared()
    config.method = "opd"
    torch.manual_seed(3)
    model, teacher = build_model(config), build_model(dataclasses.replace(config, seed=7))
    prompts = []
    original = methods.logits
    monkeypatch.setattr(methods, "logits", lambda m, p, s, t: prompts.append((m, p)) or original(m, p, s, t))
    loss, _ = train.loss_of(model, teacher, batch, config, 0.0, batch.samples.mask.sum())
    students = [student_prompt(p) for p in batch.problems]
    assert prompts == [(teacher, students), (model, students)]
    S, T = (original(m, students, batch.samples, 1.0).log_softmax(-1) for m in (model, teacher))
    assert loss.item() == pytest.approx((S.exp() * (S - T)).sum(-1).mean().item(), rel=1e-4)


def test_sdpo_uses_the_bucketed_divergence(monkeypatch):
    config, state, batch = prepared("--method", "sdpo", "--opsd_beta", "0.25")
    batch.hints = ["#### 1"] * len(batch.problems)
    calls = spied(monkeypatch, losses, "sdpo_loss")
    loss, _ = train.loss_of(state.policy, state.teacher, batch, config, 0.0, torch.tensor(10.0))
    (student, teacher, tokens, beta), _ = calls[0]
    assert (tokens.item(), beta) == (10.0, 0.25)
    assert loss.item() == pytest.approx(losses.sdpo_loss(student, teacher, 10.0, 0.25).item())


def test_grpo_plus_opsd_is_the_weighted_sum():
    gradients = {}
    for method, more in (("grpo", []), ("opsd", []), ("grpo+opsd", ["--opsd_weight", "0.3"])):
        config, state, batch = prepared("--method", method, *more, "--max_grad_norm", "1e9")
        teacher = state.teacher or state.policy
        train.update(state.policy, teacher, state.optimizer, batch, config, 0.0)
        gradients[method] = torch.cat([p.grad.flatten() for p in state.policy.parameters()])
    expected = gradients["grpo"] + 0.3 * gradients["opsd"]
    assert torch.allclose(gradients["grpo+opsd"], expected, atol=1e-5)


def group(texts, rewards, size):
    samples = Samples.of([tasks.encode(text) + [tasks.END] for text in texts])
    rewards = torch.tensor(rewards)
    problems = [Problem(str(i // size), "9") for i in range(len(texts))]
    return rollout.Rollout(problems, samples, rewards, group_advantages(rewards, size))


@pytest.mark.parametrize(
    "rewards, picked",
    [([0.5, 0.2, 0.9, 0.1], [2, 3]), ([math.nan, 0.2, 0.9, 0.1], [2, 3]), ([0.3, math.nan, 0.6, math.nan], [2, 0])],
)
def test_right_and_wrong_are_the_best_and_the_worst_that_were_judged(rewards, picked):
    assert right_and_wrong(torch.tensor(rewards)).tolist() == picked


def test_sdpo_shows_another_right_sample_and_skips_those_without(monkeypatch):
    texts = ["a #### 9", "b #### 8", "c #### 9", "d #### 1", "e #### 9", "f #### 2"]
    batch = group(texts, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 3)
    config = train.parse_config([*TINY, "--method", "sdpo", "--group_size", "3"])
    batch.hints = methods.group_hints(batch, config)
    # the first group's right samples show each other, its wrong one the next; a lone right sample is shown nothing
    assert batch.hints == ["c #### 9", "c #### 9", "a #### 9", "e #### 9", None, "e #### 9"]
    prompts = []
    original = methods.logits
    monkeypatch.setattr(methods, "logits", lambda m, p, s, t: prompts.append(p) or original(m, p, s, t))
    state = State(config)
    train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.0)
    with_hint = [i for i in range(6) if i != 4]
    assert prompts[0] == [prompt(batch.problems[i], batch.hints[i]) for i in with_hint]
    assert prompts[1] == [student_prompt(batch.problems[i]) for i in with_hint]


def test_a_part_mark_is_no_right_sample_to_show():
    batch = group(["a", "b", "c"], [0.5, 1.0, 0.0], 3)
    assert methods.group_hints(batch, train.parse_config([*TINY, "--method", "sdpo", "--group_size", "3"])) == [
        "b",
        None,
        "b",
    ]


@pytest.mark.parametrize("method, rows", [("grpo+opsd", [0, 1, 3, 4, 5]), ("opsd", [0, 1, 3, 4, 5])])
def test_distillation_learns_from_groups_without_spread_too(method, rows):
    """And nobody from a sample that was dropped: its reward is nan."""
    batch = group(["a", "b", "c", "d", "e", "f"], [1.0, 1.0, 1.0, 0.0, 1.0, 0.5], 3)
    batch.rewards[2] = math.nan
    batch.advantages = torch.tensor([0.0, 0.0, 0.0, -1.0, 1.0, 0.1])
    config = train.parse_config([*TINY, "--method", method, "--group_size", "3"])
    assert methods.moving(batch, config).tolist() == rows


def test_sdpo_without_any_right_sample_changes_nothing():
    """Not even through the optimizer's momentum: an update with a hint comes first."""
    config = train.parse_config([*TINY, "--method", "sdpo", "--group_size", "3"])
    state = State(config)
    for rewards, moves in (([1.0, 0.0, 0.0], True), ([0.0, 0.0, 0.0], False)):
        batch = group(["a", "b", "c"], rewards, 3)
        batch.hints = methods.group_hints(batch, config)
        before = [p.detach().clone() for p in state.policy.parameters()]
        train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.0)
        assert any(not torch.equal(a, b) for a, b in zip(before, state.policy.parameters())) is moves


def test_hints_that_would_not_fit_are_passed_over():
    config = train.parse_config([*TINY, "--method", "sdpo", "--group_size", "3", "--max_new_tokens", "20"])
    batch = group(["\ufffd" * 8, "short", "x"], [1.0, 1.0, 0.0], 3)
    assert methods.group_hints(batch, config) == ["short", None, "short"]
    config = train.parse_config([*TINY, "--evidence", "contrastive", "--group_size", "3"])
    batch = group(["no marker", "y #### 3", "#### 9"], [0.0, 0.0, 1.0], 3)
    assert methods.group_hints(batch, config) == ["3", "3", "3"]  # text without a marked answer gave no answer


@pytest.mark.parametrize("more", [["--method", "sdpo"], ["--evidence", "contrastive"], ["--method", "grpo"]])
def test_the_longest_prompt_of_a_sample_counts_what_the_group_shows(more):
    config = train.parse_config([*TINY, *more])
    batch = group(["a", "b"], [1.0, 0.0], 2)
    batch.hints = ["x" * 50, None]
    views = [student_prompt(batch.problems[0])] + (
        [teacher_prompt(batch.problems[0])] if config.method == "rlsd" else []
    )
    without = max(map(len, views))
    assert longest_view(batch, 1, config) == without
    assert longest_view(batch, 0, config) == len(prompt(batch.problems[0], "x" * 50)) > without


def test_contrastive_evidence_shows_a_wrong_answer_of_the_group(monkeypatch):
    batch = group(["a #### 9", "b #### 8", "c #### 9", "d #### 9", "e #### 9", "f ####"], [1.0, 0, 1.0, 1.0, 1.0, 0], 3)
    config = train.parse_config([*TINY, "--evidence", "contrastive", "--group_size", "3"])
    batch.hints = methods.group_hints(batch, config)
    assert batch.hints == ["8", "8", "8", None, None, None]  # an empty answer is none
    prompts, calls = [], spied(monkeypatch, readings, "contrastive")
    original = rollout.token_logps
    monkeypatch.setattr(rollout, "token_logps", lambda m, p, s, t: prompts.append(p) or original(m, p, s, t))
    state = State(config)
    train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)
    assert prompts[1:] == [
        [teacher_prompt(p) for p in batch.problems],
        [prompt(p, "8") for p in batch.problems[:3]] + [teacher_prompt(p) for p in batch.problems[3:]],
    ]
    assert calls[0][0][3].tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    "more, name",
    [
        (["--rlsd_negative_only"], "negative_only"),
        (["--rlsd_thought_only"], "thought_only"),
        (["--evidence", "agreement"], "agreement"),
    ],
)
def test_readings_of_the_evidence_are_used(monkeypatch, more, name):
    config, state, batch = prepared(*more)
    calls = spied(monkeypatch, readings, name)
    logps = rollout.score(state.policy, batch, config, student_prompt).detach()
    by_teacher = rollout.score(state.teacher, batch, config, teacher_prompt).detach()
    got = rollout.evidence(state.teacher, batch, config, logps)
    third = readings.thought_mask(batch.samples.tokens) if name == "thought_only" else batch.advantages
    args = calls[0][0]
    assert (
        len(calls) == 1
        and torch.equal(args[0], logps)
        and torch.equal(args[1], by_teacher)
        and torch.equal(args[2], third)
    )
    assert torch.equal(got, getattr(readings, name)(logps, by_teacher, third))


def test_the_thought_ends_at_the_answer_marker():
    tokens = Samples.of([tasks.encode("ab\n#### 1") + [tasks.END], tasks.encode("abc")]).tokens
    assert readings.thought_mask(tokens).tolist() == [[True] * 3 + [False] * 4, [True] * 7]
    (quoting,) = readings.thought_mask(Samples.of([tasks.encode("<think>#### 7</think>#### 1")]).tokens).tolist()
    assert quoting == [True] * 18 + [False] * 3  # what the thought quotes is not the answer


def test_citing_and_the_knobs_of_the_bench():
    problem = tasks.generated("addition", 5, chain=3, filler=2).held_out[0]
    lines = problem.solution.splitlines()
    assert len(lines) == 3 and all(line[2] == " " and set(line[:2]) <= set("abcdefgh") for line in lines)
    assert tasks.decode(tasks.target(problem, cite=True)).startswith(f"{tasks.CITATION} {problem.answer}\n{lines[0]}\n")
    assert tasks.CITATION not in tasks.decode(tasks.target(problem))
    three = tasks.generated("countdown", 5, chain=3).held_out
    assert all(len(p.question.split(" from ")[1].split()) == 3 for p in three)
