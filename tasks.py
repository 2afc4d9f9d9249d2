"""Problems, the two views of a problem (student and teacher), and the tokenizer."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import tiktoken

from verifiers import MARKER

CITATION = "reference says"  # how a completion cites the reference; a student that was shown none should never
ROLES = ("<|user|>", "<|reference|>", "<|assistant|>", "<|end|>")


@dataclass(frozen=True)
class Problem:
    """A question, its reference answer, and where there are such: a worked solution, other privileged text."""

    question: str
    answer: str
    solution: str | None = None
    privileged: str | None = None
    origin: str = field(default="", compare=False)  # file and line, for messages


# ---- tokenizer -------------------------------------------------------------------------------------------------------

# One token a byte, one for the answer marker, four special ones; made here, nothing is downloaded.
RANKS = {bytes([i]): i for i in range(256)} | {b"##": 256, b"####": 257}
SPECIAL = {name: len(RANKS) + i for i, name in enumerate(ROLES)}
TOKENIZER = tiktoken.Encoding("rlsd-bytes", pat_str=r"####|[\s\S]", mergeable_ranks=RANKS, special_tokens=SPECIAL)
USER, REFERENCE, ASSISTANT, END = (TOKENIZER.encode_single_token(name) for name in ROLES)


class Format:
    """How problems become tokens: a tokenizer, what stands around the user's text, the tokens that end a completion.

    Special tokens are named in `before` and `after` alone; view(question, privileged) gives the text between them, and
    what it holds stays text. Text between two special tokens is encoded as one. `end` is taught, `ends` stop.
    """

    def __init__(self, tokenizer, before: str, after: str, end: str, view: Callable[[str, str | None], list], ends=()):
        self.tokenizer, self.end, self.view = tokenizer, tokenizer.encode_single_token(end), view
        self.ends, self.marker = (self.end, *ends), f"{MARKER} "
        self.before, self.after = self._parts(before), self._parts(after)

    def _parts(self, template: str) -> list[str | int]:
        special = self.tokenizer.special_tokens_set
        names = sorted(special, reverse=True)  # a set's order changes between processes; the longer of two comes first
        parts = re.split(f"({'|'.join(map(re.escape, names))})", template)
        return [self.tokenizer.encode_single_token(p) if p in special else p for p in parts if p]

    def prompt(self, question: str, privileged: str | None) -> list[int]:
        runs = groupby([*self.before, *self.view(question, privileged), *self.after], type)
        return [t for kind, run in runs for t in (run if kind is int else self.tokenizer.encode_ordinary("".join(run)))]

    def ended(self, tokens: list[int]) -> list[int]:
        """A completion's tokens up to the first that ends it, that one included."""
        return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in self.ends), len(tokens))]


BYTES = Format(TOKENIZER, ROLES[0], ROLES[2], ROLES[3], lambda q, shown: [q, REFERENCE, shown] if shown else [q])
FORMAT = BYTES  # of every prompt and completion; set once, as a process trains one model


def encode(text: str) -> list[int]:
    """Token ids of text; a role's name inside the text is plain text."""
    return FORMAT.tokenizer.encode_ordinary(text)


def decode(tokens: list[int]) -> str:
    """Text of a completion, special tokens and what follows its end left out; bytes that are no UTF-8 become U+FFFD."""
    special = {*FORMAT.ends, *getattr(FORMAT.tokenizer, "control", ())}  # no text, to a verifier neither
    return FORMAT.tokenizer.decode([token for token in FORMAT.ended(tokens) if token not in special])


# ---- the two views ---------------------------------------------------------------------------------------------------


def student_prompt(problem: Problem) -> list[int]:
    """<|user|> question <|assistant|>, or what the model's chat format makes of it."""
    return prompt(problem, "")


def teacher_prompt(problem: Problem, privileged: str = "answer") -> list[int]:
    """<|user|> question <|reference|> privileged text <|assistant|>: the student's prompt with one insertion.

    privileged: "answer", "solution", or any text. Raises ValueError where the problem has no solution to show.
    """
    if privileged == "solution" and not problem.solution:
        raise ValueError(f"the problem {problem.question[:60]!r} has no solution to show")
    return prompt(problem, {"answer": problem.answer, "solution": problem.solution}.get(privileged, privileged))


def teacher_view(problem: Problem, privileged: str) -> list[int]:
    """The teacher's prompt: it shows the problem's own privileged text if it has one, else what --privileged says."""
    own = problem.privileged
    return teacher_prompt(problem, privileged) if own is None else prompt(problem, own)


def prompt(problem: Problem, privileged: str | None) -> list[int]:
    """A prompt that shows the given text and nothing else, no reference at all where it is empty or None."""
    return FORMAT.prompt(problem.question, privileged)


def target(problem: Problem, cite: bool = False) -> list[int]:
    """The completion to imitate in the warm start: citation if asked for, worked solution, final answer, end token."""
    lines = [f"{CITATION} {problem.answer}" * cite, problem.solution, f"{FORMAT.marker}{problem.answer}"]
    return encode("\n".join(filter(None, lines))) + [FORMAT.end]


