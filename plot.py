"""Curves of one run or several: python plot.py RUN [RUN ...] [--out FILE.png]"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's palette, told apart by the colour-blind; the line style says it again for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
PANELS = (
    ("reward", "reward of the samples"),
    ("pass@1", "held-out pass@1 (thick) and greedy"),
    ("entropy", "entropy, nats a token"),
    ("length", "length, tokens"),
    ("clipped", "share of tokens at the evidence clip"),
    ("no_spread", "share of groups without spread"),
)


def read_metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, with `clipped` = clipped_low + clipped_high."""
    rows = []
    for i, line in enumerate((run / "metrics.jsonl").read_bytes().splitlines(), start=1):
        try:
            row = {name: float(value) for name, value in json.loads(line).items()}
            row["step"]  # a row without it has no place
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ValueError(f"{run / 'metrics.jsonl'}:{i}: no line of a run ({type(error).__name__})") from error
        if {"clipped_low", "clipped_high"} <= row.keys():
            row["clipped"] = row["clipped_low"] + row["clipped_high"]
        rows.append(row)
    return rows


def curves(runs: list[Path], out: Path) -> Path:
    """Draw every panel over the updates, a line a run, and write the PNG."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), constrained_layout=True)
    for i, run in enumerate(runs):
        rows, look = read_metrics(run), {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
        for axis, (name, _) in zip(axes.flat, PANELS):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(
                    *zip(*points), label=run.name.replace("$", r"\$"), linewidth=2 if name == "pass@1" else 1.2, **look
                )
        greedy = [(row["step"], row["greedy"]) for row in rows if "greedy" in row]
        axes.flat[1].plot(*zip(*greedy), linewidth=0.8, marker=".", markersize=4, **look)
    for axis, (name, title) in zip(axes.flat, PANELS):
        axis.set(title=title, xlabel="update")
        axis.set_ylim(bottom=0, top=1.02 if name in ("reward", "pass@1", "no_spread") else None)
        axis.grid(alpha=0.3)
    if len(runs) > 1:
        axes.flat[0].legend(fontsize=9)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"plot.py: {message} (python plot.py --help lists the options)\n")


def main(argv: list[str]) -> int:
    parser = Parser("plot.py", description=__doc__, allow_abbrev=False)
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
    except OSError as error:
        print(f"plot.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"plot.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
