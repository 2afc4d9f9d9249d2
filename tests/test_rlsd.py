import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsd import evidence_weights, group_advantages, lambda_at, rlsd_loss, token_advantages

CASES = json.loads((Path(__file__).parent / "data" / "oracle.json").read_text())["cases"]
double = lambda values: torch.tensor(values, dtype=torch.float64)


class Batch:
    """Random arguments of rlsd_loss: G samples a group, ragged lengths, teacher and old policy `spread` nats apart."""

    def __init__(self, seed, groups, group_size, T, spread, binary):
        g = torch.Generator().manual_seed(seed)
        N = groups * group_size
        self.group_size = group_size
        rewards = torch.rand(N, generator=g, dtype=torch.float64)
        self.rewards = rewards.round() if binary else rewards
        lengths = torch.randint(1, T + 1, (N, 1), generator=g)
        self.mask = (torch.arange(T) < lengths).long()
        self.logps = -3 * torch.rand(N, T, generator=g, dtype=torch.float64)
        self.old_logps = self.logps + 0.3 * torch.randn(N, T, generator=g, dtype=torch.float64)
        self.teacher_logps = self.logps + spread * torch.randn(N, T, generator=g, dtype=torch.float64)
        self.advantages = group_advantages(self.rewards, group_size)

    def loss(self, rows=slice(None), **options):
        """(loss, gradient of the logps, metrics), over some of the rows if asked."""
        logps, old = self.logps[rows].clone().requires_grad_(), self.old_logps[rows]
        teacher = None if self.teacher_logps is None else self.teacher_logps[rows]
        loss, metrics = rlsd_loss(logps, old, teacher, self.advantages[rows], self.mask[rows], **options)
        loss.backward()
        return loss.detach(), logps.grad, metrics


sizes = st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)
batches = st.builds(Batch, st.integers(0, 2**32), *sizes, st.sampled_from([0.0, 0.05, 1.0, 30.0]), st.booleans())
lams = st.floats(0, 1)
narrow = st.floats(0, 0.99)
gaps = st.sampled_from([1e6, -1e6, 90.0, -90.0, 750.0, -750.0])


# ---- the authors' code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_equals_the_authors_code(case):
    mask, logps = double(case["mask"]), double(case["logps"]).requires_grad_()
    advantages = group_advantages(double(case["rewards"]), case["group_size"])
    assert torch.allclose(advantages, double(case["advantages"]), rtol=0, atol=1e-5)

    options = {"lam": case["lam"], "eps_w": case["eps_w"]}
    recorded = double(case["advantages"])  # what follows is compared on the recorded advantages, so to the last digits
    spread = token_advantages(recorded, double(case["teacher_logps"]), logps, mask, **options)
    assert torch.allclose(spread, double(case["token_advantages"]), rtol=0, atol=1e-6)
    assert not spread.requires_grad

    args = logps, double(case["old_logps"]), double(case["teacher_logps"]), recorded, mask
    loss, metrics = rlsd_loss(*args, **options)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    assert torch.allclose(logps.grad, double(case["grad"]), rtol=0, atol=1e-6)
    assert metrics["clipped_low"] == pytest.approx(case["clip_low"], abs=1e-6)
    assert metrics["clipped_high"] == pytest.approx(case["clip_high"], abs=1e-6)


# ---- the formulas, written out once more -----------------------------------------------------------------------------


def slow_loss(b, lam, eps_w, clip_low, clip_high):
    total, count = 0.0, 0
    for i in range(len(b.rewards)):
        A = b.advantages[i].item()
        for t in range(b.mask.shape[1]):
            if b.mask[i, t]:
                old, new, teacher = b.old_logps[i, t].item(), b.logps[i, t].item(), b.teacher_logps[i, t].item()
                w = math.exp(math.copysign(1, A) * (teacher - new)) if A else 1.0
                A_hat = A * ((1 - lam) + lam * min(max(w, 1 - eps_w), 1 + eps_w))
                rho = math.exp(new - old)
                total += min(rho * A_hat, min(max(rho, 1 - clip_low), 1 + clip_high) * A_hat)
                count += 1
    return -total / count


