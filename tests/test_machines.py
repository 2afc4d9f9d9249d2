"""The suite's verdict is that of the code, whatever machine and shell it runs in; and what machines.py writes down."""

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import machines
import pytest
from machines import ROOT, ROWS, TABLE, counted
from slowness import patience

from harness import console

SHELL = {  # of somebody who has set everything for something else
    **machines.ODD,
    **{"PYTHONDEVMODE": "1", "PYTHONINSPECT": "1", "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error", "WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "nowhere.invalid", "FORCE_COLOR": "1", "LANGUAGE": "de", "MKL_NUM_THREADS": "7", "LINES": "5"},
    **{"TORCH_LOGS": "+dynamo", "HF_HUB_OFFLINE": "0", "MPLBACKEND": "nonsense", "LOCAL_RANK": "7", "TERM": "vt52"},
}
TOLD = """
import locale, os, sys, torch
def test_told():
    assert sys.getfilesystemencoding() == "utf-8" and locale.getpreferredencoding(False).lower() == "utf-8"
    assert not sys.flags.optimize and not sys.flags.dev_mode and torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert [name for name, value in SHELL.items() if os.environ.get(name) == value] == ["TZ"]
"""


def test_what_a_shell_has_set_reaches_no_test(tmp_path):
    """A test that asks, beside the suite's conftest, in a shell that has set everything."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests/conftest.py").read_bytes())
    (tmp_path / "test_told.py").write_text(f"SHELL = {SHELL!r}\n{TOLD}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_told.py"]
    how = {"cwd": tmp_path, "env": {**os.environ, **SHELL}, "stdin": subprocess.DEVNULL, "errors": "replace"}
    done = subprocess.run(command, **how, stdout=subprocess.PIPE)
    assert done.returncode == 0 and counted(done.stdout)["passed"] == 1, done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_what_a_shell_has_set_keeps_no_program_of_make_from_running(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text("utf-8") + "show:\n\t@env\n", "utf-8")
    env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONINSPECT": "1"}
    said = subprocess.run(["make", "show"], cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert "PATH=" in said and "PYTHONSAFEPATH=" not in said and "PYTHONINSPECT=" not in said


def test_a_bar_of_progress_leaves_no_semaphore_to_the_system():
    """tqdm's own lock is one: from Python 3.14 on a second process says so where a run is killed."""
    tqdm = pytest.importorskip("tqdm").tqdm
    assert list(console.progress(range(3))) == [0, 1, 2]
    assert type(tqdm.get_lock()) is type(threading.RLock())


def test_no_limit_of_a_test_is_shorter_than_half_a_minute():
    """A time limit ends what hangs; a machine ten times slower is no failure (processor time: slowness.patience)."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "timeout" and isinstance(node.value, ast.Constant):
                assert node.value.value is None or node.value.value >= 30, f"{path.name}:{node.value.lineno}"


def test_patience_grows_where_the_machine_is_slow(monkeypatch):
    assert patience(2.0) >= 2.0
    monkeypatch.setattr("slowness.loop", lambda: 0.08)
    assert patience(2.0) == pytest.approx(20.0)


# ---- the table -------------------------------------------------------------------------------------------------------

NAMED = ["tests/a.py::b[x y]", "tests/c.py"]
LAST_LINES = {
    "1221 passed, 69 skipped, 3 warnings in 300.04s (0:05:00)": (1221, 69, 0, None),
    "FAILED tests/a.py::b[x y] - E\nERROR tests/c.py\n2 failed, 7 passed, 1 error in 1.2s": (7, 0, 3, NAMED),
    "1 passed in 0.1s\n": (1, 0, 0, None),
    "Killed": (0, 0, 1, ["it ended before its last line"]),
    "": (0, 0, 1, ["it ended before its last line"]),
}


@pytest.mark.parametrize("output", LAST_LINES)
def test_what_a_run_says_is_counted(output):
    found = counted(output)
    assert (found["passed"], found["skipped"], found["failed"], found.get("failures")) == LAST_LINES[output]


def test_every_row_can_be_had_where_its_python_is(tmp_path):
    found = machines.pythons([])
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert Path(found[here]).exists() and Path(found[""]).exists()
    for row in ROWS.values():
        assert all((ROOT / test).exists() for test in row.tests)
        assert all((ROOT / packages).exists() for packages in row.packages if packages.endswith(".txt"))
    with pytest.raises(machines.NotRun, match=r"no python3\.99"):
        machines.environment(machines.Row("", "3.99"), found, tmp_path)
    assert "numpy==1.26.*" in machines.oldest() and not [line for line in machines.oldest() if ">" in line]


def test_a_stopped_table_goes_on_and_is_written_row_by_row(tmp_path, monkeypatch, capsys):
    ran = []
    good = {"python": "3", "torch": "2", "numpy": "1", "tests": "all", "passed": 3, "skipped": 0, "failed": 0}
    good |= {"seconds": 9, "load": 1.0}
    bad = {"python3.14": {"not run": "no such Python"}, "busy": {**good, "failed": 1, "failures": ["tests/a.py::b"]}}
    row = lambda name: {"name": name, "about": ROWS[name].about, "tree": "as it is", **bad.get(name, good)}
    monkeypatch.setattr(machines, "TABLE", tmp_path / "machines.json")
    monkeypatch.setattr(machines, "run", lambda name, *_: ran.append(name) or row(name))
    monkeypatch.setattr(machines, "pythons", lambda given: {})
    monkeypatch.setattr(machines, "tree", lambda: "as it is")
    where = ["--environments", str(tmp_path / "made")]
    assert machines.main(["bare", *where]) == 0 and machines.main(where) == 1
    assert ran == ["bare", *(name for name in ROWS if name != "bare")]
    page = (tmp_path / "machines.md").read_text("utf-8")
    assert "not run: no such Python" in page and "busy: tests/a.py::b" in page
    assert page.count("\n|") == 2 + len(ROWS) and page.index("| stranger") < page.index("busy: tests/a.py")
    ran.clear()
    assert machines.main(where) == 1 and ran == ["python3.14", "busy"]
    assert machines.main(["--list"]) == 0 and len(ran) == 2
    with pytest.raises(SystemExit, match="2"):
        machines.main(["no-such-row"])
    assert "no such row" in capsys.readouterr().err


@pytest.mark.skipif(not TABLE.exists(), reason="make machines has not been run")
def test_the_committed_table_is_whole_and_no_row_fails():
    table = json.loads(TABLE.read_text("utf-8"))
    assert TABLE.with_suffix(".md").read_text("utf-8") == machines.page(table)
    assert [row["name"] for row in table["rows"]] == list(ROWS)
    assert [row["name"] for row in table["rows"] if row.get("failed")] == []


@pytest.mark.slow
@pytest.mark.parametrize("shared", [[], ["-n", "2"]], ids=["alone", "shared"])
def test_what_one_run_has_passed_the_next_one_leaves_out(tmp_path, shared):
    """As .ci/run does; a run that would be left with nothing, or that misses a test, is no success."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests/conftest.py").read_bytes())
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import os, pytest\n@pytest.mark.parametrize('x', ['a', 'b c', 'é\\n'])\ndef test_fast(x): pass\n"
        "def test_alone(): assert 'PASSED' not in os.environ\n"
        "def test_skipped():\n    if 'ALL' not in os.environ: pytest.skip('no package')\n"
        "@pytest.mark.slow\ndef test_slow(): assert 'ALL' in os.environ\n"
    )
    passed = tmp_path / "passed"
    passed.touch()
    if shared:
        pytest.importorskip("xdist")

    def run(*args, **env):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *shared, *args]
        env = {**os.environ, "PASSED": str(passed), **env}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, counted(done.stdout), done.stdout + done.stderr

    code, first, _ = run("-m", "not slow")
    assert (code, first["passed"], first["skipped"]) == (0, 4, 1)
    assert run()[:2] == (1, {"passed": 0, "skipped": 1, "failed": 1, "failures": ["test_some.py::test_slow"]})
    assert len(passed.read_text().splitlines()) == 4, "what was skipped or failed has not passed"
    assert run(ALL="1")[1]["passed"] == 2
    assert run(ALL="1")[0] == pytest.ExitCode.NO_TESTS_COLLECTED
    tests.write_text("def test_fast(): pass\n")
    code, _, said = run()
    assert code not in (0, pytest.ExitCode.TESTS_FAILED)
    assert shared or (code == pytest.ExitCode.USAGE_ERROR and "6 tests passed before" in said)
    passed.unlink()
    assert run()[0] not in (0, pytest.ExitCode.TESTS_FAILED)
