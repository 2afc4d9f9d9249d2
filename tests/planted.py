"""Does the suite notice a planted mistake? Runs tests on a changed copy of the code, in a fork of a warm process.

The fork has torch, hypothesis and pytest imported already, and nothing of this repository: seconds a mistake become
tenths. Used by mutants.py and by museum/.
"""

import contextlib
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies  # noqa: F401 (warms the fork up, as do the next ones)
import pytest
import tiktoken  # noqa: F401
import torch

ROOT = Path(__file__).resolve().parent.parent
CPU, WALL = 240, 900  # seconds; the first does not depend on what else the machine does, the second ends a sleep
LOOP = 4  # times what the tests take as it is, and half a minute: what takes longer does not end
PATIENCE = 30  # seconds, and eight times what it takes as it is: a single test that waits or loops longer
MEMORY = 8 * 2**30  # bytes a fork may map beyond what the warm process has: a mutant of a guard may ask for anything
asked_to_stop: list[bool] = []


@dataclass
class Verdict:
    """outcome: failed (a test), broken (collection), dead (limits of time or memory, a crash), passed; test: which."""

    outcome: str
    test: str = ""
    seconds: float = 0.0


class Watch:
    """A pytest plugin: tests run in the order of `rank`; the first failure is written down and ends the process.

    sore: tests that are not run, as they fail on the code as it is (some do within the limits of a fork).
    usual: seconds that a test takes on the code as it is: one that takes much longer ends the process.
    durations: where each test's seconds are written, None for one that fails; no failure ends the process then.
    """

    def __init__(self, path: Path, rank=None, sore: Collection[str] = (), usual=None, durations: Path | None = None):
        self.rank, self.path, self.sore, self.usual, self.durations = rank or {}, path, sore, usual or {}, durations
        self.seconds: dict[str, float | None] = {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if short(item.nodeid) not in self.sore]
        items.sort(key=lambda item: self.rank.get(short(item.nodeid), 0.0))

    def pytest_runtest_logstart(self, nodeid):
        if seconds := self.usual.get(short(nodeid)):
            faulthandler.dump_traceback_later(PATIENCE + 8 * seconds, exit=True)

    def pytest_runtest_logreport(self, report):
        test = short(report.nodeid)
        before = self.seconds.get(test, 0.0)  # set up, called, taken down
        self.seconds[test] = None if report.failed or before is None else before + report.duration
        if report.failed and not self.durations:
            self.write("failed", report.nodeid)

    def pytest_sessionfinish(self):
        if self.durations:
            self.durations.write_text(json.dumps(self.seconds))

    def pytest_collectreport(self, report):
        if report.failed:
            self.write("broken", report.nodeid)

    def write(self, outcome, test):
        self.path.write_text(json.dumps([outcome, short(test)]))
        os._exit(1)


def short(test: str) -> str:
    return test.removeprefix("tests/")


class Copy:
    """A copy of the repository in a temporary folder, whose files can be changed one at a time."""

    def __enter__(self):
        self.home = Path(tempfile.mkdtemp(prefix="planted-"))
        self.folder = self.home / "tree"  # beside which the tests write: some copy the whole of it
        leave = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "runs")
        shutil.copytree(ROOT, self.folder, ignore=leave, dirs_exist_ok=True)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.home, ignore_errors=True)

    def verdict(
        self,
        file: str,
        text: str,
        tests: list[str],
        rank: dict[str, float] | None = None,
        sore: Collection[str] = (),
        usual: dict[str, float] | None = None,
        cpu: float = CPU,
    ) -> Verdict:
        """What the tests say of `file` with this text, until the first failure, `cpu` seconds or a test without end."""
        path, answer = self.folder / file, self.home / "verdict.json"
        whole = path.read_text()
        answer.unlink(missing_ok=True)
        path.write_text(text)
        began = time.monotonic()
        try:
            status = self.forked(tests, Watch(answer, rank, sore, usual), cpu)
        finally:
            path.write_text(whole)
        seconds = round(time.monotonic() - began, 2)
        if answer.exists():
            return Verdict(*json.loads(answer.read_text()), seconds)
        return Verdict("passed" if status in (0, 5 << 8) else "dead", "", seconds)  # 5: no test was left to run

    def durations(self, test: str) -> dict[str, float | None]:
        """Seconds of each test of a file on the unchanged code; None for one that fails there."""
        answer, found = self.home / "verdict.json", self.home / "durations.json"
        found.unlink(missing_ok=True)
        self.forked([test], Watch(answer, durations=found))
        assert found.exists(), f"{test} does not end, or is not read, as it is"
        return json.loads(found.read_text())

    def forked(self, tests: list[str], watch: Watch, cpu: float = CPU) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os._exit(self.run_tests(tests, watch, int(cpu)))
        end, done = time.monotonic() + WALL * cpu / CPU, 0
        try:
            while not done and time.monotonic() < end:
                if asked_to_stop:  # not raised by the handler itself: within a fork Python swallows it
                    sys.exit(143)
                time.sleep(0.01)
                done, status = os.waitpid(pid, os.WNOHANG)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # with what its tests have started
        return status if done else os.waitpid(pid, 0)[1]

    def run_tests(self, tests: list[str], watch: Watch, cpu: int) -> int:
        """The child's whole life; its exit code is pytest's."""
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
            if pages:
                _, most = resource.getrlimit(resource.RLIMIT_AS)  # a test of little memory sets limits of its own
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, most))
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            output = os.open(self.home / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.folder)
            sys.dont_write_bytecode = True  # a cached module of the same size and second would hide the next change
            sys.path[:] = [p for p in sys.path if ROOT not in (Path(p).resolve(), *Path(p).resolve().parents[:1])]
            quick = ["-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
            quick.append(f"--basetemp={self.home / 'tmp'}")
            return int(pytest.main([*quick, *(f"tests/{test}" for test in tests)], plugins=[watch]))
        except BaseException:
            return 70


def shared_out(todo: list, jobs: int, work: Callable[[list], None]) -> None:
    """work(part) in `jobs` processes at a time, each with every jobs-th of what is to do."""
    helpers = []
    for job in range(1, jobs):
        if (pid := os.fork()) == 0:
            work(todo[job::jobs])
            os._exit(0)
        helpers.append(pid)
    work(todo[::jobs])
    for pid in helpers:
        os.waitpid(pid, 0)


def warm_up() -> None:
    """What every fork would otherwise do again; forks of one process never share a thread pool."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # imports a second's worth of torch
    torch.use_deterministic_algorithms(False)
    gc.freeze()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))  # copies and forks are cleared away
    os.environ.update(OMP_NUM_THREADS="1", HYPOTHESIS_PROFILE="museum", PYTHONDONTWRITEBYTECODE="1")
