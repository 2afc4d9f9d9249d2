"""Oracles, what others propose, and the split into bias and noise: by hand, against autograd, and on made-up noise."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
import train
from baselines.methods import logits
from harness.checkpoint import State
from harness.options import parse_config
from model import Samples, token_logps
from rlsd import rlsd_loss, token_advantages
from study import execute, headroom, headroom_report, oracles, split, variants

seeds = st.integers(0, 2**32)


def tensors(seed, *shapes):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


# ---- what others propose ---------------------------------------------------------------------------------------------


@given(seeds, st.floats(-2, 2))
def test_centred_evidence_has_mean_zero_and_knows_no_drift(seed, drift):
    S, T = tensors(seed, (3, 5), (3, 5))
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    delta = variants.centred(S, T, mask) - S
    assert torch.allclose((delta * mask).sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(variants.centred(S, T + drift, mask), variants.centred(S, T, mask), atol=1e-12)
    hostile = torch.where(mask, T, math.inf)  # padding is not read
    assert torch.allclose(variants.centred(S, hostile, mask)[mask], variants.centred(S, T, mask)[mask])


@given(seeds)
def test_the_inverse_on_right_samples_is_the_inverse_weight_there_alone(seed):
    S, T = (-x.abs() for x in tensors(seed, (3, 4), (3, 4)))
    A, mask = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
    turned = token_advantages(A, variants.inverse_on_right(S, T, A), S, mask, 1.0, 1e9)
    plain = token_advantages(A, T, S, mask, 1.0, 1e9)
    assert torch.allclose(turned[0] * plain[0], A[0] ** 2 * torch.ones(4, dtype=torch.float64))
    assert torch.equal(turned[1:], plain[1:])


def test_bounded_credit_by_hand():
    """Right: w in [0.8, 1.05]. Wrong: approved tokens earn at most 0.05 |A|, the others are blamed by up to 1.2."""
    ratio = torch.tensor([[0.5, 0.9, 2.0], [0.5, 0.9, 2.0], [1.01, 1.0, 0.0]])  # P_T / P_S
    A, mask = torch.tensor([2.0, -2.0, -1.0]), torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    got = variants.bounded_credit(A, ratio.log(), torch.zeros(3, 3), mask)
    expected = [[1.6, 1.8, 2.1], [-2.4, -2 / 0.9, 0.05 * 2 * (1 - 0.5)], [-1 / 1.01, -1.0, 0.0]]
    assert torch.allclose(got, torch.tensor(expected))


def test_residual_credit_by_hand():
    """0.5 tanh(e / 0.02) beside A where it exceeds 0.02; never past 0, and nothing without an advantage."""
    e = torch.tensor([[0.0, 0.02, -1.0, 0.0006], [1.0, -0.02, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0]])
    A, mask = torch.tensor([0.4, -0.3, 0.0]), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 3] = False
    half = 0.5 * math.tanh(1)
    expected = [[0.4, 0.4 + half, 0.0, 0.4], [0.0, -0.3 - half, -0.3, 0.0], [0.0] * 4]
    assert torch.allclose(variants.residual_credit(A, e, torch.zeros(3, 4), mask), torch.tensor(expected), atol=1e-6)


@given(seeds, st.sampled_from([0.5, 2.0, 50.0]))
def test_distillation_without_style_is_the_textbook_and_its_gradient(seed, bound):
    """KL(Q || P_S) / tokens with Q ~ P_S (P_T+ / P_T-) and the ratio bounded; of logits the gradient is P_S - Q."""
    student, right, wrong = tensors(seed, (5, 7), (5, 7), (5, 7))
    P, R, W = (x.softmax(-1) for x in (student, right, wrong))
    Q = P * (R / W).clamp(math.exp(-bound), math.exp(bound))
    Q /= Q.sum(-1, keepdim=True)
    s, r, w = (x.clone().requires_grad_() for x in (student, right, wrong))
    loss = variants.without_style_loss(s, r, w, 3.0, bound)
    loss.backward()
    assert loss.item() == pytest.approx((Q * (Q / P).log()).sum().item() / 3)
    assert torch.allclose(s.grad, (P - Q) / 3) and r.grad is None and w.grad is None


# ---- oracles ---------------------------------------------------------------------------------------------------------


def test_free_wording_decides_nothing():
    plain = tasks.Problem("95+17", "112", "5+7=12\n9+1=11")
    worded = dataclasses.replace(plain, solution="abc 5+7=12\nhgf 9+1=11")
    right, other = tasks.target(worded), tasks.target(dataclasses.replace(plain, solution="dd 5+7=12\na 9+1=11"))
    assert oracles.free_wording(right) == [0, 1, 2, 3, 11, 12, 13, 14] and oracles.free_wording(other)[-2:] == [10, 11]
    assert oracles.free_wording(tasks.target(plain)) == []
    assert oracles.deciding_tokens(right, plain) == [20] and tasks.decode(right)[15:21] == "9+1=11"  # 11, not 10
    assert oracles.deciding_tokens(other, worded) == [17]  # other letters, and fewer of them: still right
    slip = tasks.target(tasks.Problem("95+17", "102", "ccc 5+7=12\nccc 9+1=10"))
    assert oracles.deciding_tokens(slip, worded) == [20]
    ten = tasks.Problem("85+17", "102", "5+7=12\n8+1=10")  # 10, not 9: they differ in the first token
    assert oracles.deciding_tokens(tasks.target(ten), ten) == [11]


def batch_of_additions(filler=0):
    """Three right samples and one that forgets a carry, of one problem; the last of the batch is a problem's own."""
    word = lambda letters: (letters * filler + " ") * (filler > 0)
    problem = tasks.Problem("95+17", "112", f"{word('a')}5+7=12\n{word('b')}9+1=11")
    slip = tasks.Problem("95+17", "102", f"{word('c')}5+7=12\n{word('d')}9+1=10")
    samples = Samples.of([tasks.target(p) for p in (problem, slip)])
    A = torch.tensor([0.5, -1.5])
    return train.Rollout([problem] * 2, samples, torch.tensor([1.0, 0.0]), A, [None, None])


