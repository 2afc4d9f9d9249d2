"""When numbers fail, or nothing moves: the losses of updates that are not made."""

import math

from torch import Tensor

from rlsd import rlsd_loss
from support.processes import total


def nan_loss(mask: Tensor, logps: Tensor, *others: Tensor | None) -> Tensor:
    """nan, and so is its gradient, where log-probabilities on tokens are not finite; else the error that is handled."""
    if all(x[mask].isfinite().all() for x in (logps, *others) if x is not None):
        raise  # noqa: PLE0704
    return logps.sum() * math.nan


def nothing_moves(batch, tokens: Tensor) -> dict[str, float]:
    """The metrics of a batch without a moving sample: loss 0, or nan where its log-probabilities are not finite."""
    samples = batch.samples
    try:
        loss, metrics = rlsd_loss(samples.logps, samples.logps, None, batch.advantages, samples.mask, lam=0.0)
    except ValueError:
        loss, metrics = nan_loss(samples.mask, samples.logps), {}
    return (metrics if tokens else {}) | {"loss": total((0 * loss).abs()).item(), "grad_norm": 0.0}