@given(batches, lams, st.floats(0, 5), st.floats(0, 0.9), st.floats(0, 3))
def test_loss_is_the_sum_over_tokens_written_out(b, lam, eps_w, clip_low, clip_high):
    loss, _, _ = b.loss(lam=lam, eps_w=eps_w, clip_low=clip_low, clip_high=clip_high)
    assert loss.item() == pytest.approx(slow_loss(b, lam, eps_w, clip_low, clip_high), rel=1e-9, abs=1e-12)


def test_group_advantages_by_hand():
    # mean 1/4; squared distances 9/16 + 3/16 = 3/4, over n - 1 = 3: std 1/2
    expected = double([1.5, -0.5, -0.5, -0.5]) * (0.5 / (0.5 + 1e-6))
    assert torch.allclose(group_advantages(double([1, 0, 0, 0]), 4), expected, atol=1e-15)
    # a large eps shows that it is added to the std
    assert torch.allclose(group_advantages(double([1, 0]), 2, eps=1.0), double([0.5, -0.5]) / (0.5**0.5 + 1))


def test_token_advantages_by_hand():
    teacher = double([[0.5, 0.1, 0.25], [0.2, 0.6, 0.2]]).log()
    student = double([[0.25, 0.5, 0.25], [0.4, 0.5, 0.3]]).log()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    # A = 2: w = 2, 0.2, 1 -> clip 1.2, 0.8, 1 -> half of it 1.1, 0.9, 1
    # A = -1: w = inverse ratio = 2, 5/6 -> clip 1.2, 5/6 -> 1.1, 11/12
    expected = double([[2.2, 1.8, 2.0], [-1.1, -11 / 12, 0.0]])
    assert torch.allclose(token_advantages(double([2.0, -1.0]), teacher, student, mask), expected, atol=1e-12)


@given(batches, st.floats(0, 0.5), st.floats(0, 0.5))
def test_policy_clipped_is_the_share_of_tokens_whose_gradient_the_clip_holds(b, clip_low, clip_high):
    _, grad, metrics = b.loss(lam=0.0, clip_low=clip_low, clip_high=clip_high)
    held = b.mask.bool() & (b.advantages != 0)[:, None] & (grad == 0)
    assert metrics["policy_clipped"] == pytest.approx(held.sum().item() / b.mask.sum().item())


def test_a_ratio_on_the_clip_itself_is_not_clipped():
    zeros = torch.zeros(2, 1)
    _, metrics = rlsd_loss(zeros, zeros, None, torch.tensor([1.0, -1.0]), zeros + 1, lam=0.0, clip_low=0, clip_high=0)
    assert metrics["policy_clipped"] == 0


def test_defaults_are_the_papers():
    b = Batch(1, 2, 4, 5, 1.0, True)
    defaults, written = b.loss(), b.loss(lam=0.5, eps_w=0.2, clip_low=0.2, clip_high=0.28)
    assert torch.equal(defaults[0], written[0]) and torch.equal(defaults[1], written[1]) and defaults[2] == written[2]
    spread = token_advantages(b.advantages, b.teacher_logps, b.logps, b.mask)
    assert torch.equal(spread, token_advantages(b.advantages, b.teacher_logps, b.logps, b.mask, 0.5, 0.2))


def test_metrics_by_hand():
    b = Batch(0, 1, 3, 4, 0.0, True)
    b.mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
    b.advantages = double([1.0, -2.0, 0.0])
    b.teacher_logps = b.logps + double([[0.1, 0.5, 9, 9], [0.5, -0.5, 0.1, 9], [3.0, 9, 9, 9]])
    _, _, m = b.loss(lam=0.5, eps_w=0.2)
    w = [math.exp(0.1), 1.2, 0.8, 1.2, math.exp(-0.1), 1.0]
    size = [1, 1, 2, 2, 2, 0]
    assert m["delta"] == pytest.approx((0.1 + 0.5 + 0.5 - 0.5 + 0.1 + 3.0) / 6)
    assert m["weight"] == pytest.approx(sum(w) / 6)
    assert m["clipped_low"] == pytest.approx(1 / 6) and m["clipped_high"] == pytest.approx(2 / 6)
    assert m["abs_advantage"] == pytest.approx(sum(size) / 6)
    assert m["abs_token_advantage"] == pytest.approx(sum(s * (0.5 + 0.5 * x) for s, x in zip(size, w)) / 6)
    assert all(type(value) is float for value in m.values())


