"""From completions to rewards: runs the verifier, and believes nothing but a float from 0 to 1."""

import contextlib
import math
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from torch import Tensor, zeros_like

import tasks
from config import Config
from errors import UserError
from model import Samples
from rlsd import group_advantages
from verifiers import Verifier

LETS_NOTHING_THROUGH = 5  # alarms, a second apart, that a verifier may swallow


class NoReward(Exception):
    """The verifier came to an end, but not to a float from 0 to 1."""


class Overtime(BaseException):
    """--verifier_timeout has passed. No Exception: a verifier that lets none through would go on."""


def verify(verifier: Verifier, samples: Samples, problems: list[tasks.Problem], config: Config) -> list[float]:
    """A reward in [0, 1] for each sample; nan where the verifier failed and --on_verifier_error lets the run go on.

    What the verifier prints goes to standard error, so that the lines of the run stay whole.
    """
    rewards = []
    with contextlib.redirect_stdout(sys.stderr):
        for tokens, problem in zip(samples.completions(), problems):
            completion = tasks.decode(tokens)
            try:
                rewards.append(reward_of(timed(verifier, completion, problem.answer, config.verifier_timeout)))
            except KeyboardInterrupt:  # a second Ctrl-C
                raise
            except BaseException as error:  # not all that other packages raise is an Exception
                report(error, completion, problem, config)
                rewards.append(math.nan)
    return rewards


def reward_of(returned) -> float:
    is_bool = isinstance(returned, bool) or "bool" in str(getattr(returned, "dtype", ""))
    if is_bool or isinstance(returned, (str, bytes)) or not hasattr(returned, "__float__"):
        raise NoReward(f"it returned {returned!r:.60}; a float from 0 to 1 is needed")
    if not 0 <= float(returned) <= 1:
        raise NoReward(f"it returned {returned!r:.60}; a float from 0 to 1 is needed")
    return float(returned)


def timed(verifier: Verifier, completion: str, answer: str, seconds: float):
    """What the verifier returns; Overtime after `seconds` on the clock (0: never), as soon as Python runs again."""
    if seconds == 0 or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return verifier(completion, answer)

    left = LETS_NOTHING_THROUGH

    def ring(number, frame):
        nonlocal left
        left -= 1
        if left == 0:
            print(
                f"verifier, on the reference answer {answer[:60]!a}: it goes on after --verifier_timeout {seconds:g} "
                "seconds, whatever is raised in it; --resume goes on from the last checkpoint",
                file=sys.__stderr__,
                flush=True,
            )
            os._exit(2)
        raise Overtime(f"it took longer than --verifier_timeout {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and every second, should it swallow the first
            return verifier(completion, answer)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # once more: it may ring while the line above begins
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def report(error: BaseException, completion: str, problem: tasks.Problem, config: Config) -> None:
    """Stop the run with one line, or name its first failure and go on; with its traceback in verifier_error.txt."""
    text = str(error) if isinstance(error, NoReward | Overtime) else "".join(traceback.format_exception_only(error))
    trace = [] if isinstance(error, NoReward) else traceback.format_exception(error)
    where = f"{problem.origin} {problem.question[:60]!r} with the completion {completion[:60]!r}".strip()
    line = f"verifier, on {where}: {' '.join(text.split())}".encode(errors="backslashreplace").decode()
    stop, first = config.on_verifier_error == "stop", True
    path = Path(config.out) / "verifier_error.txt"
    try:
        if config.out:  # a run, not a probe
            with open(path, "w" if stop else "x", encoding="utf-8", errors="backslashreplace") as file:
                told = [line, "", "".join(trace), "question:", problem.question, "completion:", completion, ""]
                file.write("\n".join(told))
            line += f" (more in {path})"
    except FileExistsError:
        first = False
    except OSError:  # a full disk: the line says enough
        pass
    if stop:
        raise UserError(line) from error
    if first:
        counted = {"zero": "it counts as reward 0", "drop": "the sample takes no part"}[config.on_verifier_error]
        print(f"{line}; {counted}, and further ones under 'verifier errors'", file=sys.stderr, flush=True)


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
    kept = [reward for reward in rewards if not math.isnan(reward)]
    if config.on_verifier_error == "zero":
        kept += [0.0] * (len(rewards) - len(kept))
    return fmean(kept) if kept else math.nan
