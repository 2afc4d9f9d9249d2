"""Perfect evidence: which tokens of an addition decide, read off its one right derivation, and weights made of that."""

import re

import torch
from torch import Tensor

import tasks
from tasks import Problem


def text_of(completion: list[int]) -> str:
    """One letter a token, so that places in the text are places of tokens; what is no byte is a blank."""
    return "".join(chr(token) if token < 256 else "\0" for token in completion)


def free_wording(completion: list[int]) -> list[int]:
    """Places of the letters, and the space behind them, that stand before a step and do not matter."""
    return [i for m in re.finditer(r"^[a-h]+ ", text_of(completion), re.MULTILINE) for i in range(*m.span())]


def deciding_tokens(completion: list[int], problem: Problem) -> list[int]:
    """Where an addition is won or lost: the first token off the right derivation, free wording aside; in a right sample
    the results of the columns that a carry enters, at the first token in which they differ from the result without it.
    """
    wording, right = set(free_wording(completion)), tasks.target(problem)
    steps = [t for i, t in enumerate(right) if i not in set(free_wording(right))]
    for i, expected in zip((i for i in range(len(completion)) if i not in wording), steps):
        if completion[i] != expected:
            return [i]
    places = []
    for m in re.finditer(r"(\d)\+(\d)=(\d+)", text_of(completion)):
        forgotten, result = str(int(m[1]) + int(m[2])), m[3]
        if result != forgotten:
            places.append(m.start(3) + next(i for i, digit in enumerate(result) if digit != forgotten[i : i + 1]))
    return places


def marked(completions: list[list[int]], places: list[list[int]], mask: Tensor) -> Tensor:
    """True at the given places of each completion: (N,T) like mask."""
    found = torch.zeros_like(mask)
    for row, (completion, at) in enumerate(zip(completions, places)):
        found[row, [i for i in at if i < len(completion)]] = True
    return found
