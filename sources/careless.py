"""The built-in tasks worked with a beginner's mistakes: what the warm start shows the student."""

import random
from collections.abc import Callable
from functools import partial

import tasks
from config import Config
from tasks import Problem

Careless = Callable[[Problem, random.Random, float], Problem]


def careless(config: Config) -> Careless:
    """(problem, rng, slip) -> the problem as somebody works it who slips; nobody knows the slips of other problems."""
    kind = None if config.data else {"addition": addition, "countdown": countdown}.get(config.task)
    return partial(kind, filler=config.filler) if kind else lambda problem, rng, slip: problem


def addition(problem: Problem, rng: random.Random, slip: float, filler: int) -> Problem:
    """The same sum by somebody who forgets each carry with probability `slip`, and goes on from there."""
    a, b = problem.question.split("+")
    solution, total = tasks.columns(a, b, lambda: rng.random() >= slip)
    return Problem(problem.question, total, tasks.worded(solution, rng, filler))


def countdown(problem: Problem, rng: random.Random, slip: float, filler: int) -> Problem:
    """With probability `slip` the same numbers combined at random, wherever that leads."""
    if rng.random() >= slip:
        return problem
    numbers = [int(n) for n in problem.question.split(" from ")[1].split()]
    value, text, solution = tasks.combine(numbers, rng)
    return Problem(problem.question, f"{text} = {value}", tasks.worded(solution, rng, filler))
