"""Killed at any moment, on a disk that fails, by a signal, or with a second run in the folder: nothing is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lives import ERRORS, RECIPES, RULE, SMALL, Disk, Phase, rows, same

import errors
import run_files
import train

pytestmark = pytest.mark.usefixtures("own_signals")
LIVES = Path(__file__).with_name("lives.py")


def options(folder, name="out"):
    (folder / "rules.py").write_text(RULE)
    paths = ["--out", str(folder / name), "--warm_dir", str(folder / "warm"), "--verifier", f"{folder}/rules.py:check"]
    return [*SMALL.split(), *RECIPES["rlsd"].split(), *paths]


def test_a_run_of_many_lives_is_the_run_that_was_never_killed(tmp_path):
    """The short form of `make faults`."""
    command = [
        sys.executable,
        str(LIVES),
        "--kills",
        "6",
        "--recipes",
        "rlsd",
        "--kept",
        str(tmp_path / "figures.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["mismatches"] == [] and done.returncode == 0
    assert figures["kills"] == 6 and figures["finished runs"] >= 1 and figures["resumes"] >= 1


def test_the_committed_figures_are_those_of_a_long_form_without_a_mismatch():
    figures = json.loads((LIVES.parents[2] / "results" / "faults.json").read_text())
    assert figures["kills"] == 200 and figures["mismatches"] == [] and figures["finished runs"] >= 20
    assert sum(n for phase, n in figures["killed while"].items() if phase.startswith("writing")) >= 50


# ---- one write, stopped at each of its stages ------------------------------------------------------------------------


def in_a_fork(folder, fault, at, work):
    """Do `work` on a disk that fails at its step `at` -> exit status, 2 for a UserError, whose text is in said.txt."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            Disk(folder / "run", Phase(), fault, at).install()
            work()
            code = 0
        except errors.UserError as error:
            os.write(os.open(folder / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), str(error).encode())
            code = 2
        finally:
            os._exit(code)
    return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


OLD, NEW = ({"step": step, "x": torch.full((1000,), float(step))} for step in (1, 2))


@pytest.fixture
def checkpoint(tmp_path):
    """The path of a checkpoint, and a function that puts the old one there."""
    path = tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    run_files.save(OLD, path)
    old = path.read_bytes()
    return path, lambda: path.write_bytes(old)


def test_a_checkpoint_killed_at_any_stage_is_the_old_or_the_new_one(tmp_path, checkpoint):
    (path, put_old), found = checkpoint, []
    for at in range(1, 100):
        put_old()
        _, status = in_a_fork(tmp_path, "kill", at, lambda: run_files.save(NEW, path))
        state = torch.load(path, weights_only=True)
        assert same(state, OLD) or same(state, NEW)
        found.append(state["step"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        run_files.open_folder(path.parent, {}, resume=True)
        assert {p.name for p in path.parent.iterdir()} == {"last.pt", "config.json"}  # what was half-written is gone
    assert status == 0 and found == sorted(found) and found.count(1) > 10 and found.count(2) == 2


@pytest.mark.parametrize("fault", ERRORS)
def test_a_failing_disk_is_named_and_leaves_the_old_checkpoint(tmp_path, checkpoint, fault):
    (path, put_old), failed = checkpoint, 0
    for at in range(1, 100, 3):
        put_old()
        pid, status = in_a_fork(tmp_path, fault, at, lambda: run_files.save(NEW, path))
        whole = torch.load(path, weights_only=True)
        if status == 0:
            break
        said = (tmp_path / "said.txt").read_text()
        assert status == 2 and str(path) in said and os.strerror(ERRORS[fault]) in said and "\n" not in said
        assert same(whole, OLD)
        assert not list(path.parent.glob(f"*.{pid}.tmp"))
        failed += 1
    assert status == 0 and same(whole, NEW) and failed > 10


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_line_that_did_not_fit_on_the_disk_is_dropped_when_resuming(tmp_path, at):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    run_files.append(path, {"step": 1})
    _, status = in_a_fork(tmp_path, "full disk", at, lambda: run_files.append(path, {"step": 2, "reward": 0.5}))
    assert (
        status == 2 and f"{path} cannot be written: {os.strerror(errno.ENOSPC)}" in (tmp_path / "said.txt").read_text()
    )
    run_files.truncate(path.parent, 2)
    assert path.read_text() == '{"step": 1}\n'


# ---- two runs, one folder --------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused(tmp_path, capsys):
    with run_files.locked(tmp_path / "out"):
        assert train.main(options(tmp_path)) == 2
        err = capsys.readouterr().err
        assert f"--out {tmp_path / 'out'}: another run is writing there" in err and err.count("\n") == 1
        assert not list((tmp_path / "out").iterdir())
    assert train.main([*options(tmp_path), "--steps", "1"]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with run_files.locked(tmp_path / "out"):
        assert train.main(["--resume", "--out", str(tmp_path / "out"), "--steps", "2"]) == 2
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_the_lock_of_a_killed_run_dies_with_it(tmp_path):
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with run_files.locked(tmp_path / "out"):
            os.write(send, b"locked")
            signal.pause()
    assert os.read(receive, 6) == b"locked"
    with pytest.raises(errors.UserError, match="another run"), run_files.locked(tmp_path / "out"):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with run_files.locked(tmp_path / "out"):
        pass


# ---- Ctrl-C and SIGTERM ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train.main(options(folder)) == 0
    return folder / "out"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "name, call, step", [("evaluate", 1, 0), ("rollout", 2, 2), ("update", 1, 1), ("evaluate", 2, 4)]
)
def test_a_signal_in_any_phase_ends_with_a_checkpoint(tmp_path, monkeypatch, capsys, whole, number, name, call, step):
    calls, function = [], getattr(train, name)

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args)

    monkeypatch.setattr(train, name, interrupted)
    assert train.main(options(tmp_path)) == 128 + number
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith(f"interrupted after step {step}; ") and not printed.err
    out = tmp_path / "out"
    assert torch.load(out / "last.pt", weights_only=True)["step"] == step == rows(out / "metrics.jsonl")[-1]["step"]
    assert train.main(["--resume", "--out", str(out)]) == 0
    assert rows(out / "metrics.jsonl") == rows(whole / "metrics.jsonl")
    assert same(*(torch.load(folder / "last.pt", weights_only=True) for folder in (out, whole)))


def test_a_run_that_ended_before_its_first_checkpoint_says_how_to_begin_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "warm_start", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(options(tmp_path))
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path / "out")]) == 2
    assert "the same command without --resume" in capsys.readouterr().err
    assert train.main([*options(tmp_path), "--steps", "1"]) == 0