def test_oracle_credits_by_hand():
    found = split.oracle_credits(batch_of_additions())
    assert found.keys() == {"oracle, 1 or 0", "oracle in [0.9, 1.1]"}
    only, best = found.values()
    assert only.nonzero().tolist() == [[0, 12], [1, 12]] and only[:, 12].tolist() == [0.5, -1.5]
    assert torch.allclose(best[:, :13], torch.tensor([[0.45] * 12 + [0.55], [-1.35] * 12 + [-1.65]]))
    free = split.oracle_credits(batch_of_additions(2))["oracle, 0 on free wording"]
    assert (free[0, :20] == 0).nonzero().flatten().tolist() == [0, 1, 2, 10, 11, 12]


# ---- one batch -------------------------------------------------------------------------------------------------------


def sharp(config):
    """An untrained policy whose views differ."""
    state = State(config)
    with torch.no_grad():
        for p in [*state.policy.parameters(), *state.teacher.parameters()]:
            p.mul_(3) if p.dim() == 2 else None
    return state


SMALL = "--hidden_size 32 --num_layers 1 --prompts_per_step 4 --group_size 4 --max_grad_norm 1e9 --warm_steps 0"


def sampled(options=""):
    """A batch of generated additions that chance rewards, some of its samples with a wrong answer beside them."""
    config = parse_config([*SMALL.split(), "--evidence", "contrastive", *options.split()])
    odd = lambda completion, answer: float(sum(map(ord, completion)) % 2)
    policy = sharp(config).policy
    batch = train.rollout(policy, tasks.generated(config.task, 5), odd, config, 1)
    batch.hints = [h if h else "7" * (i % 3 > 0) or None for i, h in enumerate(batch.hints)]
    return config, policy, batch


