"""What a run watches itself for: updates that are skipped, a policy that collapsed, problems known by heart."""

import math
from pathlib import Path
from typing import Any

import tasks
from config import Config
from rollout import Rollout
from support import processes
from support.errors import UserError
from support.files import metrics_of, save

PATIENCE = 10  # updates in a row: skipped, until the run stops; out of order, until the log says so
ENTROPY_FLOOR = 5e-4  # nats a token; healthy runs of the study stay above 0.001
GAP = 0.5  # between the reward of training problems and that of held-out ones, from which the log speaks of it
KEPT = 10  # batches of skipped updates that are kept, the first ones


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

    def __init__(self, config: Config, last_step: int, train: int, refused: str):
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
