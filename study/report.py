"""The study's report: tables, claims with their verdicts, and what stands around them; called by reproduce.py."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from study import headroom_report, scores
from study.bootstrap import FEWEST, Estimate, families, mean, ratio, worth
from study.figures import credit_figure, curves_figure
from study.first_page import first_page
from study.plan import NEAREST
from study.scores import Study, area, final, leakage, leaked, seconds, start

MARGIN = 0.02  # of pass@1: a smaller difference is taken as none
LEAKS = 0.01  # share of completions from which a method is said to leak
WIDE_WEIGHTS = "RLSD, eps_w 4, lambda 1"  # of probe.WEIGHTINGS
RULES = f"""
Verdicts: *holds* where the whole interval satisfies "holds if"; *does not hold* where the whole interval lies at
that mark or on its other side; for leads in pass@1 (RLSD ends above, leads; OPSD stays behind) at or below mark +
{MARGIN}, as under two points count as none; else, or under {FEWEST} seeds, *undecided*. The rule is lopsided: a lead of
less than two points holds where its whole interval lies above 0. Credit's mark is the share of the tokens that it
falls on; the *weight moved* is the sum of |clip(w) - 1| over a sample's tokens, eps_w 0.2. Leakage's intervals reach
3 / (held-out problems) at least: that is the 95 % bound where no completion cites, as all seeds share the problems. A
run that never reaches the target of a speed is counted at its last update. The rewards between which entropy is
compared on countdown were chosen after the runs had been seen. Bootstrap intervals of 95 % are narrower than they say
with few seeds (simulated on normal data: 10 seeds cover 90 %, 5 seeds 81 %), and they are given the one or two warm
starts and the held-out problems that all runs of a task share."""


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(header: str, rows: list[list[str]]) -> str:
    """In Markdown; the header's cells are given with | in between."""
    cells = header.split(" | ")
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells, ["---"] * len(cells), *rows]) + "\n"


def cell_table(study: Study) -> str:
    """Every cell: accuracy, leakage, gain over GRPO, speed against GRPO."""
    header = "task | method | samples an update | seed range | seeds | start | final pass@1 | leakage at the end | "
    header += "final minus GRPO | mean over the run minus GRPO | GRPO's updates / its own"
    rows = []
    for (task, method, samples, fresh), runs in sorted(study.cells.items()):
        against = (task, method, "grpo", samples, fresh)
        is_grpo = method.startswith("grpo") and method != "grpo+opsd"
        speed = None if is_grpo else study.speed(task, method, samples, fresh)
        gains = ["", ""] if is_grpo else [study.gain(figure, *against).text() for figure in (final, area)]
        figures = [f"{np.mean(list(map(start, runs))):.3f}", mean(map(final, runs)).text()]
        figures += [leaked(runs).text(4), *gains, f"{speed[0].text(2)}, {speed[1]} never" if speed else ""]
        rows.append([task, method, str(samples), "10-19" if fresh else "0-9", str(len(runs)), *figures])
    return table(header, rows)


def cost_table(costs: dict) -> str:
    """What an update costs beside GRPO's, on the same samples (cost.py)."""
    if not costs:
        return "Not measured.\n"
    rows, grpo = [], costs["methods"]["grpo"]
    for method, of in costs["methods"].items():
        spread = [one / two for one, two in zip(of["seconds"], grpo["seconds"])]
        times = f"{np.median(spread):.2f} [{min(spread):.2f}, {max(spread):.2f}]"
        more = np.median(of["peak MiB"]) - np.median(grpo["peak MiB"])
        rows.append([method, str(of["scorings"]), times, f"{more:.0f}"])
    header = "method | forward passes over the samples | processor seconds / GRPO's | peak memory above GRPO's, MiB"
    return table(header, rows)


def by_warm_start(study: Study) -> str:
    """The main comparison apart for the two warm starts, which even and odd seeds begin from."""
    rows = []
    for method in ("grpo", "rlsd", "opsd"):
        halves = [[final(run) for run in study.runs("addition", method) if run["seed"] % 2 == odd] for odd in (0, 1)]
        rows.append([method, *(mean(half).text() for half in halves)])
    return table("method | even seeds | odd seeds", rows)


