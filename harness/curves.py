"""The curves of runs as one picture: a panel for each figure, a line for each run, or a band for a setting's seeds."""

import json
import os
import textwrap
from collections import Counter, defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

from support.errors import read_file, reading, visible
from support.files import metrics_of, replace

# Okabe and Ito's palette, told apart by the colour-blind; the line style says it again for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = "osv^DPX"  # at the evaluations, which are few
PANELS = (
    ("pass@1", "held-out pass@1 (graded: reward)", "share of problems"),
    ("reward", "reward of the samples", "mean reward"),
    ("no_spread", "groups of equal rewards: no lesson", "share of groups"),
    ("entropy", "entropy of the samples", "nats a token"),
    ("length", "length of the samples", "tokens"),
    ("clipped", "evidence clip, where lambda > 0", "share of tokens"),
)
SHARES = ("pass@1", "reward", "no_spread")
SMOOTH = 5  # updates to either side: one batch of a few questions is noise, so a mean is drawn over the pale raw line
ASIDE = {"seed", "out", "resume", "fingerprint", "warm_dir"}  # options in which runs of one line may differ


def read_metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, with `clipped` = clipped_low + clipped_high where lambda is above 0."""
    rows = metrics_of(run)
    for row in rows:
        if "held-out reward" in row:  # a graded verifier's
            row["pass@1"] = row["held-out reward"]
        if row.get("lambda") and row.keys() >= {"clipped_low", "clipped_high"}:  # a skipped update has no such shares
            row["clipped"] = row["clipped_low"] + row["clipped_high"]
    return rows


def lines(runs: list[Path]) -> dict[str, list[Path]]:
    """The runs of each line of the figure, under its label: those whose options differ in the seed alone, a seed once.

    A label is the runs' names, the options in which the lines differ, and the seeds of several runs.
    """
    options, seeds = {}, {}
    alike, seen = defaultdict(list), Counter[str]()
    for run in dict.fromkeys(runs):
        with reading(f"{run / 'config.json'} is no configuration"):
            given = json.loads(read_file(run / "config.json")) if (run / "config.json").exists() else {}
            options[run] = {name: x for name, x in sorted(given.items()) if name not in ASIDE}
        seeds[run], key = str(given.get("seed")), json.dumps(options[run])
        seen[key + seeds[run]] += 1  # a second run of the same seed is no second seed
        alike[key, seen[key + seeds[run]]].append(run)
    known = [options[group[0]] for group in alike.values() if options[group[0]]]
    differ = [x for x in known[0] if len({json.dumps(of.get(x)) for of in known}) > 1] if known else []
    home = os.path.commonpath([os.path.dirname(os.path.abspath(run)) for run in runs])
    labels = {}
    for group in alike.values():
        details = [f"{name} {x}" for name, x in options[group[0]].items() if name in differ]
        details += [f"seeds {', '.join(seeds[run] for run in group)}"] if len(group) > 1 else []
        names = ", ".join(os.path.relpath(run, home) for run in group)
        labels[": ".join(filter(None, (names, ", ".join(details))))] = group
    return labels


def band(runs: list[list[dict]], name: str) -> list[tuple[int, float, float, float]]:
    """(update, mean, lowest, highest) of a figure over runs, at the updates that all of them have."""
    tables = [{row["step"]: row[name] for row in rows if name in row} for rows in runs]
    steps = sorted(set.intersection(*map(set, tables)))
    values = ([table[step] for table in tables] for step in steps)
    return [(step, sum(v) / len(v), min(v), max(v)) for step, v in zip(steps, values)]


def smoothed(values: list[float]) -> list[float]:
    """Mean of each value with its neighbours, up to SMOOTH on either side."""
    windows = (values[max(0, i - SMOOTH) : i + SMOOTH + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def draw(axis: Any, runs: list[list[dict]], name: str, look: dict, marker: str) -> None:
    """One line: markers at evaluations; every-update figures smoothed, over the pale raw line of a single run."""
    points = band(runs, name)
    if not points:
        return
    steps, means, lows, highs = map(list, zip(*points))
    if name == "pass@1":
        every = max(1, len(steps) // 20)
        axis.plot(steps, means, marker=marker, markevery=every, fillstyle="none", markersize=6, **look)
    else:
        axis.plot(steps, smoothed(means), marker=marker if len(steps) == 1 else None, **look)
        lows, highs = smoothed(lows), smoothed(highs)
        if len(runs) == 1:
            axis.plot(steps, means, color=look["color"], linewidth=0.6, alpha=0.35)
    if len(runs) > 1:
        axis.fill_between(steps, lows, highs, color=look["color"], alpha=0.18, linewidth=0)


def curves(runs: list[Path], out: Path) -> Path:
    """Draw every panel over the updates and write the picture; whatever keeps it from being drawn is a UserError."""
    os.environ["MPLBACKEND"] = "agg"  # read when matplotlib is imported, and refused there if it is another program's
    with reading(f"{out}: no picture"):
        from matplotlib import style

        with style.context(["default", {"text.parse_math": False}]):  # a $ in a name is a dollar
            replace(out, lambda path: figure_of(runs).savefig(path, dpi=110, format=out.suffix[1:]))
    return out


def figure_of(runs: list[Path]) -> Any:
    """The figure of `curves`, with every label in the legend."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.lines import Line2D

    groups, glyphs = lines(runs), get_font(findfont("DejaVu Sans")).get_charmap()
    escaped = lambda text: "".join(c if ord(c) in glyphs else c.encode("unicode_escape").decode() for c in text)
    labels = [textwrap.fill(escaped(visible(label)), 60) for label in groups]
    columns = max(1, min(4, 120 // max(len(line) + 8 for label in labels for line in label.split("\n"))))
    above = 0.24 * sum(label.count("\n") + 1 for label in labels) / columns  # inches
    figure = Figure(figsize=(12, 6.8 + max(0.0, above - 0.5)), layout="constrained")
    axes, handles = figure.subplots(2, 3), []  # a run without evaluations has a label too
    for group, colour, style, marker in zip(groups.values(), cycle(COLOURS), cycle(STYLES), cycle(MARKERS)):
        look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.6}
        rows = [read_metrics(run) for run in group]
        for axis, (name, _, _) in zip(axes.flat, PANELS):
            draw(axis, rows, name, look, marker)
        handles.append(Line2D([], [], marker=marker, fillstyle="none", **look))
    last = max((x for axis in axes.flat for line in axis.lines for x in line.get_xdata()), default=0) or 1
    for axis, (name, title, unit) in zip(axes.flat, PANELS):
        axis.set(title=title, xlabel="update", ylabel=unit, xlim=(-0.03 * last, 1.03 * last))
        axis.set_ylim(bottom=0, top=1.02 if name in SHARES else 1.05 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
        if not axis.lines:
            axis.text(0.5, 0.5, "none recorded", transform=axis.transAxes, ha="center", color="#555555")
    legend = figure.legend(handles, ["-"] * len(labels), loc="outside upper center", ncols=columns, frameon=False)
    for text, label in zip(legend.get_texts(), labels):  # handed over as labels, those that begin with _ are left out
        text.set_text(label)
    return figure
