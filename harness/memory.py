"""When memory does not suffice: one line that names the options to lower, or --halve_micro_batch."""

import contextlib
import dataclasses
import os
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import tasks
from config import Config
from harness.models import build_model
from model import Transformer
from published.weights import read_config
from rollout import Rollout
from support import processes
from support.errors import UserError

PLACES = {  # a function in which memory may end: what it is called, and the options to lower
    "rollout": ("the rollout", "--prompts_per_step, --group_size or --max_new_tokens"),
    "held_out_samples": ("the evaluation", "--eval_problems or --max_new_tokens"),
    "warm_start": ("the warm start", "--warm_batch"),
    "load_run": ("the run", "its sizes, in a run of your own"),  # of sample.py
    "step": ("the optimizer's step", "--hidden_size or --num_layers (it may be half done: nothing is saved)"),
    "": ("the run", "--hidden_size, --num_layers, --prompts_per_step or --group_size, or take a smaller --init"),
}


@contextlib.contextmanager
def explained(size: Callable[[], int] = lambda: 1) -> Iterator[None]:
    """Memory that a GPU or the machine does not have becomes one line that names the options to lower.

    size(): samples of a pass in the update, where that is what failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (whose := whose_memory(error)):
            raise
        if (place := place_of(error)) == "update":
            where = f"the update with {size()} samples a pass"
            options = "--max_new_tokens" if size() == 1 else "--micro_batch (or add --halve_micro_batch)"
            options += ", or add --gradient_checkpointing"
        else:
            where, options = PLACES[place]
        raise UserError(f"the {whose} memory is too small in {where}: lower {options}") from error


def place_of(error: BaseException) -> str:
    """The innermost function of PLACES, or the update, that an error came through; an optimizer's step of an update."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    known = [name for name in names if name in PLACES or name == "update"]
    return [name for name in ["", *known] if name != "step" or "update" in known][-1]


def whose_memory(error: BaseException) -> str:
    """The GPU's or the machine's, where an error says that memory does not suffice; else nothing."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU's"
    words = "allocate memory|not enough memory|bad_alloc|Storage size calculation overflowed"
    return "machine's" if isinstance(error, MemoryError) or re.search(words, str(error)) else ""


def check_memory(config: Config, source: tasks.Source) -> None:
    """UserError for what this machine can never hold: Linux grants such memory, and kills the run that then uses it."""
    if config.device != "cpu" or config.fsdp or not hasattr(os, "sysconf"):
        return
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        room = min(room, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with torch.device("meta"):
        sized = dataclasses.replace(config, device="meta")
        model = Transformer(read_config(Path(config.init))) if config.init else build_model(sized)
    c, size = model.config, getattr(torch, config.dtype).itemsize
    moved = size + 8 if config.steps or config.warm_steps else 0  # gradient, and two moments in float32
    weights = sum(p.numel() for p in model.parameters()) * (size * (1 if config.method == "grpo" else 2) + moved)
    cached = 2 * c.num_layers * c.num_kv_heads * c.head_dim * size * len(tasks.student_prompt(source.known[0]))
    caches = cached * config.prompts_per_step * config.group_size // processes.world()
    lower = {weights: "--hidden_size, --num_layers (or a smaller --init)", caches: "--prompts_per_step or --group_size"}
    if (most := max(lower)) > room:
        has, needs = (f"{x / 2**30:.1f} GiB" for x in (room, most))
        raise UserError(f"the machine's memory of {has} is too small, {needs} at least are needed: lower {lower[most]}")


def halving(update: Callable, config: Config) -> Callable:
    """`update`, again with half of the samples a pass as often as memory does not suffice: --halve_micro_batch.

    The smaller size stays, in config.micro_batch, and travels in the checkpoint. The gradient is the same, to rounding.
    """

    def again(policy, teacher, optimizer, batch: Rollout, config: Config, lam: float) -> dict[str, float]:
        while True:
            size = samples_a_pass(len(batch.problems), config)
            try:
                return update(policy, teacher, optimizer, batch, config, lam)
            except (MemoryError, RuntimeError) as error:
                if not (whose := whose_memory(error)) or size == 1 or place_of(error) == "step":
                    raise
            config.micro_batch = size // 2  # here, where the error no longer holds on to what the failed pass has made
            torch.cuda.empty_cache()
            print(f"note: the {whose} memory is too small: --micro_batch {config.micro_batch} from here on", flush=True)

    return again if config.halve_micro_batch else update


def samples_a_pass(samples: int, config: Config) -> int:
    return min(config.micro_batch or samples, samples)
