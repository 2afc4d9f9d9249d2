"""Lives of small training runs: each ends by SIGKILL or a failing disk at a random moment, and the next one goes on.

    python tests/faults/lives.py                  # make faults: 200 kills, figures to results/faults.json
    python tests/faults/lives.py --kills 8 --recipes rlsd --kept figures.json

A run that has lived through all of it must have left what the run that was never killed has left, bit for bit. The disk
is slow on purpose, so that a good part of the kills falls into writes. One process imports torch and forks every life.
"""

import argparse
import builtins
import contextlib
import errno
import io
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo  # what the first step of an optimizer imports: once, not in every life

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small_runs import again, load, options, same  # noqa: E402

import train  # noqa: E402
from harness import run  # noqa: E402

STEPS, SAVE_EVERY = 8, 3
SMALL = f"--steps {STEPS} --save_every {SAVE_EVERY} --warm_steps 6 --chain 1 --max_new_tokens 20 --eval_every 4"
RECIPES = {
    "rlsd": "--rlsd_teacher_sync_interval 2 --rlsd_lambda_decay_steps 8",
    "grpo": "--method grpo --micro_batch 3",
    "sdpo": "--method sdpo",
}
ERRORS = {"full disk": errno.ENOSPC, "write error": errno.EIO, "read-only folder": errno.EROFS}
TIMINGS = ("seconds", "tokens/s")

# ---- one life --------------------------------------------------------------------------------------------------------


class Disk:
    """The files of one life: every write in two halves, slowly; the step number `at` is the last, or fails."""

    def __init__(self, folder: Path, phase: "Phase", fault: str = "", at: int = -1):
        self.folder, self.phase, self.fault, self.at, self.steps = str(folder), phase, fault, at, 0

    def install(self) -> None:
        self.really_open, self.really_replace, self.really_sync = builtins.open, os.replace, os.fsync
        builtins.open = io.open = self.open
        os.replace, os.fsync = self.replace, self.fsync

    def step(self, name: str, opens: bool = False) -> None:
        """A moment between two changes on the disk: a full or read-only one stays so, an error comes once."""
        self.steps += 1
        time.sleep(1e-4)
        if self.fault == "kill" and self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "write error" and self.steps == self.at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        if self.fault == "full disk" and self.steps >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.fault == "read-only folder" and self.steps >= self.at and opens:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

    def open(self, path, mode="r", *args, **kwargs):
        if isinstance(path, int) or not str(path).startswith(self.folder) or not set(mode) & set("wax+"):
            return self.really_open(path, mode, *args, **kwargs)
        with self.phase.of(f"writing {kind(path)}"):
            self.step(str(path), opens=True)
        return Slow(self.really_open(path, mode, *args, **kwargs), self, str(path))

    def replace(self, source, target) -> None:
        with self.phase.of(f"writing {kind(target)}"):
            self.step(str(target), opens=True)
            self.really_replace(source, target)
            self.step(str(target))

    def fsync(self, file: int) -> None:
        self.step("fsync")
        self.really_sync(file)


class Slow:
    """An open file whose every write reaches the disk in two halves."""

    def __init__(self, file, disk: Disk, path: str):
        self.file, self.disk, self.path = file, disk, path

    def write(self, data) -> int:
        with self.disk.phase.of(f"writing {kind(self.path)}"):
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                self.disk.step(self.path)
                self.file.write(half)
                self.file.flush()
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def kind(path) -> str:
    """last.pt of last.pt.123.tmp; the names of warm starts and of skipped batches are many."""
    name = Path(path).name
    name = name.rsplit(".", 2)[0] if name.endswith(".tmp") else name
    return "a warm start" if Path(path).parent.name == "warm" else name


class Phase:
    """What a life is doing, where its parent can read it after the kill."""

    def __init__(self):
        self.shared, self.now = mmap.mmap(-1, 64), ""

    def set(self, text: str) -> None:
        self.now = text
        self.shared[:] = text.encode().ljust(64)

    def read(self) -> str:
        return self.shared[:].decode().strip()

    @contextlib.contextmanager
    def of(self, text: str):
        before = self.now
        self.set(text)
        try:
            yield
        finally:
            self.set(before)


