"""Checkpoints, warm starts, teachers and configurations: torn, foreign, edited, or with code inside."""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refused import TINY, TRIED, Evil, contents, refused

import sample
import tasks
import train
from config import Config
from harness import console, warm_start
from harness.checkpoint import MAY_CHANGE, State, build_model
from harness.options import parse_config
from study import probe
from support import errors, files

RULE: list[str] = []  # the verifier of the run that all is tried on: a file is run only where it is named


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one update, and its warm start beside it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "v.py").write_text("def check(c, a, n=[0]):\n    n[0] += 1\n    return n[0] % 2 / 2\n")
    RULE[:] = ["--verifier", f"{folder}/v.py:check"]
    more = [*RULE, "--warm_dir", str(folder / "warm")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main([*TINY, *more, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


def resume_is_refused(capsys, run, *words, kind):
    """... and nothing in the folder is touched."""
    before = contents(run)
    refused(capsys, train.main, ["--resume", "--out", run, "--steps", "2", *RULE], *words, kind=kind)
    assert contents(run) == before


def opd(folder):
    return [*TINY, "--warm_steps", "0", "--method", "opd", "--opd_teacher", folder, "--out", folder.parent / "new"]


# ---- torn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(20))
def test_a_torn_checkpoint_is_refused_everywhere(run, capsys, i):
    for name in ("last.pt", "best.pt"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: i * len(whole) // 20])
    resume_is_refused(capsys, run, "last.pt", kind="torn checkpoints")
    refused(capsys, train.main, opd(run), "--opd_teacher", kind="torn checkpoints")
    refused(capsys, probe.main, [*TINY, "--policy", run], "--policy", kind="torn checkpoints")
    assert not (run.parent / "new").exists()


def test_a_torn_or_foreign_warm_start_is_made_anew_from_the_first_weights_on(finished, tmp_path, capsys):
    """Also where it fits in part, or is not finite: nothing of it may stay in the model."""
    (kept,) = (finished / "warm").glob("*.pt")
    whole, state = kept.read_bytes(), torch.load(kept, weights_only=True)
    right = state["model"]
    config = parse_config([*TINY, "--warm_dir", str(tmp_path)])
    path, source = tmp_path / kept.name, tasks.generated("addition", 2)
    halves = {**{k: torch.ones_like(v) for k, v in right.items()}, "norm.weight": torch.ones(7)}
    nan = {k: torch.full_like(v, math.nan) for k, v in right.items()}
    made = io.BytesIO(), io.BytesIO()
    for weights, file in zip((halves, nan), made):
        torch.save({**state, "model": weights}, file)
    evil = pickle.dumps(Evil(tmp_path / "pwned"))
    for content in (*(whole[: i * len(whole) // 20] for i in range(20)), *(f.getvalue() for f in made), evil):
        path.write_bytes(content)
        model = build_model(config)
        warm_start.warm_start(model, source, config, console.Interrupt())
        assert "made anew" in capsys.readouterr().out and path.read_bytes() != content
        assert all(torch.equal(right[name], x) for name, x in model.state_dict().items())
        TRIED["warm starts"] += 1
    assert not (tmp_path / "pwned").exists()


def test_weights_that_only_another_type_can_hold_are_refused(run, capsys):
    """1e300 is a number in float64, and infinite in the model's float32. sample.py reads best.pt."""
    for name in ("last.pt", "best.pt"):
        state = torch.load(run / name, weights_only=True)
        weights = state.get("model", state)
        weights["norm.weight"] = weights["norm.weight"].double().fill_(1e300)
        torch.save(state, run / name)
    resume_is_refused(capsys, run, "last.pt", "norm.weight are not finite", kind="foreign checkpoints")
    refused(capsys, sample.main, [run, "1+1", *RULE], "norm.weight are not finite", kind="foreign checkpoints")


def test_a_pipe_in_the_place_of_weights_is_refused_at_once(run, capsys):
    for name in ("last.pt", "best.pt"):
        (run / name).unlink()
        os.mkfifo(run / name)
    refused(capsys, train.main, opd(run), "best.pt", "is a pipe", kind="foreign checkpoints")
    argv = ["--resume", "--out", run, "--steps", "2", *RULE]  # of a run that has a last.pt: a pipe is none
    refused(capsys, train.main, argv, "--resume needs", kind="foreign checkpoints")


@pytest.mark.parametrize("line", ['{"step": 1, "no_spread": 1}', '{"step": 1, "length": 40}', '{"step": 1}'])
def test_a_row_without_some_figures_is_no_obstacle(run, line):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n{line}\n")
    assert train.main(["--resume", "--out", str(run), "--steps", "2", *RULE]) == 0


@pytest.mark.parametrize("notes", ["5", '"abc"', "[1]", "{}"])
def test_notes_that_are_none_are_named(run, capsys, notes):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f'{lines[0]}\n{{"step": 1, "notes": {notes}}}\n')
    resume_is_refused(capsys, run, "metrics.jsonl:2: 'notes'", kind="edited logs")


# ---- with code inside ------------------------------------------------------------------------------------------------


def pickles(path):
    """A bare pickle, one as torch writes it, and one hidden beside sound tensors."""
    bare, saved, hidden = io.BytesIO(pickle.dumps(Evil(path))), io.BytesIO(), io.BytesIO()
    torch.save(Evil(path), saved)
    torch.save({"step": 1, "best": 0.0, "model": {"x": torch.ones(2)}, "optimizer": Evil(path)}, hidden)
    return [file.getvalue() for file in (bare, saved, hidden)]


@pytest.mark.parametrize("i", range(3))
def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(run, tmp_path, capsys, i):
    evidence = tmp_path / "pwned"
    content = pickles(evidence)[i]
    if i:  # it is live: whoever reads it without weights_only runs it
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        pickle.loads(content)
    assert evidence.exists()
    evidence.unlink()
    for name in ("last.pt", "best.pt"):
        (run / name).write_bytes(content)
    resume_is_refused(capsys, run, "last.pt is refused", kind="pickles")
    refused(capsys, train.main, opd(run), "best.pt is refused", kind="pickles")
    refused(capsys, probe.main, [*TINY, "--policy", run], "last.pt is refused", kind="pickles")
    assert not evidence.exists()


# ---- foreign ---------------------------------------------------------------------------------------------------------


def moments(state):
    """Of the first weight."""
    return state["optimizer"]["state"][0]


def all_moments(state):
    return state["optimizer"]["state"].values()


def norms(state):
    """The moments of two weights of one shape."""
    each = list(all_moments(state))
    return next((a, b) for i, a in enumerate(each) for b in each[:i] if a["exp_avg"].shape == b["exp_avg"].shape)


CHANGES = {
    "weights of other shapes": lambda s: s["model"].update({"norm.weight": torch.ones(7)}),
    "a weight too few": lambda s: s["model"].pop("norm.weight"),
    "a weight too many": lambda s: s["model"].update({"x": torch.ones(1)}),
    "NaN": lambda s: s["model"]["norm.weight"].fill_(math.nan),
    "infinity": lambda s: s["teacher"]["norm.weight"].fill_(math.inf),
    "a number for a weight": lambda s: s["model"].update({"norm.weight": 1.0}),
    "no model": lambda s: s.pop("model"),
    "no optimizer": lambda s: s.pop("optimizer"),
    "no teacher": lambda s: s.update(teacher=None),
    "no step": lambda s: s.pop("step"),
    "a text for the step": lambda s: s.update(step="x"),
    "a list for the model": lambda s: s.update(model=[1]),
    "None for the best": lambda s: s.update(best=None),
    "an optimizer of fewer weights": lambda s: s["optimizer"]["state"].pop(0),
    "an optimizer that has made no step": lambda s: s["optimizer"].update(state={}),
    "an optimizer of more steps": lambda s: [x["step"].fill_(2.0) for x in all_moments(s)],
    "an optimizer of part of a step": lambda s: [x["step"].fill_(0.5) for x in all_moments(s)],
    "weights of different steps": lambda s: moments(s)["step"].fill_(0.0),
    "one moment for two": lambda s: moments(s).update(exp_avg_sq=moments(s)["exp_avg"]),
    "one moment for two weights": lambda s: norms(s)[0].update(exp_avg=norms(s)[1]["exp_avg"]),
    "moments of another type": lambda s: moments(s).update(exp_avg=moments(s)["exp_avg"].double()),
    "squares below zero": lambda s: moments(s)["exp_avg_sq"].fill_(-1.0),
    "a fractional step": lambda s: s.update(step=1.5),
    "a step that is true": lambda s: s.update(step=True),
    "a best that is infinite": lambda s: s.update(best=math.inf),
    "a best of no number": lambda s: s.update(best=math.nan),
    "a best above every reward": lambda s: s.update(best=7.0),
    "a best that is still to come": lambda s: s.update(best_step=3),
    "half a best": lambda s: s.update(best_step=0.5),
    "a fractional micro-batch": lambda s: s.update(micro_batch=1.5),
    "an optimizer of other shapes": lambda s: moments(s).update(exp_avg=torch.ones(3)),
    "an optimizer without moments": lambda s: moments(s).pop("exp_avg_sq"),
    "an optimizer with NaN": lambda s: moments(s)["exp_avg"].fill_(math.nan),
    "an optimizer of no groups": lambda s: s.update(optimizer={}),
    "another seed": lambda s: s["options"].update(seed=7),
    "another method": lambda s: s["options"].update(method="grpo"),
    "an option of another program": lambda s: s["options"].update(colour=1),
    "options that are none": lambda s: s.update(options=[1]),
    "more steps than are asked for": lambda s: s.update(step=5),
    "steps below zero": lambda s: s.update(step=-5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_foreign_checkpoint_is_refused(run, capsys, name):
    state = torch.load(run / "last.pt", weights_only=True)
    CHANGES[name](state)
    torch.save(state, run / "last.pt")
    resume_is_refused(capsys, run, str(run), kind="foreign checkpoints")


@pytest.mark.parametrize("content", [None, [], 7, "text", {}, {"model": None}, torch.ones(3)])
def test_what_is_no_checkpoint_at_all(run, capsys, content):
    for name in ("last.pt", "best.pt"):
        torch.save(content, run / name)
    resume_is_refused(capsys, run, "last.pt", kind="foreign checkpoints")
    refused(capsys, train.main, opd(run), "--opd_teacher", kind="foreign checkpoints")
    refused(capsys, probe.main, [*TINY, "--policy", run], "--policy", kind="foreign checkpoints")


def test_a_folder_of_another_program(run, capsys):
    for name in ("last.pt", "best.pt"):
        (run / name).unlink()
    refused(capsys, train.main, opd(run), "best.pt", kind="foreign checkpoints")
    refused(capsys, probe.main, [*TINY, "--policy", run], "last.pt", kind="foreign checkpoints")
    (run / "last.pt").mkdir()
    refused(capsys, train.main, ["--resume", "--out", run], "--resume needs", kind="foreign checkpoints")
    refused(capsys, train.main, [*TINY, "--out", run], "already holds a run", kind="foreign checkpoints")


def test_rates_and_signs_are_those_of_the_options(run, tmp_path):
    """Whatever a checkpoint says of them, and whether it says as little as those of before, or more."""
    whole = shutil.copytree(run, tmp_path / "whole")
    state = torch.load(run / "last.pt", weights_only=True)
    state["optimizer"]["param_groups"][0].update(lr=0.5, betas=(0.0, 0.0), maximize=True, weight_decay=0.9)
    state["options"].update(lr=0.5)
    del state["best_step"]
    torch.save(state, run / "last.pt")
    for folder in (whole, run):
        assert train.main(["--resume", "--out", str(folder), "--steps", "3", *RULE]) == 0
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, run))
    for x, y in zip(a["model"].values(), b["model"].values(), strict=True):
        assert torch.equal(x, y)
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    assert b["optimizer"]["param_groups"][0]["lr"] == Config.lr


# ---- configurations --------------------------------------------------------------------------------------------------

TEXTS = (b"", b"{", b"[]", b"null", b"7", b'"x"', b"{}", b"\xff", b"[" * 100_000, b"\x00")
VALUES = (None, True, -7, 3, 1.5, math.nan, math.inf, 10**30, "", "x", "\ud800", [], {}, ["rlsd"], "../../x")


@pytest.mark.parametrize("content", [*TEXTS, b'{"fingerprint": "x", "colour": 1}'])
def test_a_config_that_is_none(run, capsys, content):
    (run / "config.json").write_bytes(content)
    resume_is_refused(capsys, run, "config.json is no configuration", kind="config.json")
    refused(capsys, train.main, opd(run), "--opd_teacher", kind="config.json")


@pytest.mark.parametrize("name", [*Config.__dataclass_fields__, "fingerprint"])
def test_an_edited_config_is_refused_or_means_the_same(run, tmp_path, monkeypatch, capsys, name):
    """A run never goes on with another value, nor without one, than it was begun with."""
    monkeypatch.chdir(tmp_path)
    whole = json.loads((run / "config.json").read_text())
    for value in VALUES:
        if value == whole[name] and type(value) is type(whole[name]):
            continue
        if name in MAY_CHANGE and type(value) in (type(whole[name]), int):
            continue  # a number for a number, if it is in range
        (run / "config.json").write_text(json.dumps({**whole, name: value}))
        resume_is_refused(capsys, run, kind="config.json")
        if name in ("hidden_size", "num_layers", "max_seq_len", "init"):  # nor is a teacher made of such a size
            refused(capsys, train.main, opd(run), kind="config.json")
    (run / "config.json").write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
    if name == "fingerprint" or getattr(Config, name) != whole[name] and name not in MAY_CHANGE:
        resume_is_refused(capsys, run, kind="config.json")


# ---- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"x", b"", b"[]", b"7", b"null", b'{"reward": 1}', b'{"step": "x"}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_line_inside_a_log_is_named_and_nothing_is_dropped(run, capsys, line):
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    resume_is_refused(capsys, run, "metrics.jsonl:2", kind="logs")


KINDS = {
    "a byte order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "UTF-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    "text": lambda path: path.write_text("hello"),
    "a line of text": lambda path: path.write_text("hello\n"),
    "no step": lambda path: path.write_text('{"reward": 1.0}\n'),
    "a step that is none": lambda path: path.write_text('{"step": 0.5}\n'),
    "steps out of order": lambda path: path.write_text('{"step": 1}\n{"step": 0}\n'),
    "an array": lambda path: path.write_text("[]\n"),
    "an empty line": lambda path: path.write_text("\n" + path.read_text()),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: path.rename(path.with_name("real")) and path.symlink_to("real"),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("log", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("name", KINDS)
def test_a_log_of_another_kind_is_named_and_nothing_is_touched(run, capsys, name, log):
    KINDS[name](run / log)
    others = {path.name: os.lstat(path).st_ino for path in run.iterdir()}
    resume_is_refused(capsys, run, log, kind="logs")
    assert others == {path.name: os.lstat(path).st_ino for path in run.iterdir()}


@pytest.mark.parametrize("value", ["true_", [1], {"a": 1}, 10**400, 1e999])
def test_a_figure_that_is_none_is_named_and_what_is_not_finite_is_left_out(run, capsys, value):
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "entropy": math.nan}) + "\n" for row in rows))  # as older runs wrote it
    assert all("entropy" not in row and row["step"] == i for i, row in enumerate(files.metrics_of(run)))
    text = path.read_text()
    path.write_text(text.replace("NaN", json.dumps(value).replace("Infinity", "1e999")))
    resume_is_refused(capsys, run, "metrics.jsonl:1", "entropy", kind="logs")


def test_every_line_of_a_run_is_json_for_every_reader(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = {"step": 1, "loss": math.nan, "notes": ["NaN"], "credit": [math.inf, 0.1, [-math.inf]], "text": "Infinity"}
    files.append(path, row)
    read = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert read == {"step": 1, "loss": None, "notes": ["NaN"], "credit": [None, 0.1, [None]], "text": "Infinity"}
    for put in (lambda p: p.symlink_to(tmp_path / "elsewhere"), os.mkfifo):
        other = tmp_path / put.__name__
        put(other)
        with pytest.raises(errors.UserError, match="cannot be written"):
            files.append(other, row)
    assert not (tmp_path / "elsewhere").exists()


def test_lost_logs_end_no_run(run, tmp_path):
    (run / "metrics.jsonl").unlink()
    assert train.main(["--resume", "--out", str(run), "--steps", "2", *RULE]) == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] == [2]


@given(st.data())
def test_any_value_anywhere_in_a_checkpoint_is_refused_or_harmless(finished, tmp_path_factory, data):
    """One entry at a time replaced by another value: load says UserError, or the run's state is whole."""
    state = torch.load(finished / "run" / "last.pt", weights_only=True)
    at, key = state, None
    while isinstance(at, dict) and at and data.draw(st.booleans() if key is not None else st.just(True)):
        inside, key = at, data.draw(st.sampled_from(list(at)))
        at = at[key]
    inside[key] = copy.copy(data.draw(st.sampled_from([None, -1, 7.5, "x", [], {}, torch.ones(3), torch.ones(())])))
    path = tmp_path_factory.getbasetemp() / "any.pt"
    torch.save(state, path)
    config = parse_config([*TINY, "--verifier", f"{finished}/v.py:check"])
    mine = State(config)
    TRIED["foreign checkpoints, fuzzed"] += 1
    try:
        mine.load(path, config)
    except errors.UserError as error:
        assert "\n" not in str(error) and "no checkpoint of this run" in str(error)
        return
    for p in mine.policy.parameters():
        p.grad = torch.ones_like(p)
    mine.optimizer.step()
    assert type(mine.step) is int and type(mine.best) is float
