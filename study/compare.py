"""A few methods compared as reproduce.py --cells asks: each paired with the first one, seed by seed."""

from itertools import combinations
from pathlib import Path

import numpy as np

from study.bootstrap import FEWEST, Estimate, mean, ratio
from study.figures import COLOURS, STYLES, plt
from study.plan import Run
from study.report import MARGIN, table
from study.scores import area, evaluations, final, leaked, paired_speed, seconds, start, target_of, updates_to
from support.errors import UserError


def shown(figure: Estimate, digits: int = 3) -> str:
    """With its interval; of fewer than FEWEST seeds the figure alone, as an interval would look like a result."""
    return figure.text(digits) if figure.n >= FEWEST or not figure.n else f"{figure.value:.{digits}f}"


def by_method(runs: list[Run], rows: list[dict]) -> dict[str, dict[int, dict]]:
    """Finished rows by method and seed, on the seeds that the first method has too; the first method first."""
    found = {method: {row["seed"]: row for row in rows if row["method"] == method} for method in methods_of(runs)}
    first = next(iter(found.values()))
    return {method: {seed: of[seed] for seed in sorted(of.keys() & first.keys())} for method, of in found.items()}


def methods_of(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run.method for run in runs))


def comparison(cell: dict[str, dict[int, dict]]) -> str:
    """The table: of each method its figures, and what it is above the first one on the same seeds."""
    name, first = next(iter(cell.items()))
    target = target_of(list(first.values()))
    lines = []
    for method, mine in cell.items():
        pairs = lambda figure: ([figure(run) for run in mine.values()], [figure(first[seed]) for seed in mine])
        rates = {row["options"].split("--lr ")[-1].split()[0] for row in mine.values()}
        figures = [shown(mean(map(final, mine.values()))), shown(leaked(list(mine.values())), 4)]
        beside = [""] * 5
        if method != name:
            end, whole = (mean(np.subtract(*pairs(figure))) for figure in (final, area))
            beside = [shown(end), shown(whole), "-", shown(ratio(*pairs(seconds)), 2), end.verdict(0.0, MARGIN)]
            if target is not None:
                own, others = pairs(lambda run: updates_to(run, target))
                figure, never = paired_speed(others, own, float(evaluations(first[min(mine)])[0][-1]))
                beside[2] = f"{shown(figure, 2)}, {never} never"
        lines.append([method, ", ".join(sorted(rates)), str(len(mine)), *figures, *beside])
    header = f"method | rate | seeds | final pass@1 | leakage | final minus {name} | mean over the run minus {name} | "
    header += f"{name}'s updates / its own | its seconds an update / {name}'s | ends above {name}"
    return table(header, lines)


def alike(cell: dict[str, dict[int, dict]]) -> str:
    """A line for every two methods whose runs are the same, seconds aside."""
    untimed = lambda run: [{**row, "seconds": 0} for row in run["curve"]]
    pairs = [
        (a, b)
        for a, b in combinations(cell, 2)
        if cell[a].keys() == cell[b].keys() and all(untimed(cell[a][s]) == untimed(cell[b][s]) for s in cell[a])
    ]
    what = "are the same runs, update by update: what tells them apart has no effect here (a clip may hide it)\n"
    return "".join(f"{a} and {b} {what}" for a, b in pairs)


def draw(cell: dict[str, dict[int, dict]], title: str, out: Path) -> None:
    """Left each method's mean curve between its lowest and highest seed; right the paired differences, a dot a seed."""
    name, first = next(iter(cell.items()))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    others = [method for method in cell if method != name]
    for i, (method, runs) in enumerate(cell.items()):
        steps, look = evaluations(next(iter(runs.values())))[0], {"color": COLOURS[i % len(COLOURS)]}
        values = np.array([evaluations(run)[1] for run in runs.values()])
        left.plot(
            steps, values.mean(axis=0), label=f"{method} ({len(runs)})", linestyle=STYLES[i % len(STYLES)], **look
        )
        left.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.15, linewidth=0, **look)
        if method != name:
            gains, at = [final(run) - final(first[seed]) for seed, run in runs.items()], others.index(method)
            right.plot(gains, [at] * len(gains), "o", alpha=0.5, **look)
            if len(gains) >= FEWEST:
                of = mean(gains)
                right.errorbar(
                    of.value, at, xerr=[[of.value - of.low], [of.high - of.value]], fmt="D", capsize=4, **look
                )
    left.set(xlabel="update", ylabel="held-out pass@1")
    left.legend(title="method (seeds); band: lowest to highest", frameon=False)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(yticks=range(len(others)), yticklabels=others, ylim=(len(others) - 0.5, -0.5))
    right.set(xlabel=f"final pass@1 minus {name}'s", title=f"dot: a seed; bar: 95 % interval, from {FEWEST} seeds on")
    right.locator_params(axis="x", nbins=5)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def write(runs: list[Run], rows: list[dict], folder: Path) -> str:
    """What is printed of a cell's finished runs; its figure lies in `folder`."""
    cell = {method: of for method, of in by_method(runs, rows).items() if of}
    if len(cell) < 2:
        raise UserError(f"{folder}: no finished runs of {' and '.join(methods_of(runs)[:2])} on a seed in common")
    task, more = runs[0].task, runs[0].more
    out = folder / f"{task}-{'-'.join(cell)}.png"
    draw(cell, f"{task} {more}".strip(), out)
    fewest = min(map(len, cell.values()))
    few = f"{fewest} seeds: no interval and no verdict under {FEWEST}.\n" if fewest < FEWEST else ""
    starts = f"{np.mean([start(run) for of in cell.values() for run in of.values()]):.3f} before RL"
    head = f"{task}{f' ({more})' if more else ''}, {starts}; paired by seed, each pair from one warm start"
    return f"\n{head}\n\n{comparison(cell)}\n{few}{alike(cell)}{out}"
