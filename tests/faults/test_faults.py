"""Killed at any moment, on a disk that fails, by a signal, or with a second run in the folder: nothing is lost."""

import contextlib
import dataclasses
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lives import ERRORS, RECIPES, SMALL, Disk, Phase, rows
from small_runs import ROOT, TINY, again, load, refused, same
from small_runs import options as options_of

import config
import train
from harness import run
from harness.checkpoint import State
from support import errors, files

pytestmark = pytest.mark.usefixtures("own_signals", "no_picture")
LIVES = Path(__file__).with_name("lives.py")
options = lambda folder, *more: options_of(folder, "out", SMALL, RECIPES["rlsd"], *more)


@pytest.mark.slow
def test_a_run_of_many_lives_is_the_run_that_was_never_killed(tmp_path):
    """The short form of `make faults`."""
    kept = tmp_path / "figures.json"
    command = [sys.executable, LIVES, "--kills", "6", "--recipes", "rlsd", "--kept", kept]
    done = subprocess.run(command, capture_output=True, text=True)
    figures = json.loads(kept.read_text())
    assert figures["mismatches"] == [] and done.returncode == 0
    assert figures["kills"] == 6 and figures["finished runs"] >= 1 and figures["resumes"] >= 1


def test_the_committed_figures_are_those_of_a_long_form_without_a_mismatch():
    figures = json.loads((ROOT / "results" / "faults.json").read_text())
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
    return path, lambda: files.save(OLD, path)


