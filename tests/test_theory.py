"""What the paper proves, on random finite distributions: a reference r, answers y of T tokens over V symbols."""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsd import evidence_weights, lambda_at, token_advantages

PAGE = " ".join((Path(__file__).parents[1] / "docs/derivation.md").read_text().split())
V, T, R = 3, 3, 4
kl = lambda p, q: float((p * (np.log(p) - np.log(q))).sum())
ANSWERS = list(itertools.product(range(V), repeat=T))
joints = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(R * V**T, 0.5)).reshape(R, *[V] * T)
)  # P(r, y)


@given(joints, st.integers(0, R - 1), st.sampled_from(ANSWERS), st.sampled_from([1.0, -1.0]))
def test_evidence_ratios_telescope(joint, r, y, sign):
    """Thm 4: prod_t P_T(y_t) / P_S(y_t) = P(r | y) / P(r), the right way up where A > 0, inverted where A < 0."""
    steps = [joint[(slice(None), *y[:t])].reshape(R, -1).sum(axis=1) for t in range(T + 1)]  # P(r, y_<=t) for every r
    student = [math.log(after.sum() / before.sum()) for before, after in zip(steps, steps[1:])]
    teacher = [math.log(after[r] / before[r]) for before, after in zip(steps, steps[1:])]
    as_row = lambda values: torch.tensor([values], dtype=torch.float64)
    weights, delta = evidence_weights(torch.tensor([sign]), as_row(teacher), as_row(student), torch.ones(1, T))

    posterior = np.array([step[r] / step.sum() for step in steps])
    assert math.isclose(weights.prod().item(), (posterior[-1] / joint[r].sum()) ** sign, rel_tol=1e-9)
    assert np.allclose(delta[0].exp(), posterior[1:] / posterior[:-1], rtol=1e-9, atol=0)


@given(joints, st.integers(0, 2**32), st.integers(0, T - 1))
def test_distillation_loss_is_the_reachable_part_plus_mutual_information(joint, seed, t):
    """Thm 1: E KL(P_T || P_S) = E KL(P_bar_T || P_S) + I(Y_t; R | Y_<t), for any student at all."""
    rng = np.random.default_rng(seed)
    loss = reachable = information = 0.0
    for y in itertools.product(range(V), repeat=t):
        table = joint[(slice(None), *y)].reshape(R, V, -1).sum(axis=2)  # P(r, y_<t, y_t)
        weight = table.sum()
        p_r = table.sum(axis=1) / weight
        teacher = table / table.sum(axis=1, keepdims=True)
        mean_teacher = p_r @ teacher
        student = rng.dirichlet(np.ones(V))
        loss += weight * sum(p * kl(q, student) for p, q in zip(p_r, teacher))
        reachable += weight * kl(mean_teacher, student)
        both = table / weight
        information += weight * kl(both.ravel(), np.outer(p_r, both.sum(axis=0)).ravel())
    assert math.isclose(loss, reachable + information, rel_tol=1e-9, abs_tol=1e-9)
    assert information >= -1e-12


@given(joints, st.integers(0, 2**32))
def test_per_sample_distillation_gradient_has_the_stated_noise(joint, seed):
    """Prop. 1: g(r) = g* + delta(r), E delta = 0; delta is the score of the student weighed by P_T(.|r) - P_bar_T."""
    table = joint.reshape(R, V, -1).sum(axis=2)
    p_r, teacher = torch.tensor(table.sum(axis=1)), torch.tensor(table / table.sum(axis=1, keepdims=True))
    mean_teacher = p_r @ teacher
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)

    def gradient(target):
        student = torch.log_softmax(logits, dim=0)
        return torch.autograd.grad((target * (target.log() - student)).sum(), logits)[0]

    deviations = torch.stack([gradient(q) - gradient(mean_teacher) for q in teacher])
    assert torch.allclose(p_r @ deviations, torch.zeros(V, dtype=torch.float64), atol=1e-9)
    scores = torch.autograd.functional.jacobian(lambda x: torch.log_softmax(x, dim=0), logits.detach())  # (V, params)
    assert torch.allclose(deviations, -(teacher - mean_teacher) @ scores, atol=1e-9)


def test_the_example_of_the_derivation():
    """docs/derivation.md: two references, one token; 0.368 nats stay, 0.511 more for the student that learned one r."""
    teacher, best, leaked = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0.5, 0.5]), np.array([0.9, 0.1])
    loss = lambda student: np.mean([kl(q, student) for q in teacher])
    assert abs(loss(best) - 0.368) < 5e-4
    assert abs(loss(leaked) - loss(best) - 0.511) < 5e-4
    told, untold = torch.tensor([[0.9]]).log(), torch.tensor([[0.5]]).log()
    weight, _ = evidence_weights(torch.ones(1), told, untold, torch.ones(1, 1))
    assert math.isclose(weight.item(), 1.8, rel_tol=1e-6)


