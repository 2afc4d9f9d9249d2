"""The curves of runs: what is drawn is what metrics.jsonl says, run by run or seed by seed."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import plot
from harness import curves


def make_run(folder, factor=1.0, **config):
    """A log of 40 updates with lambda above 0 in the first 20, evaluated every 10."""
    folder.mkdir(parents=True)
    rows = [{"step": 0, "pass@1": 0.1 * factor}]
    for step in range(1, 41):
        row = {"step": step, "reward": step / 40 * factor, "no_spread": 0.5, "entropy": 0.3, "length": 30.0}
        row |= {"lambda": float(step <= 20), "clipped_low": 0.01, "clipped_high": 0.02}
        rows.append(row | ({"pass@1": step / 50 * factor} if step % 10 == 0 else {}))
    if config:
        (folder / "config.json").write_text(json.dumps({"out": str(folder), **config}))
    return logged(folder, rows)


def logged(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The panels, by name, and the legend of the figure that curves() makes of runs; it is not saved."""
    made, names = [], {title: name for name, title, _ in curves.PANELS}
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: (made.append(self), path.touch()))

    def of(runs):
        curves.curves(runs, tmp_path / "curves.png")
        return {names[axis.get_title()]: axis for axis in made[-1].axes} | {"legend": made[-1].legends[0]}

    return of


def labels(axes):
    assert not any(text.get_parse_math() for text in axes["legend"].get_texts())  # a $ is a dollar
    return [text.get_text().replace("\n", " ") for text in axes["legend"].get_texts()]


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata()))


def test_one_run_is_drawn_as_logged(tmp_path, drawn):
    axes = drawn([make_run(tmp_path / "one")])
    assert points(axes["pass@1"].lines[0]) == [(0, 0.1), (10, 0.2), (20, 0.4), (30, 0.6), (40, 0.8)]
    mean, raw = axes["reward"].lines
    assert points(raw) == [(step, step / 40) for step in range(1, 41)]
    assert mean.get_ydata()[19] == pytest.approx(20 / 40) and mean.get_ydata()[0] == pytest.approx(3.5 / 40)
    assert points(axes["clipped"].lines[1]) == [(step, 0.03) for step in range(1, 21)]  # none where lambda is 0
    assert labels(axes) == ["one"]
    for name, _, unit in curves.PANELS:
        axis = axes[name]
        assert axis.get_xlabel() == "update" and axis.get_ylabel() == unit and axis.get_ylim()[0] == 0
        highest = 1.0 if name in curves.SHARES else max(y for line in axis.lines for _, y in points(line))
        assert highest <= axis.get_ylim()[1] <= 1.15 * highest  # a share is seen against all there could be
        assert -2 <= axis.get_xlim()[0] <= 0 and 40 <= axis.get_xlim()[1] <= 42  # alike, wherever its lines end


def test_runs_are_told_apart_without_colour(tmp_path, drawn):
    lines = drawn([make_run(tmp_path / f"run-{i}", 1 - i / 10) for i in range(4)])["pass@1"].lines
    assert len({line.get_linestyle() for line in lines}) == len({line.get_marker() for line in lines}) == 4
    assert len({line.get_color() for line in lines}) == 4


def test_seeds_of_one_setting_are_a_mean_in_a_band(tmp_path, drawn):
    seeds = [make_run(tmp_path / f"a-{seed}", factor, lr=0.1, seed=seed) for seed, factor in enumerate((1.0, 0.5))]
    other = make_run(tmp_path / "b-0", 0.25, lr=0.2, seed=0)
    assert list(curves.lines([*seeds, other])) == ["a-0, a-1: lr 0.1, seeds 0, 1", "b-0: lr 0.2"]
    axis = drawn([*seeds, other])["pass@1"]
    assert dict(points(axis.lines[0])) == pytest.approx({0: 0.075, 10: 0.15, 20: 0.3, 30: 0.45, 40: 0.6})
    (band,) = axis.collections
    edge = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
    assert {(40.0, 0.4), (40.0, 0.8), (0.0, 0.05), (0.0, 0.1)} <= edge