class Life:
    """A forked process that runs train.py with `options`, its disk failing as told."""

    def __init__(self, options: list[str], folder: Path, phase: Phase, fault: str = "", at: int = -1):
        self.began, self.steps = time.perf_counter(), mmap.mmap(-1, 8)
        phase.set("starting")
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                code = self.live(options, folder, phase, fault, at)
            finally:
                os._exit(code)

    def live(self, options: list[str], folder: Path, phase: Phase, fault: str, at: int) -> int:
        for number, name in ((1, "out.txt"), (2, "err.txt")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        for name in ("rollout", "update"):
            setattr(train, name, phase.of(name)(getattr(train, name)))
        for name in ("warm_start", "evaluate", "evaluate_teacher"):
            text = "warm start" if name == "warm_start" else "evaluation"
            setattr(run, name, phase.of(text)(getattr(run, name)))
        run.console.finish = lambda out: None  # curves: seconds of matplotlib, and no state
        disk = Disk(folder, phase, fault, at)
        disk.install()
        phase.set("between")
        try:
            return train.main(options)
        finally:
            sys.stdout.flush()
            self.steps[:] = disk.steps.to_bytes(8, "little")

    def end(self, after: float | None = None) -> int:
        """Its exit status, -9 if killed; `after` seconds it is, if it has not ended by itself."""
        while after is not None and time.perf_counter() - self.began < after:
            time.sleep(0.002)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        if after is not None:
            os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# ---- what a life has left --------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict]:
    """The rows of metrics.jsonl without timings, up to a line that is not whole."""
    kept = []
    with contextlib.suppress(ValueError):
        for line in path.read_text().split("\n")[:-1] if path.exists() else []:
            kept.append({name: value for name, value in json.loads(line).items() if name not in TIMINGS})
    return kept


def faults_of_the_dead(run: Path, whole: Path, step_before: int) -> tuple[int, list[str]]:
    """The step of the checkpoint that a life has left (-1: none), and what is wrong with its files."""
    wrong, step = [], -1
    for path in [*run.glob("out/*.pt"), *run.glob("warm/*.pt")]:
        try:
            state = load(path)
            step = state["step"] if path.name == "last.pt" else step
        except Exception as error:
            wrong.append(f"{path.name} cannot be read: {error}")
    logged, expected = rows(run / "out" / "metrics.jsonl"), rows(whole / "out" / "metrics.jsonl")
    if logged != expected[: len(logged)]:
        wrong.append(f"metrics.jsonl has other rows: steps {[row['step'] for row in logged]}")
    if step < step_before:
        wrong.append(f"last.pt went back from step {step_before} to {step}")
    if step >= 0 and not step <= len(logged) - 1 <= step + SAVE_EVERY:
        wrong.append(f"last.pt is of step {step}, metrics.jsonl ends at {len(logged) - 1}")
    return step, wrong


def faults_of_the_finished(run: Path, whole: Path) -> list[str]:
    """Differences between a run of many lives and the one that was never killed."""
    a, b = run / "out", whole / "out"
    read = {"metrics.jsonl": rows, "samples.jsonl": Path.read_bytes, "last.pt": load, "best.pt": load}
    wrong = [f"{name} differs" for name, of in read.items() if not same(of(a / name), of(b / name))]
    listed = [sorted(path.name for path in out.iterdir()) for out in (a, b)]
    return wrong + ["the list of files differs"] * (listed[0] != listed[1])


def faults_of_the_failed(folder: Path, pid: int, status: int, fault: str) -> list[str]:
    """A disk that fails must give exit code 2 and one line that says so, and leave nothing half-written."""
    said = (folder / "err.txt").read_text()
    wrong = [f"{fault}: exit code {status}"] if status != 2 else []
    if said.count("\n") != 1 or not said.startswith("train.py: ") or os.strerror(ERRORS.get(fault, 0)) not in said:
        wrong.append(f"{fault}: it said {said[-300:]!r}")
    return wrong + [f"{fault}: {path.name} is left" for path in folder.rglob(f"*.{pid}.tmp")]


# ---- many lives ------------------------------------------------------------------------------------------------------


class Trial:
    """Runs and their lives until `kills` of them were killed; one life in eight meets a failing disk instead."""

    def __init__(self, kills: int, recipes: list[str], seed: int, folder: Path):
        self.kills, self.recipes, self.rng = kills, recipes, random.Random(seed)
        self.folder, self.phase = folder, Phase()
        self.counts, self.landed, self.mismatches = Counter(), Counter(), []
        self.pace = 1.0  # how much slower lives are than the run that was never killed: other work comes and goes
        self.whole = {recipe: self.never_killed(recipe) for recipe in recipes}

    def options(self, recipe: str, folder: Path) -> list[str]:
        own = ("--warm_dir", folder / "warm")
        return options(self.folder, f"{folder.name}/out", SMALL, RECIPES[recipe], *own)

    def never_killed(self, recipe: str) -> tuple[Path, float, int]:
        """The folder of the run to compare with, its seconds, and the steps of its disk."""
        folder = self.folder / f"whole-{recipe}"
        folder.mkdir()
        life = Life(self.options(recipe, folder), folder, self.phase)
        if life.end() != 0:
            raise SystemExit(f"lives.py: the run {folder} fails by itself: {(folder / 'err.txt').read_text()}")
        return folder, time.perf_counter() - life.began, int.from_bytes(life.steps[:], "little")

    def run(self, number: int) -> None:
        """One run from its first life to its end."""
        recipe = self.recipes[number % len(self.recipes)]
        whole, seconds, steps = self.whole[recipe]
        folder, step, status = self.folder / f"run-{number}", -1, -1
        folder.mkdir()
        while status != 0:
            resume = step >= 0
            options = again(folder / "out") if resume else self.options(recipe, folder)
            fault = self.rng.choice(["kill"] * 3 + ["any moment"] * 4 + [self.rng.choice(list(ERRORS))])
            if self.counts["kills"] >= self.kills:
                fault = ""  # the last run comes to its end
            left = 1.25 - max(step, 0) / STEPS  # of a life: a run that has all of its steps still has to start and end
            at = self.rng.randrange(1, int(left * steps) + 2)
            moment = self.rng.uniform(0, 0.7 * self.pace * left * seconds)
            life = Life(options, folder, self.phase, fault, at if fault != "any moment" else -1)
            status = life.end(moment if fault == "any moment" else None)
            self.counts["lives"] += 1
            self.counts["resumes"] += resume
            wrong = []
            if status == -signal.SIGKILL:
                self.counts["kills"] += 1
                self.landed[self.phase.read()] += 1
            elif status != 0:
                self.counts["failing disks"] += 1
                wrong = faults_of_the_failed(folder, life.pid, status, fault)
            if status != 0:
                before, (step, more) = step, faults_of_the_dead(folder, whole, step)
                self.pace *= 1.2 if step == before else 1
                wrong += more
            else:
                self.counts["finished runs"] += 1
                self.pace /= 1.2
                wrong += faults_of_the_finished(folder, whole)
            self.mismatches += [f"run {number} ({recipe}), life {self.counts['lives']}: {text}" for text in wrong]
            if wrong:
                return

    def all(self) -> dict:
        began, number = time.perf_counter(), 0
        while self.counts["kills"] < self.kills:
            self.run(number)
            number += 1
            print(dict(self.counts), f"{time.perf_counter() - began:.0f} s", *self.mismatches[-1:], flush=True)
        found = {"mismatches": self.mismatches, "killed while": dict(self.landed.most_common())}
        return {**self.counts, **found, "seconds": round(time.perf_counter() - began)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", default=str(ROOT / "results" / "faults.json"), help="where the figures go")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = Trial(given.kills, given.recipes, given.seed, Path(folder)).all()
    about = {"command": "make faults", "torch": torch.__version__, "threads": 1, "steps a run": STEPS}
    Path(given.kept).write_text(json.dumps({**about, **figures}, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return int(bool(figures["mismatches"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