def test_global_token_mean_by_hand():
    """One token of A = 1 and three of A = -1 give +2/4; a mean of per-sequence means would give 0."""
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    loss, _ = rlsd_loss(torch.zeros(2, 3), torch.zeros(2, 3), None, torch.tensor([1.0, -1.0]), mask, lam=0.0)
    assert loss.item() == pytest.approx(0.5)
    one = torch.zeros(1, 1)
    loss, metrics = rlsd_loss(one, one, None, torch.tensor([2.0]), torch.ones(1, 1), lam=0.0)
    assert loss.item() == -2.0 and metrics["abs_advantage"] == 2.0  # a single token is a mean over one


# ---- properties ------------------------------------------------------------------------------------------------------


@given(batches, lams, narrow)
def test_the_verifier_alone_decides_the_direction(b, lam, eps_w):
    a_hat = token_advantages(b.advantages, b.teacher_logps, b.logps, b.mask, lam, eps_w)
    assert torch.equal(a_hat.sign(), b.advantages.sign()[:, None] * b.mask)


@given(batches)
def test_lambda_zero_is_grpo(b):
    plain = b.loss(lam=0.0)
    b.teacher_logps = None
    loss, grad, _ = b.loss(lam=0.0)
    assert torch.equal(loss, plain[0]) and torch.equal(grad, plain[1])


@given(batches, lams, narrow)
def test_teacher_equal_to_student_is_grpo_exactly(b, lam, eps_w):
    grpo = b.loss(lam=0.0)
    b.teacher_logps = b.logps.clone()
    loss, grad, metrics = b.loss(lam=lam, eps_w=eps_w)
    assert torch.equal(loss, grpo[0]) and torch.equal(grad, grpo[1])
    assert metrics["clipped_low"] == metrics["clipped_high"] == 0 and metrics["weight"] == 1


@given(batches, lams)
def test_gradient_flows_through_logps_alone(b, lam):
    inputs = [x.clone().requires_grad_() for x in (b.logps, b.old_logps, b.teacher_logps, b.advantages)]
    loss, _ = rlsd_loss(*inputs, b.mask, lam=lam)
    loss.backward()
    assert inputs[0].grad is not None and all(x.grad is None for x in inputs[1:])


@given(batches, lams, st.sampled_from([1e4, -1e4, math.inf, -math.inf, math.nan]))
def test_what_stands_under_mask_zero_changes_nothing(b, lam, poison):
    clean = b.loss(lam=lam)
    names = ("logps", "old_logps", "teacher_logps")
    for name in names:
        setattr(b, name, torch.where(b.mask.bool(), getattr(b, name), poison))
    before = [getattr(b, name).clone() for name in names]
    loss, grad, metrics = b.loss(lam=lam)
    assert torch.equal(loss, clean[0]) and torch.equal(grad, clean[1]) and metrics == clean[2]
    a_hat = token_advantages(b.advantages, b.teacher_logps, b.logps, b.mask, lam)
    assert (a_hat[b.mask == 0] == 0).all() and torch.isfinite(a_hat).all()
    for name, value in zip(names, before):  # the caller's tensors are as they were, padding included
        assert torch.equal(getattr(b, name).nan_to_num(7.0), value.nan_to_num(7.0))


@given(batches, lams, st.randoms(use_true_random=False))
def test_order_inside_a_group_does_not_matter(b, lam, random):
    order = []
    for start in range(0, len(b.rewards), b.group_size):
        order += random.sample(range(start, start + b.group_size), b.group_size)
    assert torch.allclose(group_advantages(b.rewards[order], b.group_size), b.advantages[order], atol=1e-12)
    whole = b.loss(lam=lam)
    shuffled = b.loss(order, lam=lam)
    assert shuffled[0].item() == pytest.approx(whole[0].item(), abs=1e-12)
    assert torch.allclose(shuffled[1], whole[1][order], atol=1e-15)


