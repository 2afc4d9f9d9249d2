"""What token credit could give at most, and why it gives what it gives: split.py over regimes, before and after RL.

    python -m study.headroom --jobs 2             all cells -> results/headroom.jsonl; a killed study goes on
    python -m study.headroom --only addition-6    cells whose name begins so

A cell is a policy of one regime: a warm start, or the same after 60 updates of GRPO.
"""

import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from study import execute as runs
from study.plan import PROBE_OPTIONS, RATES, SHARED, TASKS
from support.errors import UserError
from support.files import append
from support.program import Parser, program

RESULTS = runs.ROOT / "results" / "headroom.jsonl"
REGIMES = {name: TASKS[name] for name in ("addition-3", "addition", "addition-6", "addition-filler")}
REGIMES["addition-filler-12"] = "--task addition --filler 12 --max_new_tokens 112"
REGIMES["countdown"] = TASKS["countdown"]
POLICIES, UPDATES = 5, 60
BATCHES = {0: 128, UPDATES: 256}  # of 32 samples, of 256 an eighth of that; after RL few groups have a lesson


class Cell(NamedTuple):
    """One policy of a regime; updates of GRPO that it has behind itself."""

    regime: str
    seed: int
    updates: int

    @property
    def name(self) -> str:
        return f"{self.regime}{'-after-grpo' if self.updates else ''}-{self.seed}"

    @property
    def training(self) -> str:
        """Options of train.py, that make the policy."""
        rate = RATES["countdown" if self.regime == "countdown" else "addition", 256]["grpo"]
        seeds = f"--seed {self.seed} --warm_seed {self.seed}"
        return f"{SHARED} {REGIMES[self.regime]} --method grpo --lr {rate} {seeds} --eval_every {UPDATES}"

    @property
    def options(self) -> str:
        """Options of split.py, on samples that the policy was not trained on."""
        few = f"--prompts_per_step 4 --group_size 8 --batches {BATCHES[self.updates]}"
        return f"{PROBE_OPTIONS} {REGIMES[self.regime]} {few} --seed {self.seed + 1000} --warm_seed {self.seed}"


def cells() -> list[Cell]:
    return [Cell(name, seed, updates) for name in REGIMES for seed in range(POLICIES) for updates in (0, UPDATES)]


def measure(cell: Cell, folder: Path) -> dict:
    """One cell's row; its warm start and its policy are made where they are not at hand."""
    warm = ["--warm_dir", str(folder / "warm_start")]
    keep = folder / "headroom" / f"{cell.name}.json"
    keep.parent.mkdir(parents=True, exist_ok=True)
    options = [*cell.options.split(), *warm, "--keep", str(keep)]
    if cell.updates:
        out = keep.with_suffix("") / hashlib.sha256(cell.training.encode()).hexdigest()[:8]
        runs.train([*cell.training.split(), *warm], out)
        options += ["--policy", str(out)]
    runs.program("study/split.py", options)
    return {"name": cell.name, "options": cell.options, **json.loads(keep.read_text())}


def execute(wanted: list[Cell], folder: Path, results: Path, jobs: int) -> None:
    """Measure what `results` lacks, `jobs` policies at a time; a policy's two cells share its warm start."""
    finished = {(row["name"], row["options"]) for row in runs.read(results)}
    todo = [cell for cell in wanted if (cell.name, cell.options) not in finished]
    print(f"{len(wanted)} cells, {len(wanted) - len(todo)} finished before", flush=True)
    lock = Lock()

    def both(policy: list[Cell]) -> None:
        for cell in policy:
            began = time.time()
            row = measure(cell, folder)
            with lock:
                append(results, row)
                print(f"{cell.name}: pass@1 {row['pass@1']:.3f} ({time.time() - began:.0f} s)", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(both, [list(group) for _, group in groupby(todo, key=lambda cell: (cell.regime, cell.seed))]))


@program
def main(argv: list[str]) -> int:
    parser = Parser("headroom.py", __doc__)
    parser.add_argument("--jobs", type=int, default=2, help="policies at a time, one thread each (default: 2)")
    parser.add_argument("--only", default="", help="cells whose name begins so")
    args = parser.parse_args(argv)
    wanted = [cell for cell in cells() if cell.name.startswith(args.only)]
    if not wanted or args.jobs < 1:
        raise UserError(f"--only {args.only} --jobs {args.jobs}: no cell, or nobody to measure it; both are needed")
    execute(wanted, runs.ROOT / "runs" / "study", RESULTS, args.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
