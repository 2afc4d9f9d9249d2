import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
from baselines import readings
from baselines.losses import generalised_jsd, opd_loss, opsd_loss, sdpo_loss
from baselines.readings import agreement, contrastive, negative_only
from config import Config
from model import Samples
from rlsd import evidence_weights, token_advantages
from rollout import Rollout

seeds = st.integers(0, 2**32)
READINGS = st.sampled_from(Config.__dataclass_fields__["evidence"].metadata["choices"])


def logits(seed, M=5, V=7, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(M, V, generator=g, dtype=torch.float64) for _ in range(2)]


def textbook(student, teacher, beta):
    """The same from probabilities, with no stable shortcut."""
    S, T = student.softmax(-1), teacher.softmax(-1)
    kl = lambda p, q: (p * (p / q).log()).sum(-1)
    if beta in (0, 1):
        return kl(T, S) if beta == 0 else kl(S, T)
    M = beta * T + (1 - beta) * S
    return beta * kl(T, M) + (1 - beta) * kl(S, M)


def test_divergences_by_hand():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    forward, backward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    for beta, expected in ((0.0, forward), (1.0, backward)):
        assert generalised_jsd(student, teacher, beta).item() == pytest.approx(expected, abs=1e-6)
    for beta in (1.5, -0.5):
        with pytest.raises(ValueError, match="beta"):
            generalised_jsd(student, teacher, beta)


@given(seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_each_token_has_a_divergence_of_its_own(seed, beta):
    """(M,), whatever the other rows hold; and leading dimensions are rows: (2,3,V) is (6,V)."""
    student, teacher = logits(seed, M=6)
    each = generalised_jsd(student, teacher, beta)
    assert torch.allclose(each, textbook(student, teacher, beta), atol=1e-9)
    boxes = [x.view(2, 3, 7) for x in (student, teacher)]
    assert torch.allclose(generalised_jsd(*boxes, beta), each.view(2, 3), atol=1e-12)
    one_by_one = sum(sdpo_loss(s[None], t[None], 2.0, beta, 3) for s, t in zip(student, teacher))
    assert sdpo_loss(*boxes, 2.0, beta, 3).item() == pytest.approx(one_by_one.item())


def test_defaults_are_the_original_ones():
    student, teacher = logits(0, V=150)
    assert opsd_loss(student, teacher, 1.0) == opsd_loss(student, teacher, 1.0, beta=0.5)
    assert sdpo_loss(student, teacher, 1.0) == sdpo_loss(student, teacher, 1.0, beta=0.5, top_k=100)


@given(seeds, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_divergence_and_gradient_equal_the_textbook(seed, beta):
    student, teacher = logits(seed)
    results = []
    for way in (lambda s, t: opsd_loss(s, t, 3.0, beta), lambda s, t: textbook(s, t.detach(), beta).sum() / 3):
        s, t = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        loss = way(s, t)
        loss.backward()
        assert t.grad is None  # the gradient goes through the student alone
        results.append((loss.item(), s.grad))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)
    assert (generalised_jsd(student, teacher, beta) >= -1e-7).all()
    assert torch.allclose(generalised_jsd(student, student, beta), torch.zeros(5, dtype=torch.float64), atol=1e-6)


@given(seeds)
def test_opd_is_reverse_kl_and_its_gradient_contains_the_teacher(seed):
    """Mistake 8: log P_T(y) - log P_S(y) with a detached P_T has the gradient of -log P_S(y), whatever the teacher."""
    student, teacher = logits(seed)
    gradients = []
    for t in (teacher, -teacher):
        s = student.clone().requires_grad_()
        loss = opd_loss(s, t, 2.0)
        loss.backward()
        assert loss.item() == pytest.approx(textbook(student, t, 1).sum().item() / 2)
        gradients.append(s.grad)
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-3)