def test_a_checkpoint_killed_at_any_stage_is_the_old_or_the_new_one(tmp_path, checkpoint):
    (path, put_old), found = checkpoint, []
    for at in range(1, 100):
        put_old()
        _, status = in_a_fork(tmp_path, "kill", at, lambda: files.save(NEW, path))
        state = load(path)
        assert same(state, OLD) or same(state, NEW)
        found.append(state["step"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        files.open_folder(path.parent, {}, resume=True)
        assert {p.name for p in path.parent.iterdir()} == {"last.pt", "config.json"}  # what was half-written is gone
    assert status == 0 and found == sorted(found) and found.count(1) > 10 and found.count(2) == 2


@pytest.mark.parametrize("fault", ERRORS)
def test_a_failing_disk_is_named_and_leaves_the_old_checkpoint(tmp_path, checkpoint, fault):
    path, put_old = checkpoint
    for at in range(1, 100, 3):
        put_old()
        pid, status = in_a_fork(tmp_path, fault, at, lambda: files.save(NEW, path))
        whole = load(path)
        if status == 0:
            break
        said = (tmp_path / "said.txt").read_text()
        assert status == 2 and str(path) in said and os.strerror(ERRORS[fault]) in said and "\n" not in said
        assert same(whole, OLD) and not list(path.parent.glob(f"*.{pid}.tmp"))
    assert status == 0 and same(whole, NEW) and at > 31


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_line_that_did_not_fit_on_the_disk_is_dropped_when_resuming(tmp_path, at):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    files.append(path, {"step": 1})
    _, status = in_a_fork(tmp_path, "full disk", at, lambda: files.append(path, {"step": 2, "reward": 0.5}))
    said = (tmp_path / "said.txt").read_text()
    assert status == 2 and f"{path} cannot be written: {os.strerror(errno.ENOSPC)}" in said
    files.truncate(path.parent, 2)
    assert path.read_text() == '{"step": 1}\n'


# ---- two runs, one folder --------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    with files.locked(out):
        refused(capsys, options(tmp_path), f"--out {out}: another run is writing there")
        assert not list(out.iterdir())
    assert train.main(options(tmp_path, "--steps 1")) == 0
    before = tree(out)
    with files.locked(out):
        refused(capsys, again(out, "--steps 2"), "another run is writing there")
    refused(capsys, options(tmp_path), "already holds a run")
    refused(capsys, again(out, "--seed 5"), "contradicts")
    assert before == tree(out)


def test_the_lock_of_a_killed_run_dies_with_it(tmp_path):
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with files.locked(tmp_path / "out"):
            os.write(send, b"locked")
            signal.pause()
    assert os.read(receive, 6) == b"locked"
    with pytest.raises(errors.UserError, match="another run"), files.locked(tmp_path / "out"):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with files.locked(tmp_path / "out"):
        pass


def test_a_child_of_a_run_holds_no_lock(tmp_path):
    """Even one that keeps every descriptor that may be kept, such as what a verifier's process starts."""
    with files.locked(tmp_path / "out"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)  # ends with its input
    with child, files.locked(tmp_path / "out"):
        pass


# ---- whose folder it is ----------------------------------------------------------------------------------------------


def tree(folder):
    """Everything below, links as links."""
    kept = lambda path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
    return {str(path.relative_to(folder)): kept(path) for path in folder.rglob("*")}


CONFIG = json.dumps({**dataclasses.asdict(config.Config()), "fingerprint": "x"})
NOT_OURS = {
    "a note": {"notes.txt": "x"},
    "a run without its last checkpoint": {"config.json": CONFIG, "best.pt": "x", "metrics.jsonl": '{"step": 0}\n'},
    "figures of updates": {"config.json": CONFIG, "metrics.jsonl": '{"step": 0}\n{"step": 1}\n'},
    "figures of other kinds": {"config.json": CONFIG, "metrics.jsonl": '{"loss": 0}\n'},
    "figures alone": {"metrics.jsonl": '{"step": 0}\n'},
    "an unfinished run and a note": {"config.json": CONFIG, "notes.txt": "x"},
    "an unfinished run and a folder": {"config.json": CONFIG, "model/config.json": "{}"},
    "samples": {"config.json": CONFIG, "samples.jsonl": ""},
    "a published model": {"config.json": '{"model_type": "qwen3"}', "model.safetensors": "x"},
    "the config.json of another program": {"config.json": "{}"},
    "a config.json that is none": {"config.json": "{"},
    "a config.json with more in it": {"config.json": CONFIG.replace("{", '{"colour": 1, ', 1)},
    "half a file of another program": {"thesis.tex.123.tmp": "x"},
    "a folder as metrics.jsonl": {"config.json": CONFIG, "metrics.jsonl/x": ""},
    "a link as config.json": {"config.json": Path("elsewhere")},
    "a link as half a file": {"config.json": CONFIG, "last.pt.123.tmp": Path("elsewhere")},
    "a link as the last checkpoint": {"last.pt": Path("elsewhere")},
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_an_unfinished_run_of_ours_is_refused_and_left(tmp_path, capsys, name):
    out = tmp_path / "out"
    for file, content in NOT_OURS[name].items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).symlink_to(content) if isinstance(content, Path) else (out / file).write_text(content)
    before = tree(out)
    refused(capsys, options(tmp_path), f"--out {out} ")
    assert before == tree(out)


def test_a_run_without_a_checkpoint_is_taken_again_by_any_command_that_names_it(tmp_path):
    """Whatever the moment of the kill: half-written files go, whole ones are begun anew."""
    out = tmp_path / "out"
    for left in ([], ["config.json"], ["config.json", "metrics.jsonl", "verifier_error.txt", "verifier_error-1.txt"]):
        for half in ([], ["config.json.7.tmp"], ["config.json.7.tmp", "last.pt.7.tmp", "metrics.jsonl.99.tmp"]):
            out.mkdir(exist_ok=True)
            for name in [*left, *half]:
                (out / name).write_text({"config.json": CONFIG, "metrics.jsonl": '{"step": 0}\n'}.get(name, "x"))
            with contextlib.ExitStack() as stack:
                told = {**json.loads(CONFIG), "out": str(out), "lr": 0.5}
                assert files.claim(stack, told, "x") == str(out)
                files.open_folder(out, told, resume=False)
            assert [path.name for path in out.iterdir()] == ["config.json"]
            assert json.loads((out / "config.json").read_text())["lr"] == 0.5


def test_a_run_without_out_takes_the_first_folder_that_is_free_or_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told, names = json.loads(CONFIG), []

    def claim(told):
        with contextlib.ExitStack() as stack:
            names.append(files.claim(stack, told, "n"))
            files.open_folder(Path(names[-1]), {**told, "out": names[-1]}, resume=False)

    claim(told)
    claim(told)  # stopped before its first checkpoint: again
    claim({**told, "lr": 0.5})  # another command's stays
    (tmp_path / "runs/n/last.pt").write_text("x")
    claim(told)
    Path("runs/n.4").write_text("a file")
    Path("runs/n.5").symlink_to("nowhere")
    with files.locked(Path("runs/n.3")):
        claim(told)
    assert names == ["runs/n", "runs/n", "runs/n.2", "runs/n.3", "runs/n.6"]
    monkeypatch.setitem(sys.modules, "fcntl", None)  # where there is no lock its own is taken again, too
    claim(told)
    assert names[-1] == "runs/n.3"


def test_a_folder_is_made_with_those_around_it_and_said_where_it_cannot_be_locked(tmp_path, monkeypatch, capsys):
    """As on some network file systems."""
    out = str(tmp_path / "of" / "mine" / "run")
    monkeypatch.setattr("fcntl.flock", lambda *_: exec("raise OSError(37, 'No locks available')"))
    with contextlib.ExitStack() as stack:
        assert files.claim(stack, {"out": out, "method": "rlsd", "fingerprint": ""}, "n") == out and Path(out).is_dir()
    assert capsys.readouterr().out.startswith(f"warning: {out} cannot be locked (No locks available): start no second")


@pytest.mark.parametrize("what", ["a file", "a link to nowhere"])
def test_runs_that_can_be_no_folder_is_an_error_and_no_search_without_end(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("") if what == "a file" else Path("runs").symlink_to("nowhere")
    with contextlib.ExitStack() as stack, pytest.raises(OSError, match="runs"):
        files.claim(stack, json.loads(CONFIG), "n")


def test_runs_that_start_at_once_each_get_a_folder(tmp_path):
    code = (
        "import sys, contextlib, json; from support import files; from pathlib import Path\n"
        "with contextlib.ExitStack() as stack:\n"
        "    told = json.loads(sys.argv[1]); input()\n"
        "    out = files.claim(stack, told, 'n'); files.open_folder(Path(out), {**told, 'out': out}, False)\n"
        "    print(out, flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen([sys.executable, "-c", code, CONFIG], env=env, **pipes) for _ in range(4)]
    for one in runs:
        one.stdin.write("\n")
        one.stdin.flush()
    assert sorted(one.stdout.readline().strip() for one in runs) == ["runs/n", "runs/n.2", "runs/n.3", "runs/n.4"]
    for one in runs:
        one.communicate("\n")


@pytest.mark.parametrize("how", [".", "./x/..", "link", "link/below", "below", "new/below"])
def test_nothing_is_written_into_what_is_read(tmp_path, capsys, how):
    """By whatever name: the folder itself, one in it, or a link to either."""
    model = tmp_path / "model"
    for folder in ("below", "x"):
        (model / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    path = tmp_path / how if "link" in how else model / how
    given = options(tmp_path, "--out", path, "--warm_dir", path)
    ours = lambda: {name: x for name, x in tree(tmp_path).items() if "__pycache__" not in name}  # Python's
    before = ours()
    for written in ("out", "warm_dir"):
        for read in {"init", "opd_teacher", "out"} - {written}:
            with pytest.raises(errors.UserError, match=f"--{written} .* lies in --{read} "):
                files.check_apart({written: str(path)}, {read: str(model), written: str(path)})
    files.check_apart({"out": str(path), "warm_dir": ""}, {"init": "", "opd_teacher": str(tmp_path / "other")})
    refused(capsys, given, "--warm_dir")
    assert before == ours()


def test_the_folder_that_a_run_chooses_is_no_place_for_its_warm_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, [*TINY, "--warm_dir", "runs/addition-rlsd-0"], "--warm_dir")
    assert not list(Path("runs/addition-rlsd-0").iterdir())


def test_a_signal_between_two_lines_ends_the_run_after_the_next_update_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    """It was read twice: in between, a run ended without the checkpoint it spoke of, or one process of two went on."""
    keep = State.keep

    def interrupted(self, *rest, **due):
        keep(self, *rest, **due)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(State, "keep", interrupted)
    assert train.main(options(tmp_path, "--save_every 9 --eval_every 9")) == 128 + signal.SIGTERM
    assert "after step 3" in capsys.readouterr().out and load(tmp_path / "out" / "last.pt")["step"] == 3


def test_no_file_is_written_through_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    for name in ("x", f"x.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(elsewhere)
    files.replace(tmp_path / "x", lambda path: path.write_text("ours"))
    assert elsewhere.read_text() == "mine" and (tmp_path / "x").read_text() == "ours"
    assert not (tmp_path / "x").is_symlink() and len(list(tmp_path.iterdir())) == 2


# ---- checkpoints and what follows from them --------------------------------------------------------------------------


def test_best_is_of_the_run_that_last_tells_of(tmp_path, monkeypatch, capsys):
    """Killed between the two files, and killed before the next checkpoint: best.pt is that of the updates made."""
    scores, save, out = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), files.save, tmp_path / "out"
    monkeypatch.setattr("harness.run.evaluate", lambda *a: {"pass@1": next(scores), "greedy": 0.0, "leakage": 0.0})

    def killed(state, path):
        save(state, path)
        if path.name == "last.pt" and state["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("harness.checkpoint.save", killed)
        assert train.main(options(tmp_path, "--eval_every 1 --save_every 3 --steps 6")) == 130
    last = load(out / "last.pt")
    assert (last["step"], last["best_step"]) == (5, 5) and not same(last["model"], load(out / "best.pt"))
    assert train.main(again(out, "--steps 5")) == 0
    assert same(last["model"], load(out / "best.pt"))
    assert "best.pt: the policy after update 5, held-out score 0.6" in capsys.readouterr().out
    (out / "best.pt").unlink()
    assert train.main(again(out, "--steps 5")) == 0 and (out / "best.pt").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, capsys):
    update, out = train.update, tmp_path / "out"

    def spoils(model, *rest):
        metrics = update(model, *rest)
        if len(rows(out / "metrics.jsonl")) == 5:
            with torch.no_grad():
                model.norm.weight[0] = torch.nan
        return metrics

    monkeypatch.setattr(train, "update", spoils)
    monkeypatch.setattr("harness.run.evaluate", lambda *a: {"pass@1": 0.5, "greedy": 0.0, "leakage": 0.0})
    refused(capsys, options(tmp_path, "--eval_every 9"), "last.pt stays as it was before update 6", "norm.weight")
    assert load(out / "last.pt")["step"] == 3


def test_another_learning_rate_from_here_on_is_noted_once(tmp_path, capsys):
    assert train.main(options(tmp_path, "--steps 2")) == 0
    out, note = tmp_path / "out", "--lr 0.02 after update 2, 0.01 before"
    for steps in (3, 4):
        assert train.main(again(out, f"--steps {steps} --lr 0.02")) == 0
    assert capsys.readouterr().out.count(f"note: {note}\n") == 1
    assert [row.get("notes") for row in rows(out / "metrics.jsonl")] == [None, None, [note], None, None]
    assert load(out / "last.pt")["optimizer"]["param_groups"][0]["lr"] == 0.02


def test_the_line_that_goes_on_can_be_pasted(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a b's $x"
    folder.mkdir()
    update = train.update
    monkeypatch.setattr(train, "update", lambda *a: os.kill(os.getpid(), signal.SIGINT) or update(*a))
    assert train.main(options(folder, "--steps 2")) == 130
    said = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(said.partition("; ")[2].removesuffix(" goes on"))
    assert command[:2] == ["python", "train.py"] and command[2:] == again(folder / "out")
    monkeypatch.setattr(train, "update", update)
    assert train.main(command[2:]) == 0


# ---- Ctrl-C and SIGTERM ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train.main(options(folder)) == 0
    return folder / "out"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "phase, call, step",
    [((run, "evaluate"), 1, 0), ((train, "rollout"), 2, 2), ((train, "update"), 1, 1), ((run, "evaluate"), 2, 4)],
)
def test_a_signal_in_any_phase_ends_with_a_checkpoint(tmp_path, monkeypatch, capsys, whole, number, phase, call, step):
    calls, function, out = [], getattr(*phase), tmp_path / "out"

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args)

    monkeypatch.setattr(*phase, interrupted)
    assert train.main(options(tmp_path)) == 128 + number
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith(f"interrupted after step {step}; ") and not printed.err
    assert load(out / "last.pt")["step"] == step == rows(out / "metrics.jsonl")[-1]["step"]
    assert train.main(again(out)) == 0
    assert rows(out / "metrics.jsonl") == rows(whole / "metrics.jsonl")
    assert same(*({**load(folder / "last.pt"), "options": {}} for folder in (out, whole)))  # paths differ


def test_a_run_that_ended_before_its_first_checkpoint_says_how_to_begin_again(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
        m.setattr(run, "warm_start", lambda *args: 1 / 0)
        train.main(options(tmp_path))
    refused(capsys, ["--resume", "--out", tmp_path / "out"], "the same command without --resume")
    assert train.main(options(tmp_path, "--steps 1")) == 0