@given(batches, lams, st.data())
def test_micro_batches_add_up_to_the_whole(b, lam, data):
    N = len(b.rewards)
    cuts = sorted(data.draw(st.sets(st.integers(1, N - 1)))) if N > 1 else []
    tokens = b.mask.sum()
    whole = b.loss(lam=lam)
    parts = [b.loss(slice(i, j), lam=lam, denominator=tokens) for i, j in zip([0, *cuts], [*cuts, N])]
    assert sum(p[0].item() for p in parts) == pytest.approx(whole[0].item(), abs=1e-12)
    assert torch.allclose(torch.cat([p[1] for p in parts]), whole[1], atol=1e-15)


@given(batches, lams, st.floats(0, 20), gaps, gaps | st.just(0.0), st.sampled_from([torch.float32, torch.float64]))
def test_huge_gaps_stay_finite_and_meet_the_exact_bounds(b, lam, eps_w, gap, drift, dtype):
    """Of the teacher, and of the policy that sampled."""
    b.logps, b.old_logps, b.advantages = b.logps.to(dtype), (b.old_logps + drift).to(dtype), b.advantages.to(dtype)
    b.teacher_logps = b.logps + gap
    loss, grad, metrics = b.loss(lam=lam, eps_w=eps_w)
    assert torch.isfinite(loss) and torch.isfinite(grad).all() and all(map(math.isfinite, metrics.values()))
    a_hat = token_advantages(b.advantages, b.teacher_logps, b.logps, b.mask, lam, eps_w)
    up = b.advantages.sign()[:, None] * gap > 0
    bound = torch.where(up, 1 + eps_w, max(1 - eps_w, 0.0))
    expected = b.advantages[:, None] * ((1 - lam) + lam * bound) * b.mask
    assert torch.allclose(a_hat, expected.to(dtype), rtol=1e-5, atol=1e-9)


@given(batches, st.sampled_from([1e6, -1e6, 2.0]), st.sampled_from([math.inf, math.nan, 1e4]))
def test_weights_are_finite_and_above_zero_and_one_on_padding(b, gap, poison):
    teacher = torch.where(b.mask.bool(), b.logps + gap, poison)
    weights, delta = evidence_weights(b.advantages.float(), teacher.float(), b.logps.float(), b.mask)
    assert torch.isfinite(weights).all() and (weights > 0).all() and torch.isfinite(delta).all()
    assert (weights[b.mask == 0] == 1).all() and (delta[b.mask == 0] == 0).all()


