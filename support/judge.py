"""From completions to rewards: runs the verifier, and believes nothing but a float from 0 to 1."""

import contextlib
import math
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from torch import Tensor, zeros_like

import tasks
from config import Config
from model import Samples
from rlsd import group_advantages
from support import files, processes
from support.child import Worker
from support.errors import UserError, one_line
from verifiers import Failed, Verifier, reward_of

told: set[str] = set()  # the runs of which this process has told a failure


def verify(verifier: Verifier, samples: Samples, problems: list[tasks.Problem], config: Config) -> list[float]:
    """A reward in [0, 1] for each sample; nan where the verifier failed and --on_verifier_error lets the run go on."""
    ask = partial(verifier, seconds=config.verifier_timeout) if isinstance(verifier, Worker) else verifier
    rewards = []
    for tokens, problem in zip(samples.completions(), problems):
        completion = tasks.decode(tokens)
        try:
            rewards.append(reward_of(ask(completion, problem.answer)))
        except KeyboardInterrupt:  # a second Ctrl-C
            raise
        except BaseException as error:  # not all that other packages raise is an Exception
            report(error, completion, problem, config)
            rewards.append(math.nan)
    return rewards


def report(error: BaseException, completion: str, problem: tasks.Problem, config: Config) -> None:
    """Stop the run with one line, or name this process's first failure and go on; more is in verifier_error.txt."""
    stop = config.on_verifier_error == "stop"
    if not stop and config.out in told:
        return
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


# ---- what becomes of samples without a reward ------------------------------------------------------------------------


def settle(rewards: Tensor, samples: Samples, config: Config) -> tuple[Tensor, Samples]:
    """Rewards (N,), a failed sample's nan made 0 (zero), or left, its tokens masked out of every mean (drop)."""
    if config.on_verifier_error == "zero":
        return rewards.nan_to_num(0.0), samples
    return rewards, replace(samples, mask=samples.mask & ~rewards.isnan()[:, None])


def advantages_of(rewards: Tensor, group_size: int) -> Tensor:
    """`group_advantages`; a dropped sample (nan) gets 0, and its group is standardised without it."""
    kept = ~rewards.isnan()
    if kept.all():
        return group_advantages(rewards, group_size)
    advantages = zeros_like(rewards)
    for group in range(0, len(rewards), group_size):
        rest = kept[group : group + group_size].nonzero().squeeze(1) + group
        if len(rest):
            advantages[rest] = group_advantages(rewards[rest], len(rest))
    return advantages


def mean_reward(rewards: list[float], config: Config) -> float:
    """Over held-out problems; a failed one counts 0 (zero) or not at all (drop; nan if that leaves none)."""
    zero = config.on_verifier_error == "zero"
    kept = [0.0 if math.isnan(reward) else reward for reward in rewards if zero or not math.isnan(reward)]
    return fmean(kept) if kept else math.nan
