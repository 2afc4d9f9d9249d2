"""The paper's claims, measured: methods x seeds -> results/study/*.jsonl -> results/report.md and figures.

    python reproduce.py             the whole study; finished runs are kept, a killed study goes on where it stopped
    python reproduce.py --quick     a cut of it for ten minutes, written to runs/quick
    python reproduce.py --report    tables and figures from the committed runs, nothing is trained

Two processes at a time, one thread each. A cell is a set of options of train.py; a run is a cell with a seed.
"""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from support import errors
from support import program as programs
from support.files import append, metrics_of

ROOT = Path(__file__).parent
SHARED = "--warm_cite 0.5 --warm_solutions 0.3 --steps 60 --eval_every 5 --eval_problems 400 --save_every 60"
TASKS = {
    "addition": "--task addition",
    "addition-3": "--task addition --chain 3",
    "addition-6": "--task addition --chain 6 --max_new_tokens 88",
    "addition-filler": "--task addition --filler 3 --max_new_tokens 80",
    "countdown": "--task countdown --chain 3 --warm_slip 0.3",
}
FEW = "--prompts_per_step 4 --group_size 8 --steps 240 --eval_every 20 --save_every 240"  # 32 samples, not 256
LAMBDA_1 = "--rlsd_lambda 1 --rlsd_lambda_decay_steps 0 --rlsd_reweight_clip_range"
VARIANTS = {
    **{method: f"--method {method}" for method in ("grpo", "rlsd", "sdpo", "opd")},
    **{method: f"--method {method} --privileged solution" for method in ("opsd", "grpo+opsd")},
    **{f"{method}-swapped": f"--method {method}" for method in ("grpo", "rlsd")},  # each at the other's learning rate
    "rlsd-contrastive": "--method rlsd --evidence contrastive",
    "rlsd-agreement": f"--method rlsd --evidence agreement {LAMBDA_1} 1",
    "rlsd-constant": "--method rlsd --rlsd_lambda_decay_steps 0",
    "rlsd-wide": f"--method rlsd {LAMBDA_1} 0.9",
    "rlsd-early": "--method rlsd --rlsd_lambda 1 --rlsd_lambda_decay_steps 20 --rlsd_reweight_clip_range 4",
    "rlsd-4": f"--method rlsd {LAMBDA_1} 4",
    "rlsd-20": f"--method rlsd {LAMBDA_1} 20",
    "rlsd-solution": f"--method rlsd {LAMBDA_1} 0.9 --privileged solution",
    "rlsd-frozen": f"--method rlsd {LAMBDA_1} 0.9 --rlsd_teacher_sync_interval 0",
    "rlsd-live": f"--method rlsd {LAMBDA_1} 0.9 --rlsd_teacher_sync_interval 1",
}
# Learning rates, by final pass@1 on seeds 100 and 101 (report.md, last table), and the grids they are chosen from.
RATES = {
    ("addition", 256): {"grpo": "4e-4", "rlsd": "4e-4", "opsd": "8e-4", "opd": "8e-4", "sdpo": "1.25e-5"},
    ("countdown", 256): {"grpo": "2e-4", "rlsd": "4e-4", "rlsd-wide": "2e-4", "opsd": "1.25e-5"},
    ("countdown", 32): {"grpo": "2e-4", "rlsd": "1e-4", "rlsd-wide": "1e-4"},
}
TUNED = {
    ("addition", 256): ("1e-4", "2e-4", "4e-4", "8e-4", "1.6e-3"),
    ("countdown", 256): ("1e-4", "2e-4", "4e-4", "8e-4"),
    ("countdown", 32): ("5e-5", "1e-4", "2e-4", "4e-4"),
}
LATER = {  # rates below a grid whose lowest one was the best
    ("addition", 256, "sdpo"): ("1.25e-5", "2.5e-5", "5e-5"),
    ("countdown", 256, "opsd"): ("1.25e-5", "2.5e-5", "5e-5"),
}
SWAPPED = {"grpo-swapped": "4e-4", "rlsd-swapped": "2e-4"}  # on countdown, 256 samples