# ---- problems --------------------------------------------------------------------------------------------------------


def addition(rng: random.Random, chain: int = 4, filler: int = 0) -> Problem:
    """Two numbers of `chain` digits, added column by column from the right, the carry taken along in each result."""
    a, b = (rng.randint(10 ** (chain - 1), 10**chain - 1) for _ in range(2))
    return Problem(f"{a}+{b}", str(a + b), worded(columns(str(a), str(b), lambda: True)[0], rng, filler))


def worded(solution: str, rng: random.Random, filler: int) -> str:
    """Put `filler` letters of free choice, and a space, before each step: wording that does not matter."""
    word = lambda: "".join(rng.choices("abcdefgh", k=filler)) + " " if filler else ""
    return "\n".join(word() + line for line in solution.splitlines())


def columns(a: str, b: str, remember: Callable[[], bool]) -> tuple[str, str]:
    """The worked columns of a + b and the sum they lead to; a carry is taken along where remember() is true."""
    lines, carry, total = [], 0, ""
    for x, y in zip(reversed(a), reversed(b)):
        column = int(x) + int(y) + carry
        lines.append(f"{x}+{y}={column}")
        total = str(column % 10) + total
        carry = int(column > 9 and remember())
    return "\n".join(lines), (str(column) + total[1:])


def countdown(rng: random.Random, chain: int = 0, filler: int = 0) -> Problem:
    """Reach a target from `chain` numbers, 0: 3 or 4; the reference uses all, and is one of many right solutions."""
    if chain == 1 or chain > 12:  # with one there is nothing to do; with many the search for a problem takes too long
        raise ValueError(f"--chain {chain}: countdown has 2 to 12 numbers")
    value, numbers = 0, [0]
    while value in numbers:  # copying one of them would do
        numbers = [rng.randint(1, 20) for _ in range(chain or rng.choice((3, 4)))]
        value, text, solution = combine(numbers, rng)
    return Problem(f"{value} from {' '.join(map(str, numbers))}", f"{text} = {value}", worded(solution, rng, filler))


def combine(numbers: list[int], rng: random.Random) -> tuple[int, str, str]:
    """Merge random pairs by random operations, results kept in 1..99: final value, expression, a line a step."""
    while True:
        terms, lines = [(n, str(n)) for n in numbers], []
        while len(terms) > 1:
            (a, left), (b, right) = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
            results = {"+": a + b, "-": a - b, "*": a * b} | ({"/": a // b} if a % b == 0 else {})
            op = rng.choice(sorted(results))
            if not 0 < results[op] < 100:
                break
            lines.append(f"{a}{op}{b}={results[op]}")
            terms.append((results[op], f"({left}{op}{right})"))
        else:
            value, text = terms[0]
            return value, text[1:-1], "\n".join(lines)


@dataclass(frozen=True)
class Source:
    """Where problems come from: n at a time for training, and a held-out list that shares no question with them."""

    draw: Callable[[random.Random, int], list[Problem]]
    held_out: list[Problem]
    known: list[Problem]  # every problem that is known in advance, to be checked before anything is trained
    verifier: str
    train: int = 0  # different problems to train on; 0: no end of them


GENERATORS: dict[str, tuple] = {"addition": (addition, "number"), "countdown": (countdown, "expression")}


def generated(task: str, held_out: int, chain: int = 0, filler: int = 0) -> Source:
    """Endless problems of a built-in task; the held-out ones are the same for every seed of a run.

    chain: reasoning steps (addition: digits, countdown: numbers), 0 for the task's own; filler: free letters a step.
    """
    if task not in GENERATORS:
        raise ValueError(f"--task {task!r} is none of {', '.join(GENERATORS)}, nor like reasoning_gym:NAME")
    function, verifier = GENERATORS[task]
    generate = partial(function, filler=filler, **({"chain": chain} if chain else {}))
    numbers = lambda problem: tuple(sorted(re.findall(r"\d+", problem.question)))  # 12+34 and 34+12 are one problem
    rng, problems = random.Random(f"held out {task}"), dict[tuple[str, ...], Problem]()
    for problem in (generate(rng) for _ in range(20 * held_out + 1000)):
        problems.setdefault(numbers(problem), problem)
        if len(problems) == held_out:
            break

    def draw(rng: random.Random, n: int) -> list[Problem]:
        drawn, missed = list[Problem](), 0
        while len(drawn) < n:
            problem = generate(rng)
            missed = missed + 1 if numbers(problem) in problems else 0
            drawn += [] if missed else [problem]
            if missed == 10_000:
                raise ValueError(f"--eval_problems {held_out}: {task} has no more different ones left; lower it")
        return drawn

    return Source(draw, [*problems.values()], [*problems.values(), *draw(rng, 500)], verifier)
