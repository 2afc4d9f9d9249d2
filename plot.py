"""Curves of one run or several: python plot.py RUN [RUN ...] [--out FILE.png]

Runs that differ in the seed alone are one line, their mean, in a band from the lowest to the highest of them.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by the colour-blind; the line style says it again for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = "osv^DPX"  # at the evaluations, which are few
PANELS = (
    ("pass@1", "held-out pass@1", "share of problems"),
    ("reward", "reward of the samples", "mean reward"),
    ("no_spread", "groups of equal rewards: no lesson", "share of groups"),
    ("entropy", "entropy of the samples", "nats a token"),
    ("length", "length of the samples", "tokens"),
    ("clipped", "evidence clip, where lambda > 0", "share of tokens"),
)
SHARES = ("pass@1", "reward", "no_spread")
SMOOTH = 5  # updates to either side: one batch of a few questions is noise, so a mean is drawn over the pale raw line
ASIDE = {"seed", "out", "resume", "fingerprint"}  # options in which runs of one line may differ


def read_metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, with `clipped` = clipped_low + clipped_high where lambda is above 0.

    Raises ValueError that names the line which is no row of it.
    """
    rows = []
    for i, line in enumerate((run / "metrics.jsonl").read_bytes().splitlines(), start=1):
        try:
            row = {name: float(value) for name, value in json.loads(line).items() if name != "notes"}
            if row["step"] and row.get("lambda"):
                row["clipped"] = row["clipped_low"] + row["clipped_high"]
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ValueError(f"{run / 'metrics.jsonl'}:{i}: no line of a run ({type(error).__name__})") from error
        rows.append(row)
    return rows


def lines(runs: list[Path]) -> dict[str, list[Path]]:
    """The runs of each line of the figure, under its name: those whose config.json differs in the seed alone."""
    alike = defaultdict(list)
    for run in runs:
        config = run / "config.json"
        try:
            options = json.loads(config.read_text()) if config.is_file() else {"run": str(run)}
        except ValueError as error:
            raise ValueError(f"{config} is no configuration: {error}") from error
        alike[json.dumps({name: x for name, x in options.items() if name not in ASIDE}, sort_keys=True)].append(run)
    names: dict[str, list[Path]] = {}
    for group in alike.values():
        name = group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more seeds"
        names[name if name not in names else str(group[0])] = group
    return names


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


def draw(axis: Axes, runs: list[list[dict]], name: str, label: str, look: dict, marker: str) -> None:
    """One line: markers at evaluations; every-update figures smoothed, over the pale raw line of a single run."""
    points = band(runs, name)
    if not points:
        return
    steps, means, lows, highs = map(list, zip(*points))
    if name == "pass@1":
        every = max(1, len(steps) // 20)
        axis.plot(steps, means, label=label, marker=marker, markevery=every, fillstyle="none", markersize=6, **look)
    else:
        axis.plot(steps, smoothed(means), label=label, **look)
        lows, highs = smoothed(lows), smoothed(highs)
        if len(runs) == 1:
            axis.plot(steps, means, color=look["color"], linewidth=0.6, alpha=0.35)
    if len(runs) > 1:
        axis.fill_between(steps, lows, highs, color=look["color"], alpha=0.18, linewidth=0)


def curves(runs: list[Path], out: Path) -> Path:
    """Draw every panel over the updates and write the PNG."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.8), constrained_layout=True)
    for i, (label, group) in enumerate(lines(runs).items()):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)], "linewidth": 1.6}
        rows = [read_metrics(run) for run in group]
        for axis, (name, _, _) in zip(axes.flat, PANELS):
            draw(axis, rows, name, label, look, MARKERS[i % len(MARKERS)])
    last = max((x for axis in axes.flat for line in axis.lines for x in line.get_xdata()), default=0) or 1
    for axis, (name, title, unit) in zip(axes.flat, PANELS):
        axis.set(title=title, xlabel="update", ylabel=unit, xlim=(-0.03 * last, 1.03 * last))
        axis.set_ylim(bottom=0, top=1.02 if name in SHARES else 1.05 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
        if not axis.lines:
            axis.text(0.5, 0.5, "none recorded", transform=axis.transAxes, ha="center", color="#555555")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"plot.py: {message} (python plot.py --help lists the options)\n")


def main(argv: list[str]) -> int:
    parser = Parser(
        "plot.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in (".png", ".svg", ".pdf"):
        parser.error(f"--out {args.out}: the name of a .png, .svg or .pdf file is needed")
    for run in args.runs:
        if not (run / "metrics.jsonl").is_file():
            print(f"plot.py: {run} holds no metrics.jsonl: give the folder of a run", file=sys.stderr)
            return 2
    try:
        print(curves(args.runs, args.out))
    except (OSError, ValueError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else " ".join(str(error).split())
        print(f"plot.py: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