def flat(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


def updated(batch, config, lam, **of):
    """The gradient of train.update, with these options of another kind."""
    config = dataclasses.replace(config, **of)
    fresh = sharp(config)
    train.update(fresh.policy, fresh.teacher, fresh.optimizer, batch, config, lam)
    return torch.cat([p.grad.flatten() for p in fresh.policy.parameters()])


def test_gradients_are_those_of_the_training_step():
    """GRPO's, RLSD's and OPSD's by train.update, contrastive evidence too: the kinds of samples add up to them."""
    config, policy, batch = sampled("--temperature 0.8")
    found, focus = split.gradients(policy, batch, config)
    sums = split.combined(found)
    for name, lam, of in (
        ("GRPO", 0.0, {"evidence": "plain"}),
        ("RLSD (paper)", 0.5, {"evidence": "plain"}),
        ("contrastive", 1.0, {"rlsd_reweight_clip_range": 4.0}),
        ("agreement", 1.0, {"evidence": "agreement", "rlsd_reweight_clip_range": 1.0}),
        ("OPSD", 0.0, {"method": "opsd", "evidence": "plain"}),
    ):
        assert torch.allclose(sums[name, "all"], updated(batch, config, lam, **of), atol=1e-5), name
    assert not torch.allclose(sums["contrastive", "all"], sums["RLSD, eps_w 4", "all"], atol=1e-5)
    assert focus.keys() == {name for name, kind in found if kind == "wrong"}
    assert "own answer" not in focus  # the reference is the only right one


def test_gradients_of_variants_and_of_distillation_against_autograd():
    config, policy, batch = sampled()
    before = sharp(dataclasses.replace(config, seed=1)).policy
    sums = split.combined(split.gradients(policy, batch, config, before)[0])
    answers = [problem.answer for problem in batch.problems]  # a misled teacher sees it where no wrong answer is
    shown = [""] * len(answers), answers, [hint or answer for hint, answer in zip(batch.hints, answers)]
    views = [[tasks.prompt(p, text) for p, text in zip(batch.problems, texts)] for texts in shown]
    S, T, misled = (token_logps(policy, view, batch.samples, 1.0) for view in views)
    A, mask = batch.advantages, batch.samples.mask
    pays = lambda a_hat: flat(-(S * a_hat * mask).sum() / mask.sum(), policy)
    first = torch.arange(mask.shape[1]) == 0
    contrast = torch.where(torch.tensor([hint is not None for hint in batch.hints])[:, None], misled, S).detach()
    frozen = token_logps(before, views[1], batch.samples, 1.0).detach()
    inverse = variants.inverse_on_right(S, T, A).detach()
    expected = {
        "teacher from before RL": token_advantages(A, frozen, S.detach(), mask, 1.0, 4.0),
        "first token left out": token_advantages(A, torch.where(first, S, T).detach(), S.detach(), mask, 1.0, 4.0),
        "inverse on right": token_advantages(A, inverse, S.detach(), mask, 1.0, 4.0),
        "bounded credit": variants.bounded_credit(A, T.detach(), S.detach(), mask),
        "residual credit": variants.residual_credit(A, T.detach(), contrast, mask),
    }
    for name, a_hat in expected.items():
        assert torch.allclose(sums[name, "all"], pays(a_hat), atol=1e-5), name
    student, right, wrong = (logits(policy, view, batch.samples, 1.0) for view in views)
    loss = variants.without_style_loss(student, right, wrong, mask.sum())
    assert torch.allclose(sums["without style", "all"], flat(loss, policy), atol=1e-5)
    both = rlsd_loss(S, S.detach(), None, A, mask, lam=0.0)[0] + loss
    assert torch.allclose(sums["GRPO + without style", "all"], flat(both, policy), atol=1e-5)


def test_kinds_of_samples_and_their_own_answers():
    """On countdown another expression reaches the target too; wrong samples keep the reference."""
    problem = tasks.Problem("7 from 3 4", "3+4 = 7", "3+4=7")
    completions = [tasks.encode(f"#### {text}") + [tasks.END] for text in ("3+4 = 7", "3 + 4", "4+3 = 7", "3-4 = 7")]
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0])
    batch = train.Rollout([problem] * 4, Samples.of(completions), rewards, rewards)
    assert split.kinds_of(batch) == ["reference", "reference", "other", "wrong"]
    config = parse_config(["--task", "countdown", "--warm_steps", "0"])
    shown = [one.privileged for one in split.own_answers(batch, config).problems]
    assert shown == ["3+4 = 7", "3 + 4", "4+3 = 7", None]


def test_sums_over_kinds_by_hand():
    G, W = split.GRPO, split.WIDE_WEIGHTS
    one = lambda x: torch.tensor([x])
    found = {(G, "reference"): one(1.0), (G, "other"): one(2.0), (G, "wrong"): one(4.0), ("OPSD", "all"): one(7.0)}
    found |= {(W, "reference"): one(10.0), (W, "other"): one(20.0), (W, "wrong"): one(40.0)}
    sums = split.combined(found | {("without style", "all"): one(0.5)})
    assert sums[G, "right"] == 3 and sums[G, "all"] == 7 and sums["OPSD", "all"] == 7
    assert sums["eps_w 4 on right samples alone", "all"] == 34 and sums["eps_w 4 on wrong samples alone", "all"] == 43
    assert sums["eps_w 4, not on other answers", "all"] == 52 and sums["GRPO + without style", "all"] == 7.5
    assert sums["GRPO + 0.3 without style", "all"].item() == pytest.approx(7.15)
    assert split.combined({("OPSD", "all"): one(7.0)})["OPSD", "all"] == 7  # a batch in which no group has spread


