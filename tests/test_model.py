import dataclasses
import math
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noted import noted

import model as model_module
from model import ModelConfig, Samples, Transformer, _draw, row_noise, sample, token_logps

VOCAB, STOP = 11, 1
CONFIG = ModelConfig(
    VOCAB, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, max_seq_len=40
)


def random_model(config=CONFIG, seed=0, sharpness=3.0):
    """Weights large enough for distributions far from uniform; float64: fast and slow way agree to the last token."""
    torch.manual_seed(seed)
    model = Transformer(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(sharpness) if p.dim() == 2 else p.add_(0.1 * torch.randn_like(p))
    return model


MODEL = random_model()
RAGGED = [[1], [2, 4, 5], [6, 7, 8, 9, 10, 1, 2]]
prompts_ = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=5)


def draw(prompts, seed=0, model=MODEL, **options):
    options = {"group_size": 3, "max_new_tokens": 12, "temperature": 1.0, "stop_token": STOP, **options}
    return sample(model, prompts, generator=torch.Generator().manual_seed(seed), **options)


def slow_sample(model, prompts, seed, group_size=3, max_new_tokens=12, temperature=1.0, stop_token=STOP):
    """No cache, no batch: one row at a time, the whole sequence through the model for every token."""
    noise = row_noise(prompts, group_size, max_new_tokens, torch.Generator().manual_seed(seed))
    rows = []
    for i, u in enumerate(noise.tolist()):
        prompt, row = prompts[i // group_size], []
        while len(row) < max_new_tokens and stop_token not in row:
            p = torch.softmax(model(torch.tensor([prompt + row]))[0, -1].detach().float() / temperature, dim=-1)
            threshold = u[len(row)] * float(p.sum())
            reached = (choice for choice, total in enumerate(accumulate(p.tolist())) if total >= threshold)
            row.append(next(reached, len(p) - 1))
        rows.append(row)
    return rows


# ---- sampler ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(prompts_, st.integers(0, 2**32), st.sampled_from([0.5, 1.0, 2.0]))
def test_fast_sampler_equals_the_slow_one(prompts, seed, temperature):
    fast = draw(prompts, seed, temperature=temperature)
    assert fast.completions() == slow_sample(MODEL, prompts, seed, temperature=temperature)


@settings(max_examples=25)
@given(prompts_, st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_neither_order_nor_company_changes_a_token(prompts, seed, random):
    def groups_of(prompts, size=3):
        rows = draw(prompts, seed, group_size=size).completions()
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    groups, shuffled = groups_of(prompts), random.sample(prompts, len(prompts))
    # equal prompts take the streams of their kind in the order in which they come, which sorting keeps
    by_prompt = lambda prompts, groups: sorted(zip(prompts, groups), key=lambda pair: pair[0])
    assert by_prompt(shuffled, groups_of(shuffled)) == by_prompt(prompts, groups)
    assert groups_of(prompts[:1]) == groups[:1]
    assert groups_of(prompts, 2) == [group[:2] for group in groups]


@settings(max_examples=25)
@given(prompts_, st.integers(0, 2**32), st.integers(1, 11))
def test_a_shorter_limit_only_cuts(prompts, seed, limit):
    whole = draw(prompts, seed).completions()
    assert draw(prompts, seed, max_new_tokens=limit).completions() == [row[:limit] for row in whole]


@settings(max_examples=25)
@given(prompts_, st.integers(0, 2**32))
def test_shape_and_content_of_samples(prompts, seed):
    s = draw(prompts, seed)
    lengths = s.mask.sum(1)
    assert s.tokens.shape == s.mask.shape == s.logps.shape == (3 * len(prompts), int(lengths.max()))
    assert torch.equal(s.mask, torch.arange(s.mask.shape[1]) < lengths[:, None])
    assert (s.tokens[~s.mask] == 0).all() and (s.logps[~s.mask] == 0).all() and (s.logps[s.mask] < 0).all()
    for row in s.completions():
        assert STOP not in row[:-1] and (row[-1] == STOP or len(row) == 12)  # the stop token is part of the completion


@settings(max_examples=25)
@given(prompts_, st.integers(0, 2**32), st.sampled_from([0.5, 1.0, 2.0]))
def test_sampling_and_scoring_agree(prompts, seed, temperature):
    model = random_model().float()
    s = draw(prompts, seed, model=model, temperature=temperature)
    again = token_logps(model, prompts, s, temperature)
    assert torch.allclose(s.logps, again, atol=1e-5)
    other = token_logps(model, prompts, s, temperature * 2)
    assert not torch.allclose(s.logps, other, atol=1e-3)


def test_unwritten_memory_is_never_read():
    """With every new buffer filled with NaN the sampler gives the same finite figures."""
    prompts = [[1], [1, 2, 4, 5, 6, 7], [8, 9]]
    clean = draw(prompts)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    try:
        poisoned = draw(prompts)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(clean.tokens, poisoned.tokens) and torch.equal(clean.logps, poisoned.logps)
    assert torch.isfinite(clean.logps).all()


def test_first_token_frequencies_follow_the_softmax():
    """Chi-square over 4,000 first tokens of one group, 10 degrees of freedom: 29.6 is passed once in 1,000."""
    prompt = [5, 1, 7]
    s = draw([prompt], seed=11, group_size=4000, max_new_tokens=1)
    expected = 4000 * torch.softmax(MODEL(torch.tensor([prompt]))[0, -1].detach(), dim=-1)
    observed = torch.bincount(s.tokens[:, 0], minlength=VOCAB)
    kept = expected > 5
    chi2 = ((observed - expected) ** 2 / expected)[kept].sum()
    assert kept.sum() >= 5 and chi2 < 29.6


def test_a_group_does_not_share_its_first_token():
    assert len(set(draw([[5, 1, 7]], group_size=64, max_new_tokens=1).tokens[:, 0].tolist())) > 1


def test_equal_prompts_are_different_groups():
    s = draw([[5, 1, 7], [5, 1, 7]], group_size=16).completions()
    assert s[:16] != s[16:]


def test_a_generator_moves_on_and_seeds_differ():
    g = torch.Generator().manual_seed(0)
    options = {"group_size": 16, "max_new_tokens": 5, "temperature": 1.0, "stop_token": STOP, "generator": g}
    first, second = (sample(MODEL, [[5]], **options).completions() for _ in range(2))
    assert first != second and first == draw([[5]], 0, group_size=16, max_new_tokens=5).completions()


@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 4))
def test_noise_is_above_zero_and_at_most_one_and_rows_differ(prompts, group_size):
    noise = row_noise(prompts, group_size, 50, torch.Generator().manual_seed(1))
    assert noise.shape == (len(prompts) * group_size, 50) and noise.min() > 0 and noise.max() <= 1
    assert len({tuple(row) for row in noise.tolist()}) == len(noise)
    assert torch.equal(noise[:, :7], row_noise(prompts, group_size, 7, torch.Generator().manual_seed(1)))


