"""The problem behind a question: one of the run's own, or one worked out from its text where the task is built in."""

import dataclasses
import random
import re

import tasks
from config import Config
from sources import careless
from support.errors import UserError

SEARCH = 20_000  # random combinations tried for a countdown target; five numbers took at most 5,000


def find_problem(source: tasks.Source, config: Config, question: str) -> tasks.Problem | None:
    """The run's own problem of this question, or one made of it where the task is built in; None: the answer is needed.

    Raises UserError for a question that the built-in task would never ask.
    """
    words = " ".join(question.split())
    known = {" ".join(problem.question.split()): problem for problem in source.known}
    if words in known or config.data or config.task not in MADE:
        return known.get(words)
    return MADE[config.task](words, config.filler)


def completed(config: Config, question: str, found: tasks.Problem | None, answer: str, reference: str) -> tasks.Problem:
    """The problem to ask, the answer and the teacher's text given put in; UserError where something lacks, or room."""
    asked = repr(question[:60])
    if found is None and not answer:
        raise UserError(f"{asked} is none of the run's problems: give its reference answer with --answer")
    problem = tasks.Problem(found.question if found else question, answer) if answer or not found else found
    problem = dataclasses.replace(problem, privileged=reference) if reference else problem
    shows_the_answer = config.privileged == "answer" and not config.privileged_key
    if not (problem.privileged or shows_the_answer or (problem.solution and not config.privileged_key)):
        raise UserError(f"{asked} has nothing to show the run's teacher: give it with --reference")
    longest = max(len(tasks.teacher_view(problem, config.privileged)), len(tasks.student_prompt(problem)))
    room = config.max_seq_len - config.max_new_tokens
    if longest > room:
        raise UserError(f"{asked} makes a prompt of {longest} tokens, and the run has room for {room}: ask less")
    return problem


def made_addition(question: str, filler: int) -> tasks.Problem:
    match = re.fullmatch(r"(\d{1,40}) ?\+ ?(\d{1,40})", question, re.ASCII)
    if not match:
        raise UserError(f"{question[:60]!r} is no question of this run's task: ask like 4785+3626")
    a, b = match.groups()
    problem = tasks.Problem(f"{a}+{b}", str(int(a) + int(b)))
    columns = len(a) == len(b) and a[0] != "0" != b[0]
    # never a slip: worked, and right
    return careless.addition(problem, random.Random(0), 0.0, filler) if columns else problem


def made_countdown(question: str, filler: int) -> tasks.Problem | None:
    match = re.fullmatch(r"(\d{1,2}) from ([1-9]\d?(?: [1-9]\d?){1,5})", question, re.ASCII)
    if not match:
        raise UserError(
            f"{question[:60]!r} is no question of this run's task: ask like '27 from 8 2 4 3' (1 to 99 each)"
        )
    problem, rng = tasks.Problem(question, ""), random.Random(0)
    for _ in range(SEARCH):
        found = careless.countdown(problem, rng, 1.0, filler)  # always a slip: the numbers combined at random
        if found.answer.endswith(f"= {int(match[1])}"):
            return found
    return None


MADE = {"addition": made_addition, "countdown": made_countdown}