def test_concentration_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    share = lambda a, p: split.concentration(torch.tensor([a]), torch.tensor([p]).log(), mask)
    assert share([1.0, -1.0, 1.0, 9.0], [0.5, 0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert share([1.0, -2.0, 1.0, 9.0], [1.0, 0.5, 1.0, 0.5]) == pytest.approx(1 / 3)


# ---- many batches ----------------------------------------------------------------------------------------------------


def moments_of(batches):
    moments = split.Moments()
    for batch in batches:
        moments.add({(name, "all"): torch.tensor(g) for name, g in batch.items()})
    return moments.figures()


def test_moments_by_hand():
    """Products of different batches alone: (1,0) and (1,2) have 1 in common."""
    idle = {"idle": [0.0, 0.0]}
    found = moments_of([{"GRPO": [1.0, 0.0], "w": [2.0, 0.0], **idle}, {"GRPO": [1.0, 2.0], "w": [0.0, 2.0]}])
    assert found["idle"]["all"] == {"gain": 0, "signal": 0, "adam": 0}
    assert found["GRPO"]["all"]["gain"] == pytest.approx(1 / 3) == found["GRPO"]["all"]["signal"]  # E|g|^2 = 3
    assert found["w"]["all"]["signal"] == pytest.approx(0.0)  # (2,0).(0,2)
    assert found["w"]["all"]["gain"] == pytest.approx((2 + 0) / 2 / math.sqrt(4 * 3))  # (2,0).(1,2), (0,2).(1,0)
    twice = moments_of([{"GRPO": [1.0, 0.0]}, {"GRPO": [1.0, 2.0]}, {}])  # a batch without a lesson counts
    assert twice["GRPO"]["all"]["signal"] == pytest.approx(2 / 6 / 2)


def test_gain_of_adams_step_is_that_of_the_gradient_over_its_root_mean_square():
    g = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1.0, 1.0, 0.01, 0.0])
    steps = (g / g.square().mean(dim=0).sqrt()).double().nan_to_num()  # one coordinate never moves
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    dot = np.mean([float(steps[i] @ g[j].double()) for i, j in pairs])
    size = math.sqrt(steps.square().sum(dim=1).mean() * g.square().sum(dim=1).mean())
    found = moments_of([{"GRPO": row.tolist(), "half": (row / 2).tolist()} for row in g])
    assert found["GRPO"]["all"]["adam"] == pytest.approx(dot / size, rel=1e-4)
    assert found["half"]["all"]["adam"] == pytest.approx(found["GRPO"]["all"]["adam"], rel=1e-4)


def test_large_batches_are_sums_of_small_ones_and_a_policy_is_measured_whole(tmp_path, monkeypatch, capsys):
    """Of made-up gradients: at eight times the samples the noise is an eighth; figures go to the file as they are."""
    g, seen = torch.Generator().manual_seed(0), []
    pair = f"{SMALL} --prompts_per_step 1 --group_size 2 --eval_problems 3 --max_new_tokens 40".split()
    assert split.main([*pair, "--batches", "2"]) == 2
    assert capsys.readouterr().err == "split.py: none of 2 batches has a group whose rewards differ\n"

    def fake(model, step, config, before=None):
        seen.append((step, before is None))
        x = torch.tensor([1.0] + [0.0] * 199) + torch.randn(200, generator=g)
        return {("GRPO", "wrong"): x, (split.WIDE_WEIGHTS, "wrong"): x, ("without style", "all"): x}, {"GRPO": 0.5}

    monkeypatch.setattr(split, "gradients", fake)
    monkeypatch.setattr(train, "rollout", lambda model, source, verifier, config, step: step)
    options = [*pair, "--batches", "160", "--keep", str(tmp_path / "kept.json")]
    assert split.main(options) == 0 and seen == [(step, True) for step in range(1, 161)]
    kept = json.loads((tmp_path / "kept.json").read_text())
    few, many = (kept["figures"][samples]["GRPO"]["all"]["signal"] for samples in ("2", "16"))
    assert few == pytest.approx(1 / 201, abs=0.004) and many == pytest.approx(1 / (1 + 200 / 8), abs=0.02)
    assert kept["concentration"] == {"GRPO": 0.5} and kept["batches"] == 160
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("GRPO + without style") == said.count("GRPO 1.00 1.00 1.000 1.00") == 2  # each is over GRPO's
    torch.save({"model": State(parse_config(pair)).policy.state_dict()}, tmp_path / "last.pt")
    assert split.main([*options, "--batches", "2", "--policy", str(tmp_path)]) == 0
    assert seen[160:] == [(1, False), (2, False)]  # beside the model that RL began with