@given(batches)
def test_no_advantage_no_evidence(b):
    zero = torch.zeros_like(b.advantages)
    weights, _ = evidence_weights(zero, b.teacher_logps, b.logps, b.mask)
    assert torch.equal(weights, torch.ones_like(weights))
    assert torch.equal(token_advantages(zero, b.teacher_logps, b.logps, b.mask), torch.zeros_like(weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(dtype):
    """Rounding leaves the mean of 0.1, 0.1, 0.1 a step off; divided by 1e-6 that would be an advantage."""
    for percent in range(1, 100):
        for group_size in range(1, 17):
            equal = torch.full((group_size,), percent / 100, dtype=dtype)
            lower, higher = equal.clone(), equal.clone()  # what other groups hold is no business of this one
            lower[0], higher[0] = 0, 1
            got = group_advantages(torch.cat([lower, equal, higher]), group_size)[group_size:-group_size]
            assert torch.equal(got, torch.zeros(group_size, dtype=dtype)), (percent, group_size)


def test_integer_and_bool_rewards():
    expected = group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    for rewards in (torch.tensor([1, 0, 0]), torch.tensor([True, False, False])):
        assert torch.equal(group_advantages(rewards, 3), expected)
    assert expected.dtype == torch.float32 and group_advantages(expected.double(), 3).dtype == torch.float64


# ---- lambda ----------------------------------------------------------------------------------------------------------


def test_lambda_schedule_by_hand():
    assert [lambda_at(s, 0.5, 0, 50) for s in (1, 25, 49, 50, 51, 10_000)] == pytest.approx([0.49, 0.25, 0.01, 0, 0, 0])
    assert [lambda_at(s, 0.5) for s in (1, 10_000)] == [0.5, 0.5]
    assert [lambda_at(s, 0.8, 4, 0) for s in (1, 2, 3, 4, 5, 99)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [lambda_at(s, 0.5, 0, 1) for s in (1, 2)] == [0, 0] and lambda_at(1, 0.5, decay_steps=50) == 0.49
    assert [lambda_at(s, 1.0, 2, 4) for s in (1, 2, 3, 4, 5, 6, 7)] == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0, 0])


# ---- errors ----------------------------------------------------------------------------------------------------------


def arguments(**changes):
    names = ("logps", "old_logps", "teacher_logps", "advantages", "mask")
    args = dict.fromkeys(names, torch.zeros(4, 3)) | {"advantages": torch.zeros(4), "mask": torch.ones(4, 3), **changes}
    return [args.pop(name) for name in names], args


BAD_TOKENS = torch.tensor([[0, math.nan, 0], [0, 0, math.inf], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"logps": BAD_TOKENS}, ["logps", "2 of 12"]),
        ({"old_logps": BAD_TOKENS}, ["old_logps", "2 of 12"]),
        ({"teacher_logps": BAD_TOKENS}, ["teacher_logps", "2 of 12"]),
        ({"advantages": torch.tensor([0, math.nan, 0, 0])}, ["advantages", "1 of 4"]),
        ({"teacher_logps": torch.zeros(4, 2)}, ["teacher_logps", "(4, 2)", "(4, 3)"]),
        ({"logps": torch.zeros(3, 3)}, ["logps", "(3, 3)"]),
        ({"old_logps": torch.zeros(4, 1)}, ["old_logps", "(4, 1)"]),
        ({"advantages": torch.zeros(4, 3)}, ["advantages", "(4, 3)"]),
        ({"mask": torch.ones(4)}, ["advantages", "mask"]),
        ({"mask": torch.ones(4, 3, 1)}, ["advantages", "mask", "(4, 3, 1)"]),
        ({"teacher_logps": None}, ["teacher_logps", "lam"]),
        ({"eps_w": -0.1}, ["eps_w", "-0.1"]),
        ({"eps_w": math.nan}, ["eps_w"]),
        ({"eps_w": math.inf}, ["eps_w"]),
        ({"lam": 1.1}, ["lam", "1.1"]),
        ({"lam": -0.1}, ["lam", "-0.1"]),
    ],
)
def test_wrong_arguments_are_named(changes, words):
    args, options = arguments(**changes)
    with pytest.raises(ValueError) as error:
        rlsd_loss(*args, **options)
    assert str(error.value).startswith(f"{words[0]}: ")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["teacher_logps", "student_logps"])
def test_wrong_arguments_of_token_advantages_are_named(name):
    for wrong, words in ((BAD_TOKENS, "2 of 12"), (torch.zeros(4, 2), "(4, 2)"), (None, "None")):
        logps = {"teacher_logps": torch.zeros(4, 3), "student_logps": torch.zeros(4, 3), name: wrong}
        with pytest.raises(ValueError) as error:
            token_advantages(torch.zeros(4), mask=torch.ones(4, 3), **logps)
        assert str(error.value).startswith(f"{name}: ") and words in str(error.value)


@pytest.mark.parametrize(
    "rewards, group_size", [([1.0, 0.0, 1.0], 2), ([[1.0, 0.0]], 2), ([1.0], 0), ([1.0, math.nan], 2)]
)
def test_wrong_rewards_are_named(rewards, group_size):
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(torch.tensor(rewards), group_size)


def test_an_empty_micro_batch_adds_nothing():
    args, _ = arguments(mask=torch.zeros(4, 3))
    loss, metrics = rlsd_loss(*args)
    assert loss.item() == 0 and all(map(math.isfinite, metrics.values()))