def rate_of(task: str, samples: int, method: str) -> str:
    """What was not tuned takes the rate of its next of kin: cells, distillations (OPSD), variants of RLSD."""
    if method in SWAPPED:
        return SWAPPED[method]
    rates = RATES.get((task, samples)) or RATES["addition" if samples == 256 else "countdown", samples]
    kin = "opsd" if method in ("sdpo", "opd") else "rlsd-wide" if method.startswith("rlsd-") else "rlsd"
    return rates.get(method) or rates.get(kin) or rates["rlsd"]


@dataclass(frozen=True)
class Run:
    """One training run of the study; `samples` is 256 or 32 an update."""

    task: str
    samples: int
    method: str
    seed: int
    lr: str = ""

    @property
    def name(self) -> str:
        lr = f"-lr{self.lr}" if self.lr else ""
        return f"{self.task}/{self.method}-{self.samples}{lr}/{self.seed}"

    @property
    def warm_seed(self) -> int:
        """Tuning has a warm start of its own; the main comparison has two, other cells one, and one for fresh seeds."""
        if self.lr:
            return 2
        return self.seed % 2 if self.task == "addition" else int(self.seed >= 10)

    @property
    def options(self) -> str:
        parts = [SHARED, TASKS[self.task], VARIANTS[self.method], FEW if self.samples == 32 else ""]
        lr = self.lr or rate_of(self.task, self.samples, self.method)
        return " ".join([*parts, f"--lr {lr} --seed {self.seed} --warm_seed {self.warm_seed}"])

    def out(self, folder: Path) -> Path:
        """Where the run is made: other options, another run."""
        return folder / self.name / hashlib.sha256(self.options.encode()).hexdigest()[:8]

    def arguments(self, folder: Path) -> list[str]:
        teacher = ["--opd_teacher", str(folder / "teacher")] if self.method == "opd" else []
        return [*self.options.split(), "--warm_dir", str(folder / "warm_start"), *teacher]


PLAIN, BEST = ("grpo", "rlsd"), ("grpo", "rlsd", "rlsd-wide", "rlsd-agreement")
FRESH = (*PLAIN, "rlsd-constant")  # the best of the grid's three seeds goes on to ten others
GRID = tuple(method for method in VARIANTS if method.startswith("rlsd-") and method not in SWAPPED)


def cell(task: str, samples: int, methods: tuple[str, ...], seeds: range) -> list[Run]:
    return [Run(task, samples, method, seed) for seed in seeds for method in methods]


def study() -> list[Run]:
    """Tuning first, then the comparison, countdown with its grid and fresh seeds, wording, chain lengths."""
    runs = [Run(*at, m, seed, lr) for at in RATES for m in RATES[at] for lr in TUNED[at] for seed in (100, 101)]
    runs += cell("addition", 256, (*PLAIN, "opsd"), range(10))
    runs += cell("addition", 256, ("sdpo", "grpo+opsd", "opd", "rlsd-contrastive"), range(5))
    runs += cell("countdown", 256, PLAIN, range(10))
    runs += cell("countdown", 256, ("opsd", "sdpo"), range(5))
    runs += cell("countdown", 256, GRID, range(3))
    runs += cell("countdown", 32, BEST, range(3))
    runs += cell("countdown", 256, FRESH, range(10, 20))
    runs += cell("addition-filler", 32, BEST, range(3))
    runs += cell("addition-3", 256, PLAIN, range(5)) + cell("addition-6", 256, PLAIN, range(5))
    runs += [Run(*at, seed, lr) for at in LATER for lr in LATER[at] for seed in (100, 101)]
    return runs + cell("countdown", 256, tuple(SWAPPED), range(10, 20))


def quick() -> list[Run]:
    return cell("addition", 256, (*PLAIN, "opsd"), range(2))


