"""What the study consists of: cells (sets of options of train.py), runs (a cell with a seed) and probes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import METHODS, Config
from harness.options import parse_config
from support.errors import UserError
from tasks import GENERATORS

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
    "rlsd-contrastive-4": f"--method rlsd --evidence contrastive {LAMBDA_1} 4",
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
    ("addition", 256): {
        **{"grpo": "4e-4", "rlsd": "4e-4", "rlsd-contrastive-4": "8e-4"},
        **{"opsd": "8e-4", "opd": "8e-4", "sdpo": "1.25e-5"},
    },
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
SWAPPED = {  # 256 samples; on addition GRPO at the rate of the proposal that came nearest
    "countdown": {"grpo-swapped": "4e-4", "rlsd-swapped": "2e-4"},
    "addition": {"grpo-swapped": "8e-4"},
}


def rate_of(task: str, samples: int, method: str) -> str:
    """What was not tuned takes the rate of its next of kin: cells, distillations (OPSD), variants of RLSD."""
    if method in SWAPPED.get(task, ()):
        return SWAPPED[task][method]
    rates = RATES.get((task, samples)) or RATES["addition" if samples == 256 else "countdown", samples]
    kin = "opsd" if method in ("sdpo", "opd") else "rlsd-wide" if method.startswith("rlsd-") else "rlsd"
    return rates.get(method) or rates.get(kin) or rates["rlsd"]


def task_options(task: str) -> str:
    """Of TASKS, or of a task that was added to tasks.py."""
    if task in TASKS or task in GENERATORS:
        return TASKS.get(task, f"--task {task}")
    raise UserError(f"task {task!r} is none of {', '.join([*TASKS, *(GENERATORS.keys() - TASKS.keys())])}")


def method_options(method: str) -> str:
    """Of VARIANTS; of a method, or RLSD with a reading of the evidence, that was added to config.py."""
    readings = [name for name in Config.__dataclass_fields__["evidence"].metadata["choices"] if name != "plain"]
    if method in VARIANTS or method in METHODS:
        return VARIANTS.get(method, f"--method {method}")
    if method in readings:
        return f"--method rlsd --evidence {method}"
    raise UserError(f"method {method!r} is none of {', '.join(dict.fromkeys([*VARIANTS, *METHODS, *readings]))}")


@dataclass(frozen=True)
class Run:
    """One training run of the study; `samples` is 256 or 32 an update."""

    task: str
    samples: int
    method: str
    seed: int
    lr: str = ""
    more: str = ""  # options that win over those of the cell

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
        parts = [SHARED, task_options(self.task), method_options(self.method), FEW if self.samples == 32 else ""]
        lr = self.lr or rate_of(self.task, self.samples, self.method)
        return " ".join([*parts, f"--lr {lr} --seed {self.seed} --warm_seed {self.warm_seed}", self.more]).strip()

    def out(self, folder: Path) -> Path:
        """Where the run is made: other options, another run."""
        return folder / self.name / hashlib.sha256(self.options.encode()).hexdigest()[:8]

    def arguments(self, folder: Path) -> list[str]:
        teacher = ["--opd_teacher", str(folder / "teacher")] if self.method == "opd" else []
        return [*self.options.split(), "--warm_dir", str(folder / "warm_start"), *teacher]


PLAIN, BEST = ("grpo", "rlsd"), ("grpo", "rlsd", "rlsd-wide", "rlsd-agreement")
FRESH = (*PLAIN, "rlsd-constant")  # the best of the grid's three seeds goes on to ten others
NEAREST = "rlsd-contrastive-4"  # of what others propose, by headroom.py the nearest to 1.2 times the samples
GRID = tuple(method for method in VARIANTS if method.startswith("rlsd-") and method not in ("rlsd-swapped", NEAREST))


def cell(task: str, samples: int, methods: tuple[str, ...], seeds: range) -> list[Run]:
    return [Run(task, samples, method, seed) for seed in seeds for method in methods]


def chosen(cell: str, seeds: str, more: str) -> list[Run]:
    """TASK:METHOD,METHOD,... on seeds like 0-4 or 0,2,5, seed by seed; more: options of train.py for all of them."""
    task, _, methods = cell.partition(":")
    spans = [part.partition("-") for part in seeds.split(",")]
    if not all(a.isdecimal() and (b.isdecimal() or not dash) for a, dash, b in spans):
        raise UserError(f"--seeds {seeds}: a span like 0-4 or a list like 0,2,5 is needed")
    numbers = sorted({seed for a, _, b in spans for seed in range(int(a), int(b or a) + 1)})
    names = list(dict.fromkeys(methods.split(",")))
    if len(names) < 2 or not numbers:
        raise UserError(
            f"--cells {cell}, --seeds {seeds}: TASK:METHOD,METHOD and a seed are needed, nothing to compare"
        )
    words = more.replace("=", " ").split()
    if own := {"--task", "--method", "--evidence", "--seed", "--out"} & set(words):
        raise UserError(f"--set {min(own)}: is what --cells and --seeds say; name a variant in study/plan.py")
    runs = [Run(task, 256, method, seed, more=" ".join(words)) for seed in numbers for method in names]
    for run in runs[: len(names)]:
        parse_config(run.options.split())  # a mistake is told before anything is trained
    return runs


def study() -> list[Run]:
    """Tuning first, then the comparison, countdown with its grid and fresh seeds, wording, chains, the nearest."""
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
    runs += cell("countdown", 256, ("grpo-swapped", "rlsd-swapped"), range(10, 20))
    return runs + cell("addition", 256, ("grpo-swapped", NEAREST), range(10))


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
