"""The rows of the bench that several processes make (speed/several.py)."""

import contextlib
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from test_bench import PROCESSES, SMALL, held_to_the_committed_one, paced

from speed import several, table
from speed.workload import SMOKE, Run


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_memory_of_a_job_is_that_of_all_its_processes():
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = [1] * 10**7 * 2; input()'])"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as program:
        deadline = time.monotonic() + 20
        while (found := sum(map(several.proportional, several.family(program.pid)))) < 10**8:
            assert time.monotonic() < deadline
        assert len(several.family(program.pid)) == 2 and found < 3 * 10**8
        program.communicate(b"\n")
    assert several.proportional(program.pid) == 0


def test_jobs_are_begun_as_a_row_says_and_compared(monkeypatch):
    begun, jobs = [], []
    monkeypatch.setattr(several, "cores", lambda: 2)
    monkeypatch.setattr(several, "launched", lambda *command: begun.append(command) or str(1 / command[0]))
    assert several.rlsd_step(SMALL, workers=2) == {"ratios": [2.0], "seconds": 0.5, "seconds_beside": 1.0}
    assert several.in_two(SMALL, "teacher") == 0.5
    assert begun[-1] == (2, "bench.py", "--worker", "teacher", "--rounds", "1", "--smoke")
    monkeypatch.setattr(several, "busy", lambda: contextlib.nullcontext(jobs.append("beside")))
    monkeypatch.setattr(several, "job", lambda run, workers, *_: jobs.append(workers))
    paced(monkeypatch, several, 2.0, 8.0)
    seconds = {"seconds": 4.0, "seconds_beside": 16.0}
    assert several.train_in_one(SMALL) == {"ratios": [4.0] * 3, **seconds}
    assert several.train_beside_another(SMALL) == {"ratios": [0.25] * 3, **seconds}
    assert jobs == [0] * 3 + [1] * 3 + ["beside", 0] * 3 + [0] * 3  # processes of each; 0: as many as fit


def test_the_memory_of_a_run_is_its_greatest_sum_at_one_moment(monkeypatch):
    """In three runs at most; a process that has ended counts no more."""
    sizes, sums = iter([7, 350_000_000, 1, 2, 3, 4, 5, 6]), [350_000_007, 3 + 4, 5 + 6]
    monkeypatch.setattr(several, "family", lambda pid: [pid, pid])
    monkeypatch.setattr(several, "proportional", lambda pid: next(sizes))
    running = iter(SimpleNamespace(pid=1, poll=iter([None] * n + [0]).__next__) for n in (2, 1, 1, 1))
    monkeypatch.setattr(several, "job", lambda run, workers, watched: watched(next(running)))
    assert several.train_memory(SMALL._replace(rounds=4)) == {"ratios": [most / 7e8 for most in sums], "bytes": sums}


def test_a_step_is_the_median_of_eight_after_a_first_one(monkeypatch):
    clock = iter(t for i in range(9) for t in (0.0, i))
    monkeypatch.setattr(several, "now", lambda device: next(clock))
    steps_made = []
    monkeypatch.setattr(several, "Trainer", lambda *_, **__: SimpleNamespace(step=lambda *lam: steps_made.append(lam)))
    assert several.seconds_of_a_step(SMALL) == 4.5 and steps_made == [(i, 0.5) for i in range(9)]


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_are_not_measured_on_a_gpu(name):
    assert "not a GPU" in table.measure(name, Run(SMOKE, "cuda", 1))["skipped"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_a_row_of_processes_has_the_figures_of_the_committed_one(name, capfd):
    held_to_the_committed_one(table.measure(name, SMALL))
    assert capfd.readouterr() == ("", "")