def test_impossible_tokens_are_never_drawn():
    """Probability 0 in front, in the middle and behind, at the smallest and the largest noise there is."""
    logits = torch.full((3, 6), -math.inf)
    logits[:, 1] = logits[:, 3] = 0.0
    token, logp = _draw(logits, torch.tensor([1e-30, 0.5000001, 1.0]), 1.0)
    assert token.tolist() == [1, 3, 3] and torch.allclose(logp, torch.full((3,), math.log(0.5)))


def test_logits_that_are_no_numbers_give_a_token_of_the_vocabulary_and_no_log_probability():
    logits = torch.tensor([[0.0, 1.0, 2.0], [math.nan] * 3, [math.inf, 0.0, 0.0]])
    tokens, logps = _draw(logits, torch.tensor([0.5, 0.5, 0.5]), 1.0)
    assert tokens.min() >= 0 and tokens.max() <= 2
    assert logps.isnan().tolist() == [False, True, True]


def test_large_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[500.0, 501.0, -500.0], [-500.0, -501.0, -1500.0]])
    token, logp = _draw(logits, torch.tensor([0.9, 0.9]), 1.0)
    p = 1 / (1 + math.exp(-1))
    assert token.tolist() == [1, 1] and torch.allclose(logp, torch.tensor([p, 1 - p]).log())


