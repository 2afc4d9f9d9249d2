"""Judgements that need a package, math-verify's and reasoning-gym's: in a process of its own, its time limited.

Model text is never evaluated here: a scorer that would do so is refused by name.
"""

import contextlib
import difflib
import json
import random
import re
from collections.abc import Callable
from functools import cache, lru_cache, reduce

from support.child import Limited
from verifiers import MARKER, Failed, bare, closes, exact, expression, final_answer, number

MAX_TEXT, MAX_LATEX = 10_000, 500  # characters of a final answer; longer ones score 0.0 unread
SIZE = 20_000  # problems of a reasoning_gym task; word_ladder refuses to have more


@cache
def scorer(package: str, *arguments: str) -> Limited:
    """One process for each package and task."""
    return Limited(package, "sources.scorers", f"{package}_scorer", *arguments)


# ---- math-verify -----------------------------------------------------------------------------------------------------


def math_verify(completion: str, answer: str) -> float:
    """1.0 if the final answer equals the reference, both read as one LaTeX expression (`math_verify_scorer`)."""
    text = final_answer(completion)
    return float(text is not None and len(text) <= MAX_LATEX and scorer("math_verify").ask(text, answer) is True)


vars(math_verify)["reads_reference"] = True  # can_be_earned asks it too


REWRITTEN = [
    (r"(?<=\d)\\[,!;:](?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))|(?<=\d),(?=\d{3}(?:,\d{3})*\.\d)", ""),  # thousands
    (r"^\$(?=[\d.])|\\\$(?=\s*[\d.])|\\(?:!|(?:left|right|displaystyle)(?![a-zA-Z]))", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+", " "),
    (r"\\(?:text(?:bf|it|rm)?|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\%", "%"),
    (r"([_^])\{(\w|\\circ)\}", r"\1\2"),
    (r"(?<![_\d])(\d+) +(\d+/\d+)", r"(\1+\2)"),  # a mixed number
    (r" ?([^\w\s]) ?|(?<=\d) (?=[a-zA-Z])", r"\1"),
]
WORD = re.compile(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|[^\W\d_]{2,}(?:\^\{?-?\d+\}?)?|[^-+*/^_(){}\[\],;.=<>|!&\\\s\w]")
NO_WORD = re.compile(r"[abcxyz\d^{}-]+|or|and|\\(?:frac|sqrt|pi|cdot|times|div|infty|[lg]eq?|[lg]t|log|ln|exp|binom)")
ODD = re.compile(r"[\d})]\s*_|\d\s+[\d.]|\.\d*\.|:")  # a number's base, two numbers, two points, a ratio or a time
NAME = re.compile(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\([a-z](?:,[a-z])*\))?")


def math_verify_scorer() -> Callable[[str, str], bool]:
    """equal(text, answer): the same words and units, and mathematics that math-verify finds equal, numbers exactly."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, grader, parse, verify
    from sympy import Expr, FiniteSet, solve

    # its own takes 0.333333 for 1/3, and two equations without a solution for the same
    grader.sympy_numeric_eq = lambda a, b, *_: a.doit() == b.doit() or isinstance(a, Expr) and (a - b).equals(0) is True
    grader.solve = lambda *equation: solve(*equation) or [None]
    normal = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")

    @lru_cache(maxsize=10_000)
    def read(text: str) -> list:
        # the LaTeX grammar alone: the other one hands what it finds to sympy's parse_expr, which evaluates
        exact = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", text)
        config = LatexExtractionConfig(normalization_config=normal)
        return parse(f"${exact}$", [config], fallback_mode="no_fallback", parsing_timeout=None)

    def equal(text: str, answer: str) -> bool:
        texts = [plain(text), plain(answer)]
        if any("$" in t or r"\boxed" in t or not closes(t) for t in texts):  # several, one among words, half of one
            return False
        (said, ours), (meant, theirs) = map(apart, texts)
        words = not re.search("[0-9a-zA-Z]", ours + theirs)
        if texts[0] == texts[1] or words or said != meant or ODD.search(f"{ours};{theirs}"):
            return texts[0] == texts[1] != "" or words and texts[0].lower() == texts[1].lower() != ""
        if re.fullmatch(r"\(?[a-zA-Z]\)?", ours):  # a letter, of a choice or not
            return ours.strip("()") == theirs.strip("()")
        left, right = (re.split(r"(?<![<>!])=", side) for side in (ours, theirs))
        if len(left) != len(right):  # x = 5 is 5; 13 = 12 is neither
            if len(left) + len(right) != 3 or not NAME.fullmatch(max(left, right, key=len)[0]):
                return False
            ours, theirs = left[-1], right[-1]
        points = [bool(re.search(r"\[[^]]*,", s)) and isinstance([*read(s), 0][0], FiniteSet) for s in (ours, theirs)]
        chain = points[0] != points[1] or any(part.count("=") > 1 for part in re.split(",|or|and", f"{ours},{theirs}"))
        return not chain and bool(verify(read(theirs), read(ours), timeout_seconds=None))

    return equal


def plain(latex: str) -> str:
    """LaTeX without what is put around the whole of it, spacing, faces of letters, dollar signs before a number."""
    return reduce(lambda text, rewriting: re.sub(rewriting[0], rewriting[1], text), REWRITTEN, bare(latex)).strip()


def apart(text: str) -> tuple[list[str], str]:
    """The words, units and commands that have to be the same in both texts; and what is left beside words and units."""
    words = [word for word in WORD.findall(text) if not NO_WORD.fullmatch(word)]
    return sorted(words), WORD.sub(lambda m: " " if m[0] in words and m[0][0] != "\\" else m[0], text).strip()


# ---- reasoning-gym ---------------------------------------------------------------------------------------------------


def reasoning_gym_scorer(task: str) -> Callable:
    """answer("item", i) -> {question, answer, solution} or False; answer("score", i, text) -> is the score 1?"""
    dataset, judge = make_dataset(task), OUR_JUDGES.get(task.split(",")[0])

    @lru_cache(maxsize=10_000)
    def entry(index: int) -> dict:
        random.seed(index)  # list_functions draws from the global generator
        return dataset[index]

    def score(index: int, text: str) -> bool:
        return bool(judge(text, entry(index)) if judge else dataset.score_answer(text, entry(index)) == 1.0)

    def item(index: int) -> dict | bool:
        answer = entry(index)["answer"]
        if not isinstance(answer, str) or not answer.strip() or MARKER in answer or not score(index, answer.strip()):
            return False
        solution = (entry(index)["metadata"].get("answer_cot") or "").split(MARKER)[0].strip()
        return {"question": entry(index)["question"], "answer": answer.strip(), "solution": solution or None}

    answers: dict[str, Callable] = {"item": item, "score": score}
    return lambda request, *arguments: answers[request](*arguments)


def make_dataset(task: str):
    """The generator of "NAME" or "NAME,setting=value,..."; Failed if its scorer evaluates model text, or it is none."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name, *settings = task.split(",")
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
        raise Failed(f"reasoning_gym has no task {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    evaluates = EVALUATION & set(DATASETS[name][0].score_answer.__code__.co_names)
    if evaluates and name not in OUR_JUDGES and name not in EVALUATES_ITS_OWN_TEXT:
        raise Failed(f"reasoning_gym:{name} is refused: its scorer evaluates model text ({min(evaluates)})")
    values, known = {}, [key for key in DATASETS[name][1].__dataclass_fields__ if key not in ("seed", "size")]
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise Failed(f"reasoning_gym:{name} has no setting {setting!r}; it has {', '.join(known) or 'none'}")
        with contextlib.suppress(ValueError):  # a word is one as it stands
            value = json.loads(value)
        values[key] = value
    try:
        return reasoning_gym.create_dataset(name, seed=0, size=SIZE, **values)
    except Exception as error:
        raise Failed(f"reasoning_gym:{task} cannot be made: {type(error).__name__}: {error}") from error


EVALUATION = {"eval", "exec", "compile", "literal_eval", "parse_expr", "sympify"}
EVALUATES_ITS_OWN_TEXT = {"number_sorting"}  # eval of the reference alone


def uses_all(text: str, numbers: list[int], target: int) -> bool:
    """An expression over all of the given numbers, each used once, that reaches the target."""
    used = sorted(int(n) for n in re.findall(r"[0-9]+", text.partition("=")[0]))
    return used == sorted(numbers) and expression(text, f"{' '.join(map(str, numbers))} = {target}") == 1.0


EXACTLY = ["binary_matrix", "spiral_matrix", "string_insertion", "game_of_life_halting"]
OUR_JUDGES: dict[str, Callable[[str, dict], bool]] = {
    # whose own scorer evaluates model text, or (game_of_life_halting, gsm_symbolic) accepts anything that is not empty,
    # and the first of several numbers
    **dict.fromkeys(EXACTLY, lambda text, entry: exact(text, entry["answer"]) == 1.0),
    "countdown": lambda text, entry: uses_all(text, entry["metadata"]["numbers"], entry["metadata"]["target"]),
    "puzzle24": lambda text, entry: uses_all(text, entry["metadata"]["numbers"], 24),
    "n_queens": lambda text, entry: text in entry["metadata"]["valid_answers"],
    "gsm_symbolic": lambda text, entry: number(text, entry["answer"]) == 1.0,
}