def tuning_table(study: Study) -> str:
    cells = defaultdict(list)
    for run in study.tuning:
        cells[run["task"], run["samples"], run["method"], float(run["lr"])].append(run)
    rows = []
    for (task, n, m, lr), runs in sorted(cells.items()):
        digits = {final: 3, area: 3, leakage: 4}
        figures = [f"{np.mean([figure(r) for r in runs]):.{d}f}" for figure, d in digits.items()]
        rows.append([task, str(n), m, f"{lr:g}", *figures, str(len(runs))])
    header = "task | samples an update | method | learning rate | final pass@1 | mean over the run | leakage at the end"
    return table(f"{header} | seeds", rows)


def probe_tables(probes: list[dict]) -> str:
    parts = []
    for name, family in families(probes).items():
        batches = sum(len(probe["cosines"]["GRPO"]) for probe in family)
        means = [np.mean([probe[key] for probe in family]) for key in ("pass@1", "teacher pass@1")]
        parts.append(
            f"**{name}**: {len(family)} {'policies' if len(family) > 1 else 'policy'}, {batches} batches of "
            f"{family[0]['samples']} samples in all; pass@1 {means[0]:.3f}, teacher {means[1]:.3f}\n"
        )
        rows = []
        for label in family[0]["cosines"]:
            cosine = np.mean([np.mean(probe["cosines"][label]) for probe in family])
            rows.append([label, f"{cosine:.3f}", *(worth(family, label, kind).text(2) for kind in ("cosines", "adam"))])
        header = "weighting of the same samples | cosine | samples worth, gradient | samples worth, Adam's step"
        parts.append(table(header, rows))
    return "\n".join(parts) or "Not run.\n"


# ---- claims ----------------------------------------------------------------------------------------------------------


# The lead on fresh seeds of countdown was at another learning rate than GRPO's: both at either rate.
SWAPPED: tuple[tuple[Any, ...], ...] = (  # where, task, method, other, samples, fresh
    ("at GRPO's learning rate (countdown, fresh seeds)", "countdown", "rlsd-swapped", "grpo", 256, True),
    ("at its own learning rate (countdown, fresh seeds)", "countdown", "rlsd", "grpo-swapped", 256, True),
)
CONTRASTIVE = ("with contrastive evidence at eps_w 4 (addition)", "addition", NEAREST, "grpo-swapped", 256, False)


def row(
    claim: str, measured: str, figure: Estimate, verdict: str, digits: int = 3, unit: str = "", mark: str = "> 0"
) -> list[str]:
    """Cells of a claim; mark: what its interval has to satisfy for it to hold."""
    return [claim, measured, figure.text(digits), mark, f"{figure.n}{unit}", verdict]


def outcome_claims(study: Study) -> list[list[str]]:
    rows = []
    for task in ("addition-3", "addition", "addition-6", "countdown"):
        rows += pays(study, f"({task})", task, "rlsd")
    for task in ("countdown", "addition-filler"):
        rows += pays(study, f"({task}, 32 samples)", task, "rlsd", 32)[:1]
    gain, whole = (study.gain(figure, "addition", "rlsd", "opd") for figure in (final, area))
    cost = ratio(*study.pairs(seconds, "addition", "opd", "rlsd"))
    measured = f"RLSD's final pass@1 minus OPD's (over the whole run: {whole.text()}); "
    measured += f"OPD takes {cost.text(2)} of RLSD's seconds an update"
    rows.append(row("No larger teacher needed by the end", measured, gain, gain.verdict(-MARGIN), mark=f"> -{MARGIN}"))
    best = best_cell(study)
    speed = best and study.speed(*best, True)
    if best and speed:
        (task, method, samples), (figure, never, target) = best, speed
        measured = f"best cell of seeds 0 to 2 on fresh seeds ({method}, {task}, {samples} samples): "
        measured += f"GRPO's updates / its own, to pass@1 {target:.2f}; {never} never"
        claim = "RLSD pays somewhere: 1.5 times fewer updates"
        rows.append(row(claim, measured, figure, clear(figure.verdict(1.5), never), 2, mark="> 1.5"))
        rows += pays(study, f"({method}, {task}, {samples} samples, fresh seeds)", task, method, samples, True)[:1]
    speed = study.speed("addition", "opd")
    if speed:
        figure, never, target = speed
        measured = f"GRPO's updates / its own, to pass@1 {target:.2f}; {never} never; its teacher is twice its size"
        claim = "OPD takes 1.5 times fewer updates than GRPO (addition)"
        rows.append(row(claim, measured, figure, clear(figure.verdict(1.5), never), 2, mark="> 1.5"))
    for where, *cell in (*SWAPPED, CONTRASTIVE):
        lead, end = (study.gain(figure, *cell) for figure in (area, final))
        measured = f"paired difference of pass@1 over the whole run, both at the same rate (final: {end.text()})"
        rows.append(row(f"RLSD leads {where}", measured, lead, lead.verdict(0.0, MARGIN)))
    return rows


