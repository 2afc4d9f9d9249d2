import math
import re
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slowness import patience

import verifiers
from harness import problems
from harness.problems import verifier_of
from verifiers import BUILT_IN, Failed, choice, exact, expression, load, number, reward_of

GIVEN = "(8-2)*4+3 = 27"
integers = st.integers(-(10**12), 10**12)
junk = st.one_of(
    st.text(max_size=300),  # every Unicode category, NUL and lone surrogates included
    st.text("0123456789+-*/()#., =ABCDE", max_size=60),
    st.tuples(st.text(max_size=20), st.text(max_size=20)).map("#### ".join),
)
HUGE = [
    *("9**9**9", "9" * 10_000_000, "1/" + "9" * 10_000_000, "(" * 100_000, "(" * 90 + "1" + ")" * 90, "#" * 10_000_000),
    *("1+" * 500_000 + "1", "\0" * 1_000_000, "####" * 200_000, "1," * 400_000, " " * 10_000_000, "-" * 150 + "1"),
    *("*".join(["9" * 49] * 4), "1e999999999", "0x" + "f" * 100, "٣", "Ⅻ", "²", "1_000", "--5", "1//2", "8<<99999"),
    *("__import__('os').getcwd()", "{}[].()", "lambda: 0", "f'{1}'", "(8-2)*4+3;1", "8 if 1 else 2", "8@2"),
]


def cases(*table):
    """(completion, answer, reward) of lines of an answer, a reward, and completions that are worth it."""
    said = [(completion, answer, reward) for answer, reward, *texts in table for completion in texts]
    return pytest.mark.parametrize("completion, answer, reward", said)


@pytest.mark.parametrize("verifier", BUILT_IN.values(), ids=BUILT_IN)
@given(completion=junk, answer=st.one_of(junk, st.just(GIVEN), st.just("12")))
def test_nothing_raises_and_every_reward_is_zero_or_one(verifier, completion, answer):
    reward = verifier(completion, answer)
    assert type(reward) is float and reward in (0.0, 1.0)


@pytest.mark.parametrize("completion", HUGE, ids=range(len(HUGE)))
@pytest.mark.parametrize("verifier", BUILT_IN.values(), ids=BUILT_IN)
def test_hostile_text_is_quick_and_worth_nothing(verifier, completion):
    for text in (completion, f"so\n#### {completion}"):
        for answer in (GIVEN, "12", completion):
            seconds = []
            for _ in range(3):
                start = time.process_time()  # what else the machine does is no fault of the verifier's
                reward = verifier(text, answer)
                seconds.append(time.process_time() - start)
            # how slow this machine is takes a while to tell
            assert min(seconds) < 0.05 or min(seconds) < patience(0.05)
            assert reward == 0.0 or answer is completion and verifier is exact


@pytest.mark.parametrize("longer", [0, 1])
def test_what_is_too_long_is_worth_nothing(longer):
    """1,000,000 characters of a completion, 200 of a number, expression or the given numbers; one more is too much."""
    reward = 1.0 - longer
    assert number("12".rjust(1_000_000 + longer), "12") == exact("12".rjust(1_000_000 + longer), "12") == reward
    assert number("12".rjust(200 + longer, "0"), "12") == reward
    assert expression("(5+" + "7)".rjust(197 + longer), "5 7 = 12") == reward
    assert expression("5+7", "5 7 ".rjust(200 + longer) + "= 12") == reward


# ---- number ----------------------------------------------------------------------------------------------------------


@given(integers, st.integers(1, 10**6))
def test_equal_numbers_in_any_writing(n, d):
    value = Fraction(n, d)
    writings = [f"{value.numerator}/{value.denominator}", f"{n}/{d}", f" {3 * n}/{3 * d}\n"]
    if value.denominator == 1:
        writings += [f"{value.numerator}", f"{value.numerator:,}", f"{value.numerator}.00", f"{value.numerator:+}"]
    for completion in writings:
        for answer in writings:
            assert number(completion, answer) == number(f"work: 1+1=3\n#### {completion}", answer) == 1.0
    assert number(f"{n}/{d}", f"{n + 1}/{d}") == 0.0


def test_a_brace_needs_its_other_half_and_an_escaped_one_none():
    for text, whole in ((r"{a}\{", True), (r"\}{}", True), ("{", False), ("}{", False), (r"{\}", False), ("", True)):
        assert verifiers.closes(text) is whole, text


def test_what_stands_between_two_factors_is_no_mark():
    assert expression("*6*", "2 3 = 6") == expression("*2*3*", "2 3 = 6") == 0.0 < expression("*2+3*", "2 3 = 5")