PROBE_OPTIONS = "--warm_cite 0.5 --warm_solutions 0.3 --eval_problems 400"
ONE_POLICY = {  # 32 samples a batch
    "filler-32": TASKS["addition-filler"],
    "chain-6-32": TASKS["addition-6"],
    "chain-6-filler-32": "--task addition --chain 6 --filler 3 --max_new_tokens 120",
    "countdown-32": TASKS["countdown"],
}


class Probe(NamedTuple):
    """Options of probe.py, and the run whose last policy is probed."""

    name: str
    options: str
    run: Run | None = None


def probe_of(family: str, options: str, seed: int, run: Run | None = None) -> Probe:
    warm_seed = run.warm_seed if run else seed
    return Probe(f"{family}-{seed}", f"{PROBE_OPTIONS} {options} --seed {seed} --warm_seed {warm_seed}", run)


def probes() -> list[Probe]:
    """Five policies before RL on both tasks, five after 60 updates of GRPO on countdown, cells of one policy each."""
    found = []
    for seed in range(5):
        found += [probe_of(task, f"{TASKS[task]} --batches 10", seed) for task in ("addition", "countdown")]
        run = Run("countdown", 256, "grpo", seed)
        found.append(probe_of("countdown-after-grpo", f"{TASKS['countdown']} --batches 10", seed, run))
    few = "--prompts_per_step 4 --group_size 8 --batches 60"
    return found + [probe_of(family, f"{options} {few}", 0) for family, options in ONE_POLICY.items()]


def quick_probes() -> list[Probe]:
    return [probe_of("addition", f"{TASKS['addition']} --batches 5", 0)]


# ---- running ---------------------------------------------------------------------------------------------------------

CURVE = "step reward length entropy no_spread lambda clipped_low clipped_high grad_norm seconds".split()
CURVE += ["pass@1", "greedy", "leakage", "teacher pass@1"]


def unfinished(what: str, wanted: list, results: Path) -> list:
    """The runs or probes that are not in `results` yet."""
    results.mkdir(parents=True, exist_ok=True)
    finished = {(row["name"], row["options"]) for row in read(results)}
    todo = [one for one in wanted if (one.name, one.options) not in finished]
    print(f"{len(wanted)} {what}, {len(wanted) - len(todo)} finished before", flush=True)
    return todo


def execute(runs: list[Run], folder: Path, results: Path) -> None:
    """Train what is not in `results` yet, two at a time, task by task: first its warm starts, each once."""
    todo = unfinished("runs", runs, results)
    with ThreadPoolExecutor(2) as pool:
        for _, group in groupby(todo, key=lambda run: run.task):
            part = list(group)
            jobs = [
                ([*run.arguments(folder), "--steps", "1"], folder / "warm_runs" / f"{run.task}-{run.warm_seed}")
                for run in {run.warm_seed: run for run in part if run.method != "opd"}.values()
            ]
            if any(run.method == "opd" for run in part):
                larger = f"{SHARED} --method grpo --hidden_size 96 --warm_slip 0 --steps 5"
                jobs.append(([*larger.split(), "--warm_dir", str(folder / "warm_start")], folder / "teacher"))
            list(pool.map(lambda job: train(*job), jobs))
            for row in pool.map(lambda run: trained(run, folder), part):
                append(results / f"{row['task']}.jsonl", row)
                first, last = row["curve"][0], row["curve"][-1]
                print(f"{row['name']}: pass@1 {first['pass@1']:.3f} -> {last['pass@1']:.3f}", flush=True)


def trained(run: Run, folder: Path) -> dict:
    train(run.arguments(folder), run.out(folder))
    curve = [{k: round(row[k], 5) for k in CURVE if k in row} for row in metrics_of(run.out(folder))]
    return {k: getattr(run, k) for k in "name options task method seed samples lr".split()} | {"curve": curve}