def pays(study: Study, where: str, task: str, method: str, *cell) -> list[list[str]]:
    """Two claims of a cell: it ends above GRPO, in half the updates."""
    gain, speed = study.gain(final, task, method, "grpo", *cell), study.speed(task, method, *cell)
    claim, measured = f"RLSD ends above GRPO {where}", "paired difference of final pass@1"
    rows = [row(claim, measured, gain, gain.verdict(0.0, MARGIN))]
    if speed:
        figure, never, target = speed
        measured = f"GRPO's updates / RLSD's, to pass@1 {target:.2f}; {never} never"
        rows.append(
            row(f"... in half the updates {where}", measured, figure, clear(figure.verdict(2.0), never), 2, mark="> 2")
        )
    return rows


def both(*verdicts: str) -> str:
    """Of a claim with two marks."""
    return next((v for v in ("does not hold", "undecided") if v in verdicts), "holds")


def clear(verdict: str, never: int) -> str:
    """A gain in speed is not clear where a run never got there."""
    return "undecided" if never and verdict == "holds" else verdict


def best_cell(study: Study) -> tuple[str, str, int] | None:
    """Of the cells with fresh seeds, the one that led GRPO by most over its whole run on the first seeds."""
    gains = {}
    for task, method, samples, fresh in study.cells:
        if fresh and method != "grpo" and study.speed(task, method, samples, True):
            gains[task, method, samples] = study.gain(area, task, method, "grpo", samples)
    return max((cell for cell in gains if gains[cell].n), key=lambda cell: gains[cell].value, default=None)


def leakage_claims(study: Study) -> list[list[str]]:
    rows = []
    for task in ("addition", "countdown"):
        runs = study.runs(task, "opsd")
        if len(runs) > 1:
            rise, fall = scores.peak_and_fall(runs)
            measured = f"fall from its peak (rise to it: {rise.text()})"
            verdict = both(rise.verdict(MARGIN), fall.verdict(MARGIN))
            rows.append(row(f"OPSD rises first, then falls ({task})", measured, fall, verdict, mark=f"both > {MARGIN}"))
    shown = "completions that cite a reference never shown, at the end"
    for task, method in (("addition", "opsd"), ("countdown", "opsd"), ("addition", "sdpo")):
        leak = leaked(study.runs(task, method))
        if leak.n:
            digits = 3 if leak.value > LEAKS else 4  # those of a bound
            rows.append(
                row(f"{method.upper()} leaks ({task})", shown, leak, leak.verdict(LEAKS), digits, mark=f"> {LEAKS}")
            )
    gap = study.gain(final, "addition", "opd", "opsd")
    if gap.n:
        measured = "OPD's final pass@1 minus OPSD's"
        rows.append(row("OPSD stays behind OPD", measured, gap, gap.verdict(0.0, MARGIN)))
    for task in ("addition", "countdown"):
        leak = leaked(study.runs(task, "rlsd"))
        if leak.n:
            rows.append(
                row(f"RLSD does not leak ({task})", "the same share", leak, leak.below(LEAKS), 4, mark=f"< {LEAKS}")
            )
    return rows