def test_greedy_takes_the_most_likely_token():
    prompts = [[1, 2], [4, 5, 6, 7, 8]]
    s = draw(prompts, temperature=0.0, group_size=2)
    assert s.completions()[0] == s.completions()[1] and (s.logps == 0).all()
    tokens = list(prompts[1])
    for expected in s.completions()[2]:
        assert expected == int(MODEL(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(expected)


def test_rows_of_a_cache_leave_in_blocks_and_change_nothing(monkeypatch):
    """Rows stop at very different times; the copies that drop them must keep every cache, mask and position in step."""
    copies = noted(monkeypatch, model_module.KVCache, "rows", lambda cache, index, room=0: len(index))
    fast = draw(RAGGED, 5, group_size=8, max_new_tokens=20)
    assert len({len(c) for c in fast.completions()}) > 4 and len(set(copies)) > 3
    assert fast.completions() == slow_sample(MODEL, RAGGED, 5, group_size=8, max_new_tokens=20)


@settings(max_examples=25)
@given(prompts_, st.integers(0, 99), st.integers(1, 20))
def test_rows_decoded_together_may_be_bounded_and_change_nothing(prompts, seed, at_once):
    """Also where equal prompts, told apart by how often they came, fall into different parts."""
    with pytest.MonkeyPatch.context() as patch:
        rows = noted(patch, model_module, "_decode", lambda *args: len(args[5]))
        parts = draw(prompts + prompts[:2], seed, at_once=at_once)
    whole = draw(prompts + prompts[:2], seed)
    assert max(rows) <= max(3, at_once) and sum(rows) == len(whole.tokens)
    assert torch.equal(parts.tokens, whole.tokens) and torch.equal(parts.mask, whole.mask)
    assert torch.allclose(parts.logps, whole.logps, atol=1e-6)


def test_new_tokens_behind_a_past_need_a_mask():
    caches = [model_module.KVCache() for _ in MODEL.blocks]
    MODEL.hidden(torch.tensor([[1, 2, 3]]), caches=caches)
    with pytest.raises(ValueError, match="mask: 2 new tokens behind 3"):
        MODEL.hidden(torch.tensor([[4, 5]]), torch.tensor([[3, 4]]), caches)


def test_finished_rows_leave_as_soon_as_a_quarter_has_finished(monkeypatch):
    """Completions of given lengths, by noise that draws the first token or the last: rows and room that are left."""
    lengths = [2, 3, 6, 6, 6, 4, 6, 6]
    noise = torch.ones(8, 6)
    noise[torch.arange(8), torch.tensor(lengths) - 1] = 1e-30
    noise[:, 5] = 1.0  # the limit ends them, not the stop token
    monkeypatch.setattr(model_module, "row_noise", lambda *_: noise)
    steps = noted(monkeypatch, Transformer, "hidden", lambda self, tokens, *_, **named: len(tokens))
    copies = noted(monkeypatch, model_module.KVCache, "rows", lambda cache, index, room=0: (len(index), room))
    s = draw([[1, 2], [3, 4, 5]], group_size=4, max_new_tokens=6, stop_token=0)
    assert [len(c) for c in s.completions()] == lengths
    # the two prompts, then 8 rows until 6 of them run on, and those 6 until the limit
    assert steps == [2, 8, 8, 6, 6, 6] and copies == [(8, 6)] * 2 + [(6, 3)] * 2
    steps.clear()
    noise[:, 2] = 1e-30
    s = draw([[1, 2], [3, 4, 5]], group_size=4, max_new_tokens=6, stop_token=0)
    assert s.tokens.shape == (8, 3) and steps == [2, 8, 8]  # nothing is run once all have stopped


@settings(max_examples=25)
@given(prompts_, st.integers(0, 99), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4))
def test_any_of_several_stop_tokens_ends_a_row(prompts, seed, stops):
    """Rows are those that nothing stops, up to the first of them, which is kept."""
    whole = draw(prompts, seed, stop_token=()).tokens.tolist()
    ends = [next((t + 1 for t, token in enumerate(row) if token in stops), len(row)) for row in whole]
    assert draw(prompts, seed, stop_token=tuple(stops)).completions() == [row[:n] for row, n in zip(whole, ends)]


def test_a_cache_with_room_is_written_in_place_and_nowhere_else():
    keys, values = torch.randn(2, 3, 2, 4, 5).unbind()  # (B, K, S, D)
    cache = model_module.KVCache(keys, values, 3)  # the fourth slot is not written yet
    index = torch.tensor([2, 0, 2])
    short, long = cache.rows(index), cache.rows(index, 4)
    assert short.keys.shape[2] == 3 and long.keys.shape[2] == long.values.shape[2] == 7
    for copy in (short, long):
        assert torch.equal(copy.keys[:, :, :3], keys[index][:, :, :3]) and copy.length == 3
        assert torch.equal(copy.values[:, :, :3], values[index][:, :, :3])
    long.keys[:, :, 3:], long.values[:, :, 3:] = 7.0, 8.0
    places = long.keys.data_ptr(), long.values.data_ptr()
    k, v = torch.randn(2, 3, 2, 1, 5).unbind()
    got = long.append(k, v)
    assert places == (long.keys.data_ptr(), long.values.data_ptr()) and long.length == 4
    assert torch.equal(got[0], torch.cat([keys[index][:, :, :3], k], dim=2))
    assert torch.equal(got[1], torch.cat([values[index][:, :, :3], v], dim=2))
    assert (long.keys[:, :, 4:] == 7).all() and (long.values[:, :, 4:] == 8).all()


def test_prompts_of_one_length_need_no_mask():
    prefill = model_module._prefill
    assert prefill(MODEL, [[1, 2], [3, 4]], 2, 5)[3] is None and prefill(MODEL, [[1, 2], [3]], 2, 5)[3] is not None


def test_every_tensor_is_made_where_the_model_is(monkeypatch):
    """Another default device than the model's: a tensor that is not told where to be ends on it, and fails."""
    prompts, noise = [[1], [2, 4, 5]], row_noise([[1], [2, 4, 5]], 3, 12, torch.Generator().manual_seed(0))
    expected = draw(prompts)
    monkeypatch.setattr(model_module, "row_noise", lambda *_: noise)
    torch.set_default_device("meta")
    try:
        s = draw(prompts)
        assert draw(prompts, temperature=0.0).logps.device.type == "cpu"
        again = token_logps(MODEL, prompts, s, 1.0)
        given = Samples.of(s.completions())
    finally:
        torch.set_default_device(None)
    assert torch.equal(s.tokens, expected.tokens) and torch.allclose(again.float(), s.logps, atol=1e-5)
    assert {x.device.type for x in (s.tokens, s.mask, s.logps, again, given.tokens, given.mask, given.logps)} == {"cpu"}


def test_prompts_that_do_not_fit_are_refused():
    long = [1] * 29
    unfit = [([[]], "empty"), ([[1], []], "empty"), ([], "at least one"), ([long, [1]], "max_seq_len 40")]
    unfit += [([long], "29 prompt tokens \\+ 12 new ones exceed max_seq_len 40")]
    for prompts, words in unfit:
        with pytest.raises(ValueError, match=words):
            draw(prompts)
        with pytest.raises(ValueError, match=words):
            token_logps(MODEL, prompts, Samples.of([[2] * 12] * max(1, len(prompts))), 1.0)
    s = draw([[1] * 28])  # to the last place
    assert torch.isfinite(token_logps(MODEL, [[1] * 28], s, 1.0)).all()
    with pytest.raises(ValueError, match="temperature"):
        token_logps(MODEL, [[1]], draw([[1]]), 0.0)
    with pytest.raises(ValueError, match="multiple"):
        token_logps(MODEL, [[1], [2]], draw([[1]]), 1.0)


# ---- log-probabilities -----------------------------------------------------------------------------------------------


def slow_logps(model, prompts, samples, temperature):
    """One row at a time, the whole log-softmax; rows share the prompts evenly."""
    result = torch.zeros(samples.mask.shape, dtype=torch.float64)
    share = len(samples.tokens) // len(prompts)
    for i, completion in enumerate(samples.completions()):
        prompt = prompts[i // share]
        table = torch.log_softmax(model(torch.tensor([prompt + completion]))[0] / temperature, dim=-1)
        for t, token in enumerate(completion):
            result[i, t] = table[len(prompt) + t - 1, token]
    return result


@settings(max_examples=25)
@given(prompts_, st.integers(0, 2**32), st.sampled_from([0.5, 1.0]), st.integers(1, 12))
def test_token_logps_and_their_gradient_equal_the_slow_way(prompts, seed, temperature, added):
    """Also after other prompts than those sampled from: the teacher's view is longer, and not by the same for all."""
    s = draw(prompts, seed)
    views = [prompt + [7] * (1 + (added * i) % 12) for i, prompt in enumerate(prompts)]
    gradients = []
    for way in (token_logps, slow_logps):
        MODEL.zero_grad()
        logps = way(MODEL, views, s, temperature)
        (logps * torch.arange(logps.numel()).view_as(logps).cos()).sum().backward()
        gradients.append((logps.detach(), [p.grad.clone() for p in MODEL.parameters()]))
    assert torch.allclose(gradients[0][0].double(), gradients[1][0], atol=2e-6)
    assert all(torch.allclose(a, b, atol=1e-5 * (1 + b.abs().max())) for a, b in zip(gradients[0][1], gradients[1][1]))


@pytest.mark.parametrize("prompts", [[[1, 2], [4, 5]], [[1, 2], [4, 5, 6, 7]], [[3], [3]]])
def test_a_prompt_before_many_completions_is_run_once(prompts, monkeypatch):
    s = draw(prompts, 3)
    repeated = [prompt for prompt in prompts for _ in range(3)]
    run = noted(monkeypatch, Transformer, "hidden", lambda self, tokens, *_, **named: tuple(tokens.shape))
    logps = token_logps(MODEL, repeated, s, 1.0)
    different = {tuple(prompt) for prompt in prompts}
    assert run == [(len(different), max(map(len, prompts))), (len(repeated), s.tokens.shape[1] - 1)]
    assert torch.equal(logps, token_logps(MODEL, prompts, s, 1.0))
    monkeypatch.undo()
    assert torch.allclose(logps.double(), slow_logps(MODEL, prompts, s, 1.0), atol=2e-6)


def test_completions_of_one_token_are_scored_from_the_prompt_alone():
    s = draw([[1, 2], [4, 5, 6]], 3, max_new_tokens=1)
    logps = token_logps(MODEL, [[1, 2], [4, 5, 6]], s, 1.0)
    assert logps.shape == (6, 1) and torch.allclose(logps, s.logps, atol=1e-5)


def test_scoring_in_chunks_changes_nothing(monkeypatch):
    prompts, results = [[1, 2], [4, 5, 6]], []
    s = draw(prompts, 3)
    M = int(s.mask.sum())
    chunks = noted(monkeypatch, model_module, "checkpoint", lambda f, x, y, **named: len(x))
    for size, expected in (
        (2**24, []),
        (M * VOCAB, []),  # all at once, and nothing is computed twice
        (M * VOCAB - 1, [M - 1, 1]),
        (5 * VOCAB, [5] * (M // 5) + [M % 5] * (M % 5 > 0)),
        (1, [1] * M),
    ):
        chunks.clear()
        monkeypatch.setattr(model_module, "SCORE_CHUNK", size)
        MODEL.zero_grad()
        logps = token_logps(MODEL, prompts, s, 1.0)
        assert chunks == expected
        logps.square().sum().backward()
        results.append((logps.detach(), MODEL.embed.weight.grad.clone()))
    for logps, gradient in results[1:]:
        assert torch.equal(logps, results[0][0]) and torch.allclose(gradient, results[0][1], atol=1e-6)


def test_padding_of_samples_is_never_scored():
    prompts, s = [[1, 2], [4, 5, 6]], draw([[1, 2], [4, 5, 6]], 3)
    poisoned = Samples(torch.where(s.mask, s.tokens, 9), s.mask, s.logps)
    assert not s.mask.all()
    assert torch.equal(token_logps(MODEL, prompts, s, 1.0), token_logps(MODEL, prompts, poisoned, 1.0))


def test_samples_by_rows_and_from_lists():
    s = draw([[1, 2], [4, 5, 6]], 3)
    index = torch.tensor([4, 1])
    picked = s.rows(index)
    assert picked.completions() == [s.completions()[4], s.completions()[1]]
    assert picked.tokens.shape == picked.mask.shape == picked.logps.shape == (2, max(map(len, picked.completions())))
    assert picked.tokens.shape[1] < s.tokens.shape[1]
    assert torch.equal(picked.logps[0, : len(picked.completions()[0])], s.logps[4][s.mask[4]])
    given = Samples.of(s.completions())
    assert given.completions() == s.completions() and given.logps.shape == s.logps.shape and (given.logps == 0).all()


# ---- transformer -----------------------------------------------------------------------------------------------------


def test_training_and_evaluation_mode_are_the_same():
    tokens = torch.randint(VOCAB, (2, 9))
    assert torch.equal(MODEL.train()(tokens), MODEL.eval()(tokens))


def slow_forward(model, tokens):
    """The architecture once more, one head and one position at a time."""
    c = model.config

    def norm(x, module):
        return x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * module.weight

    def turn(x, position):
        out = x.clone()
        for i in range(c.head_dim // 2):
            speed = c.rope_theta ** (-2 * i / c.head_dim)
            if c.rope_scaling:  # by the turns that a pair makes in the former context
                factor, low, high, context = c.rope_scaling
                turns = context * speed / (2 * math.pi)
                share = (turns - low) / (high - low)
                slowed = speed / factor
                speed = slowed if turns < low else speed if turns > high else share * speed + (1 - share) * slowed
            angle = torch.tensor(position * speed)
            a, b = x[i], x[i + c.head_dim // 2]
            out[i] = a * angle.cos() - b * angle.sin()
            out[i + c.head_dim // 2] = a * angle.sin() + b * angle.cos()
        return out

    x = model.embed.weight[tokens]
    T, D = len(tokens), c.head_dim
    for block in model.blocks:
        h = norm(x, block.attention_norm)
        bias = block.attention.qkv.bias if c.qkv_bias else 0.0
        every = h @ block.attention.qkv.weight.T + bias
        queries, keys, values = every.split([c.num_heads * D, c.num_kv_heads * D, c.num_kv_heads * D], dim=-1)
        heads = []
        for head in range(c.num_heads):
            group = head // (c.num_heads // c.num_kv_heads)
            q, k, v = queries[:, head * D :][:, :D], keys[:, group * D :][:, :D], values[:, group * D :][:, :D]
            if c.qk_norm:
                q, k = norm(q, block.attention.q_norm), norm(k, block.attention.k_norm)
            q, k = (torch.stack([turn(row, t) for t, row in enumerate(m)]) for m in (q, k))
            heads.append(torch.stack([torch.softmax(k[: t + 1] @ q[t] / D**0.5, dim=0) @ v[: t + 1] for t in range(T)]))
        x = x + torch.cat(heads, dim=-1) @ block.attention.out.weight.T
        h = norm(x, block.mlp_norm)
        gate, up = (h @ block.mlp.gate_up.weight.T).chunk(2, dim=-1)
        x = x + (gate * torch.sigmoid(gate) * up) @ block.mlp.down.weight.T
    return norm(x, model.norm) @ model.head.weight.T


# of the five pairs of heads of 10, by turns in a context of 20: one stays, three are slowed in part, one in full
SCALED = {"head_dim": 10, "rope_theta": 20.0, "rope_scaling": (8.0, 0.4, 2.5, 20.0)}
CHANGES = [{}, {"qk_norm": False}, {"tie_embeddings": False}, {"num_kv_heads": 4}, {"num_kv_heads": 1}, {"head_dim": 6}]
CHANGES += [{"rope_theta": 100.0}, {"qkv_bias": True, "qk_norm": False}, SCALED, {"norm_eps": 0.5}]


@pytest.mark.parametrize("changes", CHANGES)
def test_forward_equals_the_architecture_written_out(changes):
    model = random_model(dataclasses.replace(CONFIG, **changes))
    tokens = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(2))
    assert torch.allclose(model(tokens[None])[0], slow_forward(model, tokens), atol=1e-6)
    assert ("head.weight" in dict(model.named_parameters())) != model.config.tie_embeddings  # one matrix, or two


def test_default_model_is_small_and_starts_near_uniform():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(262))
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 150_000
    logps = torch.log_softmax(model(torch.randint(262, (4, 30))), dim=-1)
    assert abs(-logps.mean().item() - math.log(262)) < 0.5


@pytest.mark.parametrize("layers, width", [(1, 64), (8, 64), (2, 192)])
def test_first_weights_have_gpt2s_deviations_by_width_and_depth(layers, width):
    """0.02 at a width of 768; what writes into the residual stream by sqrt(2 layers) less; norms are ones."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(262, hidden_size=width, intermediate_size=3 * width, num_layers=layers))
    deep = 0
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.ones_like(p))
            continue
        writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
        deep += writes
        expected, n = 0.02 * (768 / width) ** 0.5 / (2 * layers if writes else 1) ** 0.5, p.numel()
        assert abs(p.std().item() / expected - 1) < 5 / (2 * n) ** 0.5 and abs(p.mean().item()) < 5 * expected / n**0.5
    assert deep == 2 * layers


def test_bf16_autocast_runs_and_stays_near():
    model = random_model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = draw(RAGGED, 5, model=model)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # again, as in training: older torch keeps cast weights in one
        again = token_logps(model, RAGGED, s, 1.0)
    assert s.logps.dtype == again.dtype == torch.float32
    assert (s.logps - again).abs().mean() < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_tokens_on_cuda():
    on_gpu = draw(RAGGED, 5, model=random_model().cuda())
    assert on_gpu.completions() == draw(RAGGED, 5).completions()


def test_noise_streams_are_recorded():
    """The stream of (base, prompt, repeat, i) is part of what makes a run repeatable: this is its first draw."""
    base = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(1)))
    expected = 1 - np.random.default_rng([base, 0, 1, 4, 5]).random(3, dtype=np.float32)
    assert np.array_equal(row_noise([[4, 5]], 2, 3, torch.Generator().manual_seed(1))[1].numpy(), expected)


@pytest.mark.parametrize("prompts", [[[3, 4, 5]], [[3, 4, 5], [7]]])
def test_gradient_checkpointing_changes_memory_and_no_figure(prompts):
    samples = draw(prompts)
    figures, kept = [], []
    for again in (False, True):
        model = random_model()
        model.gradient_checkpointing = again
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            logps = token_logps(model, prompts, samples, 1.0)
        logps.sum().backward()
        figures.append([logps, *(p.grad for p in model.parameters())])
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*figures))
    assert kept[1] < kept[0] / 2
