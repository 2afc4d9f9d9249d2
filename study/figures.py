"""The report's figures: curves of a cell over its seeds, and the credit of one right and one wrong sample."""

import json
import os
from collections import defaultdict
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # of another program's, matplotlib would not let itself be imported
import matplotlib.pyplot as plt
import numpy as np

from config import Config
from harness.curves import COLOURS, STYLES
from rlsd import lambda_at
from study.bootstrap import FEWEST, Estimate, mean
from study.scores import Study

STUDY_PANELS = {
    "pass@1": "held-out pass@1",
    "leakage": "leakage",
    "entropy": "entropy, nats a token",
    "clipped": "tokens at the evidence clip, of those with an advantage",
}
LOOKS = ("rlsd", "grpo", "opsd", "sdpo", "grpo+opsd", "opd", "rlsd-contrastive")  # a method looks alike everywhere


def over_tokens(runs: list[dict], name: str) -> list[tuple[float, float, float, float]]:
    """(sampled tokens in thousands, mean over the runs and its interval) of a figure, update by update."""
    points = defaultdict(list)
    for run in runs:
        tokens = np.cumsum([row.get("length", 0) * run["samples"] for row in run["curve"]])
        for row, sampled in zip(run["curve"], tokens):
            value = row.get(name)
            if name == "clipped" and row.get("lambda"):
                value = row["clipped_low"] + row["clipped_high"]
            if value is not None:
                points[row["step"]].append((sampled / 1000, value))
    means = [(np.mean([p[0] for p in at]), mean(p[1] for p in at)) for _, at in sorted(points.items())]
    return [(float(tokens), of.value, of.low, of.high) for tokens, of in means]


def curves_figure(study: Study, out: Path, task: str) -> None:
    """A task's methods over sampled tokens: pass@1, leakage, entropy, clip share; mean and interval over seeds."""
    cell = {m: study.runs(task, m) for t, m, samples, fresh in study.cells if (t, samples, fresh) == (task, 256, False)}
    cell = {m: runs for m, runs in cell.items() if len(runs) >= FEWEST} or cell  # the others stand in the table alone
    methods = sorted(cell, key=lambda m: (m == "grpo", m == "rlsd", m))  # these two last: they would lie below others
    rates = {m: cell[m][0]["options"].split("--lr ")[1].split()[0] for m in methods}
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, constrained_layout=True)
    for method in methods:
        i = LOOKS.index(method) if method in LOOKS else len(LOOKS)
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
        label = f"{method} ({len(cell[method])})" + (f", lr {rates[method]}" if len(set(rates.values())) > 1 else "")
        for axis, name in zip(axes.flat, STUDY_PANELS):
            line = over_tokens(cell[method], name)
            if line:
                x, values, lows, highs = zip(*line)
                axis.plot(x, values, label=label, **look)
                axis.fill_between(x, lows, highs, alpha=0.15, color=look["color"], linewidth=0)
    for axis, (name, title) in zip(axes.flat, STUDY_PANELS.items()):  # after the last line: a limit cuts later ones
        least = 0.05 if name == "leakage" else 0.0  # a completion or two of 400 shall not look like much
        axis.set(title=title, ylim=(0, max(least, axis.get_ylim()[1])))
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("sampled tokens, thousands")
    if methods:
        lines = axes.flat[0].get_legend_handles_labels()
        title = "method (seeds); band: 95 % interval of the mean"
        figure.legend(*lines, loc="outside lower center", ncols=min(len(methods), 4), title=title, frameon=False)
    figure.suptitle(f"{task}, 256 samples an update")
    figure.savefig(out, dpi=100)
    plt.close(figure)