# ---- the study -------------------------------------------------------------------------------------------------------


def test_cells_are_sound(tmp_path):
    """Names and options differ, every option is known; a policy is probed on problems it was not trained on."""
    wanted = headroom.cells()
    assert len({cell.name for cell in wanted}) == len(wanted) == 60
    assert execute.current(rows := execute.read(headroom.RESULTS), wanted) == rows  # the committed ones
    for cell in wanted:
        own, config = split.parse([*cell.options.split(), "--warm_dir", str(tmp_path)])
        trained = parse_config([*cell.training.split(), "--warm_dir", str(tmp_path)])
        assert own.batches % split.BLOCK == 0 and config.prompts_per_step * config.group_size == 32
        assert config.seed != trained.seed and trained.steps == 60 and trained.method == "grpo"
        same = "task chain filler max_new_tokens warm_seed warm_slip warm_cite warm_solutions eval_problems".split()
        assert all(getattr(config, name) == getattr(trained, name) for name in same)


def measured(options):
    """What probe.py and split.py leave."""
    Path(options[options.index("--keep") + 1]).write_text('{"pass@1": 0.5}')


def test_cells_are_measured_once_and_policies_trained_first(tmp_path, monkeypatch):
    calls = []

    def fake(name, options):
        calls.append((name, "--policy" in options))
        assert options[options.index("--warm_dir") + 1] == str(tmp_path / "warm_start")
        measured(options)

    monkeypatch.setattr(execute, "program", fake)
    monkeypatch.setattr(execute, "train", lambda options, out: calls.append(("train.py", out.parent.name)))
    wanted = [cell for cell in headroom.cells() if cell.name.startswith("addition-3")][:2]
    for _ in range(2):
        headroom.execute(wanted, tmp_path, tmp_path / "rows.jsonl", jobs=2)
    assert calls == [("study/split.py", False), ("train.py", "addition-3-after-grpo-0"), ("study/split.py", True)]
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["addition-3-0", "addition-3-after-grpo-0"]
    monkeypatch.setattr(headroom, "execute", lambda *asked: calls.append(asked))
    assert headroom.main(["--only", "none"]) == headroom.main(["--jobs", "0"]) == 2
    assert headroom.main(["--only", "addition-6", "--jobs", "3"]) == headroom.main([]) == 0
    wanted, of_study = headroom.cells(), (execute.ROOT / "runs/study", execute.ROOT / "results/headroom.jsonl")
    assert calls[3:] == [([c for c in wanted if c.regime == "addition-6"], *of_study, 3), (wanted, *of_study, 2)]


def family(name, policies=5, **gains):
    """Rows in which GRPO's gain is 0.1 and each other name's as given, without a bias."""
    same = {"options": "", "pass@1": 0.25, "batches": 128, "concentration": {"GRPO": 0.1}}
    of = lambda gain, k: {"gain": 0.1 * gain + 0.001 * k, "signal": (0.1 * gain) ** 2 / 0.1, "adam": 0.1 * gain}
    rows = []
    for k in range(policies):
        each = {n: of(gain, k) for n, gain in gains.items()} | {"GRPO": of(1.0, 0)}
        figures = {n: {kind: dict(x) for kind in ("all", "right", "wrong")} for n, x in each.items()}
        rows.append({"name": f"{name}-{k}", **same, "figures": {"32": figures, "256": figures}})
    return rows


