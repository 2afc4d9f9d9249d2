"""Reward functions: (completion, reference answer) -> reward in [0, 1].

Model text is data: it is never evaluated or compiled, and whatever is malformed or long scores 0.0. The final answer is
what follows the one `####` of a completion, or the whole of it where there is none; two markers are two answers and
score 0.0. A thought, up to `</think>`, is not looked at; one without an end leaves no answer. `number`, `choice` and
`expression` see through what is put around the whole of an answer (`bare`).
"""

import ast
import importlib.util
import operator
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate

Verifier = Callable[[str, str], float]

MARKER = "####"
MAX_COMPLETION = 1_000_000  # characters; longer ones score 0.0 unread
MAX_ANSWER = 200  # characters of a number or an expression: bounds parsing, and the size of every number in it
MAX_WRAPPED, MAX_LAYERS = 1_000, 8  # characters, and layers, of what is put around an answer

THOUGHT = "<think>", "</think>"
_PAIRS = r"** ** __ __ * * _ _ ` ` $$ $$ $ $ \( \) \[ \] \boxed{ } \fbox{ } \text{ } \textbf{ } \mathbf{ } \mathrm{ }"
WRAPPERS = list(zip(_PAIRS.split()[::2], _PAIRS.split()[1::2]))
_SIGNS = str.maketrans("\u2212\u00d7\u00f7", "-*/")
# sign, whole part, then decimals or a denominator; no point without a digit, nothing divided by 0
_NUMBER = re.compile(r"([+-]?)(?=\.?\d)(\d{1,3}(?:,\d{3})+|\d+)?(?:(\.\d*)|/0*([1-9]\d*))?", re.ASCII)
_EXPRESSION = re.compile(r"[0-9+\-*/() ]+")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Failed(ValueError):
    """A verifier gave no reward: why, in words; of another process the traceback, and its exit status if it ended."""

    trace: str = ""
    status: int | None = None


def final_answer(completion: str) -> str | None:
    """The text behind the only `####`, or the whole text where there is none, stripped; None if two or too long."""
    if len(completion) > MAX_COMPLETION:
        return None
    before, marker, after = completion.rpartition(THOUGHT[1])[2].partition(MARKER)
    if MARKER in after or THOUGHT[0] in before + after:
        return None
    return (after if marker else before).strip()


def bare(text: str) -> str:
    """An answer without one full stop at its end and what is put around the whole of it; signs in ASCII, "" if long."""
    text = text if len(text) <= MAX_WRAPPED else ""
    for _ in range(MAX_LAYERS):
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for opening, closing in WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            whole = closes(inner) if closing == "}" else closing not in inner
            if inner and whole and text == opening + inner + closing:
                text = inner
                break
        else:
            break
    return text.translate(_SIGNS)


def closes(text: str) -> bool:
    r"""Whether each brace of a text has its other half; \{ and \} are none."""
    depths = list(accumulate((c == "{") - (c == "}") for c in re.sub(r"\\[{}]", "", text)))
    return not depths or min(depths) >= 0 == depths[-1]


def exact(completion: str, answer: str) -> float:
    """1.0 if the final answer is the reference, character for character, outer white space aside."""
    return float(final_answer(completion) == answer.strip() != "")


def number(completion: str, answer: str) -> float:
    """1.0 if both are one number of exactly equal value: integer, decimal, fraction a/b, thousands separators."""
    value = _parse_number(final_answer(completion))
    return float(value is not None and value == _parse_number(answer.strip()))


def choice(completion: str, answer: str) -> float:
    """1.0 if the final answer is the reference's letter, A to E, bare or as (A), A. or A)."""
    letter = _parse_choice(final_answer(completion))
    return float(letter is not None and letter == _parse_choice(answer.strip()))


def expression(completion: str, answer: str) -> float:
    """1.0 if the final answer is an expression over + - * / and ( ) that reaches the target from the given numbers.

    answer: "NUMBERS = TARGET", NUMBERS in any writing, a reference solution such as "(8-2)*4+3 = 27" included. Each
    given number may be used at most once; a final answer "expression = target" is read by its left side.
    """
    given, reached = parse_given(answer)
    left, equals, right = bare(final_answer(completion) or "").partition("=")
    if equals and _parse_number(right.strip()) != reached:
        return 0.0
    value, used = _evaluate(left.strip())
    return float(value is not None and value == reached and not used - given)


