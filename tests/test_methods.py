import dataclasses
import math

import pytest
import torch
from noted import noted
from small_runs import TINY, lines, load, options, same, sharp_state
from test_baselines import textbook

import rollout
import tasks
import train
from baselines import methods, readings
from config import METHODS
from credit.tokens import right_and_wrong
from harness import evaluation
from harness.checkpoint import State
from harness.models import build_model
from harness.run import describe
from model import Samples, token_logps
from rlsd import group_advantages
from support.micro_batches import longest_view
from tasks import Problem, prompt, student_prompt, teacher_prompt

# ---- a run, checkpoint by checkpoint ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A run whose best.pt teaches opd, also where it was made on another device."""
    folder = tmp_path_factory.mktemp("larger")
    assert train.main(options(folder, "big", "--hidden_size 96 --steps 1 --method grpo")) == 0
    config = folder / "big" / "config.json"
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    return folder / "big"


def taught(method, interval, step, policy, teacher):
    """The teacher's weights after update `step`, from the policy's then and its own before."""
    if method == "rlsd":
        return policy if interval and step % interval == 0 else teacher
    return {name: x.lerp(policy[name], 0.25) for name, x in teacher.items()} if method == "sdpo" else teacher


EVERY = [("rlsd", 2), ("rlsd", 1), *((method, 0) for method in METHODS)]


@pytest.mark.usefixtures("own_signals", "no_picture")
@pytest.mark.parametrize("method, interval", EVERY)
def test_what_holds_at_every_checkpoint(tmp_path, monkeypatch, larger, method, interval):
    """The teacher is the warm policy, then follows its rule, also where update 2 is skipped; best, samples, speed."""
    more = f"--method {method} --steps 6 --save_every 1 --eval_problems 40 --temperature 0.8 --lr 0.001 "
    more += "--warm_steps 25 --warm_lr 0.02 --chain 4 --max_new_tokens 48"
    own = {"rlsd": [f"--rlsd_teacher_sync_interval {interval}"], "sdpo": ["--sdpo_ema 0.25"]}
    own |= {"opd": ["--opd_teacher", larger]}
    kept, bests, shown, batches, save = {}, [], [], [], State.save
    update, loss_of = train.update, train.loss_of

    def saved(state, path, config):
        if state.step:  # the best before this checkpoint
            bests.append(load(path.with_name("best.pt")))
        save(state, path, config)
        kept[state.step] = load(path)

    def shows(policy, teacher, optimizer, batch, config, lam):
        batches.append(batch)
        if len(batches) % 2 == 0:  # from the weights before the update
            rows = evaluation.credited_samples(policy, teacher, batch, config, lam)
            shown.extend({"step": len(batches), **row} for row in rows)
        return update(policy, teacher, optimizer, batch, config, lam)

    def spoiled(*args):
        loss, means = loss_of(*args)
        return loss * (math.nan if len(batches) == 2 else 1), means

    monkeypatch.setattr(State, "save", saved)
    monkeypatch.setattr(train, "update", shows)
    monkeypatch.setattr(train, "loss_of", spoiled)
    assert train.main(options(tmp_path, "run", more, *own.get(method, []))) == 0

    run = tmp_path / "run"
    rows = lines(run / "metrics.jsonl")
    assert list(kept) == [row["step"] for row in rows] == list(range(7)) and len({r.get("pass@1") for r in rows}) > 2
    assert [row["step"] for row in rows if row.get("skipped")] == [2]
    start = kept[0]["model"] if method not in ("grpo", "opd") else None
    teacher = load(larger / "best.pt") if method == "opd" else start
    for step, row in enumerate(rows):
        policy, before = kept[step]["model"], kept[max(0, step - 1)]["model"]
        teacher = taught(method, interval, step, policy, teacher) if step else teacher
        assert same(kept[step]["teacher"], teacher), step
        assert same(policy, before) == (step in (0, 2) or row["grad_norm"] == 0)
        scores = [r["pass@1"] for r in rows[: step + 1] if "pass@1" in r]
        best = max(r["step"] for r in rows[: step + 1] if r.get("pass@1") == max(scores))
        assert (kept[step]["best"], kept[step]["best_step"]) == (max(scores), best)
        if step:
            tokens = int(batches[step - 1].samples.mask.sum())
            assert row["tokens/s"] * row["seconds"] == pytest.approx(tokens) == pytest.approx(8 * row["length"])
    bests.append(load(run / "best.pt"))
    assert all(same(best, kept[kept[step]["best_step"]]["model"]) for step, best in enumerate(bests))
    assert lines(run / "samples.jsonl") == shown and len(shown) == 6