def test_a_file_runs_beside_its_neighbours_under_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "rules_of_mine.py"
    path.write_text("from neighbour_of_mine import worth\ndef check(said, answer):\n    return worth(said, answer)\n")
    (tmp_path / "neighbour_of_mine.py").write_text("worth = lambda said, answer: 0.5 * (said == answer * 2)\n")
    for name, taken in ({}, "_verifier_rules_of_mine"), ({"module_name": "rules_of_mine"}, "rules_of_mine"):
        check = verifiers.from_file(str(path), "check", **name)
        assert (check("1212", "12"), check("12", "1212")) == (0.5, 0.0) and sys.path.count(str(tmp_path)) == 1
        assert sys.modules.pop(taken).__file__ == str(path)
    assert load(f"{path}:check", file=lambda *given: given) == (str(path), "check")


@given(st.integers(-(10**8), 10**8), st.integers(0, 8))
def test_decimals_are_compared_exactly(n, places):
    text = f"{'-' if n < 0 else ''}{abs(n) // 10**places}.{abs(n) % 10**places:0{places}d}" if places else str(n)
    assert number(text, f"{n}/{10**places}") == 1.0
    assert number(text + "1", f"{n}/{10**places}") == 0.0 if places else True


@cases(
    ("12", 1, "12", "#### 12", "#### 12.", "#### 12 .", "24/2", "$12", r"\boxed{$12$}"),
    ("12", 0, "", "#12", "12$", "12%", "12..", "**12", "12 - 0", "12 apples", "the answer is 12", "24/0", r"\boxed{12"),
    ("12", 0, "11 or 12", "12 or 11", "12, 13", "12\n13", "12 ####", "12 #### 13"),
    ("12", 0, "#### 11\n#### 12", "#### 12\nno, 13"),
    ("12", 0, "**11** **12**", r"\boxed{11}\boxed{12}", r"\boxed{11} or 12", "$11$ or $12$"),
    ("12.0", 1, "####12"),
    ("-12", 0, "-$12"),
    ("1234.5", 1, "1,234.50"),
    ("1234", 0, "12,34", "1 234"),
    ("1234567", 0, "1234,567"),
    ("123", 0, "1,23", ",123"),
    ("-617", 1, "-1,234/2"),
    ("1/2", 1, ".5"),
    ("-1/2", 0, "1/-2"),
    ("1/10", 1, "0.1"),
    ("3/4", 0, "1.5/2"),
    ("0.3", 0, "0.30000000000000004"),
    ("0", 1, "-0"),
    ("0", 0, "0/0", "", ".", "-"),
    ("7", 1, "007"),
    ("3", 1, "+3"),
    ("-5", 0, "- 5"),
    ("1000", 0, "1e3"),
    *((answer, 0, answer) for answer in ("", "nan", "inf")),
    *((answer, 0, "12") for answer in ("", "twelve")),
)
def test_number_table(completion, answer, reward):
    assert number(completion, answer) == reward


MARKS = "{}|{}.|**{}**|**{}.**|**{}**.|*{}*|__{}__|_{}_|`{}`|${}$|$${}$$|$ {} $"
LATEX = r"\({}\)|\[ {} \]|\boxed{{{}}}|$\boxed{{{}}}$|**\(\boxed{{{}}}\)**.|\text{{{}}}|\mathbf{{{}}}"


@pytest.mark.parametrize("wrapper", f"{MARKS}|{LATEX}".split("|"))
def test_what_is_put_around_the_whole_of_an_answer_is_seen_through(wrapper):
    """By number, choice and expression, on both sides; exact stays exact."""
    for verifier, said, other, answer in (
        (number, "42", "43", "42"),
        (number, "\u22121,234.50", "1,234.50", "-1234.5"),
        (choice, "B", "C", "B"),
        (expression, "(8\u22122)\u00d74+3", "(8-2)*4", GIVEN),
        (expression, "(8-2)*4+3 = 27", "(8-2)*4+3 = 28", GIVEN),
    ):
        if wrapper == "*{}*" and "*" in said:  # italics, or a factor that is missing
            continue
        for before in ("", "so\n#### ", "<think>is it #### 7? no</think>\n\n#### "):
            assert verifier(before + wrapper.format(said), answer) == 1.0
            assert verifier(before + wrapper.format(other), answer) == 0.0
        if verifier is not expression:
            assert verifier(said, wrapper.format(answer)) == 1.0
        assert verifier(wrapper.format(f"{said} {said}"), answer) == 0.0
    assert exact(wrapper.format("42"), "42") == (wrapper == "{}")


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("<think>#### 1, or #### 2</think>#### 42", "42"),
        ("<think>\n</think>\n\n42", "42"),
        ("a template has opened it #### 7</think>42", "42"),
        ("<think>no </think> #### 7 <think>yes</think> #### 42", "42"),
        ("<think>#### 42", None),
        ("#### 42 <think>", None),
        ("<think></think>#### 41 #### 42", None),
        ("<think>#### 42</think>", ""),
    ],
)
def test_the_answer_is_what_follows_the_thought(completion, answer):
    assert verifiers.final_answer(completion) == answer
    for verifier in (exact, number):
        assert verifier(completion, "42") == (answer == "42")