BUILT_IN: dict[str, Verifier] = {"exact": exact, "number": number, "choice": choice, "expression": expression}


def load(name_or_path: str, file: Callable[[str, str], Verifier] | None = None, **more: Verifier) -> Verifier:
    """A built-in verifier or one of `more` by name, or a user's "file.py:function", which `file` reads; ValueError."""
    known = {**BUILT_IN, **more}
    if name_or_path in known:
        return known[name_or_path]
    path, colon, name = name_or_path.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ValueError(f"verifier {name_or_path!r} is none of {', '.join(known)}, nor like my_rules.py:check")
    if not os.path.isfile(path):
        raise ValueError(f"verifier {name_or_path!r}: there is no file {path}")
    try:
        return (file or from_file)(os.path.abspath(path), name)
    except Failed as error:
        raise ValueError(f"verifier {name_or_path!r}: {' '.join(str(error).split())}") from error


def from_file(path: str, name: str, module_name: str = "") -> Verifier:
    """The function of a user's file, run in this process, its reward checked; its neighbours can be imported."""
    folder, stem = os.path.split(path.removesuffix(".py"))
    sys.path += [folder] * (folder not in sys.path)
    spec = importlib.util.spec_from_file_location(module_name or f"_verifier_{stem}", path)
    assert spec is not None and spec.loader is not None  # the file's name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks its module up here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise Failed(f"{path} fails with {''.join(traceback.format_exception_only(error))}") from error
    if not callable(function := getattr(module, name, None)):
        raise Failed(f"{path} has no function {name}")
    return lambda completion, answer: reward_of(function(completion, answer))


def reward_of(returned) -> float:
    """What a verifier returned, read once; Failed for anything but a number from 0 to 1."""
    is_bool = isinstance(returned, bool) or "bool" in str(getattr(returned, "dtype", ""))
    numeric = not is_bool and not isinstance(returned, (str, bytes)) and hasattr(returned, "__float__")
    if numeric and 0 <= (value := float(returned)) <= 1:
        return value
    raise Failed(f"it returned {returned!r:.60}; a float from 0 to 1 is needed{', float(...) makes one' * is_bool}")


def _parse_number(text: str | None) -> Fraction | None:
    text = re.sub(r"^\\?\$ ?", "", bare(text or ""))
    if len(text) > MAX_ANSWER or not (match := _NUMBER.fullmatch(text)):
        return None
    sign, whole, decimals, denominator = match.groups()
    value = Fraction((whole or "0").replace(",", "") + (decimals or "").rstrip(".")) / int(denominator or 1)
    return -value if sign == "-" else value


def parse_given(answer: str) -> tuple[Counter, Fraction | None]:
    """The given whole numbers and the target of "NUMBERS = TARGET"; no target where that is not what stands there."""
    given, _, target = answer.rpartition("=")
    if len(given) > MAX_ANSWER or re.search(r"(?:^|[\s,(])-[0-9]|\.", given):  # negative or decimal
        return Counter(), None
    numbers = Counter(int(n) for n in re.findall(r"[0-9]+", given))
    return numbers, _parse_number(target.strip()) if numbers else None


def _parse_choice(text: str | None) -> str | None:
    match = re.fullmatch(r"\(([A-E])\)|([A-E])\)?", bare(text or ""))
    return match.group(1) or match.group(2) if match else None


def _evaluate(text: str) -> tuple[Fraction | None, Counter]:
    """Value and multiset of the numbers of an arithmetic expression; (None, ...) for anything else."""
    used: Counter = Counter()

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used[node.value] += 1
            return Fraction(node.value)
        raise ValueError("not on the white list")

    if len(text) > MAX_ANSWER or not _EXPRESSION.fullmatch(text):
        return None, used
    try:
        return value(ast.parse(text, mode="eval").body), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None, used
