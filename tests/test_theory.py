"""What the paper proves, on random finite distributions: a reference r, answers y of T tokens over V symbols."""

import itertools
import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsd import evidence_weights

V, T, R = 3, 3, 4
ANSWERS = list(itertools.product(range(V), repeat=T))
joints = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(R * V**T, 0.5)).reshape(R, *[V] * T)
)  # P(r, y)


def prefix(joint, y, t):
    """P(r, y_<=t) for every r."""
    return joint[(slice(None), *y[:t])].reshape(R, -1).sum(axis=1)


@given(joints, st.integers(0, R - 1), st.sampled_from(ANSWERS), st.sampled_from([1.0, -1.0]))
def test_evidence_ratios_telescope(joint, r, y, sign):
    """Thm 4: prod_t P_T(y_t) / P_S(y_t) = P(r | y) / P(r), the right way up where A > 0, inverted where A < 0."""
    student = [math.log(prefix(joint, y, t + 1).sum() / prefix(joint, y, t).sum()) for t in range(T)]
    teacher = [math.log(prefix(joint, y, t + 1)[r] / prefix(joint, y, t)[r]) for t in range(T)]
    as_row = lambda values: torch.tensor([values], dtype=torch.float64)
    weights, delta = evidence_weights(torch.tensor([sign]), as_row(teacher), as_row(student), torch.ones(1, T))

    posterior, prior = prefix(joint, y, T)[r] / prefix(joint, y, T).sum(), joint[r].sum()
    assert math.isclose(weights.prod().item(), (posterior / prior) ** sign, rel_tol=1e-9)
    one_step = [prefix(joint, y, t + 1) for t in range(-1, T)]
    for t in range(T):
        before, after = one_step[t], one_step[t + 1]
        assert math.isclose(
            delta[0, t].exp().item(), (after[r] / after.sum()) / (before[r] / before.sum()), rel_tol=1e-9
        )


def kl(p, q):
    return float((p * (np.log(p) - np.log(q))).sum())


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
    weight = evidence_weights(
        torch.ones(1), torch.tensor([[0.9]]).log(), torch.tensor([[0.5]]).log(), torch.ones(1, 1)
    )[0]
    assert math.isclose(weight.item(), 1.8, rel_tol=1e-6) and math.isclose(0.5 * weight.item(), 0.9, rel_tol=1e-6)
