"""Tables and figures of the study from its finished runs: called by reproduce.py."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from plot import COLOURS, STYLES

DRAWS = 10_000
MARGIN = 0.02  # of pass@1: a difference whose interval lies wholly below this is taken as none


# ---- figures of one run ----------------------------------------------------------------------------------------------


def evaluations(run: dict) -> tuple[np.ndarray, np.ndarray]:
    """Updates and held-out pass@1 of a run's evaluations."""
    rows = [row for row in run["curve"] if "pass@1" in row]
    return np.array([row["step"] for row in rows]), np.array([row["pass@1"] for row in rows])


def final(run: dict) -> float:
    """Mean pass@1 of the last two evaluations."""
    return float(evaluations(run)[1][-2:].mean())


def area(run: dict) -> float:
    """Mean pass@1 over all evaluations: high for a run that gets there early."""
    return float(evaluations(run)[1].mean())


def updates_to(run: dict, target: float) -> float:
    """Updates until pass@1 first reaches the target, interpolated; the run's length where it never does."""
    steps, values = evaluations(run)
    above = np.flatnonzero(values >= target)
    if len(above) == 0:
        return float(steps[-1])
    i = int(above[0])
    if i == 0:
        return 1.0
    share = (target - values[i - 1]) / (values[i] - values[i - 1])
    return float(max(1.0, steps[i - 1] + share * (steps[i] - steps[i - 1])))


def entropy_while_learning(run: dict) -> float:
    """Mean entropy of the updates whose reward lies between 0.5 and 0.9: methods are compared at equal accuracy."""
    values = [row["entropy"] for row in run["curve"] if 0.5 <= row.get("reward", -1) <= 0.9]
    return float(np.mean(values)) if values else float("nan")


def clip_share(run: dict) -> float:
    """Mean share of tokens at the evidence clip over the updates that use the evidence."""
    return float(
        np.mean([row["clipped_low"] + row["clipped_high"] for row in run["curve"] if row.get("lambda", 0) > 0])
    )


def seconds(run: dict) -> float:
    """Median seconds of the first ten updates, where lambda is above 0 and most groups have spread."""
    return float(np.median([row["seconds"] for row in run["curve"] if 1 <= row["step"] <= 10]))


def last_leakage(run: dict) -> float:
    return float([row["leakage"] for row in run["curve"] if "leakage" in row][-1])


# ---- intervals -------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values (a seed each) with its 95 % bootstrap interval."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    pick = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    return float(values.mean()), *np.quantile(values[pick].mean(axis=1), [0.025, 0.975]).tolist()