# ---- how much a weight can give at most ------------------------------------------------------------------------------


def gain(lam, eps_w, signal, noise, delta):
    """Of the squared signal-to-noise ratio: along the mean gradient `signal` (n,), over covariances `noise` (n,n)."""
    student = torch.full((1, len(delta)), -1.0, dtype=torch.float64)
    mask, delta = torch.ones(1, len(delta)), torch.tensor([delta], dtype=torch.float64)
    m = token_advantages(torch.ones(1, dtype=torch.float64), student + delta, student, mask, lam, eps_w)[0].numpy()
    squared = lambda m: (m @ signal) ** 2 / (m @ noise @ m)
    return squared(m) / squared(np.ones(len(m)))


lams, ranges, deltas = st.floats(0, 1), st.floats(0, 0.95), st.floats(-5, 5)
splits = st.lists(st.booleans(), min_size=2, max_size=9).filter(lambda split: any(split) and not all(split))


@given(lams, ranges, st.integers(0, 2**32), st.lists(deltas, min_size=2, max_size=9))
def test_no_evidence_raises_signal_to_noise_above_the_bound(lam, eps_w, seed, delta):
    """docs/derivation.md, 4: tokens may carry both, noises may agree (covariances of common factors, none negative)."""
    rng = np.random.default_rng(seed)
    signal, factors = (rng.exponential(size=(len(delta), k)) * rng.integers(2, size=(len(delta), k)) for k in (1, 3))
    signal[0] = factors[-1, 0] = 1.0
    bound = ((1 + lam * eps_w) / (1 - lam * eps_w)) ** 2
    assert gain(lam, eps_w, signal[:, 0], factors @ factors.T, delta) <= bound * (1 + 1e-9)


@given(lams, ranges, splits, st.integers(0, 2**32), st.lists(deltas, min_size=9, max_size=9))
def test_signal_to_noise_reaches_both_bounds_on_any_split(lam, eps_w, split, seed, delta):
    """And stays under the second wherever the noise has no evidence, whatever the evidence of the signal."""
    carries = np.array(split)
    size = np.random.default_rng(seed).uniform(0.1, 2, len(split))
    signal, noise = np.where(carries, size, 0.0), np.diag(np.where(carries, 0.0, size))
    of = lambda on_signal, on_noise: gain(lam, eps_w, signal, noise, np.where(carries, on_signal, on_noise).tolist())
    second = (1 + lam * eps_w) ** 2
    assert math.isclose(of(9.0, -9.0), second / (1 - lam * eps_w) ** 2, rel_tol=1e-9)
    assert math.isclose(of(9.0, 0.0), second, rel_tol=1e-9)
    assert of(np.array(delta[: len(split)]), 0.0) <= second * (1 + 1e-9)


def test_weights_that_see_the_verdict_lengthen_the_mean_by_more_than_the_bound():
    """docs/derivation.md, 4: a carry taken half of the time, an answer then right half of the time."""
    chance, reward = torch.tensor([0.25, 0.25, 0.5]), torch.tensor([1.0, 0.0, 0.0])  # taken, taken, forgotten
    A, moves = reward - chance @ reward, torch.tensor([0.5, 0.5, -0.5])  # d log P / d logit of the carry
    student, teacher = torch.tensor([0.5, 0.5, 0.5]).log()[:, None], torch.tensor([0.99, 0.99, 0.01]).log()[:, None]
    parts = [(chance * token_advantages(A, teacher, student, torch.ones(3, 1), lam)[:, 0] * moves) for lam in (0, 0.5)]
    plain, weighed = (part.sum().item() for part in parts)
    assert "{} - {} + {} = {}".format(*parts[0].abs().tolist(), plain) in PAGE
    assert math.isclose(weighed, 0.14375, rel_tol=1e-6) and f"0.14375, {weighed / plain:.2f} times as much" in PAGE
    assert weighed / plain > 1.1 * (1 + 1e-3)


def test_the_bounds_over_the_papers_run():
    """docs/derivation.md, 4: lambda 0.5 to 0 over 50 of 200 updates."""
    lam = np.array([lambda_at(step, 0.5, decay_steps=50) for step in range(1, 201)])
    first, second = ((1 + 0.2 * lam) / (1 - 0.2 * lam)) ** 2, (1 + 0.2 * lam) ** 2
    assert f"{(1.1 / 0.9) ** 2:.2f} at the paper's settings" in PAGE and f"{1.1**2:.2f}, where tokens of noise" in PAGE
    means = [f"{bound[:n].mean():.3f}" for bound in (first, second) for n in (50, 200)]
    assert "is then {} over those 50 and {} over the run (second line: {} and {})".format(*means) in PAGE
    assert f"at most {first.sum():.0f} of GRPO's, or {second.sum():.0f}; the claim needs 400" in PAGE
