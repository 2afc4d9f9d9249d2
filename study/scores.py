"""Figures of the study's finished runs, each alone (final pass@1, updates to a target) and by cells. numpy alone."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from study.bootstrap import Estimate, mean, ratio

Figure = Callable[[dict], float]  # of a run
LEARNING = {"addition": (0.5, 0.9), "countdown": (0.2, 0.4)}  # mean rewards between which most of a run's gain lies


def evaluations(run: dict) -> tuple[np.ndarray, np.ndarray]:
    """Updates and held-out pass@1 of a run's evaluations."""
    rows = [row for row in run["curve"] if "pass@1" in row]
    return np.array([row["step"] for row in rows]), np.array([row["pass@1"] for row in rows])


def start(run: dict) -> float:
    return float(evaluations(run)[1][0])


def final(run: dict) -> float:
    """Mean pass@1 of the last two evaluations."""
    return float(evaluations(run)[1][-2:].mean())


def area(run: dict) -> float:
    """Mean pass@1 over all evaluations: high for a run that gets there early."""
    return float(evaluations(run)[1].mean())


def updates_to(run: dict, target: float) -> float:
    """Updates until pass@1 first reaches the target, interpolated; NaN where it never does."""
    steps, values = evaluations(run)
    above = np.flatnonzero(values >= target)
    if len(above) == 0:
        return float("nan")
    i = int(above[0])
    if i == 0:
        return 1.0
    share = (target - values[i - 1]) / (values[i] - values[i - 1])
    return float(max(1.0, steps[i - 1] + share * (steps[i] - steps[i - 1])))


def target_of(runs: list[dict]) -> float | None:
    """The pass@1 that 90 % of the runs' mean gain leads to; None where they gain less than 0.05."""
    low, high = (np.mean([figure(run) for run in runs]) if runs else 0.0 for figure in (start, final))
    return float(low + 0.9 * (high - low)) if high - low >= 0.05 else None


def paired_speed(theirs: list[float], mine: list[float], last: float) -> tuple[Estimate, int]:
    """Ratio of updates to a target, paired by seed; how many runs never get there, counted at the last update."""
    bounded = [[last if np.isnan(x) else x for x in side] for side in (theirs, mine)]
    return ratio(*bounded), int(np.isnan(theirs + mine).sum())


def entropy_while_learning(run: dict) -> float:
    """Mean entropy of the updates whose reward is one of LEARNING: methods are compared at equal accuracy."""
    low, high = LEARNING[run["task"]]
    values = [row["entropy"] for row in run["curve"] if low <= row.get("reward", -1) <= high]
    return float(np.mean(values)) if values else float("nan")


def mean_entropy(run: dict) -> float:
    """Mean entropy of all updates, nats a token."""
    return float(np.mean([row["entropy"] for row in run["curve"] if "entropy" in row]))


def clip_share(run: dict, of_all: bool) -> float:
    """Mean share of tokens at the evidence clip while lambda > 0: of all tokens, or of those with an advantage."""
    rows = [row for row in run["curve"] if row.get("lambda", 0) > 0 and row["no_spread"] < 1]
    weights = [1 - row["no_spread"] if of_all else 1 for row in rows]
    return float(np.mean([(row["clipped_low"] + row["clipped_high"]) * w for row, w in zip(rows, weights)]))


def seconds(run: dict) -> float:
    """Median seconds of the first ten updates, where lambda is above 0 and most groups have spread."""
    return float(np.median([row["seconds"] for row in run["curve"] if 1 <= row["step"] <= 10]))


def held_out(run: dict) -> int:
    return int(run["options"].split("--eval_problems ")[-1].split()[0])


def leakage(run: dict) -> float:
    return float([row["leakage"] for row in run["curve"] if "leakage" in row][-1])


def leaked(runs: list[dict]) -> Estimate:
    """Mean leakage at the end; its interval reaches 3 / problems at least, the 95 % bound where none cites."""
    found = mean(map(leakage, runs))
    if found.n:  # all seeds share the held-out problems
        found.high = max(found.high, 3 / held_out(runs[0]))
    return found


class Study:
    """Finished runs by (task, method, samples an update, fresh seeds)."""

    def __init__(self, runs: list[dict]):
        self.tuning = [run for run in runs if run["lr"]]
        self.cells: dict[tuple, list[dict]] = defaultdict(list)
        for run in runs:
            if not run["lr"]:
                self.cells[run["task"], run["method"], run["samples"], run["seed"] >= 10].append(run)

    def runs(self, task: str, method: str, samples: int = 256, fresh: bool = False) -> list[dict]:
        return self.cells.get((task, method, samples, fresh), [])

    def pairs(self, figure: Figure, task: str, method: str, other: str, *cell) -> tuple[list[float], list[float]]:
        """The figure of both methods on the seeds that both have."""
        a, b = ({run["seed"]: run for run in self.runs(task, m, *cell)} for m in (method, other))
        shared = sorted(a.keys() & b.keys())
        return [figure(a[s]) for s in shared], [figure(b[s]) for s in shared]

    def gain(self, figure: Figure, task: str, method: str, other: str, *cell) -> Estimate:
        """Paired difference: method minus other."""
        mine, theirs = self.pairs(figure, task, method, other, *cell)
        return mean(np.array(mine) - np.array(theirs))

    def speed(self, task: str, method: str, *cell) -> tuple[Estimate, int, float] | None:
        """GRPO's updates over the method's, to 90 % of GRPO's gain: (ratio, runs that never got there, target)."""
        grpo = self.runs(task, "grpo", *cell)
        target = target_of(grpo)
        if target is None:
            return None
        theirs, mine = self.pairs(lambda run: updates_to(run, target), task, "grpo", method, *cell)
        return *paired_speed(theirs, mine, float(evaluations(grpo[0])[0][-1])), target


def peak_and_fall(runs: list[dict]) -> tuple[Estimate, Estimate]:
    """Rise to the peak and fall from it; each run's peak is the one of the others' mean curve, so noise is no peak."""
    curves = np.array([evaluations(run)[1] for run in runs])
    peaks = [int((curves.sum(axis=0) - curve).argmax()) for curve in curves]
    rise = mean(curve[p] - curve[0] for curve, p in zip(curves, peaks))
    return rise, mean(curve[p] - final(run) for curve, p, run in zip(curves, peaks, runs))
