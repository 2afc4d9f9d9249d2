"""Tables and figures of headroom.py's cells, called by report.py: what is worth how much, and whether by bias or noise.

A family is the rows of one regime, before or after RL: a policy each. Intervals are over policies.
"""

from pathlib import Path

import numpy as np

from study.bootstrap import FEWEST, Estimate, bootstrap, families, ratio, samples_worth
from study.figures import bias_figure, headroom_figure
from study.headroom import cells
from study.plan import NEAREST

GRPO, WIDE = "GRPO", "RLSD, eps_w 4"  # of split.py
FEW, MANY, RUN = "32", "256", 60 * 256  # samples: of a batch, of a large one, of 60 updates
BOUND = (1.1 / 0.9) ** 2  # docs/derivation.md, section 4
PAYS = 1.2  # samples worth from which a proposal gets runs
AFTER = "-after-grpo"
ORACLES = ("oracle, 1 or 0", "oracle, 0 on free wording", "oracle in [0.9, 1.1]")
USUAL = ("RLSD (paper)", WIDE, "agreement", "OPSD")
READINGS = ("centred", "contrastive", "own answer", "inverse on right", "bounded credit", "residual credit")
PROPOSED = (*READINGS, "without style", "GRPO + without style", "GRPO + 0.3 without style")
SUSPECTS = {  # suspect: what it is taken away by, all else as in WIDE
    "the reference is one answer of several": ("own answer", "eps_w 4, not on other answers"),
    "style": ("contrastive", "centred", "first token left out"),
    "the teacher's drift, with what RL changed": ("teacher from before RL",),
    "few tokens carry everything": ("RLSD, eps_w 0.9",),
    "right samples": ("eps_w 4 on wrong samples alone",),
    "wrong samples": ("eps_w 4 on right samples alone",),
}
TAKEN = tuple(name for names in SUSPECTS.values() for name in names)
SPLIT = tuple(dict.fromkeys((*USUAL, "RLSD, eps_w 20", *TAKEN, *PROPOSED)))
DRAWN = (GRPO, *USUAL, "contrastive", "own answer", "bounded credit", "without style")
KINDS = {"right": "right", "reference": "right, the reference's", "other": "right, another one", "wrong": "wrong"}
NONE = Estimate(np.nan, np.nan, np.nan, 0)


# ---- figures of a family ---------------------------------------------------------------------------------------------


def values(family: list[dict], name: str, key: str, kind: str = "all", samples: str = FEW) -> list[float]:
    """One of split.py's figures, a policy each; NaN where a policy lacks it."""
    return [row["figures"].get(samples, {}).get(name, {}).get(kind, {}).get(key, np.nan) for row in family]


def signals(family: list[dict], name: str, kind: str) -> tuple[list[float], list[float], list[float]]:
    """Gains of a weighting, its signals and GRPO's."""
    gains, mine = (values(family, name, key, kind) for key in ("gain", "signal"))
    return gains, mine, values(family, GRPO, "signal", kind)


def worth(family: list[dict], name: str, samples: str = FEW, key: str = "gain") -> Estimate:
    """How many times GRPO's samples a weighting is worth, by the gradient or (key adam) by Adam's step."""
    return samples_worth(*(values(family, of, key, "all", samples) for of in (name, GRPO)))


def cosine(family: list[dict], name: str, kind: str = "all") -> Estimate:
    """Of the mean gradient with GRPO's, corrected for noise, so that it may pass 1 by chance; 1 without a bias."""

    def angle(gain, mine, theirs):
        return gain / np.sqrt(np.where((mine > 0) & (theirs > 0), mine * theirs, np.nan))

    found = bootstrap(angle, *signals(family, name, kind))
    return found if np.isfinite([found.value, found.low, found.high]).all() else NONE  # noise has hidden a mean


def noise(family: list[dict], name: str, kind: str = "all") -> Estimate:
    """Share of the signal in E|g|^2, over GRPO's: above 1 where a weighting has less noise."""
    return ratio(*(values(family, of, "signal", kind) for of in (name, GRPO)))


def worth_of_run(family: list[dict], name: str, kind: str = "all") -> Estimate:
    """Samples worth where all of a run's samples make one batch, by E|g|^2 = |mu|^2 + V / samples: noise has averaged
    out as far as it ever does, bias has not."""

    def figure(gain, mine, theirs):
        mine, theirs = (np.clip(x, 1e-9, None) for x in (mine, theirs))
        of_run = lambda signal: 1 / (1 + int(FEW) / RUN * (1 / signal - 1))
        return np.sign(gain) * gain**2 / (mine * theirs) * of_run(mine) / of_run(theirs)

    return bootstrap(figure, *signals(family, name, kind))


def turned_back(family: list[dict], name: str) -> Estimate:
    """Cosine with GRPO's mean gradient by a change of the wide weights, less that of the wide weights; paired."""

    def figure(mine, mine_signal, wide, wide_signal, grpo):
        cosines = (g / np.sqrt(np.clip(s * grpo, 1e-12, None)) for g, s in ((mine, mine_signal), (wide, wide_signal)))
        return np.subtract(*cosines)

    columns = [values(family, of, key) for of in (name, WIDE) for key in ("gain", "signal")]
    return bootstrap(figure, *columns, values(family, GRPO, "signal"))


