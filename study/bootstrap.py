"""Means and ratios over seeds, policies or batches with their bootstrap intervals and verdicts. numpy alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

DRAWS = 10_000  # of the bootstrap
FEWEST = 5  # seeds under which no verdict is given: the bootstrap's intervals are too narrow there


@dataclass
class Estimate:
    """A figure with its 95 % interval over n seeds."""

    value: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 3) -> str:
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]" if self.n else "-"

    def verdict(self, mark: float, margin: float = 0.0) -> str:
        if self.n >= FEWEST and self.low > mark:
            return "holds"
        return "does not hold" if self.n >= FEWEST and self.high <= mark + margin else "undecided"

    def below(self, mark: float) -> str:
        return Estimate(-self.value, -self.high, -self.low, self.n).verdict(-mark)


def bootstrap(figure: Callable, *columns: Iterable[float]) -> Estimate:
    """A figure of the columns' means with its interval; rows where one is missing (NaN) are left out, not counted."""
    table = np.array([list(column) for column in columns], dtype=float)
    table = table[:, np.isfinite(table).all(axis=0)]
    n = table.shape[1]
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    draws = figure(*table[:, np.random.default_rng(0).integers(n, size=(DRAWS, n))].mean(axis=2))
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return Estimate(float(figure(*table.mean(axis=1))), low, high, n)


def mean(values: Iterable[float]) -> Estimate:
    """Mean over seeds."""
    return bootstrap(np.asarray, values)


def ratio(above: list[float], below: list[float]) -> Estimate:
    """Ratio of the means of figures paired by seed."""
    return bootstrap(np.divide, above, below)


def samples_worth(values: list[float], grpo: list[float]) -> Estimate:
    """Squared ratio of the mean cosines, its sign kept, over batches or policies, paired."""

    def signed(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        ratio = mine / np.where(theirs == 0, np.nan, theirs)
        return np.nan_to_num(np.sign(ratio) * ratio**2)  # a direction that leads away is worth less than nothing

    return bootstrap(signed, values, grpo)


def families(probes: list[dict]) -> dict[str, list[dict]]:
    """Probes of the same kind, of one policy each: their names differ in the last number."""
    found = defaultdict(list)
    for probe in probes:
        found[probe["name"].rpartition("-")[0]].append(probe)
    return found


def worth(family: list[dict], weighting: str, kind: str) -> Estimate:
    """How many times GRPO's samples a weighting's gradient is worth: over policies, or over the batches of one.

    Of the mean cosines over all policies, since one policy's few batches may leave GRPO's close to 0.
    """
    if len(family) == 1:
        return replace(samples_worth(family[0][kind][weighting], family[0][kind]["GRPO"]), n=1)
    return samples_worth(*([float(np.mean(probe[kind][name])) for probe in family] for name in (weighting, "GRPO")))
