"""plot.py: what is drawn is what metrics.jsonl says, run by run or seed by seed."""

import json

import matplotlib.pyplot as plt
import pytest

import plot


def make_run(folder, factor=1.0, **config):
    """A log of 40 updates with lambda above 0 in the first 20, evaluated every 10."""
    folder.mkdir()
    rows = [{"step": 0, "pass@1": 0.1 * factor}]
    for step in range(1, 41):
        row = {"step": step, "reward": step / 40 * factor, "no_spread": 0.5, "entropy": 0.3, "length": 30.0}
        row |= {"lambda": float(step <= 20), "clipped_low": 0.01, "clipped_high": 0.02}
        rows.append(row | ({"pass@1": step / 50 * factor} if step % 10 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config:
        (folder / "config.json").write_text(json.dumps({"out": str(folder), **config}))
    return folder


@pytest.fixture
def figure(monkeypatch):
    """The figure that curves() makes, left open and undrawn."""
    made = []
    monkeypatch.setattr(plot.plt.Figure, "savefig", lambda *args, **how: None)
    monkeypatch.setattr(plot.plt, "close", made.append)
    yield lambda: {axis.get_title(): axis for axis in made[0].axes} | {"legend": made[0].legends[0]}
    monkeypatch.undo()
    plt.close("all")


def panel(axes, name):
    return axes[{key: title for key, title, _ in plot.PANELS}[name]]


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata()))


def test_one_run_is_drawn_as_logged(tmp_path, figure):
    plot.curves([make_run(tmp_path / "one")], tmp_path / "curves.png")
    axes = figure()
    evaluations = panel(axes, "pass@1").lines[0]
    assert points(evaluations) == [(0, 0.1), (10, 0.2), (20, 0.4), (30, 0.6), (40, 0.8)]
    mean, raw = panel(axes, "reward").lines
    assert points(raw) == [(step, step / 40) for step in range(1, 41)]
    assert mean.get_ydata()[19] == pytest.approx(20 / 40) and mean.get_ydata()[0] == pytest.approx(3.5 / 40)
    clipped = panel(axes, "clipped").lines[1]
    assert points(clipped) == [(step, 0.03) for step in range(1, 21)]  # where lambda is 0 nothing was measured
    assert [text.get_text() for text in axes["legend"].get_texts()] == ["one"]
    for name, _, unit in plot.PANELS:
        axis = panel(axes, name)
        assert axis.get_xlabel() == "update" and axis.get_ylabel() == unit and axis.get_ylim()[0] == 0
        for line in axis.lines:
            assert max(line.get_ydata()) <= axis.get_ylim()[1] and max(line.get_xdata()) <= axis.get_xlim()[1]


def test_runs_are_told_apart_without_colour(tmp_path, figure):
    runs = [make_run(tmp_path / f"run-{i}", 1 - i / 10) for i in range(4)]
    plot.curves(runs, tmp_path / "curves.png")
    lines = panel(figure(), "pass@1").lines
    assert len({line.get_linestyle() for line in lines}) == len({line.get_marker() for line in lines}) == 4
    assert len({line.get_color() for line in lines}) == 4


def test_seeds_of_one_setting_are_a_mean_in_a_band(tmp_path, figure):
    seeds = [make_run(tmp_path / f"a-{seed}", factor, lr=0.1, seed=seed) for seed, factor in enumerate((1.0, 0.5))]
    other = make_run(tmp_path / "b-0", 0.25, lr=0.2, seed=0)
    assert list(plot.lines([*seeds, other])) == ["a-0 and 1 more seeds", "b-0"]
    plot.curves([*seeds, other], tmp_path / "curves.png")
    axis = panel(figure(), "pass@1")
    assert dict(points(axis.lines[0])) == pytest.approx({0: 0.075, 10: 0.15, 20: 0.3, 30: 0.45, 40: 0.6})
    (band,) = axis.collections
    edge = {tuple(point) for point in band.get_paths()[0].vertices.round(6)}
    assert {(40.0, 0.4), (40.0, 0.8), (0.0, 0.05), (0.0, 0.1)} <= edge


def test_runs_of_one_name_and_without_options_stay_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    runs = [make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run")]
    assert plot.lines(runs) == {"run": [runs[0]], str(runs[1]): [runs[1]]}


def test_what_was_not_recorded_is_said(tmp_path, figure):
    run = make_run(tmp_path / "grpo")
    rows = [json.loads(line) | {"lambda": 0.0} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot.curves([run], tmp_path / "curves.png")
    axis = panel(figure(), "clipped")
    assert not axis.lines and [text.get_text() for text in axis.texts] == ["none recorded"]


def test_the_picture_is_where_it_was_asked_for(tmp_path, capsys):
    out = tmp_path / "curves.png"
    assert plot.main([str(make_run(tmp_path / "run")), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and out.read_bytes().startswith(b"\x89PNG")


def test_errors_are_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    cases = [([tmp_path], "holds no metrics.jsonl"), ([run, "--out", "/nowhere/c.png"], "/nowhere/c.png: No such file")]
    for n, line in enumerate(("{half", "[1]", '{"reward": 1}')):
        torn = make_run(tmp_path / f"torn-{n}")
        with (torn / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
        cases.append(([torn], "metrics.jsonl:42: no line of a run"))
    unread = make_run(tmp_path / "unread")
    (unread / "config.json").write_text("{")
    cases.append(([unread], "config.json is no configuration"))
    for argv, says in cases:
        assert plot.main([str(arg) for arg in argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("plot.py: ") and err.count("\n") == 1 and says in err, err


def test_a_run_that_has_only_begun_is_drawn_without_a_warning(tmp_path, recwarn):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 0, "pass@1": 0.1}\n')
    plot.curves([run], tmp_path / "curves.png")
    assert [str(warning.message) for warning in recwarn] == []