@given(seeds, st.sampled_from([0.0, 0.5, 1.0]))
def test_sdpo_over_the_whole_vocabulary_is_opsd(seed, beta):
    """With one token in the tail bucket the buckets are the vocabulary; with fewer the divergence can only shrink."""
    student, teacher = logits(seed)
    full = opsd_loss(student, teacher, 1.0, beta)
    assert sdpo_loss(student, teacher, 1.0, beta, top_k=100).item() == pytest.approx(full.item(), abs=1e-6)
    assert sdpo_loss(student, teacher, 1.0, beta, top_k=2) <= full + 1e-6


def test_sdpo_tail_by_hand():
    student, teacher = torch.tensor([[0.2, 0.3, 0.5]]).log(), torch.tensor([[0.7, 0.2, 0.1]]).log()
    expected = 0.7 * math.log(0.7 / 0.2) + 0.3 * math.log(0.3 / 0.8)
    assert sdpo_loss(student, teacher, 4.0, beta=0.0, top_k=1).item() == pytest.approx(expected / 4, abs=1e-6)


# ---- readings of the evidence ----------------------------------------------------------------------------------------


def evidence(seed):
    g = torch.Generator().manual_seed(seed)
    student, teacher, misled = (-2 * torch.rand(4, 3, generator=g, dtype=torch.float64) for _ in range(3))
    return student, teacher, misled, torch.tensor([1.0, -1.0, 2.0, 0.0], dtype=torch.float64), torch.ones(4, 3)


@given(seeds)
def test_contrastive_replaces_the_student_in_the_ratio(seed):
    student, teacher, misled, A, mask = evidence(seed)
    has_wrong = torch.tensor([True, True, False, True])
    got = token_advantages(A, contrastive(student, teacher, misled, has_wrong), student, mask, 1.0, 0.9)
    expected = token_advantages(A, teacher, torch.where(has_wrong[:, None], misled, student), mask, 1.0, 0.9)
    assert torch.allclose(got, expected)


@given(seeds, READINGS, st.booleans(), st.booleans())
def test_readings_combine(seed, reading, negative, thought):
    """The weight is 1, exactly, outside what the two options select, and inside to the bit the reading's own."""
    student, teacher, misled, A, mask = evidence(seed)
    samples = Samples.of([tasks.encode(text) for text in ("a####", "####b", "ab#### 1", "#### 1")])
    inside = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()  # of the thought
    samples.tokens = samples.tokens[:, :3]
    batch = Rollout([tasks.Problem("q", "a")] * 4, samples, A, A, hints=["x", None, "y", "z"])
    config = Config(evidence=reading)

    def weights(config):
        read = readings.read(batch, config, student, teacher, lambda other: misled)
        return evidence_weights(A, read, student, mask)[0]

    chosen = torch.ones(4, 3, dtype=torch.bool)
    chosen &= (A < 0)[:, None] | torch.tensor(not negative)
    chosen &= inside | torch.tensor(not thought)
    found = weights(replace(config, rlsd_negative_only=negative, rlsd_thought_only=thought))
    assert torch.equal(found, torch.where(chosen, weights(config), 1.0))


def test_where_each_reading_begins():
    """Without an advantage there is no evidence to keep, and a gap of just the threshold is no agreement yet."""
    student, teacher, A = torch.full((3, 1), -2.0), torch.full((3, 1), -1.0), torch.tensor([-0.5, 0.0, 0.5])
    assert negative_only(student, teacher, A).flatten().tolist() == [-1.0, -2.0, -2.0]
    at_threshold = agreement(student, torch.tensor([[-1.5], [-1.25], [-2.5]]), torch.ones(3), threshold=0.5)
    assert (at_threshold == student).flatten().tolist() == [False, True, False]
    near = agreement(torch.zeros(2, 1), torch.tensor([[0.019], [0.021]]), torch.ones(2))  # 0.02 unless told
    assert near.exp().flatten().tolist() == pytest.approx([0, 1], abs=1e-15)
