"""When numbers or memory fail: updates that are skipped, policies that collapsed, micro-batches that are halved."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import tasks
from config import Config
from harness.checkpoint import State, build_model
from model import Transformer
from published.rounded_adam import RoundedAdam
from published.weights import read_config
from rollout import Rollout
from support import processes
from support.errors import UserError
from support.files import metrics_of, save

PATIENCE = 10  # updates in a row: skipped, until the run stops; out of order, until the log says so
ENTROPY_FLOOR = 5e-4  # nats a token; healthy runs of the study stay above 0.001
GAP = 0.5  # between the reward of training problems and that of held-out ones, from which the log speaks of it
KEPT = 10  # batches of skipped updates that are kept, the first ones
Optimizer = torch.optim.Optimizer | RoundedAdam


# ---- numbers ---------------------------------------------------------------------------------------------------------


def check_weights(model: torch.nn.Module) -> None:
    if not all(p.isfinite().all() for p in model.parameters()):
        raise UserError(
            "the model's weights are not all finite before the first update: lower --warm_lr, or look at --init"
        )


def take_step(optimizer: Optimizer, metrics: dict[str, float]) -> None:
    """The optimizer's step, unless loss or gradient is not finite: that would spoil every weight."""
    if not is_finite(metrics):
        return
    with out_of_memory("the optimizer's step", "--hidden_size or --num_layers (it may be half done: nothing is saved)"):
        optimizer.step()


def is_finite(metrics: dict[str, float]) -> bool:
    return math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])


def keep_skipped(batch: Rollout, metrics: dict[str, float], step: int, config: Config) -> None:
    """skipped-STEP-RANK.pt: the batch of an update that was skipped, for torch.load(..., weights_only=True)."""
    out = Path(config.out)
    if len(list(out.glob(f"skipped-*-{processes.rank()}.pt"))) >= KEPT:
        return
    state: dict[str, Any] = {"step": step, "metrics": metrics}
    state |= {f"{part}s": [getattr(p, part) for p in batch.problems] for part in ("origin", "question", "answer")}
    state["completions"] = [tasks.decode(tokens) for tokens in batch.samples.completions()]
    state |= {**vars(batch.samples), "rewards": batch.rewards, "advantages": batch.advantages}
    save(state, out / f"skipped-{step}-{processes.rank()}.pt")


class Watch:
    """Reads the rows of a run, those before a resume too; says what went wrong for PATIENCE of them, once a spell."""

    def __init__(self, config: Config, last_step: int, train: int = 0, refused: str = ""):
        self.config, self.train, self.refused = config, train, refused
        self.skipped, self.held_out, self.graded = 0, math.nan, False
        self.spells: dict[str, int] = {}
        for row in metrics_of(Path(config.out), last_step):
            self.look(row)

    def look(self, row: dict) -> dict[str, list[str]]:
        """Count the row; {"notes": ...} on spells that have just become too long, or nothing."""
        row = {name: value for name, value in row.items() if value == value}  # what is nan does not exist
        self.skipped = self.skipped + 1 if "skipped" in row else 0
        self.held_out = row.get("held-out reward", row.get("pass@1", self.held_out))
        self.graded |= "held-out reward" in row
        signs = self.signs(row)
        self.spells = {name: self.spells.get(name, 0) + 1 for name in signs}
        due = [signs[name] for name, length in self.spells.items() if length == PATIENCE]
        notes = [f"{what}: for {PATIENCE} updates {seen}; {cure}" for what, seen, cure in due]
        return {"notes": notes} if notes else {}

    def signs(self, row: dict) -> dict[str, tuple[str, str, str]]:
        """What is out of order in a row, and by what it shows; what mends it."""
        limit, found = self.config.max_new_tokens, {}
        if row.get("entropy", math.inf) < ENTROPY_FLOOR:
            floor = f"{ENTROPY_FLOOR:g} nats a token"
            low = f"its entropy has been below {floor}, so the samples of a question are all alike"
            found["entropy"] = "the policy has collapsed", low, "lower --lr or raise --temperature"
        if row.get("no_spread") == 1 and "reward" in row and self.config.method in ("rlsd", "grpo"):
            cure = f"raise --group_size, or take {'harder' if row['reward'] > 0.5 else 'easier'} problems"
            if self.refused and row["reward"] == 0:
                cure = f"the verifier gives 0 to what the warm start teaches, such as {self.refused}: mend it first"
            same = f"all samples of a question have earned the same (mean reward {row['reward']:.3g})"
            found["no_spread"] = "nothing is learned", same, cure
        if self.train and row.get("reward", 0.0) - self.held_out >= GAP:
            far = f"have earned far more ({row['reward']:.3g}) than held-out ones ({self.held_out:.3g})"
            cure = "take more problems, or fewer --warm_steps"
            found["by heart"] = "known by heart", f"the {self.train} training problems {far}", cure
        if row.get("verifier errors") == self.config.prompts_per_step * self.config.group_size:
            cure = f"the first failure is in {self.config.out}/verifier_error.txt"
            found["verifier errors"] = "nothing is learned", "the verifier has failed on every sample", cure
        if row.get("length", 0) >= 0.99 * limit:
            cure = "raise it, or lower --lr if they once did end"
            found["length"] = "completions do not end", f"they have run to --max_new_tokens {limit}", cure
        return found

    def stop_if_hopeless(self) -> None:
        if self.skipped >= PATIENCE:
            what = f"{PATIENCE} updates in a row were skipped: their loss or gradient was not finite"
            look = f"look at the batches in {self.config.out}/skipped-*.pt"
            raise UserError(f"{what}; lower --lr or --max_grad_norm, leave --bf16 out, and {look}")


# ---- memory ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def out_of_memory(where: str, options: str) -> Iterator[None]:
    """Memory that a GPU or the machine does not have becomes one line that names the options to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not whose_memory(error):
            raise
        raise UserError(f"the {whose_memory(error)} memory is too small in {where}: lower {options}") from error


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


def update_in_memory(update: Callable, state: State, batch: Rollout, config: Config, lam: float) -> dict[str, float]:
    """`update`; with --halve_micro_batch again with half of the samples a pass, as often as memory does not suffice.

    The smaller size stays, and travels in the checkpoint. The gradient is the same, to rounding.
    """
    while True:
        sized = dataclasses.replace(config, micro_batch=state.micro_batch)
        size = min(state.micro_batch or len(batch.problems), len(batch.problems))
        try:
            return update(state.model, state.teacher, state.optimizer, batch, sized, lam)
        except (MemoryError, RuntimeError) as error:
            if not (whose := whose_memory(error)):
                raise
            if size == 1 or not config.halve_micro_batch:
                lower = "--max_new_tokens" if size == 1 else "--micro_batch (or add --halve_micro_batch)"
                where = f"the {whose} memory is too small in the update with {size} samples a pass"
                raise UserError(f"{where}: lower {lower}, or add --gradient_checkpointing") from error
        state.micro_batch = size // 2  # here, where the error no longer holds on to what the failed pass has made
        torch.cuda.empty_cache()
        print(f"note: the {whose} memory is too small: --micro_batch {state.micro_batch} from here on", flush=True)