def dynamics_claims(study: Study) -> list[list[str]]:
    rows = []
    for where, *cell in (("(addition)", "addition", "rlsd", "grpo"), *SWAPPED):
        figures = (scores.entropy_while_learning, scores.mean_entropy)
        entropy, whole = (study.gain(figure, *cell) for figure in figures)
        low, high = scores.LEARNING[cell[0]]
        measured = f"paired difference at rewards {low} to {high}, nats a token, both at the same rate"
        measured += f" (over the whole run: {whole.text(4)})"
        rows.append(row(f"Higher entropy than GRPO {where}", measured, entropy, entropy.verdict(0.0), 4))
    for task in ("addition", "countdown"):
        runs = study.runs(task, "rlsd")
        share, carrying = (mean(scores.clip_share(run, of_all) for run in runs) for of_all in (True, False))
        verdict = both(share.verdict(0.03), share.below(0.06))  # as a part of the interval lies outside, in it, or all
        measured = f"share of all tokens at eps_w 0.2 while lambda > 0 (of those with an advantage: {carrying.text()})"
        rows.append(row(f"3 to 6 % of all tokens are clipped ({task})", measured, share, verdict, mark="0.03 to 0.06"))
    return rows


def cost_claims(study: Study, costs: dict) -> list[list[str]]:
    """The paper's one extra forward pass: counted, and what it takes."""
    figure = ratio(*study.pairs(seconds, "addition", "rlsd", "grpo"))
    counted = ""
    if costs:
        passes = {m: costs["methods"][m]["scorings"] for m in ("grpo", "rlsd")}
        counted = f"; forward passes over the samples: {passes['rlsd']}, GRPO {passes['grpo']}"
    measured = f"seconds of an update, sampling included, RLSD / GRPO (two processes side by side){counted}"
    return [row("One extra forward pass", measured, figure, figure.below(1.5), 2, mark="< 1.5")]


def credit_claims(probes: list[dict]) -> list[list[str]]:
    """What the probes say: where the weight falls, and what it is worth early and late in training."""
    found, rows = families(probes), []
    kinds = {"right": "results that a carry enters", "wrong": "the first wrong token"}
    for kind, words in kinds.items() if "addition" in found else ():
        shares = [probe["shares"][kind] for probe in found["addition"]]
        share = {name: mean(s[name] for s in shares) for name in shares[0]}
        more = mean(s["moved deciding"] - s["uniform"] for s in shares)
        measured = f"share of the weight moved on {words}, {share['uniform'].value:.3f} of the tokens "
        measured += f"(of |Delta|: {share['|Delta| deciding'].text()}); on the first token, where the teacher would "
        measured += f"cite: {share['moved first'].text()} (of |Delta|: {share['|Delta| first'].text()})"
        claim = f"Credit sits on the deciding tokens ({kind} samples)"
        mark = f"> {share['uniform'].value:.3f}"
        rows.append(row(claim, measured, share["moved deciding"], more.verdict(0.0), unit=" policies", mark=mark))
    measured = "samples that GRPO needs for the same first-order gain of Adam's step, "
    measured += "over those of RLSD at eps_w 4, lambda 1 (probe)"
    for name, when in (("countdown", "before RL"), ("countdown-after-grpo", "after 60 updates of GRPO")):
        if name in found:
            figure = worth(found[name], WIDE_WEIGHTS, "adam")
            claim = f"Wide weights are worth more samples (countdown, {when})"
            rows.append(row(claim, measured, figure, figure.verdict(1.0), 2, " policies", "> 1"))
    return rows


def headroom_claims(cells: list[dict]) -> list[list[str]]:
    """What token credit could give at most, what it gives, and where its gradient points."""
    found = headroom_report.claims(cells)
    return [row(c, measured, of, of.verdict(mark), 2, " policies", f"> {mark}") for c, measured, of, mark in found]