def ratio_interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Ratio of the means of paired values with its 95 % bootstrap interval."""
    above, below = np.asarray(above), np.asarray(below)
    pick = np.random.default_rng(0).integers(len(above), size=(DRAWS, len(above)))
    ratios = above[pick].mean(axis=1) / below[pick].mean(axis=1)
    return float(above.mean() / below.mean()), *np.quantile(ratios, [0.025, 0.975]).tolist()


def text(figures: tuple[float, float, float], digits: int = 3) -> str:
    return f"{figures[0]:.{digits}f} [{figures[1]:.{digits}f}, {figures[2]:.{digits}f}]"


def verdict(low: float, high: float, above: float, margin: float = 0.0) -> str:
    """holds: the interval lies above `above`; does not hold: it lies wholly under above + margin; else undecided."""
    if low > above:
        return "holds"
    return "does not hold" if high <= above + margin else "undecided at this scale"


class Study:
    """Finished runs by (task, method, samples an update), each cell a dict from seed to run."""

    def __init__(self, runs: list[dict]):
        self.tuning = [run for run in runs if run["lr"]]
        self.cells: dict[tuple, dict[int, dict]] = defaultdict(dict)
        for run in runs:
            if not run["lr"]:
                self.cells[run["task"], run["method"], run["samples"]][run["seed"]] = run

    def pairs(self, task: str, method: str, other: str, samples: int, figure, seeds=None) -> tuple[list, list]:
        """The figure of both methods on the seeds that both have."""
        a, b = self.cells.get((task, method, samples), {}), self.cells.get((task, other, samples), {})
        shared = [s for s in sorted(a.keys() & b.keys()) if seeds is None or s in seeds]
        return [figure(a[s]) for s in shared], [figure(b[s]) for s in shared]


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def outcome_table(study: Study) -> str:
    rows = []
    for (task, method, samples), runs in sorted(study.cells.items(), key=str):
        grpo, mine = study.pairs(task, "grpo", method, samples, final)
        gain = text(interval(np.array(mine) - grpo)) if method != "grpo" and grpo else ""
        start = np.mean([run["curve"][0]["pass@1"] for run in runs.values()])
        rows.append(
            [
                task,
                method,
                str(samples),
                str(len(runs)),
                f"{start:.3f}",
                text(interval([final(r) for r in runs.values()])),
                text(interval([area(r) for r in runs.values()])),
                gain,
            ]
        )
    return table(
        [
            "task",
            "method",
            "samples an update",
            "seeds",
            "start",
            "final pass@1",
            "mean over the run",
            "final minus GRPO, paired",
        ],
        rows,
    )


def speed_row(study: Study, task: str, method: str, samples: int, seeds=None) -> tuple[tuple, int, float] | None:
    """How many times as many updates GRPO needs for 90 % of its own final pass@1: (ratio, seeds, target)."""
    grpo = study.cells.get((task, "grpo", samples), {})
    if not grpo or (task, method, samples) not in study.cells:
        return None
    target = 0.9 * float(np.mean([final(run) for run in grpo.values()]))
    theirs, mine = study.pairs(task, "grpo", method, samples, lambda run: updates_to(run, target), seeds)
    return (ratio_interval(theirs, mine), len(mine), target) if mine else None


def speed_table(study: Study) -> str:
    rows = []
    for task, method, samples in sorted(study.cells, key=str):
        fresh = range(10, 20) if (task, samples) == ("addition-filler", 32) else None
        for label, seeds in (("all", None), ("fresh seeds 10 to 19", fresh)):
            row = (
                speed_row(study, task, method, samples, seeds)
                if method != "grpo" and (seeds or label == "all")
                else None
            )
            if row:
                figures, n, target = row
                rows.append([task, method, str(samples), label, str(n), f"{target:.3f}", text(figures, 2)])
    return table(
        ["task", "method", "samples an update", "runs", "seeds", "target pass@1", "GRPO's updates / its own"], rows
    )


def tuning_table(study: Study) -> str:
    cells = defaultdict(list)
    for run in study.tuning:
        cells[run["method"], run["lr"]].append(run)
    rows = [
        [m, lr, f"{np.mean([area(r) for r in runs]):.3f}", f"{np.mean([final(r) for r in runs]):.3f}", str(len(runs))]
        for (m, lr), runs in sorted(cells.items(), key=lambda cell: (cell[0][0], float(cell[0][1])))
    ]
    return table(["method", "learning rate", "mean pass@1 over the run", "final", "seeds"], rows)


def probe_tables(folder: Path) -> str:
    from probe import samples_worth

    parts = []
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        grpo = row["cosines"]["GRPO"]
        parts.append(
            f"**{path.stem}**: pass@1 {row['pass@1']:.3f}, teacher {row['teacher pass@1']:.3f}, {len(grpo)} batches "
            f"of {row['samples']} samples (`python probe.py {' '.join(row['options'])} --name {path.stem}`)\n"
        )
        rows = [
            [name, f"{np.mean(values):.3f}", text(samples_worth(values, grpo), 2)]
            for name, values in row["cosines"].items()
        ]
        parts.append(table(["weighting of the same samples", "cosine", "samples worth, against GRPO"], rows))
    return "\n".join(parts)


# ---- claims ----------------------------------------------------------------------------------------------------------


def claims(study: Study, probes: Path) -> list[list[str]]:
    """A row a claim: claim, what was measured, figure with interval, seeds, verdict."""
    return [
        row
        for part in (outcome_claims(study), opsd_claims(study), dynamics_claims(study), credit_claims(probes))
        for row in part
    ]


def outcome_claims(study: Study) -> list[list[str]]:
    rows = []
    for task in ("addition-3", "addition", "addition-6", "countdown"):
        grpo, rlsd = study.pairs(task, "grpo", "rlsd", 256, final)
        if grpo:
            f = interval(np.array(rlsd) - grpo)
            rows.append(
                [
                    f"RLSD ends above GRPO ({task})",
                    "paired difference of final pass@1",
                    text(f),
                    str(len(grpo)),
                    verdict(f[1], f[2], 0.0, MARGIN),
                ]
            )
    for task in ("addition-3", "addition", "addition-6", "countdown"):
        row = speed_row(study, task, "rlsd", 256)
        if row:
            rows.append(
                [
                    f"RLSD gets there in half the updates ({task})",
                    "GRPO's updates / RLSD's, to 90 % of GRPO's final",
                    text(row[0], 2),
                    str(row[1]),
                    verdict(row[0][1], row[0][2], 2.0),
                ]
            )
    opd, rlsd = study.pairs("addition", "opd", "rlsd", 256, final)
    if opd:
        f = interval(np.array(rlsd) - opd)
        rows.append(
            [
                "No larger teacher needed",
                "RLSD's final pass@1 minus OPD's",
                text(f),
                str(len(opd)),
                verdict(f[1], f[2], -MARGIN),
            ]
        )
    return rows


def opsd_claims(study: Study) -> list[list[str]]:
    rows = []
    opsd = list(study.cells.get(("addition", "opsd", 256), {}).values())
    if opsd:
        fall = interval([evaluations(run)[1].max() - final(run) for run in opsd])
        leak = interval([last_leakage(run) for run in opsd])
        rows += [
            [
                "OPSD rises first, then falls",
                "its highest pass@1 minus its final",
                text(fall),
                str(len(opsd)),
                verdict(fall[1], fall[2], MARGIN),
            ],
            [
                "OPSD leaks",
                "share of completions that cite a reference never shown, at the end",
                text(leak),
                str(len(opsd)),
                verdict(leak[1], leak[2], 0.0),
            ],
        ]
    rlsd = list(study.cells.get(("addition", "rlsd", 256), {}).values())
    if rlsd:
        leaks = [row["leakage"] for run in rlsd for row in run["curve"][-1:] if "leakage" in row]
        upper = 3 / (200 * len(leaks)) if not any(leaks) else interval(leaks)[2]  # none in n: 95 % bound 3 / n
        rows.append(
            [
                "RLSD does not leak",
                "the same share, upper 95 % bound",
                f"{np.mean(leaks):.4f}, at most {upper:.4f}",
                str(len(leaks)),
                "holds" if upper < 0.01 else "does not hold",
            ]
        )
    return rows


def dynamics_claims(study: Study) -> list[list[str]]:
    rows = []
    grpo, rlsd = study.pairs("addition", "grpo", "rlsd", 256, entropy_while_learning)
    if grpo:
        f = interval(np.array(rlsd) - grpo)
        rows.append(
            [
                "Higher entropy than GRPO",
                "paired difference at rewards 0.5 to 0.9, nats a token",
                text(f, 4),
                str(len(grpo)),
                verdict(f[1], f[2], 0.0, 0.001),
            ]
        )
        for task in ("addition", "countdown"):
            runs = study.cells.get((task, "rlsd", 256), {})
            if runs:
                f = interval([clip_share(run) for run in runs.values()])
                inside = f[1] >= 0.03 and f[2] <= 0.06
                outside = f[2] < 0.03 or f[1] > 0.06
                rows.append(
                    [
                        f"3 to 6 % of tokens are clipped ({task})",
                        "share at eps_w 0.2 while lambda > 0",
                        text(f),
                        str(len(runs)),
                        "holds" if inside else "does not hold" if outside else "undecided at this scale",
                    ]
                )
        theirs, mine = study.pairs("addition", "grpo", "rlsd", 256, seconds)
        f = ratio_interval(mine, theirs)
        rows.append(
            [
                "One extra forward pass",
                "seconds of an update, RLSD / GRPO; one teacher pass by count",
                text(f, 2),
                str(len(mine)),
                "holds" if f[2] < 1.5 else "does not hold",
            ]
        )
    return rows


def credit_claims(probes: Path) -> list[list[str]]:
    path = probes / "addition.json"
    if not path.exists():
        return []
    rows = []
    for kind, words in (("right", "the carries that were remembered"), ("wrong", "the first wrong token")):
        s = json.loads(path.read_text())["shares"][kind]
        rows.append(
            [
                f"Credit sits on the deciding tokens ({kind} samples)",
                f"share of the weight moved that lies on {words}, against {s['uniform']:.3f} of the tokens; "
                f"on the first token, where the teacher would cite: {s['moved first']:.3f}",
                f"{s['moved deciding']:.3f}",
                f"{s['samples']} samples",
                "holds" if s["moved deciding"] > 3 * s["uniform"] else "does not hold",
            ]
        )
    return rows


# ---- figures ---------------------------------------------------------------------------------------------------------


def curves_figure(study: Study, out: Path) -> None:
    """Main comparison: pass@1, leakage, entropy, clip share, mean and 95 % interval over seeds."""
    methods = [m for t, m, s in study.cells if (t, s) == ("addition", 256)]
    panels = (
        ("pass@1", "held-out pass@1"),
        ("leakage", "leakage"),
        ("entropy", "entropy, nats a token"),
        ("clipped", "share of tokens at the evidence clip"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    for i, method in enumerate(methods):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
        for axis, (name, title) in zip(axes.flat, panels):
            by_step = defaultdict(list)
            for run in study.cells["addition", method, 256].values():
                for row in run["curve"]:
                    row = {
                        **row,
                        **({"clipped": row["clipped_low"] + row["clipped_high"]} if row.get("lambda") else {}),
                    }
                    if name in row:
                        by_step[row["step"]].append(row[name])
            if not by_step:
                continue
            steps = sorted(by_step)
            figures = np.array([interval(by_step[s]) for s in steps])
            axis.plot(steps, figures[:, 0], label=f"{method} ({len(by_step[steps[0]])} seeds)", **look)
            axis.fill_between(steps, figures[:, 1], figures[:, 2], alpha=0.15, color=look["color"], linewidth=0)
            axis.set(title=title, xlabel="updates of 256 samples (about 9,000 tokens)", ylim=(0, None))
            axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def credit_figure(samples: Path, out: Path) -> None:
    """Token credit of one right and one wrong sample of a group, from a run's samples.jsonl."""
    rows = [json.loads(line) for line in samples.read_text().splitlines()][:2]
    figure, axes = plt.subplots(2, 1, figsize=(11, 5), constrained_layout=True)
    for axis, row in zip(axes, rows):
        positions = range(len(row["tokens"]))
        plain = float(np.median(row["credit"]))
        axis.bar(positions, [c - plain for c in row["credit"]], bottom=plain, color=COLOURS[0 if row["reward"] else 1])
        axis.axhline(plain, color="black", linewidth=0.8)
        axis.set_xticks(
            positions, [repr(t)[1:-1] for t in row["tokens"]], fontsize=8, rotation=90 if len(row["tokens"]) > 60 else 0
        )
        axis.set_title(
            f"{row['question']}: {'right' if row['reward'] else 'wrong'}; credit of each token (line: median token)",
            fontsize=10,
        )
    figure.savefig(out, dpi=100)
    plt.close(figure)