def execute_probes(wanted: list[Probe], folder: Path, results: Path) -> None:
    """Measure what is not in `results` yet, two at a time; a policy whose run is not at hand is trained again."""

    def measure(probe: Probe) -> dict:
        keep = folder / "probes" / f"{probe.name}.json"
        keep.parent.mkdir(parents=True, exist_ok=True)
        options = [*probe.options.split(), "--warm_dir", str(folder / "warm_start"), "--keep", str(keep)]
        if probe.run:
            train(probe.run.arguments(folder), probe.run.out(folder))
            options += ["--policy", str(probe.run.out(folder))]
        program("study/probe.py", options)
        return {"name": probe.name, "options": probe.options, **json.loads(keep.read_text())}

    todo = unfinished("probes", wanted, results)
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(measure, todo):
            append(results / "probes.jsonl", row)
            print(f"probe {row['name']}: pass@1 {row['pass@1']:.3f}", flush=True)


def train(options: list[str], out: Path) -> None:
    """One run of train.py; a finished one is left, a killed one goes on."""
    resumed = (out / "last.pt").exists()
    if resumed and metrics_of(out)[-1]["step"] == json.loads((out / "config.json").read_text())["steps"]:
        return
    program("train.py", ["--resume", "--out", str(out)] if resumed else [*options, "--out", str(out)])


def program(name: str, options: list[str]) -> None:
    """A program of this repository, in one thread of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(ROOT / name), *options], env=env, capture_output=True, text=True)
    if done.returncode:
        raise errors.UserError(f"{name} {' '.join(options)}: {done.stderr.strip()}")


def read(results: Path) -> list[dict]:
    """Finished runs and probes, each once; a line that is none, as a kill may leave one, is passed over with a word."""
    rows: dict[tuple[str, str], dict] = {}
    for path in sorted(results.glob("*.jsonl")):
        for i, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                json.dumps(row, allow_nan=False)
                if (row["name"], row["options"]) in rows:
                    raise ValueError("the run of a line above again")
                if "curve" in row:  # every update of it, under the name of its own cell and seed
                    run = Run(*(row[name] for name in ("task", "samples", "method", "seed", "lr")))
                    steps = int(row["options"].split("--steps ")[-1].split()[0])
                    if run.name != row["name"] or [x["step"] for x in row["curve"]] != list(range(steps + 1)):
                        raise ValueError("no whole run of its name")
                rows[row["name"], row["options"]] = row
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                print(f"{path}:{i}: passed over: {errors.one_line(error)}")
    return list(rows.values())


def current(rows: list[dict], wanted: list) -> list[dict]:
    """The rows of these runs or probes; those of an older version of the study, with other options, are left out."""
    known = {(one.name, one.options) for one in wanted}
    return [row for row in rows if (row["name"], row["options"]) in known]


def write_report(runs: list[Run], probed: list[Probe], folder: Path, results: Path, out: Path) -> Path:
    """report.md and its figures in `out`, from what `results` holds of these runs and probes, and what it costs."""
    with errors.reading(f"{out / 'report.md'} cannot be made"):
        from study import report

        costs = json.loads((results / "cost.json").read_text()) if (results / "cost.json").exists() else {}
        samples = [run.out(folder) / "samples.jsonl" for run in runs if run.method == "rlsd"]
        committed = ROOT / "results" / "make_train" / "rlsd_samples.jsonl"
        pair = next((path for path in samples if path.exists() and results != ROOT / "results"), committed)
        found = current(read(results / "study"), runs), current(read(results / "probe"), probed)
        return report.write(*found, costs, pair, out)


@programs.program
def main(argv: list[str]) -> int:
    parser = programs.Parser("reproduce.py", __doc__)
    parser.add_argument("--quick", action="store_true", help="a cut of the study for ten minutes")
    parser.add_argument("--report", action="store_true", help="tables and figures from the finished runs alone")
    args = parser.parse_args(argv)
    folder = ROOT / "runs" / ("quick" if args.quick else "study")
    results = folder / "results" if args.quick else ROOT / "results"
    runs, probed = (quick(), quick_probes()) if args.quick else (study(), probes())
    if not args.report:
        execute(runs, folder, results / "study")
        execute_probes(probed, folder, results / "probe")
    print(write_report(runs, probed, folder, results, results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
