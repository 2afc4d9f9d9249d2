"""Several processes beside one, and beside another program that keeps a core busy."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from harness.threads import settle
from speed.peers import peers
from speed.steps import Trainer, beside_grpo, beside_trl
from speed.turns import compared, now, time_ratios, turns
from speed.workload import SMOKE, Run, Skipped, config_of
from support import processes
from support.workers import cores

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8  # that a turn of several processes makes, after a first one that does not count
FIFTH = "--warm_steps 140 --steps 40"  # of the default job
TINY = "--warm_steps 2 --steps 1 --eval_problems 4 --prompts_per_step 2 --group_size 4 --max_new_tokens 32 --chain 1"


def on_cpu(run: Run) -> None:
    if run.device != "cpu":
        raise Skipped("not measured: processes share the cores, not a GPU")


def begun(workers: int, *command: str) -> subprocess.Popen:
    """A program in so many processes (0: as `make train` chooses), without our own settings."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    start = [sys.executable, "-m", "support.workers", str(workers), *command]
    return subprocess.Popen(start, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(program: subprocess.Popen) -> str:
    out, err = program.communicate()
    if program.returncode:
        raise RuntimeError(f"{program.args!r}: {err}")
    return out


def launched(workers: int, *command: str) -> str:
    return printed(begun(workers, *command))


def rlsd_step(run: Run, workers: int) -> dict:
    """Seconds of an RLSD step in one process of one thread over those in several of one thread each."""
    on_cpu(run)
    if cores() < workers:
        raise Skipped(f"not measured: {cores()} cores")
    smoke = ["--smoke"] * (run.size is SMOKE)
    of = lambda number: lambda i: json.loads(launched(number, "bench.py", "--worker", "rlsd", *smoke))
    several, one = ([(seconds, None) for _, seconds in side] for side in turns(run, of(workers), of(1)))
    return {**compared(several, one), "ratios": time_ratios(one, several)}


def in_two(run: Run, worker: str) -> dict:
    """What one of WORKERS measures, both sides in two processes of one thread."""
    on_cpu(run)
    if cores() < 2:
        raise Skipped("not measured: 1 core")
    if worker.startswith("trl"):
        peers("transformers", "trl", "datasets")
    smoke = ["--smoke"] * (run.size is SMOKE)
    return json.loads(launched(2, "bench.py", "--worker", worker, "--rounds", str(run.rounds), *smoke))


def seconds_of_a_step(run: Run) -> float:
    """The median of STEPS RLSD steps with the teacher's pass."""
    trainer, seconds = Trainer(run, "rlsd", share=0.6), []
    for i in range(STEPS + 1):
        start = now(run.device)
        trainer.step(i, 0.5)
        seconds.append(now(run.device) - start)
    return median(seconds[1:])


def joined(measure: Callable[[Run], Any], run: Run) -> Any:
    """What one of several processes measures."""
    settle(config_of(run, "rlsd"))
    os.environ["OMP_NUM_THREADS"] = "1"  # else TRL would take all cores in each
    processes.join(run.device)
    try:
        return measure(run)
    finally:
        processes.stop()


PLAIN: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}  # float32, as ours
WORKERS = {
    "teacher": partial(joined, partial(beside_grpo, lam=0.5)),
    "rlsd": partial(joined, seconds_of_a_step),
    "trl": partial(joined, beside_trl),
    "trl-plain": partial(joined, partial(beside_trl, **PLAIN)),
}


def job(run: Run, workers: int, watched: Callable[[subprocess.Popen], object] = lambda program: None) -> None:
    """A part of what `make train` runs, from an empty folder: warm start, updates, evaluations, checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        part = (TINY if run.size is SMOKE else FIFTH).split()
        program = begun(workers, "train.py", *part, "--out", f"{folder}/run", "--warm_dir", f"{folder}/warm")
        watched(program)
        printed(program)


def train_memory(run: Run) -> dict:
    """The greatest sum of the job's processes' memory over 700 MB; a page that n of them share counts 1/n in each."""
    on_cpu(run)
    if not Path("/proc/self/smaps_rollup").exists():
        raise Skipped("not measured: this system does not tell what processes share")
    most: list[int] = []

    def watch(program: subprocess.Popen) -> None:
        most.append(0)
        while program.poll() is None:
            most[-1] = max(most[-1], sum(map(proportional, family(program.pid))))
            time.sleep(0.05)

    for _ in range(min(3, run.rounds)):
        job(run, 0, watch)
    return {"ratios": [size / 700e6 for size in most], "bytes": most}


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    pids = [pid]
    for parent in pids:  # grows as it is walked
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{parent}/task").glob("*/children")
            pids += [int(child) for task in tasks for child in task.read_text().split()]
    return pids


def proportional(pid: int) -> int:
    """Bytes of a process's memory (PSS); 0 of one that has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """One other program that keeps a core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def train_beside_another(run: Run) -> dict:
    """Seconds of the job beside a busy program over those of the same with the machine to itself."""
    on_cpu(run)

    def beside(i: int) -> None:
        with busy():
            job(run, workers=0)

    return compared(*turns(run, beside, lambda i: job(run, workers=0)))


def train_in_one(run: Run) -> dict:
    """Seconds of the job in one process over those in as many as `make train` chooses."""
    on_cpu(run)
    several, one = turns(run, lambda i: job(run, workers=0), lambda i: job(run, workers=1))
    return {**compared(several, one), "ratios": time_ratios(one, several)}
