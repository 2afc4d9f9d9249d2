"""Taking turns in one process, A B A B ...: a slow spell of the whole machine cancels in the ratio of each pair."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from speed.workload import Run


def now(device: str) -> float:
    """Seconds on a clock that is read when the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(run: Run, *works: Callable, before: Callable[[], object] = lambda: None) -> list[list[tuple[float, Any]]]:
    """A B A B ...: (seconds, result) of each work in each round; a first round warms up, and before() is not timed."""
    measured: list[list[tuple[float, Any]]] = [[] for _ in works]
    for i in range(run.rounds + 1):
        for work, results in zip(works, measured):
            before()
            start = now(run.device)
            result = work(i)
            results.append((now(run.device) - start, result))
    return [results[1:] for results in measured]


def time_ratios(above: list[tuple[float, Any]], below: list[tuple[float, Any]]) -> list[float]:
    return [a / b for (a, _), (b, _) in zip(above, below)]


def median_seconds(results: list[tuple[float, Any]]) -> float:
    return median(seconds for seconds, _ in results)


def compared(ours: list[tuple[float, Any]], theirs: list[tuple[float, Any]]) -> dict:
    """The figures of a row whose ratios are times, ours above."""
    seconds = {"seconds": median_seconds(ours), "seconds_beside": median_seconds(theirs)}
    return {"ratios": time_ratios(ours, theirs), **seconds}
