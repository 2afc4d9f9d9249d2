"""Problems of the reasoning-gym package, as `--task reasoning_gym:NAME` or `reasoning_gym:NAME,setting=value,...`."""

import random
from importlib.metadata import PackageNotFoundError, version

import tasks
from sources.scorers import MAX_TEXT, SIZE, scorer
from tasks import Problem, Source
from verifiers import Verifier, final_answer

PREFIX = "reasoning_gym:"
MAKING = 60.0  # seconds for one problem


class Reference(str):
    """A reference answer that knows the problem it belongs to: the package's scorers judge by more than the text."""

    row: int


def source(task: str, held_out: int) -> Source:
    """Problems of `task`, PREFIX included; up to `held_out` are set aside, the same for every seed of a run.

    Other seeds of the package repeat questions, so the two sets are kept apart by the text of the question.
    """
    rng = random.Random(f"held out {task}")
    apart: dict[str, Problem] = {}
    for problem in (_problem(task, rng) for _ in range(2 * held_out)):
        apart.setdefault(_text(problem), problem)
        if len(apart) == held_out:
            break
    else:  # a task of few questions
        apart = dict(list(apart.items())[: max(1, len(apart) // 10)])
    limits = [float("inf")] * 3

    def draw(rng: random.Random, n: int) -> list[Problem]:
        drawn: list[Problem] = []
        for _ in range(100 * n + 1000):
            if len(drawn) == n:
                return drawn
            problem = _problem(task, rng)
            if _text(problem) not in apart and all(size <= limit for size, limit in zip(_sizes(problem), limits)):
                drawn.append(problem)
        raise ValueError(f"{task} has too few different questions to hold {len(apart)} of them out")

    listed = list(apart.values())
    known = listed + draw(rng, held_out)
    limits[:] = map(max, zip(*map(_sizes, known)))  # longer ones are passed over: what was checked holds for all
    return Source(draw, listed, known, task)


def _problem(task: str, rng: random.Random) -> Problem:
    """The next problem with a reference that its own scorer accepts."""
    for index in (rng.randrange(SIZE) for _ in range(100)):
        item = scorer("reasoning_gym", task.removeprefix(PREFIX)).ask("item", index, seconds=MAKING)
        if item is None:
            raise ValueError(f"{task}: problem {index} is not made within {MAKING:.0f} s")
        if item:
            answer = Reference(item["answer"])
            answer.row = index
            return Problem(item["question"], answer, item["solution"], origin=f"{task} {index}")
    raise ValueError(f"{task} gives no reference answer that its own scorer accepts")


def _text(problem: Problem) -> str:
    return " ".join(problem.question.split())


def _sizes(problem: Problem) -> tuple[int, int, int]:
    """What the longest prompts and completions of a problem grow with, in tokens."""
    texts = problem.question, problem.answer, problem.solution
    question, answer, solution = (len(tasks.encode(text or "")) for text in texts)
    return question + answer, question + solution, len(tasks.target(problem))


def verifier(task: str) -> Verifier:
    """1.0 where the package's own scorer, or ours in its place, gives the final answer full marks; no part marks."""

    def judge(completion: str, answer: str) -> float:
        if not isinstance(answer, Reference):
            raise ValueError(f"the verifier {task} judges the problems of --task {task} alone")
        text = final_answer(completion)
        fits = text is not None and len(text) <= MAX_TEXT
        return float(fits and scorer("reasoning_gym", task.removeprefix(PREFIX)).ask("score", answer.row, text) is True)

    vars(judge)["reads_reference"] = True
    return judge


def package_version(task: str) -> str:
    """The package's version where the task is one of its own, else ""; another version may make other problems."""
    try:
        return version("reasoning_gym") if task.startswith(PREFIX) else ""
    except PackageNotFoundError:
        return ""