# ---- exact and choice ------------------------------------------------------------------------------------------------


@cases(
    ("refund", 1, "refund", "because\n#### refund\n"),
    ("refund", 0, "Refund", "refund!", "refund or not"),
    ("", 0, "", "####"),
    (" refund ", 1, "refund"),
    ("a b", 0, "a  b"),
    ("a #### b", 0, "#### a #### b"),
)
def test_exact_table(completion, answer, reward):
    assert exact(completion, answer) == reward


@cases(
    ("B", 1, "B", "(B)", "B.", "B)", "B).", "(B).", "**B**", r"$\boxed{\text{(B)}}$."),
    ("B", 0, "A", "b", "A or B", "AB", "B B", "", "(B", "(B.", "**A** or **B**", "The answer is B"),
    (" B\n", 1, "B"),
    ("(B)", 1, "think\n#### (B)"),
    ("", 0, "B"),
    *((answer, 0, answer) for answer in ("F", "Б")),
)
def test_choice_table(completion, answer, reward):
    assert choice(completion, answer) == reward


# ---- expression ------------------------------------------------------------------------------------------------------


@cases(
    (GIVEN, 1, "(8-2)*4+3", "3+4*(8-2)", "((8 - 2) * (4)) + 3", "(8-2)*4+3\n = 27"),
    (GIVEN, 1, "8-2=6\n6*4=24\n#### (8-2)*4+3 = 27"),
    (GIVEN, 0, "", "27", "=27", "(8-2)*4", "8-2+4+3", "3*3*3", "(8-2)*4+3+8-8", "(8-2)*4+3+0", "8-2)*4+3", "8(2)"),
    (GIVEN, 0, "(8-2)*4+3 = 28", "(8-2)*4+3 = 27 = 27", "(8-2)*4+3 or 3+4*(8-2)", "(8-2)*4+3\n27"),
    (GIVEN, 0, "#### (8-2)*4+3 #### (8-2)*4+3"),
    (GIVEN, 0, "(8-2)*4+3/0", "(8-2)**4", "83//3", "-(2-8)*4+3", "(8.0-2)*4+3", "(8-2)*04+3"),
)
def test_expression_table(completion, answer, reward):
    assert expression(completion, answer) == reward


def test_expression_reads_the_given_numbers_in_any_writing():
    assert expression("6/(1-3/4)", "1 3 4 6 = 24") == 1.0  # through a fraction, exactly
    assert expression("5+5", "5, 5 = 10") == 1.0 and expression("5+5", "5 = 10") == 0.0  # each as often as it is given
    assert expression("2*3", "2 3 9 = 6") == 1.0  # not all have to be used
    for text in ("2_0", "0x14", "(15+\n5)", "20 # so", "20 if 1 else 15"):  # Python, and no arithmetic of the task's
        assert expression(text, "20 15 5 1 = 20") == 0.0
    assert expression("23", "2 3 = 23") == 0.0  # digits are not numbers to be glued
    for broken in ("1 3 4 6", "= 24", "", "1 3 4 6 = x", "1 3 4 6 = 24/0", "-1 3 4 6 = 24", "1 3.0 4 6 = 24"):
        assert expression("6/(1-3/4)", broken) == 0.0


@given(st.lists(st.integers(1, 99), min_size=2, max_size=5), st.data())
def test_every_true_equation_over_the_given_numbers_is_accepted(numbers, data):
    text, value = str(numbers[0]), Fraction(numbers[0])
    for n in numbers[1:]:
        op = data.draw(st.sampled_from("+-*/"))
        text = f"({text}{op}{n})"
        value = {"+": value + n, "-": value - n, "*": value * n, "/": value / n}[op]
    answer = f"{' '.join(map(str, numbers))} = {value}"
    assert expression(text, answer) == 1.0
    assert expression(f"{text}+{numbers[0]}", answer) == 0.0
    assert expression(text, f"{' '.join(map(str, numbers))} = {value + 1}") == 0.0


