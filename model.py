"""A decoder-only transformer of the Llama / Qwen3 family, its KV cache, a batched sampler, token log-probabilities.

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


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class KVCache:
    """Keys and values of one layer, (B, K, S, D): `length` slots are written, none beyond them is ever read."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length:end] = keys
        self.values[:, :, self.length:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def rows(self, index: Tensor, extra_slots: int = 0) -> "KVCache":
        """A cache of the given rows, repeats allowed, with room for `extra_slots` more tokens."""
        _, k, _, d = self.keys.shape
        shape = (len(index), k, self.length + extra_slots, d)
        grown = KVCache(self.keys.new_empty(shape), self.values.new_empty(shape))
        grown.append(self.keys[index, :, :self.length], self.values[index, :, :self.length])
        return grown


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; q, k and v come from one product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        self.qkv = nn.Linear(c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, bias=False)
        self.out = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, D)
        if cache is not None:
            k, v = cache.append(k, v)
        if T == k.shape[2]:  # no past: plain causal attention; padding on the right is invisible to what precedes it
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:  # one new token: the query heads that share a key head become rows of one small product
            q = q.reshape(B, self.kv_heads, -1, self.head_dim)  # (B, K, H/K, D)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(B, self.heads, 1, self.head_dim)
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

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, cache, mask)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """tokens (B,T) -> logits (B,T,V): RMSNorm, RoPE, grouped-query attention, SwiGLU, no dropout anywhere."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
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

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, caches: list[KVCache] | None = None,
               mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B,T,hidden) of tokens (B,T) at positions (B,T), default 0..T-1."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta)
        x = self.embed(tokens)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, caches[i] if caches is not None else None, mask)
        return self.norm(x)


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (B,T,1,D) of the rotary angles at integer positions (B,T) (Su et al., arXiv 2104.09864)."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None, None] * inverse
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B,T,heads,D) by its position; dimension i is paired with i + D/2, as published Llama weights expect."""
    cos, sin = rope
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


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


@torch.no_grad()
def sample(model: Transformer, prompts: list[list[int]], *, group_size: int, max_new_tokens: int, temperature: float,
           stop_token: int, generator: torch.Generator | None = None) -> Samples:
    """Draw `group_size` completions of every prompt from the full softmax at `temperature` -> Samples, N = P * G rows.

    temperature 0 takes the most likely token (log-probability 0: the policy is certain). Each row draws from a noise
    stream of its own (`row_noise`): neighbours, batch order and batch size do not change a single token.
    Raises ValueError for an empty prompt, or one that leaves no room for `max_new_tokens` in the context.
    """
    device = model.embed.weight.device
    _check_prompts(model, prompts, max_new_tokens)
    noise = row_noise(prompts, group_size, max_new_tokens, generator).to(device)  # (N, T) in (0, 1]
    N = len(noise)
    tokens = torch.zeros(N, max_new_tokens, dtype=torch.long, device=device)
    logps = torch.zeros(N, max_new_tokens, device=device)
    lengths = torch.zeros(N, dtype=torch.long, device=device)

    logits, caches, positions, mask = _prefill(model, prompts, group_size, max_new_tokens)
    rows = torch.arange(N, device=device)  # the rows still running; `caches`, `positions` and `mask` hold these alone
    alive = torch.ones(N, dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        token, logp = _draw(logits, noise[rows, t], temperature)
        tokens[rows, t] = torch.where(alive, token, 0)
        logps[rows, t] = torch.where(alive, logp, 0.0)
        lengths[rows] += alive
        alive = alive & (token != stop_token)
        running = int(alive.sum())
        if running == 0 or t + 1 == max_new_tokens:
            break
        if running <= 0.75 * len(rows):  # finished rows leave in blocks: copying the cache costs as much as a few steps
            keep = alive.nonzero().squeeze(1)
            rows, alive, token, positions = rows[keep], alive[keep], token[keep], positions[keep]
            mask = mask[keep] if mask is not None else None
            caches = [cache.rows(keep, max_new_tokens - t - 1) for cache in caches]
        step_mask = mask[..., :caches[0].length + 1] if mask is not None else None
        logits = model.head(model.hidden(token[:, None], positions[:, None], caches, step_mask))[:, 0]
        positions = positions + 1

    T = int(lengths.max())
    return Samples(tokens[:, :T], torch.arange(T, device=device) < lengths[:, None], logps[:, :T])


def _prefill(model: Transformer, prompts: list[list[int]], group_size: int, room: int):
    """Run every prompt once; hand each of its samples a copy: next-token logits (N,V), caches, positions (N,), mask."""
    device = model.embed.weight.device
    padded, lengths = _pad(prompts, device)  # (P, L), (P,)
    c = model.config
    empty = model.embed.weight.new_empty  # slots behind `length` are never read, so nothing has to be written there
    shape = (len(prompts), c.num_kv_heads, padded.shape[1], c.head_dim)
    caches = [KVCache(empty(shape), empty(shape)) for _ in model.blocks]
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
    logps = torch.log_softmax(logits.float() / temperature, dim=-1)
    cumulative = logps.exp().cumsum(dim=-1)
    # noise <= 1 keeps the threshold at or below the last entry; noise > 0 skips tokens of probability 0 in front
    token = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:])
    return token.squeeze(1), logps.gather(1, token).squeeze(1)


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
    """Hidden states (tokens, hidden) from which each completion token, row by row, was predicted."""
    N, T = samples.tokens.shape
    _check_prompts(model, prompts, T)
    padded, lengths = _pad(prompts, samples.tokens.device)
    repeats = N // len(prompts)
    if repeats * len(prompts) != N:
        raise ValueError(f"prompts: {N} samples are no multiple of {len(prompts)} prompts")
    padded, lengths = padded.repeat_interleave(repeats, dim=0), lengths.repeat_interleave(repeats)
    places = lengths[:, None] + torch.arange(T, device=padded.device)  # (N, T): where each completion token stands
    tokens = F.pad(padded, (0, T)).scatter(1, places, samples.tokens)
    hidden = model.hidden(tokens[:, :-1])
    row, t = samples.mask.nonzero(as_tuple=True)
    return hidden[row, places[row, t] - 1]


def _score(model: Transformer, states: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """log softmax at `tokens` (M,) from states (M, hidden), in chunks that the backward pass computes again."""
    def chunk_logps(states: Tensor, tokens: Tensor) -> Tensor:
        logits = model.head(states).float() / temperature
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
    longest = max(len(prompt) for prompt in prompts)
    if longest + new_tokens > model.config.max_seq_len:
        raise ValueError(f"prompts: {longest} prompt tokens + {new_tokens} new ones exceed max_seq_len "
                         f"{model.config.max_seq_len}")