def write(runs: list[dict], out: Path) -> Path:
    """report.md and its figures from the runs that are there; what is missing is left out, not guessed."""
    study, probes = Study(runs), Path(__file__).parent / "results" / "probe"
    out.mkdir(parents=True, exist_ok=True)
    curves_figure(study, out / "study.png")
    credit_figure(Path(__file__).parent / "results" / "make_train" / "rlsd_samples.jsonl", out / "credit.png")
    claimed = table(["claim", "measured", "figure [95 % interval]", "seeds", "verdict"], claims(study, probes))
    (out / "report.md").write_text(
        "\n".join(
            [
                "# The paper's claims, measured at this scale\n",
                f"{len(runs)} runs; made by `python reproduce.py --report` from the committed runs. A two-layer "
                "transformer of 115 thousand parameters; half of the teacher's warm-start examples cite the reference "
                "first, the student's never do. Intervals: bootstrap over seeds, 10,000 draws, differences paired by "
                "seed. Warm starts: two for `addition`, one for each other task, shared by the seeds.\n",
                claimed,
                "![curves](study.png)\n",
                "![credit](credit.png)\n",
                "## Every cell\n",
                outcome_table(study),
                "## Speed\n",
                "Updates until 90 % of GRPO's mean final pass@1; above 1 the method is faster than GRPO. A run that "
                "never gets there counts with its whole length.\n",
                speed_table(study),
                "## Probe: one policy, many batches\n",
                probe_tables(probes),
                "## Learning rates\n",
                "Chosen on seeds 100 and 101, which nothing else uses, by final pass@1.\n",
                tuning_table(study),
            ]
        )
    )
    return out / "report.md"