def write(runs: list[dict], probes: list[dict], cells: list[dict], costs: dict, samples: Path, out: Path) -> Path:
    """report.md and its figures from the runs and probes that are there; what was not run is said, not guessed.

    cells: of headroom.py. costs: of cost.py, or empty. samples: a run's samples.jsonl, whose first pair the figure of
    token credit shows.
    """
    study = Study(runs)
    claims = outcome_claims(study) + leakage_claims(study) + dynamics_claims(study)
    claims += cost_claims(study, costs) + credit_claims(probes) + headroom_claims(cells)
    out.mkdir(parents=True, exist_ok=True)
    curves_figure(study, out / "study.png", "addition")
    curves_figure(study, out / "countdown.png", "countdown")
    credit_figure(samples, out / "credit.png")
    parts = [
        "# The paper's claims, measured at this scale",
        first_page(claims),
        f"{len(runs)} runs; `python reproduce.py --report` makes this page again from them.{RULES}",
        table("claim | measured | figure [95 % interval] | holds if | seeds | verdict", claims),
        "![curves of the main comparison](study.png)",
        "![curves on countdown](countdown.png)" if study.runs("countdown", "grpo") else "",
        "Credit of a right and a wrong sample, at the first evaluation of a run of RLSD:",
        "![credit](credit.png)",
        "The same question asked of a language model has a page of its own: [language.md](language.md).",
        "## Every cell",
        cell_table(study),
        "Final pass@1 on addition by warm start, of which even and odd seeds have one each:",
        by_warm_start(study),
        "## What an update costs",
        ABOUT_COSTS,
        cost_table(costs),
        "## Probe: few policies, many batches (of `results/probe`)",
        ABOUT_PROBES,
        probe_tables(probes),
        headroom_report.section(cells, out) or NO_HEADROOM,
        "## Learning rates",
        ABOUT_RATES,
        tuning_table(study),
        LIMITS,
    ]
    (out / "report.md").write_text("\n\n".join(part.strip("\n") for part in parts if part) + "\n")
    return out / "report.md"


ABOUT_COSTS = """
Updates on one batch of 256 samples, sampling aside, `python -m study.cost`: processor seconds in one thread beside
GRPO's in the same round (median and range of five), and peak memory of the process. OPD needs a teacher of its
own and is not listed."""
ABOUT_PROBES = """
Cosine of one batch's gradient with the mean GRPO gradient of the other batches; squared and over GRPO's it is a
ratio of samples, where noise rules (small cosines) and the expected direction is GRPO's. The last column takes
the step that Adam makes of the gradient (each coordinate over the root of its mean square) in its place."""
NO_HEADROOM = """## Headroom: what would perfect evidence give?

Not run yet, nor what others propose (`study/variants.py`): `python -m study.headroom --jobs 2`, and this page again."""
ABOUT_RATES = """
By final pass@1, on seeds 100 and 101 and a warm start of their own. Methods that are not listed take the rate
of RLSD (its variants that of rlsd-wide where it is listed) or OPSD (SDPO, OPD), other tasks those of addition
(256 samples) or countdown (32)."""
LIMITS = """## What this study is, and is not

A two-layer transformer of 115 thousand parameters, 60 updates of 256 samples, or 240 of 32. What the tables do
not list has not been run. Half of the teacher's warm-start examples cite the reference first, three in ten are
shown a worked solution; each of them leads to the reference it is shown, slips included, so that P_T / P_S is
evidence for that reference (Thm 4) and not a mode. RLSD: r = the final answer, lambda 0.5 to 0 over the first
50 updates (the paper: 50 of 200). OPSD: r = the worked solution. SDPO: on addition a right sample has one
derivation, so another right sample shows little new; countdown is its fairer test. OPD: a teacher of twice the
size, taught without slips. Rates: OPSD's on countdown and SDPO's are the lowest
of their grids: larger steps end lower, some of them citing. The grid is thinned to countdown, three seeds a cell:
eps_w 0.9, 4 and 20 and agreement go with a constant lambda of 1; solution, frozen and live with eps_w 0.9;
constant and contrastive are the paper's with one change (constant at the rate of rlsd-wide). The two warm
starts of addition make two OPSDs, so its intervals are those of a mixture. Cells of 32 samples have three
seeds. Probes: five warm starts of their own, and the first five GRPO runs on countdown."""