# ---- an update, written out ------------------------------------------------------------------------------------------

# Three groups: right, one that the verifier fails on, part marks, wrong; all right; none right. Text, reward, what
# contrastive evidence and sdpo show the teacher of the sample: a wrong answer of its group, another right sample.
BY_HAND = [
    ("1+1=2\n#### 11", 1.0, "12", None),
    ("#### 14", math.nan, "12", "1+1=2\n#### 11"),  # without a reward it is nobody's hint
    ("#### 12", 0.5, "12", "1+1=2\n#### 11"),
    ("2=2\n3=3\n#### 13", 0.0, "13", "1+1=2\n#### 11"),
    *((f"{i}=x#### 9", 1.0, None, f"{(i + 1) % 4}=x#### 9") for i in range(4)),
    ("7=7\n#### 21", 0.0, "21", None),
    ("no marker", 0.0, "23", None),
    ("5#### 23", 0.25, "23", None),
    ("x=y####", 0.0, "21", None),
]
HOWS = ["--method grpo", "--method opsd --opsd_beta 0.25", "--method sdpo --opsd_beta 0.25", "--method opd"]
HOWS += ["--method grpo+opsd --opsd_weight 0.3", "", "--evidence contrastive", "--rlsd_reweight_clip_range 3"]
HOWS += ["--evidence agreement --rlsd_reweight_clip_range 1", "--rlsd_negative_only", "--rlsd_thought_only"]
HOWS += ["--rlsd_negative_only --rlsd_thought_only --evidence contrastive"]


def by_hand(monkeypatch, *more):
    """A policy, another model as its teacher, and BY_HAND as the batch that a rollout makes of it."""
    external = "opd" in more
    given = [x for x in more if x not in ("--method", "opd")] if external else more
    config, state = sharp_state("--prompts_per_step", "3", "--on_verifier_error", "drop", *given)
    config.method = "opd" if external else config.method
    state.teacher = build_model(dataclasses.replace(config, warm_seed=7, hidden_size=64 if external else 32))
    texts, rewards, *hints = zip(*BY_HAND)
    completions = [tasks.encode(text) + [tasks.END] for text in texts]

    def sample(model, prompts, temperature, **rest):
        drawn = Samples.of(completions)
        drawn.logps = token_logps(model, prompts, drawn, temperature).detach()
        return drawn

    monkeypatch.setattr(rollout, "sample", sample)
    given = iter(rewards)
    batch = train.rollout(state.policy, tasks.generated("addition", 5, 2), lambda c, a: next(given), config, 1)
    shown = {"sdpo": hints[1], "contrastive": hints[0]}.get("sdpo" if config.method == "sdpo" else config.evidence)
    assert batch.hints == list(shown or [])
    return config, state, batch, completions


def log_softmax(model, prompt, completion, config):
    """(tokens, V), one row alone, no cache."""
    logits = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
    return (logits / config.temperature).log_softmax(-1)