def text(of: Estimate, digits: int = 2) -> str:
    """With its interval, where there is one."""
    if not np.isfinite(of.value):
        return "-"
    return of.text(digits) if of.n > 1 else f"{of.value:.{digits}f}"


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown, without the columns that are empty in every row."""
    kept = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    lines = [[line[i] for i in kept] for line in [header, ["---"] * len(header), *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def said(name: str) -> str:
    """A family's name in words."""
    return f"{name.removesuffix(AFTER)}, {'after RL' if name.endswith(AFTER) else 'before'}"


def ordered(found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """First all families before RL, then after it."""
    return {name: found[name] for name in sorted(found, key=lambda name: name.endswith(AFTER))}


def worth_table(found: dict[str, list[dict]], names: tuple[str, ...], samples: str, key: str = "gain") -> str:
    """A regime a line: pass@1, and what every weighting is worth there."""
    rows = []
    for name, family in found.items():
        start = f"{np.mean([row['pass@1'] for row in family]):.2f}"
        rows.append([said(name), start, *(text(worth(family, of, samples, key)) for of in names)])
    return table(["regime", "pass@1", *names], rows)


def split_table(family: list[dict]) -> str:
    """A weighting a line: worth, and of what; then the cosine of the means for each kind of samples alone."""
    kinds = {kind: words for kind, words in KINDS.items() if kind != "reference" or varied(family)}
    rows = []
    for name in SPLIT:
        tokens = [row["concentration"].get(name, np.nan) for row in family]
        line = [worth(family, name), worth_of_run(family, name), cosine(family, name), noise(family, name)]
        line += [cosine(family, name, kind) for kind in kinds]
        share = f"{np.mean(tokens):.3f}" if np.isfinite(tokens).all() else "-"
        rows.append([name, *map(text, line), share])
    header = [
        "weighting",
        "worth",
        f"worth, {RUN:,} samples",
        "cosine",
        "signal's share",
        *(f"cosine, {words}" for words in kinds.values()),
    ]
    return table([*header, "tokens that carry it"], rows)


def varied(family: list[dict]) -> bool:
    """Are there right samples with another answer than the reference's?"""
    return any("other" in row["figures"][FEW][GRPO] for row in family)


def suspect_table(found: dict[str, list[dict]]) -> str:
    """How far taking each suspect away turns the mean gradient of wide weights back to GRPO's, and whether it does."""
    rows = []
    for suspect, names in SUSPECTS.items():
        for name in names:
            more = {of: turned_back(family, name) for of, family in found.items()}
            if any(of.n for of in more.values()):
                rows.append(
                    [suspect, name, *(f"{text(of)}, {of.verdict(0.0)}" if of.n else "-" for of in more.values())]
                )
    return table(["suspect", "taken away by", *map(said, found)], rows)


def paying(found: dict[str, list[dict]], surely: bool = True) -> list[str]:
    """Proposals that are worth PAYS times the samples in some regime, before RL and after it, with their regimes."""
    pays = lambda figure: figure.verdict(PAYS) == "holds" if surely else figure.value >= PAYS
    lines = []
    for name in PROPOSED:
        holds = lambda of: pays(worth(found.get(of, []), name))
        where = [of for of in found if not of.endswith(AFTER) and holds(of) and holds(of + AFTER)]
        lines += [f"{name} ({', '.join(where)})"] if where else []
    return lines


# ---- claims ----------------------------------------------------------------------------------------------------------


def claims(rows: list[dict]) -> list[tuple[str, str, Estimate, float]]:
    """Each claim with what was measured, its figure, and the mark above which its interval has to lie."""
    found, lines = families(rows), []
    samples, angle = f"GRPO's samples / its own, {FEW} a batch", "cosine of the mean gradient with GRPO's"
    for regime in ("addition", "countdown"):
        for name, when in ((regime, "before RL"), (regime + AFTER, "after 60 updates of GRPO")):
            family, where = found.get(name, []), f"({regime}, {when})"
            of = lambda claim, measured, figure, mark: (f"{claim} {where}", measured, figure, mark)
            less = text(worth(family, ORACLES[2]))
            marks = f"{samples}, weights 1 on the tokens that decide, 0 elsewhere (1.1 and 0.9: {less})"
            whole = f"GRPO's samples / its own, {RUN:,} in one batch, eps_w 4"
            lines += [
                of("An oracle's marks are worth 1.2 times the samples", marks, worth(family, ORACLES[0]), PAYS),
                of("The paper's weights are worth more samples", samples, worth(family, "RLSD (paper)"), 1),
                of(
                    "Contrastive at eps_w 4 is worth 1.2 times the samples", samples, worth(family, "contrastive"), PAYS
                ),
                of("Wide weights are worth more over a run's samples", whole, worth_of_run(family, WIDE), 1),
                of("Wide weights point where GRPO does", f"{angle}, eps_w 4", cosine(family, WIDE), 0.9),
                of("Contrastive at eps_w 4 points where GRPO does", angle, cosine(family, "contrastive"), 0.9),
            ]
    return [line for line in lines if line[2].n]


# ---- the section -----------------------------------------------------------------------------------------------------


def section(rows: list[dict], out: Path) -> str:
    """The report's part in Markdown and its two figures; empty without rows."""
    found = ordered(families(rows))
    if not found:
        return ""
    before = [name for name in found if not name.endswith(AFTER)]
    names = (*ORACLES, "RLSD (paper)", WIDE, "OPSD", "GRPO + without style")
    drawn = [name for name in names if any(worth(family, name).n for family in found.values())]
    panels = {
        when: {
            name: {of: worth(found[of + end], name) if of + end in found else NONE for of in before} for name in drawn
        }
        for when, end in (("before RL", ""), ("after 60 updates of GRPO", AFTER))
    }
    headroom_figure(panels, BOUND, out / "headroom.png")
    main = {name: family for name, family in found.items() if name.removesuffix(AFTER) in ("addition", "countdown")}
    pairs = {n: {of: (cosine(f, of), noise(f, of)) for of in DRAWN} for n, f in main.items()}
    shown = {said(n): {k: v for k, v in of.items() if np.isfinite(v[0].value)} for n, of in pairs.items()}
    bias_figure(shown, out / "bias.png")
    policies = {len(family) for family in found.values()}
    few = f"; under {FEWEST} no verdict" if min(policies) < FEWEST else ""
    batches = " or ".join(sorted({str(row["batches"]) for row in rows}))
    extent = f"{len(rows)} of {len(cells())} cells; {min(policies)} policies each{few}"
    parts = [
        "## Headroom: what would perfect evidence give?",
        f"{extent}; batches of {FEW} samples: {batches}.{ABOUT_HEADROOM}",
        "![samples worth](headroom.png)",
        *(part for samples in (FEW, MANY) for part in (f"{samples} samples:", worth_table(found, WORTH, samples))),
        f"By Adam's step, {FEW} samples:",
        worth_table(found, WORTH, FEW, "adam"),
        "## What others propose",
        ABOUT_PROPOSED,
        *(part for samples in (FEW, MANY) for part in (f"{samples} samples:", worth_table(found, PROPOSED, samples))),
        f"Worth {PAYS} times the samples or more, before RL and after it, by the whole interval: "
        f"{'; '.join(paying(found)) or 'none'}. By the figure alone: {'; '.join(paying(found, False)) or 'none'}; "
        f"training runs at {MANY} samples on addition were made of `{NEAREST}`, of no other.",
        "## Bias or noise",
        ABOUT_SPLIT,
        "![bias and noise](bias.png)",
        *(part for name, family in main.items() for part in (f"**{said(name)}**", split_table(family))),
        ABOUT_SUSPECTS,
        suspect_table(main),
    ]
    return "\n\n".join(part.strip("\n") for part in parts)


WORTH = (*ORACLES, *USUAL)
ABOUT_HEADROOM = """
Samples worth: how many times as many samples GRPO needs for a step as good, along GRPO's own mean gradient
(`study/split.py` has the formulas). The oracle knows an addition's right derivation: which token was the first
mistake, which results took a carry along, which letters are free wording. The weights of the paper lie in [0.9, 1.1];
the third column has 1.1 on its marks and 0.9 elsewhere. In that range no weights blind to the verdict are worth more
than 1.49, nor than 1.21 where tokens of noise have no evidence ([the bound](../docs/derivation.md)); RLSD's and the
oracle's look at the verdict, so it is no bound for them, nor are the marks one. A figure is a ratio of means over the
policies, so one with a large gain weighs most, and intervals of five policies are narrower than they say (81 %)."""
ABOUT_PROPOSED = """Readings at eps_w 4, lambda 1; credits as in `study/variants.py`. *Without style* is distillation
towards P_S (P_T+ / P_T-), T- shown a wrong answer of the group, a wrong sample its own; it and OPSD say what to write
instead, and are judged here along GRPO's mean gradient alone."""
ABOUT_SPLIT = """Worth is the product of two figures: the squared cosine of the mean gradient with GRPO's (below 1:
*bias*; corrected for noise, it may pass 1 by chance), and the share of the signal in a batch's squared gradient, over
GRPO's (*noise*: above 1 there is less). Over a run noise averages out and bias does not: the third column takes all
samples of 60 updates as one batch, by E|g|^2 = |mu|^2 + V / samples. The last column is the share of tokens that
carry the push on the logits. Distillation has a mean of its own: leading elsewhere than GRPO is no fault of it as
such."""
ABOUT_SUSPECTS = """By how much the cosine of the mean gradient of wide weights (eps_w 4, lambda 1) with GRPO's grows
when one suspect is taken away, paired by policy; it *holds* where the interval lies above 0."""