def test_the_section_says_what_the_rows_say(tmp_path):
    wide, own = {"RLSD, eps_w 4": 0.5}, {"own answer": 1.3}
    rows = family("countdown", **wide, **own, centred=0.9, OPSD=2.0)
    rows += family("countdown-after-grpo", **wide, **own, centred=1.2)
    for row in rows:
        row["figures"]["32"]["RLSD, eps_w 4"]["all"]["gain"] /= 2  # half its gain is bias
    text = headroom_report.section(rows, tmp_path)
    assert (tmp_path / "headroom.png").exists() and (tmp_path / "bias.png").exists()
    (line,) = [line for line in text.splitlines() if line.startswith("| the reference is one")]
    assert line.count("holds") == 2 and "own answer" in line
    assert "by the whole interval: own answer (countdown)." in text  # centred is worth it after RL alone
    assert "oracle" not in text.split("\n32 samples:")[1].split("\n\n")[1].splitlines()[0]  # nobody measured it
    assert headroom_report.section([], tmp_path) == ""
    few = headroom_report.section(family("countdown", 2, **wide, **own), tmp_path)
    assert "under 5 no verdict" in few and "undecided" in few and "holds |" not in few


def test_claims_are_those_of_the_regimes_that_were_measured():
    rows = family("addition", **{"oracle, 1 or 0": 1.5, "RLSD (paper)": 1.0, "contrastive": 1.0, "RLSD, eps_w 4": 1.0})
    rows += family("countdown-after-grpo", **{"RLSD, eps_w 4": 0.5})
    found = {claim: (round(of.value, 1), of.verdict(mark)) for claim, _, of, mark in headroom_report.claims(rows)}
    assert sorted(verdict for _, verdict in found.values()) == ["does not hold", *["holds"] * 6, "undecided"]
    of = lambda claim, regime="addition, before RL": found[f"{claim} ({regime})"]
    assert of("An oracle's marks are worth 1.2 times the samples") == (2.3, "holds")
    assert of("Contrastive at eps_w 4 is worth 1.2 times the samples") == (1.0, "does not hold")
    after = of("Wide weights are worth more over a run's samples", "countdown, after 60 updates of GRPO")
    assert after == (1.0, "undecided")


def test_what_taking_a_suspect_away_turns_back_by_hand():
    """A weighting of the same signal and half the gain has half the cosine."""
    rows = family("countdown", 5, **{"RLSD, eps_w 4": 1.0, "own answer": 1.0, "centred": 1.0})
    for k, row in enumerate(rows):
        figures = row["figures"]["32"]
        figures["RLSD, eps_w 4"]["all"] = {"gain": 0.05, "signal": 0.1, "adam": 0.0}
        figures["centred"]["all"] = {"gain": 0.05 - 0.01 * k, "signal": 0.1, "adam": 0.0}
    found = headroom_report.turned_back(rows, "own answer")
    assert found.value == pytest.approx((0.1 + 0.002) / 0.1 - 0.5) and found.verdict(0.0) == "holds"  # mean of 0.001 k
    assert headroom_report.turned_back(rows, "centred").value == pytest.approx(0.3 - 0.5)
    assert headroom_report.turned_back(rows, "OPSD").n == 0


@given(st.floats(0.1, 3), st.floats(0.1, 100), st.floats(-1, 1))
def test_what_a_run_is_worth_follows_from_one_batch(length, less_noise, cosine):
    """Of means and noises made up: V_G = 10,000 samples' worth of GRPO's mean, V_w = V_G / less_noise of w's."""
    square = lambda mean, level, samples: mean**2 * (1 + level / samples)
    level = {"GRPO": 1e4, "w": 1e4 / less_noise}

    def figures(samples):
        mine, theirs = square(length, level["w"], samples), square(1.0, level["GRPO"], samples)
        gain = lambda dot, a, b: {"all": {"gain": dot / math.sqrt(a * b)}}
        found = {"GRPO": gain(1.0, theirs, theirs), "w": gain(cosine * length, mine, theirs)}
        found["GRPO"]["all"]["signal"], found["w"]["all"]["signal"] = 1 / theirs, length**2 / mine
        return found

    few, run = ([{"figures": {"32": figures(samples)}}] for samples in (32, headroom_report.RUN))
    of = headroom_report.worth_of_run
    one, theirs = (1 + of / 32 for of in (level["w"], level["GRPO"]))  # E|g|^2 at means of length 1
    split_up = headroom_report.cosine(few, "w").value, headroom_report.noise(few, "w").value
    assert split_up == pytest.approx((cosine, theirs / one), abs=1e-9)
    assert headroom_report.worth(few, "w").value == pytest.approx(cosine * abs(cosine) * theirs / one, abs=1e-9)
    assert of(few, "w").value == pytest.approx(headroom_report.worth(run, "w").value, abs=1e-9)
    assert of(few, "GRPO").value == pytest.approx(1.0)