def written_out(config, state, batch, completions, lam):
    """Loss, and of every token that an advantage moves its clipped weight and whether the clip held it."""
    total, weights = torch.zeros(()), []
    for i, (y, problem, A) in enumerate(zip(completions, batch.problems, batch.advantages.tolist())):
        if math.isnan(BY_HAND[i][1]):
            continue
        at, hint = (range(len(y)), y), batch.hints[i] if batch.hints else None
        reference = problem.solution if config.privileged == "solution" else problem.answer
        S = log_softmax(state.policy, prompt(problem, ""), y, config)
        view = {"opd": "", "sdpo": hint}.get(config.method, reference)
        with torch.no_grad():
            T = log_softmax(state.teacher, prompt(problem, view), y, config)
            misled = S if config.evidence != "contrastive" or not hint else None
            misled = log_softmax(state.teacher, prompt(problem, hint), y, config) if misled is None else misled
        if config.method in ("rlsd", "grpo", "grpo+opsd") and A:
            gap = math.copysign(1, A) * (T - misled)[at].detach()
            w = (gap > 0.02).float() if config.evidence == "agreement" else gap.exp()
            thought = torch.tensor([tasks.MARKER not in tasks.decode(y[: t + 1]) for t in range(len(y))])
            apart = torch.zeros(len(y), dtype=torch.bool)
            apart |= torch.tensor(config.rlsd_negative_only and A > 0) | (config.rlsd_thought_only & ~thought)
            w = torch.where(apart | (config.method != "rlsd"), 1.0, w)
            eps_w = config.rlsd_reweight_clip_range
            clipped = w.clamp(1 - eps_w, 1 + eps_w)
            total = total - ((S[at] - S[at].detach()).exp() * A * (1 - lam + lam * clipped)).sum()
            weights += zip(clipped.tolist(), (w < 1 - eps_w).tolist(), (w > 1 + eps_w).tolist())
        if config.method in ("opsd", "grpo+opsd", "opd") or config.method == "sdpo" and hint:
            if config.method == "sdpo":  # the teacher's hundred, and the rest as one
                rest = [x.exp().scatter(1, T.topk(100).indices, 0).sum(1, keepdim=True).log() for x in (S, T)]
                S, T = (torch.cat([x.gather(1, T.topk(100).indices), r], 1) for x, r in zip((S, T), rest))
            beta = 1.0 if config.method == "opd" else config.opsd_beta
            weight = config.opsd_weight if config.method == "grpo+opsd" else 1.0
            total = total + weight * textbook(S, T, beta).sum()
    return total / sum(len(y) for y, (_, reward, *_) in zip(completions, BY_HAND) if reward == reward), weights


@pytest.mark.parametrize("micro", ["", "--micro_batch 3", "--micro_batch 99", "--micro_tokens 90"])
@pytest.mark.parametrize("where", ["", "--temperature 0.6 --privileged solution --max_grad_norm 0.001"])
@pytest.mark.parametrize("how", HOWS)
def test_an_update_is_the_loss_written_out(monkeypatch, how, where, micro):
    """Every method and reading, with part marks, dropped samples, groups without spread and unequal lengths."""
    config, state, batch, completions = by_hand(monkeypatch, *f"{how} {where} {micro}".split())
    lam = 0.7 if config.method == "rlsd" else 0.0
    loss, weights = written_out(config, state, batch, completions, lam)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(state.policy.parameters()))])
    before = torch.cat([p.detach().flatten() for p in state.policy.parameters()])
    sizes = noted(monkeypatch, train, "loss_of", lambda policy, teacher, part, *_: len(part.problems))
    metrics = train.update(state.policy, state.teacher, state.optimizer, batch, config, lam)
    parted = {"--micro_batch 3": max(sizes) == 3, "--micro_tokens 90": len(sizes) > 1}
    assert parted.get(micro, len(sizes) == 1)
    norm = expected.norm().item()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)  # before it is clipped
    scale = min(1.0, config.max_grad_norm / norm)
    assert scale < 1 or not where
    found = torch.cat([p.grad.flatten() for p in state.policy.parameters()])
    assert (found - scale * expected).norm() < 1e-3 * scale * norm
    moved = torch.cat([p.detach().flatten() for p in state.policy.parameters()]) - before
    large = expected.abs() > expected.abs().max() / 100
    assert torch.equal(moved[large].sign(), -expected[large].sign())
    assert all(p.grad is None for p in state.teacher.parameters())
    if lam:
        figures = [sum(column) / len(weights) for column in zip(*weights)]
        assert [metrics[name] for name in ("weight", "clipped_low", "clipped_high")] == pytest.approx(figures, rel=1e-3)
    figures = describe(batch, config)
    assert figures["reward"] == pytest.approx(sum(r for _, r, *_ in BY_HAND if r == r) / 11)
    assert figures["length"] == pytest.approx(sum(map(len, completions[:1] + completions[2:])) / 11)


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
    without = len((teacher_prompt if config.method == "rlsd" else student_prompt)(batch.problems[0]))
    assert longest_view(batch, 1, config) == without
    assert longest_view(batch, 0, config) == len(prompt(batch.problems[0], "x" * 50)) > without


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
