"""What a run says, and how it ends: log lines, the bar, curves, Ctrl-C."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from math import nan
from pathlib import Path

import torch

from config import Config
from harness import curves
from harness.options import verifier_file
from support import processes
from support.errors import one_line, visible
from support.files import append, metrics_of

PRINTED = (
    "step, reward, length, entropy, no_spread, grad_norm, lambda, weight, clipped_low, clipped_high, tokens/s, pass@1, "
    "held-out reward, greedy, leakage, teacher pass@1, peak GiB, verifier errors, skipped"
).split(", ")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, at a point where the run can end; args: the signal's number and what is left behind."""


def log(out: Path, row: dict) -> None:
    """One line for people and grep, another for each note, the whole row to metrics.jsonl."""
    append(out / "metrics.jsonl", row)
    shown = {name: row[name] for name in PRINTED if name in row}
    print(" ".join(f"{name.replace(' ', '_')}={value:.4g}" for name, value in shown.items()), flush=True)
    for note in row.get("notes", ()):
        print(visible(f"note: {note}"), flush=True)


def peak_memory(device: str) -> float:
    """Highest use so far, in GiB: allocated on the GPU, or resident in this process (nan where that is not told)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def finish(out: Path) -> None:
    """Say what the run reached, and draw its curves: a picture that cannot be drawn is no failure."""
    rows = metrics_of(out)
    evaluated = [row for row in rows if row.get("pass@1", nan) >= 0]
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        seconds = sum(row.get("seconds", 0) for row in rows if row["step"] <= last["step"])
        names = ("pass@1", "held-out reward", "greedy") if "held-out reward" in last else ("pass@1", "greedy")
        changes = (f"{name} {first.get(name, nan):.3f} -> {last.get(name, nan):.3f}" for name in names)
        print(f"held-out {', '.join(changes)} in {last['step']} updates ({seconds:.0f} s)")
    if not evaluated:
        print("no evaluation has a reward: the verifier failed on all held-out problems (verifier_error.txt)")
    elif last["step"] < rows[-1]["step"]:
        later = [row for row in rows if row["step"] > last["step"] and "pass@1" in row]
        why = "no held-out problem has a reward" if later else "no evaluation was due (--eval_every)"
        print(f"since update {last['step']}, {why}")
    try:
        print(visible(f"curves: {curves.curves([out], out / 'curves.png')}"))
    except Exception as error:  # of other people's packages, fonts and settings, or as there are none
        print(f"curves.png left out: {one_line(error)}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A run that ends where it was asked to says so, and how to go on; exit code 128 + the signal's number."""
    try:
        yield
    except Interrupted as interrupted:
        number, where = interrupted.args
        if processes.rank() == 0:
            print(visible(f"interrupted {where}"), flush=True)
        raise SystemExit(128 + number) from None


class Interrupt:
    """Ctrl-C and SIGTERM ask for a clean end after the current step; a second Ctrl-C ends at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        self.signal = self.signal or number  # a parent that starts processes may pass Ctrl-C on as SIGTERM
        if processes.rank() == 0 and sys.stderr.isatty():
            with contextlib.suppress(OSError):  # not by print: the program may be in the middle of one
                os.write(2, b"ending after this step; Ctrl-C again ends at once\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_after(self, step: int, config: Config, asked: int) -> None:
        """Where a checkpoint has just been written: end the run, if the processes have agreed that this was asked."""
        if asked:
            rule = ["--verifier", config.verifier] if verifier_file(config.verifier) else []  # run where it is named
            again = shlex.join(["python", "train.py", "--resume", "--out", config.out, *rule])
            raise Interrupted(asked, f"after step {step}; {again} goes on")


def progress(steps: range):
    """The steps, with a bar on standard error where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of all processes, which a killed run would leave behind
    return tqdm(steps, disable=processes.rank() > 0 or not sys.stderr.isatty())
