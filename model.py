"""A decoder-only transformer of the Llama / Qwen family, its KV cache, a batched sampler, token log-probabilities.

B rows, T tokens, D head dimension, H query heads, K key/value heads, V vocabulary; N samples, P prompts, G samples a
prompt (N = P * G, the samples of one prompt next to each other).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Tokens x vocabulary scored at a time (64 MB in float32): bounds the memory of log-probabilities, whatever the batch.
SCORE_CHUNK = 2**24


@dataclass
class ModelConfig:
    vocab_size: int
    hidden_size: int = 64
    intermediate_size: int = 192
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    max_seq_len: int = 256
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qk_norm: bool = True
    qkv_bias: bool = False
    rope_scaling: tuple[float, float, float, float] | None = None  # Llama 3.1: factor, low, high, former context


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


EMPTY = torch.empty(0)  # the keys and values of no token


class KVCache:
    """Keys and values of one layer, (B, K, S, D): `length` slots are written, none beyond them is ever read.

    With room for them new tokens are written in place; without it they are joined on, which gradients flow through.
    """

    def __init__(self, keys: Tensor = EMPTY, values: Tensor = EMPTY, length: int = 0):
        self.keys, self.values, self.length = keys, values, length

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + keys.shape[2]
        if start == 0:
            self.keys, self.values = keys, values
        elif self.keys.shape[2] < self.length:
            self.keys, self.values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        else:
            self.keys[:, :, start : self.length] = keys
            self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def rows(self, index: Tensor, room: int = 0) -> "KVCache":
        """A cache of the given rows, repeats allowed, with room for so many more tokens."""
        keys, values = (x[:, :, : self.length].index_select(0, index) for x in (self.keys, self.values))
        if room:  # slots behind `length` are never read, so nothing has to be written there
            short = keys, values
            keys, values = (x.new_empty(*x.shape[:2], self.length + room, x.shape[3]) for x in short)
            keys[:, :, : self.length], values[:, :, : self.length] = short
        return KVCache(keys, values, self.length)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; q, k and v come from one product."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        self.qkv = nn.Linear(c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, bias=c.qkv_bias)
        self.out = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache, mask: Tensor | None) -> Tensor:
        (B, T, _), H, K, D = x.shape, self.heads, self.kv_heads, self.head_dim
        qk, v = self.qkv(x).view(B, T, H + 2 * K, D).split([H + K, K], dim=2)
        if self.q_norm is not None and self.k_norm is not None:  # of one shape: normalised and rotated together
            scale = torch.cat([self.q_norm.weight.expand(H, D), self.k_norm.weight.expand(K, D)])
            qk = F.rms_norm(qk, (D,), eps=self.q_norm.eps) * scale.to(qk.dtype)
        q, k = rotate(qk, rope).split([H, K], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D) and twice (B, K, T, D)
        k, v = cache.append(k, v)
        if T == 1:  # decoding: the query heads that share a key head are the rows of one small product
            q = q.reshape(B, K, H // K, D)
            if k.dtype == torch.float32:  # a tenth faster written out; in bfloat16 it would round the scores
                y = torch.softmax((q * D**-0.5) @ k.mT + (0.0 if mask is None else mask), dim=-1) @ v
            else:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return self.out(y.reshape(B, 1, H * D))
        causal = T == k.shape[2]  # no past: padding on the right is invisible to what precedes it
        if mask is None and not causal:
            raise ValueError(f"mask: {T} new tokens behind {k.shape[2] - T} need one, or each would see those after it")
        y = F.scaled_dot_product_attention(q, k, v, None if causal else mask, is_causal=causal, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU; gate and up come from one product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, cache, mask)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """tokens (B,T) -> logits (B,T,V): RMSNorm, RoPE, grouped-query attention, SwiGLU, no dropout anywhere."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # training keeps a block's input alone, and runs the block again
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        std = 0.02 * (768 / config.hidden_size) ** 0.5  # GPT-2's 0.02 at its width of 768, kept in proportion
        for name, p in self.named_parameters():
            if p.dim() == 2:  # what writes into the residual stream starts smaller, the deeper the model
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=std / (2 * config.num_layers) ** 0.5 if deep else std)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(tokens))

    def hidden(
        self, tokens: Tensor, positions: Tensor | None = None, caches: list | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Final hidden states (B,T,hidden) of tokens (B,T) at positions (B,T), default 0..T-1; a KVCache a layer."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None] if positions is None else positions
        rope = rope_tables(positions, self.config)
        x = self.embed(tokens)
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            cache = caches[i] if caches is not None else KVCache()
            x = run_again(block, x, rope, cache, mask) if again else block(x, rope, cache, mask)
        return self.norm(x)


def run_again(block: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache, mask: Tensor | None) -> Tensor:
    """block(x, ...), of which the backward pass keeps the inputs; its second run must find the cache as it was."""

    def run(x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        own = KVCache(*past, length)
        return block(x, rope, own, mask), own.keys, own.values

    length = cache.length
    y, cache.keys, cache.values = checkpoint(run, x, (cache.keys, cache.values), use_reentrant=False)
    cache.length += x.shape[1]
    return y


def rope_tables(positions: Tensor, c: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and -sin | sin (B,T,1,D) of the rotary angles at integer positions (B,T) (Su et al., arXiv 2104.09864)."""
    inverse = c.rope_theta ** -(torch.arange(0, c.head_dim, 2, device=positions.device).float() / c.head_dim)
    if c.rope_scaling:  # angles that turn fewer than `high` times in the former context are slowed, below `low` fully
        factor, low, high, context = c.rope_scaling
        kept = ((context * inverse / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
        inverse = inverse * (kept + (1 - kept) / factor)
    angles = positions[..., None, None] * inverse
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B,T,heads,D) by its position; dimension i is paired with i + D/2, as published Llama weights expect."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


@dataclass
class Samples:
    """Completions (N,T), right-padded; mask True on tokens, the stop token included; logps in nats, 0 on padding."""

    tokens: Tensor
    mask: Tensor
    logps: Tensor

    @classmethod
    def of(cls, completions: list[list[int]], device: torch.device | str = "cpu") -> "Samples":
        """Given completions, stop token included, as samples of unknown log-probability (0)."""
        tokens, lengths = _pad(completions, device)
        mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        return cls(tokens, mask, torch.zeros(tokens.shape, device=device))

    def completions(self) -> list[list[int]]:
        """Token ids of each completion, stop token included, padding not."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.mask.sum(dim=1).tolist())]

    def rows(self, index: Tensor) -> "Samples":
        """The given rows, cut to the longest of them."""
        mask = self.mask[index]
        T = int(mask.sum(dim=1).max())
        return Samples(self.tokens[index, :T], mask[:, :T], self.logps[index, :T])


def sample(
    model: Transformer,
    prompts: list[list[int]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    stop_token: int | tuple[int, ...],
    generator: torch.Generator | None = None,
    at_once: int = 0,
) -> Samples:
    """Draw `group_size` completions of every prompt from the full softmax at `temperature` -> Samples, N = P * G rows.

    temperature 0 takes the most likely token (log-probability 0: the policy is certain). Each row draws from a noise
    stream of its own (`row_noise`): neighbours, batch order and batch size do not change a single token.
    stop_token: any of these ends a row. at_once bounds the rows decoded together, to a group at least; 0: all.
    Raises ValueError for an empty prompt, or one that leaves no room for `max_new_tokens` in the context.
    """
    device = model.embed.weight.device
    _check_prompts(model, prompts, max_new_tokens)
    noise = row_noise(prompts, group_size, max_new_tokens, generator).to(device)  # (N, T) in (0, 1]
    tokens, logps = torch.zeros_like(noise, dtype=torch.long), torch.zeros_like(noise)
    lengths = torch.zeros(len(noise), dtype=torch.long, device=device)
    P = max(1, at_once // group_size) if at_once else len(prompts)
    stops = torch.tensor(stop_token, device=device).view(-1)
    with torch.inference_mode():  # a tenth faster than no_grad; what is returned was made outside and may meet autograd
        for start in range(0, len(prompts), P):
            part = [x[start * group_size : (start + P) * group_size] for x in (noise, tokens, logps, lengths)]
            _decode(model, prompts[start : start + P], group_size, temperature, stops, *part)
    T = int(lengths.max())
    return Samples(tokens[:, :T], torch.arange(T, device=device) < lengths[:, None], logps[:, :T])


def _decode(
    model: Transformer, prompts: list[list[int]], group_size: int, temperature: float, stops: Tensor, *rows_of: Tensor
) -> None:
    """Fill tokens (N,T), logps (N,T) and lengths (N,) from noise (N,T), token by token."""
    noise, tokens, logps, lengths = rows_of
    N, T = noise.shape
    logits, caches, positions, mask = _prefill(model, prompts, group_size, T)
    rows = torch.arange(N, device=noise.device)  # those still running; `caches`, `positions`, `mask` hold these alone
    alive = torch.ones(N, dtype=torch.bool, device=noise.device)
    running, every = N, 1 if noise.device.type == "cpu" else 8  # counting waits for all that a GPU still has to do
    for t in range(T):
        token, logp = _draw(logits, noise[rows, t], temperature)
        tokens[rows, t] = torch.where(alive, token, 0)
        logps[rows, t] = torch.where(alive, logp, 0.0)
        lengths[rows] += alive
        alive = alive & (token[:, None] != stops).all(dim=1)
        if (t + 1) % every == 0:
            running = int(alive.sum())
        if running == 0 or t + 1 == T:
            break
        if running <= 0.75 * len(rows):  # finished rows leave in blocks: copying the cache costs as much as a few steps
            keep = alive.nonzero().squeeze(1)
            rows, alive, token, positions = rows[keep], alive[keep], token[keep], positions[keep]
            mask = mask[keep] if mask is not None else None
            caches = [cache.rows(keep, T - t - 1) for cache in caches]
        step_mask = mask[..., : caches[0].length + 1] if mask is not None else None
        logits = model.head(model.hidden(token[:, None], positions[:, None] + t, caches, step_mask))[:, 0]


def _prefill(model: Transformer, prompts: list[list[int]], group_size: int, room: int):
    """Run every prompt once; hand each of its samples a copy: next-token logits (N,V), caches, positions (N,), mask."""
    device = model.embed.weight.device
    padded, lengths = _pad(prompts, device)  # (P, L), (P,)
    caches = [KVCache() for _ in model.blocks]
    hidden = model.hidden(padded, caches=caches)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]  # (P, hidden), at each prompt's own end

    of_prompt = torch.arange(len(prompts), device=device).repeat_interleave(group_size)  # (N,)
    caches = [cache.rows(of_prompt, room) for cache in caches]
    mask = None
    if int(lengths.min()) < padded.shape[1]:  # hide the padding between a short prompt and the shared decode slots
        slots = torch.arange(padded.shape[1] + room, device=device)
        hidden_slot = (slots >= lengths[:, None]) & (slots < padded.shape[1])
        mask = torch.zeros(hidden_slot.shape, device=device, dtype=caches[0].keys.dtype)
        mask = mask.masked_fill(hidden_slot, float("-inf"))[of_prompt, None, None]  # (N, 1, 1, slots)
    return model.head(last)[of_prompt], caches, lengths[of_prompt], mask


def _draw(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at noise (N,) in (0, 1] -> tokens (N,), logps (N,)."""
    if temperature == 0:
        return logits.argmax(dim=-1), torch.zeros(len(logits), device=logits.device)
    logits = logits.float() / temperature if temperature != 1 else logits.float()
    logits = logits - logits.amax(dim=-1, keepdim=True)
    cumulative = logits.exp().cumsum(dim=-1)  # its last entry is the softmax's denominator
    # noise <= 1 keeps the threshold at or below the last entry; noise > 0 skips tokens of probability 0 in front
    token = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:])
    token = token.clamp(max=logits.shape[-1] - 1)  # of logits that are nan: a token, and a log-probability of nan
    return token.squeeze(1), (logits.gather(1, token) - cumulative[:, -1:].log()).squeeze(1)


def row_noise(prompts: list[list[int]], group_size: int, length: int, generator: torch.Generator | None) -> Tensor:
    """Uniform noise (N, length) in (0, 1]; row i of a group is keyed by (one draw of `generator`, prompt, repeat, i).

    The prompt's own tokens are the key, and how often it stood in the batch before: not its place in the batch.
    """
    base = int(torch.randint(2**62, (1,), generator=generator))
    seen: dict[tuple[int, ...], int] = {}
    rows = []
    for prompt in prompts:
        repeat = seen[tuple(prompt)] = seen.get(tuple(prompt), -1) + 1
        for i in range(group_size):
            rows.append(1 - np.random.default_rng([base, repeat, i, *prompt]).random(length, dtype=np.float32))
    return torch.from_numpy(np.stack(rows))


def token_logps(model: Transformer, prompts: list[list[int]], samples: Samples, temperature: float) -> Tensor:
    """Log-probabilities (N,T), in nats, of the sampled tokens after `prompts` at `temperature`; 0 on padding.

    The prompts may differ from those that were sampled from (the teacher's view of the same completions). With
    gradient unless the caller turned it off. Raises ValueError as `sample` does, and for a temperature of 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature} gives no probabilities; hand in a number above 0")
    states = completion_states(model, prompts, samples)
    logps = torch.zeros(samples.mask.shape, device=states.device)
    return logps.masked_scatter(samples.mask, _score(model, states, samples.tokens[samples.mask], temperature))


def completion_states(model: Transformer, prompts: list[list[int]], samples: Samples) -> Tensor:
    """Hidden states (tokens, hidden) from which each completion token, row by row, was predicted.

    A prompt that stands before several completions is run once, and they all attend to its keys and values.
    """
    N, T = samples.tokens.shape
    _check_prompts(model, prompts, T)
    if N % len(prompts) != 0:
        raise ValueError(f"prompts: {N} samples are no multiple of {len(prompts)} prompts")
    device = samples.tokens.device
    different = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    of_prompt = torch.tensor([different[tuple(p)] for p in prompts for _ in range(N // len(prompts))], device=device)
    caches = [KVCache() for _ in model.blocks]
    padded, lengths = _pad([list(prompt) for prompt in different], device)
    before = model.hidden(padded, caches=caches)  # (prompts, L, hidden)
    first = before[torch.arange(len(padded), device=device), lengths - 1][of_prompt, None]
    if T == 1:
        return first[samples.mask]
    L = padded.shape[1]
    slots = torch.arange(L + T - 1, device=device)
    visible = (slots < lengths[:, None])[:, None] | ((slots >= L) & (slots <= L + slots[: T - 1, None]))
    visible = visible[of_prompt, None] if int(lengths.min()) < L else visible[:1, None]  # (N or 1, 1, T - 1, slots)
    caches = [cache.rows(of_prompt) for cache in caches]
    places = lengths[of_prompt, None] + slots[: T - 1]  # (N, T - 1)
    after = model.hidden(samples.tokens[:, :-1], places, caches, visible)
    return torch.cat([first, after], dim=1)[samples.mask]


def _score(model: Transformer, states: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax at `tokens` (M,) from states (M, hidden), in chunks that the backward pass computes again."""

    def chunk_logps(states: Tensor, tokens: Tensor) -> Tensor:
        logits = model.head(states / temperature).float()
        return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=-1)

    size = max(1, SCORE_CHUNK // model.config.vocab_size)
    if len(tokens) <= size:
        return chunk_logps(states, tokens)
    chunks = zip(states.split(size), tokens.split(size))
    return torch.cat([checkpoint(chunk_logps, s, y, use_reentrant=False) for s, y in chunks])


def _pad(prompts: list[list[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Right-padded prompts (P, L) and their lengths (P,)."""
    lengths = [len(prompt) for prompt in prompts]
    padded = [prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
    return torch.tensor(padded, device=device), torch.tensor(lengths, device=device)


def _check_prompts(model: Transformer, prompts: list[list[int]], new_tokens: int) -> None:
    if not prompts or not all(prompts):
        raise ValueError("prompts: at least one prompt is needed, and none may be empty")
    longest, room = max(len(prompt) for prompt in prompts), model.config.max_seq_len
    if longest + new_tokens > room:
        raise ValueError(f"prompts: {longest} prompt tokens + {new_tokens} new ones exceed max_seq_len {room}")
