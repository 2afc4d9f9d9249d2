import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from published.rounded_adam import RoundedAdam, round_by_chance

noise = lambda seed=0: torch.Generator().manual_seed(seed)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20), st.integers(0, 2**32))
def test_a_rounded_number_is_one_of_the_two_neighbours_and_an_exact_one_stays(values, seed):
    x = torch.tensor(values)
    rounded = round_by_chance(x, noise(seed))
    down = (x.view(torch.int32) & -(2**16)).view(torch.float32)
    up = (down.view(torch.int32) + 2**16).view(torch.float32)
    assert ((rounded == down) | (rounded == up)).all() and rounded.dtype == torch.bfloat16
    assert torch.equal(round_by_chance(down, noise(seed)).float(), down)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_is_kept(share, sign):
    x = sign * torch.full((100_000,), 1 + share * 2**-7)
    up = (round_by_chance(x, noise()).float().abs() > 1).float().mean().item()
    assert up == pytest.approx(share, abs=0.01)


def steps(optimizer, weight, n, seed=0):
    for step in range(1, n + 1):
        weight.grad = torch.randn(weight.shape, generator=noise(seed + step)).add(1).to(weight.dtype)
        optimizer.step()


def test_steps_too_small_for_a_bfloat16_add_up_to_those_of_adam():
    start = torch.full((300, 200), 0.02).bfloat16()
    exact, rounded, plain = map(torch.nn.Parameter, (start.float(), start.clone(), start.clone()))
    for weight, kind in ((exact, torch.optim.Adam), (rounded, RoundedAdam), (plain, torch.optim.Adam)):
        steps(kind([weight], lr=1e-6, betas=(0.9, 0.99)), weight, 50)
    moved = (exact - start.float()).mean().item()
    assert moved < -1e-5 and torch.equal(plain.data, start)  # what happens without: nothing
    assert (rounded.float() - start.float()).mean().item() == pytest.approx(moved, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 1e-8])  # the second of the size of eps
def test_moments_and_steps_are_those_of_adam(monkeypatch, scale):
    monkeypatch.setattr("published.rounded_adam.CHUNK", 7)
    start = torch.randn(5, 6, generator=noise()).bfloat16()
    rounded, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    mine, torchs = RoundedAdam([rounded], 0.1, (0.9, 0.99)), torch.optim.Adam([exact], 0.1, (0.9, 0.99))
    for step in range(5):
        gradient = scale * torch.randn(5, 6, generator=noise(step)).bfloat16()
        rounded.grad, exact.grad = gradient, gradient.float()
        mine.step(), torchs.step()
    state = torchs.state[exact]
    torch.testing.assert_close(mine.moments[0], torch.stack([state["exp_avg"], state["exp_avg_sq"]]).view(2, -1))
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.02)


def test_saved_and_loaded_it_goes_on_as_it_would_have():
    a = torch.nn.Parameter(torch.randn(40).bfloat16())
    first = RoundedAdam([a], 1e-3, (0.9, 0.99))
    steps(first, a, 3)
    b = torch.nn.Parameter(a.data.clone())
    second = RoundedAdam([b], 1e-3, (0.9, 0.99))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(first, a, 4, seed=9), steps(second, b, 4, seed=9)
    assert torch.equal(a, b) and a.dtype == torch.bfloat16
    with pytest.raises(ValueError):
        second.load_state_dict({"steps": 1, "moments": []})


def test_a_weight_whose_gradient_is_zero_or_missing_stays():
    """As of a token's embedding that no text has held yet."""
    zero, missing = (torch.nn.Parameter(torch.ones(3).bfloat16()) for _ in "ab")
    optimizer = RoundedAdam([zero, missing], 0.1, (0.9, 0.99))
    zero.grad = torch.zeros(3).bfloat16()
    optimizer.step()
    assert zero.tolist() == missing.tolist() == [1.0, 1.0, 1.0]
    optimizer.zero_grad()
    assert zero.grad is None


def test_every_step_rounds_by_chances_of_its_own():
    """Two steps of half the way to the next number: a quarter has come two numbers far, a quarter none, half one."""
    weight = torch.nn.Parameter(torch.full((10_000,), 0.02).bfloat16())
    optimizer, near = RoundedAdam([weight], lr=2**-14, betas=(0.9, 0.99)), 2**-13
    start = weight.data.float()
    for _ in range(2):
        weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
    numbers = ((weight.data.float() - start) / near).round()
    assert [(numbers == n).float().mean().item() for n in (0, 1, 2)] == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
