"""When a verifier fails: what is told of it, and what becomes of samples without a reward."""

import contextlib
import math
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from torch import Tensor, zeros_like

import tasks
from config import Config
from model import Samples
from rlsd import group_advantages
from support import files, processes
from support.errors import UserError, one_line
from verifiers import Failed

told: set[str] = set()  # the runs of which this process has told a failure


def failed(error: BaseException, completion: str, problem: tasks.Problem, config: Config) -> float:
    """nan for the reward; or stop the run with one line. The first failure of a process is told, and kept in a file."""
    stop = config.on_verifier_error == "stop"
    if not stop and config.out in told:
        return math.nan
    text, trace = "".join(traceback.format_exception_only(error)), "".join(traceback.format_exception(error))
    if isinstance(error, Failed):  # in its own words
        text, trace = str(error), error.trace
    where = f"{problem.origin} {problem.question[:60]!r} with the completion {completion[:60]!r}".strip()
    line = one_line(UserError(f"verifier, on {where}: {text[:300]}"))
    more = "\n".join([line, "", trace, "question:", problem.question, "completion:", completion, ""])
    path = Path(config.out) / f"verifier_error{f'-{processes.rank()}' if processes.rank() else ''}.txt"
    with contextlib.suppress(UserError):  # a full disk: the line says enough
        if config.out:  # a run, not a probe
            files.replace(path, lambda to: to.write_text(more, "utf-8", "backslashreplace"))
            line += f" (more in {path})"
    if stop:
        raise UserError(line) from error
    told.add(config.out)
    counted = {"zero": "it counts as reward 0", "drop": "the sample takes no part"}[config.on_verifier_error]
    line += f"; {counted}, and further ones under 'verifier errors'"
    print(one_line(UserError(line)), file=sys.stderr, flush=True)
    return math.nan


def without_failed(rewards: Tensor, samples: Samples, config: Config) -> tuple[Tensor, Samples, Tensor]:
    """Rewards (N,), samples and advantages (N,) where some rewards are nan: 0 instead (zero), or left out (drop).

    A dropped sample's tokens are masked out of every mean, its advantage is 0, and its group standardised without it.
    """
    if config.on_verifier_error == "zero":
        rewards = rewards.nan_to_num(0.0)
        return rewards, samples, group_advantages(rewards, config.group_size)
    kept, advantages = ~rewards.isnan(), zeros_like(rewards)
    for group in range(0, len(rewards), config.group_size):
        rest = kept[group : group + config.group_size].nonzero().squeeze(1) + group
        if len(rest):
            advantages[rest] = group_advantages(rewards[rest], len(rest))
    return rewards, replace(samples, mask=samples.mask & kept[:, None]), advantages