def test_runs_of_one_name_and_without_options_stay_apart(tmp_path):
    runs = [make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run")]
    assert curves.lines([*runs, runs[0]]) == {"x/run": [runs[0]], "y/run": [runs[1]]}


def test_what_was_not_recorded_is_said(tmp_path, drawn):
    run = make_run(tmp_path / "grpo")
    axis = drawn([logged(run, [row | {"lambda": 0.0} for row in curves.metrics_of(run)])])["clipped"]
    assert not axis.lines and [text.get_text() for text in axis.texts] == ["none recorded"]


@pytest.mark.parametrize("kind, begins", {"PNG": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items())
def test_the_picture_is_where_it_was_asked_for(tmp_path, capsys, kind, begins):
    out = tmp_path / rf"$x^$ _{{é}} 日本.{kind}"
    assert plot.main([str(make_run(tmp_path / "run")), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and out.read_bytes().startswith(begins)


def test_errors_are_one_line(tmp_path, capsys):
    first, run = '{"step": 0, "pass@1": 0.1}\n', make_run(tmp_path / "run")
    bad = {  # bytes of a second line, and what is said of it
        **dict.fromkeys((b"x", b"{half", b"[1]", b"[" * 100_000, b'{"step": 1, "\xff": 1}'), "no line of a run"),
        **dict.fromkeys((b'{"reward": 1}', b'{"step": null}'), "no line of a run"),
        **{b'{"step": 1, "reward": %b}' % of: "'reward' is no number" for of in (b"[1]", b'"high"', b'{"a": 1}')},
        b'{"step": 1, "reward": 1' + b"0" * 400 + b"}": "",
    }
    cases = [([tmp_path], "holds no metrics.jsonl"), ([tmp_path / "none"], "holds no metrics.jsonl")]
    cases += [([run, "--out", "/nowhere/c.png"], "/nowhere/c.png cannot be written: No such file")]
    for n, (line, says) in enumerate(bad.items()):
        torn = make_run(tmp_path / f"torn-{n}")
        (torn / "metrics.jsonl").write_bytes(first.encode() + line + b'\n{"step": 1, "reward": 0.5}\n')
        cases.append(([torn], f"metrics.jsonl:2: {says}"))
    for n, encoding in enumerate(("utf-8-sig", "utf-16")):
        foreign = make_run(tmp_path / f"foreign-{n}")
        (foreign / "metrics.jsonl").write_text(first + first, encoding=encoding)
        cases.append(([foreign], "metrics.jsonl:1: "))
    for name, config in {"unread": "{", "listed": "[1]"}.items():
        (make_run(tmp_path / name) / "config.json").write_text(config)
        cases.append(([tmp_path / name], "config.json is no configuration"))
    cases += [([], "the following arguments are required: RUN (")]
    cases += [([run, "--out", out], "name of a .png") for out in ("c.txt", "x.doc")]
    cases += [([run, "--out", tmp_path], "--out")]
    cases += [([run, "--title", "x"], "unrecognized arguments: --title x (python plot.py --help lists the options)")]
    for argv, says in cases:
        assert plot.main([str(arg) for arg in argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("plot.py: ") and err.count("\n") == 1 and says in err, err


NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(max_examples=20)  # each draws a figure
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), alike=st.integers(0, 2))
def test_every_run_has_a_label_that_shows(tmp_path_factory, names, alike):
    """Whatever the folders are called, and whichever are alike: a text a line, all different, none of it mathtext."""
    home = tmp_path_factory.mktemp("named")
    options = [{"lr": 0.1, "seed": 0}, {"lr": 0.1 * (alike + 1), "seed": alike}]
    runs = []
    for i, name in enumerate(names):
        with contextlib.suppress(OSError):  # a file system that knows no such name, or takes it for another
            runs.append(make_run(home / name, **options[i % 2]))
    shown = [text.get_text() for text in curves.figure_of(runs).legends[0].get_texts()]
    assert len(set(shown)) == len(shown) == len(curves.lines(runs))
    assert sum(map(len, curves.lines(runs).values())) == len(runs)
    assert all(c == "\n" or c.isprintable() for c in "".join(shown))
    for label, group in curves.lines(runs).items():
        assert all(run.name in label for run in group)


def test_labels_say_in_what_the_lines_differ(tmp_path, drawn):
    at = lambda name, **options: make_run(tmp_path / name, task="addition", **options)
    runs = [at("r1", method="rlsd", lr=0.1, seed=0), at("r2", method="rlsd", lr=0.1, seed=1)]
    runs += [at("_base", method="grpo", lr=0.1, seed=0), at("again", method="rlsd", lr=0.1, seed=0)]
    runs += [at("lr$1_a_b$", method="rlsd", lr=0.2, seed=3), at("x\x1b[2J\u202e\u4e2d", method="sdpo", lr=0.1, seed=0)]
    bare = logged(make_run(tmp_path / "bare"), [{"step": 1, "reward": 0.5}])  # neither options nor evaluations
    assert labels(drawn([*runs, bare])) == [
        "r1, r2: lr 0.1, method rlsd, seeds 0, 1",
        "_base: lr 0.1, method grpo",
        "again: lr 0.1, method rlsd",
        "lr$1_a_b$: lr 0.2, method rlsd",
        r"x\x1b[2J\u202e\u4e2d: lr 0.1, method sdpo",
        "bare",
    ]
    assert labels(drawn(runs[:2])) == ["r1, r2: seeds 0, 1"]


def test_thirty_long_names_leave_the_panels_room(tmp_path):
    drawn = curves.figure_of([make_run(tmp_path / f"{'long_name_' * 20}{i}", lr=i, seed=0) for i in range(30)])
    FigureCanvasAgg(drawn).draw()
    inches = drawn.get_size_inches()
    legend = drawn.legends[0].get_window_extent()
    assert 0 <= legend.x0 and legend.x1 <= drawn.bbox.x1 and 0 <= legend.y0 and legend.y1 <= drawn.bbox.y1 + 1
    heights = [axis.get_position().height * inches[1] for axis in drawn.axes]
    assert min(heights) > 1.8 and inches[1] < 40 and len(drawn.legends[0].get_texts()) == 30  # of a single run: 2.4


def test_what_an_update_lacks_is_left_out(tmp_path, drawn):
    """A skipped update has no clip share and no loss; null and NaN are no figures."""
    run = make_run(tmp_path / "run")
    rows = curves.metrics_of(run)
    del rows[3]["clipped_low"], rows[3]["clipped_high"]
    rows[3] |= {"skipped": 1, "loss": None, "notes": ["skipped"]}
    rows[5] |= {"reward": None, "entropy": float("nan"), "length": float("inf")}
    axes = drawn([logged(run, rows)])
    steps = lambda name: [step for step, _ in points(axes[name].lines[1])]
    assert steps("clipped") == [step for step in range(1, 21) if step != 3]
    assert all(steps(name) == [step for step in range(1, 41) if step != 5] for name in ("reward", "entropy", "length"))


@pytest.mark.parametrize(
    "env, code, says",
    [({"MPLBACKEND": "nonsense", "MATPLOTLIBRC": "rc"}, 0, ""), ({"PYTHONPATH": "broken"}, 2, "c.png: no picture: ")],
)
def test_the_picture_does_not_depend_on_the_environment(tmp_path, env, code, says):
    """Another program's backend, the user's own settings; no matplotlib is one line."""
    make_run(tmp_path / "run")
    (tmp_path / "rc").write_text("text.usetex: True\nsavefig.format: nonsense\nfont.family: nothing\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "matplotlib.py").write_text("raise AttributeError('numpy was compiled for another')\n")
    (tmp_path / "elsewhere.png").write_text("not ours")
    (tmp_path / "c.png").symlink_to("elsewhere.png")
    command = [sys.executable, str(Path(plot.__file__)), "run", "--out", "c.png"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == code and done.stderr.count("\n") == bool(says) and says in done.stderr, done.stderr
    assert (tmp_path / "elsewhere.png").read_text() == "not ours"  # a link is replaced, not followed
    assert (tmp_path / "c.png").is_symlink() == bool(code)


def test_a_run_that_has_only_begun_is_drawn_without_a_warning(tmp_path, recwarn):
    curves.curves([logged(make_run(tmp_path / "run"), [{"step": 0, "pass@1": 0.1}])], tmp_path / "curves.png")
    assert [str(warning.message) for warning in recwarn] == []
