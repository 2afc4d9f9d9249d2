"""The models of a run: made with random weights, read from a published folder, or taken from another run."""

import dataclasses
from pathlib import Path

import torch

import published.weights as published
import tasks
from config import Config
from harness.options import config_of
from model import ModelConfig, Transformer
from support.errors import UserError, reading
from support.files import fill, load


def warm_seed(config: Config) -> int:
    return config.seed if config.warm_seed < 0 else config.warm_seed


def build_model(config: Config) -> Transformer:
    if config.init:
        return published_model(config)
    torch.manual_seed(warm_seed(config))
    width, heads = config.hidden_size, config.hidden_size // 16
    size = ModelConfig(tasks.TOKENIZER.n_vocab, width, 3 * width, config.num_layers, heads, heads // 2, head_dim=16)
    return Transformer(dataclasses.replace(size, max_seq_len=config.max_seq_len)).to(config.device)


def published_model(config: Config) -> Transformer:
    model = published.load(config.init, getattr(torch, config.dtype))
    has, room = tasks.FORMAT.tokenizer.n_vocab, model.config.vocab_size
    if has > room:
        raise UserError(f"--init {config.init}: the tokenizer has {has} tokens, the model {room}")
    if config.max_seq_len > model.config.max_seq_len:
        raise UserError(f"--max_seq_len {config.max_seq_len}: the model of --init ends at {model.config.max_seq_len}")
    return model.to(config.device)


def external_teacher(config: Config) -> Transformer:
    """The best policy of another run of this program, of its own size: OPD's teacher."""
    folder = Path(config.opd_teacher)
    name = f"--opd_teacher {folder}"
    try:
        run, _ = config_of(folder)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if run.max_seq_len < config.max_seq_len:
        raise UserError(f"{name}: it was made with --max_seq_len {run.max_seq_len}, {config.max_seq_len} is needed")
    with reading(f"{name}: no run with best.pt"):
        teacher = build_model(dataclasses.replace(run, device=config.device, dtype=config.dtype))
        fill(teacher, load(folder / "best.pt", config.device))
    return teacher


def check_weights(model: torch.nn.Module) -> None:
    if not all(p.isfinite().all() for p in model.parameters()):
        raise UserError(
            "the model's weights are not all finite before the first update: lower --warm_lr, or look at --init"
        )