# ---- a verifier of the user's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load, verifier_of])
def test_load(tmp_path, load):
    """In this process, and in one of its own: with the same words."""
    assert [load(name) for name in ("exact", "number", "choice", "expression")] == [exact, number, choice, expression]
    rules = tmp_path / "my_rules.py"
    rules.write_text("def check(completion, answer):\n    return 0.5\nvalue = 3\ndef two(c, a):\n    return 2.0\n")
    assert load(f"{rules}:check")("a", "b") == 0.5
    with pytest.raises(ValueError, match="it returned 2.0; a float from 0 to 1 is needed"):
        load(f"{rules}:two")("a", "b")
    rules.with_name("train.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class A:\n    x: int\ndef check(completion, answer):\n    return A(1).x\n"
    )
    assert load(f"{tmp_path}/train.py:check")("a", "b") == 1
    broken = [("def check(:\n", "SyntaxError"), ("1/0\n", "ZeroDivisionError")]
    broken += [("import sys\nsys.exit('bye')\n", "SystemExit: bye"), ("raise ValueError('one\\ntwo')\n", "one two")]
    for i, (text, _) in enumerate(broken):
        (tmp_path / f"broken{i}.py").write_text(text)
    (tmp_path / "rules.txt").write_text(rules.read_text())
    for name, words in (
        ("nonsense", "exact, number, choice, expression"),
        (f"{rules}:missing", "no function missing"),
        (f"{rules}:value", "no function value"),
        (f"{tmp_path}/none.py:check", "no file"),
        (str(rules), "none of"),
        (f"{tmp_path}/rules.txt:check", "none of"),
        *((f"{tmp_path}/broken{i}.py:check", words) for i, (_, words) in enumerate(broken)),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load(name)
        assert "\n" not in str(error.value)


def test_load_of_the_verifiers_that_need_packages(monkeypatch):
    """Handed on by name to where they are; math-verify is started at once, so that its absence is told at once."""
    asked = []
    judge = lambda completion, answer: 0.25
    monkeypatch.setattr(problems, "scorer", asked.append)
    monkeypatch.setattr(problems, "math_verify", judge)
    monkeypatch.setattr("sources.gym.verifier", lambda name: asked.append(name) or judge)
    assert verifier_of("math_verify") is judge and verifier_of("reasoning_gym:chain_sum") is judge
    assert asked == ["math_verify", "reasoning_gym:chain_sum"]


def test_references_that_no_completion_can_meet_are_found():
    reading = lambda completion, answer: number(completion, answer)
    reading.reads_reference = True
    for verifier, completion, answer, expected in (
        (number, "#### 12", "12", True),
        (number, "#### twelve", "twelve", False),
        (choice, "#### F", "F", False),
        (exact, "so\n#### yes", "yes", True),
        (exact, "#### a\n#### a", "a", False),
        (expression, "", "1 2 = 3", True),
        (expression, "", "1 2", False),
        (expression, "", "= 24", False),
        (lambda c, a: 0.0, "", "", True),
        (reading, "#### 5", "5", True),
        (reading, "#### 5", "6", False),
    ):
        assert problems.can_be_earned(verifier, completion, answer) is expected


def test_a_reward_is_a_number_from_0_to_1_of_any_library():
    for returned in (0, 1, 0.25, np.float32(0.25), torch.tensor(0.25), np.array(1.0)):
        assert type(reward_of(returned)) is float and reward_of(returned) == returned
    no_bool = (math.nan, math.inf, None, 1.0000001, -0.1, "1.0", b"1", [0.5])
    for returned in (*no_bool, True, np.bool_(True), torch.tensor(True)):
        with pytest.raises(Failed, match=re.escape(f"it returned {returned!r}; a float from 0 to 1 is needed")) as told:
            reward_of(returned)
        assert ("float(...) makes one" in str(told.value)) == all(returned is not other for other in no_bool)
    with pytest.raises((TypeError, ValueError)):
        reward_of(np.array([0.0, 1.0]))


def test_standard_library_only():
    source = open(verifiers.__file__).read()
    imports = [word for line in source.splitlines() if "import" in line for word in line.split()]
    assert not {"torch", "numpy", "tiktoken"} & set(imports)
    assert not re.search(r"eval\(|exec\(|(?<!re\.)compile\(", source)
