"""What a row works on: how much a turn is, untrained models, random prompts, samples drawn from them."""

import random
from typing import Any, NamedTuple

import torch

import tasks
from config import Config
from harness.options import parse_config
from model import ModelConfig, Samples, Transformer, sample

DEFAULT = ModelConfig(tasks.TOKENIZER.n_vocab)
NEVER = -1  # a stop token that no sampler draws


class Skipped(Exception):
    """A row that cannot be measured here, and why."""


class Size(NamedTuple):
    """How much work a turn is."""

    prompts: int = 16
    group: int = 16
    tokens: int = 64
    wide: tuple[int, ...] = (512, 8, 4, 128)  # hidden size, layers, prompts, tokens
    floor_tokens: int = 34  # what a worked addition has
    memory: tuple[int, ...] = (256, 64, 50_000)  # N, T, V
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    published: tuple[int, ...] = (
        8,
        8,
        80,
        32,
        16,
    )  # SmolLM2-135M's rows: prompts, group, their tokens, sampled, trained


SMOKE = Size(2, 4, 6, (128, 1, 1, 8), 8, (64, 32, 20_000), (2, 4, 8, 16, 32), (2, 4, 12, 6, 6))
SMOLLM2 = ModelConfig(49_152, 576, 1536, 30, 9, 3, head_dim=64, qk_norm=False)


class Run(NamedTuple):
    """What the options choose, the same for every row."""

    size: Size
    device: str
    rounds: int


def published_shape(run: Run) -> ModelConfig:
    """SmolLM2-135M's shape; with --smoke a small model of as many tokens as there are names for."""
    return SMOLLM2 if run.size is not SMOKE else ModelConfig(2 * tasks.TOKENIZER.n_vocab, qk_norm=False)


def wide_shape(run: Run) -> ModelConfig:
    hidden, layers, _, _ = run.size.wide
    return ModelConfig(tasks.TOKENIZER.n_vocab, hidden, 3 * hidden, layers, hidden // 64, hidden // 128, head_dim=64)


def random_prompts(n: int, shortest: int, longest: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(256) for _ in range(rng.randint(shortest, longest))] for _ in range(n)]


def new_model(run: Run, config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).to(run.device)


def draw(model: Transformer, prompts: list[list[int]], group: int, tokens: int, stop: int, seed: int = 0) -> Samples:
    how: dict[str, Any] = {"group_size": group, "max_new_tokens": tokens, "temperature": 1.0, "stop_token": stop}
    return sample(model, prompts, **how, generator=torch.Generator().manual_seed(seed))


def config_of(run: Run, method: str) -> Config:
    size = f"--prompts_per_step {run.size.prompts} --group_size {run.size.group} --max_new_tokens {run.size.tokens}"
    return parse_config(f"--method {method} --warm_steps 0 --device {run.device} {size}".split())