def credit_figure(samples: Path, out: Path) -> None:
    """Token credit of one right and one wrong sample of a group, from the samples.jsonl of a run at RLSD's defaults."""
    rows = [row for row in map(json.loads, samples.read_text().splitlines()) if any(row.get("credit", ()))][:2]
    of = Config()
    lam = lambda_at(rows[0]["step"], of.rlsd_lambda, of.rlsd_lambda_warmup_steps, of.rlsd_lambda_decay_steps)
    figure, axes = plt.subplots(2, 1, figsize=(11, 5), sharey=True, constrained_layout=True)
    for axis, row in zip(axes, rows):
        plain = float(np.median(row["credit"]))  # most tokens have no evidence: A itself
        share = [credit / plain - 1 for credit in row["credit"]]
        axis.bar(range(len(share)), share, bottom=1, color=COLOURS[0 if row["reward"] else 1])
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(share)), [repr(t)[1:-1].replace("<|end|>", "end") for t in row["tokens"]], fontsize=8)
        axis.set(ylabel=f"A_hat / A at lambda {lam:g}", ylim=(0.9, 1.1))
        says = "right, praise" if row["reward"] else "wrong, blame"
        axis.set_title(f"{row['question']}: {says} of each token (1: plain GRPO's)", fontsize=10)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def headroom_figure(panels: dict[str, dict[str, dict[str, Estimate]]], mark: float, out: Path) -> None:
    """Samples worth {panel: {weighting: {regime: estimate}}} with intervals; mark: the bound on the paper's weights."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 6), sharey=True, constrained_layout=True, squeeze=False)
    for axis, (title, weightings) in zip(axes[0], panels.items()):
        for k, (name, regimes) in enumerate(weightings.items()):
            shown = {i: of for i, of in enumerate(regimes.values()) if of.n}
            places = [i + 0.8 * (k + 0.5) / len(weightings) - 0.4 for i in shown]
            x = np.array([[of.value, of.low, of.high] for of in shown.values()]).T.reshape(3, -1)
            bars = np.maximum([x[0] - x[1], x[2] - x[0]], 0)
            axis.errorbar(x[0], places, xerr=bars, fmt="o", markersize=4, color=COLOURS[k % 7], label=name)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.axvline(mark, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("symlog", linthresh=0.5, linscale=0.2)
        ticks = (-4, -1, 0, 1, 2, 4, 8)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_yticks(range(len(regimes)), list(regimes))
        axis.set(title=title, xlabel="samples worth (GRPO: 1)")
        axis.grid(alpha=0.3, axis="x")
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"32 samples; bars: 95 % interval over policies; dotted: {mark:.2f}, a bound for weights blind to the verdict"
    )
    figure.savefig(out, dpi=100)
    plt.close(figure)


def bias_figure(panels: dict[str, dict[str, tuple[Estimate, Estimate]]], out: Path) -> None:
    """Of each weighting {panel: {weighting: (cosine of the means, noise)}}; on the curve it is worth GRPO's samples."""
    figure, axes = plt.subplots(2, -(-len(panels) // 2), figsize=(11, 9), constrained_layout=True, squeeze=False)
    noise, known = np.geomspace(0.02, 100, 200), list(dict.fromkeys(name for of in panels.values() for name in of))
    lines = {}
    for axis, (title, weightings) in zip(axes.flat, panels.items()):
        for name, pair in weightings.items():
            k = known.index(name)
            y, x = ([[max(of.value - of.low, 0)], [max(of.high - of.value, 0)]] for of in pair)
            look = {"fmt": "os^D"[k // 7 % 4], "color": COLOURS[k % 7], "markersize": 5, "elinewidth": 0.8}
            lines[name] = axis.errorbar([pair[1].value], [pair[0].value], xerr=x, yerr=y, **look)
        axis.plot(noise, noise**-0.5, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set(title=title, xlim=(0.3, 60), ylim=(-0.5, 1.2))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("signal's share in E|g|^2, over GRPO's (right: less noise)")
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine of the mean gradient with GRPO's")
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("bias and noise of each weighting, 32 samples; above the curve it is worth more samples than GRPO")
    figure.savefig(out, dpi=100)
    plt.close(figure)
