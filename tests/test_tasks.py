import json
import random
import re
import runpy
import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
import verifiers
from config import Config
from sources import careless, jsonl
from tasks import ASSISTANT, END, REFERENCE, USER, Problem, student_prompt, teacher_prompt

texts = st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace").decode())
row = lambda i, **more: {"question": f"q{i}", "answer": f"a{i}", **more}
problems = st.builds(Problem, texts.filter(bool), texts.filter(bool), st.none() | texts.filter(bool))


# ---- tokenizer and views ---------------------------------------------------------------------------------------------


@given(texts)
def test_text_survives_the_tokenizer(text):
    tokens = tasks.encode(text)
    assert tasks.decode(tokens) == text and all(0 <= t < 258 for t in tokens)


def test_names_of_roles_and_braces_in_a_text_are_plain_text():
    braces = ("{privileged}", "{0.__class__}", "{question!r}", "%s", "{")
    for text in (*(f"a {role} b" for role in tasks.ROLES), "".join(tasks.ROLES), *braces):
        problem, tokens = Problem(text, text), tasks.encode(text)
        assert not {USER, REFERENCE, ASSISTANT, END} & set(tokens) and tasks.decode(tokens) == text
        assert student_prompt(problem) == [USER, *tokens, ASSISTANT]
        assert teacher_prompt(problem) == [USER, *tokens, REFERENCE, *tokens, ASSISTANT]


@given(st.lists(st.integers(0, 261)))
def test_any_tokens_decode(tokens):
    assert isinstance(tasks.decode(tokens), str)


def test_decode_stops_at_the_end_token():
    assert tasks.decode([*tasks.encode("ab"), END, *tasks.encode("c")]) == "ab"
    assert tasks.FORMAT.ended([97, END, 98, END]) == [97, END] and tasks.FORMAT.ended([97, 98]) == [97, 98]


def test_the_marker_is_one_token_and_special_tokens_come_last():
    assert tasks.encode("a#### 12") == [97, 257, 32, 49, 50]
    assert (USER, REFERENCE, ASSISTANT, END) == (258, 259, 260, 261) and tasks.TOKENIZER.n_vocab == 262


def test_tokenizer_needs_no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("the network was asked"))
    made = runpy.run_path(tasks.__file__)["TOKENIZER"]
    assert made.encode_ordinary("ü####") == [0xC3, 0xBC, 257]


@given(problems, texts.filter(lambda t: t not in ("", "answer", "solution")))
def test_the_views_differ_in_the_privileged_text_alone(problem, text):
    student = student_prompt(problem)
    shown = {"answer": problem.answer, "solution": problem.solution, text: text}
    for privileged, content in shown.items():
        if content is None:
            with pytest.raises(ValueError, match="no solution"):
                teacher_prompt(problem, privileged)
            continue
        teacher = teacher_prompt(problem, privileged)
        assert tasks.teacher_view(problem, privileged) == teacher
        assert teacher == [*student[:-1], REFERENCE, *tasks.encode(content), ASSISTANT]
    assert REFERENCE not in student and tasks.prompt(problem, "") == student
    assert student[-1] == ASSISTANT  # what stands right before the first completion token


# ---- built-in problems -----------------------------------------------------------------------------------------------


def form(text, filler):
    """Each line or answer with 0 for a number, + for an operation, and whether `filler` free letters come first."""
    lines = [re.subn(f"^[a-h]{{{filler}}} ", "", line) if filler else (line, 0) for line in text.splitlines()]
    return [(re.sub(r"[-*/]", "+", re.sub(r"\d+", "0", line)), worded) for line, worded in lines]


@pytest.mark.parametrize("task", tasks.GENERATORS)
@given(seed=st.integers(0, 2**32), filler=st.sampled_from([0, 0, 1, 3]))
def test_worked_solutions_are_right_and_careless_ones_have_their_form(task, seed, filler):
    rng = random.Random(seed)
    source, work = tasks.generated(task, 5, filler=filler), careless.careless(Config(task=task, filler=filler))
    verifier = verifiers.load(source.verifier)
    for problem in source.draw(rng, 5):
        assert verifier(tasks.decode(tasks.target(problem)), problem.answer) == 1.0
        assert tasks.target(problem)[-1] == END
        carry = 0
        for line in problem.solution.splitlines():
            left, right = line[filler + 1 if filler else 0 :].split("=")
            assert verifiers._evaluate(left)[0] + carry == int(right)
            carry = int(right) // 10 if task == "addition" else 0
        careful, slipped = work(problem, rng, 0.0), work(problem, rng, 1.0)
        assert careful.answer == problem.answer and (careful == problem or filler)
        assert slipped.question == careful.question == problem.question
        drawn = form(problem.solution, filler)
        assert {line for line, _ in drawn} == {"0+0=0"} and {worded for _, worded in drawn} == {int(filler > 0)}
        assert form(slipped.solution, filler) == form(careful.solution, filler) == drawn
        whole = "[0-9]+" if task == "addition" else r"[-+*/()0-9]+ = [0-9]+"
        assert re.fullmatch(whole, slipped.answer) and re.fullmatch(whole, problem.answer)
        right = slipped.solution == problem.solution
        reward = verifier(tasks.decode(tasks.target(slipped)), problem.answer)
        assert reward >= right  # countdown may reach the target by another way


def test_free_wording_is_drawn_anew_before_each_step():
    words = [line.split()[0] for line in tasks.addition(random.Random(0), filler=6).solution.splitlines()]
    assert len(set(words)) == len(words) == 4


@pytest.mark.parametrize("chain", [2, 3, 5])
def test_copying_a_given_number_does_not_reach_the_target(chain):
    for problem in tasks.generated("countdown", 20, chain).held_out:
        target, numbers = problem.question.split(" from ")
        assert len(numbers.split()) == chain and target not in numbers.split()


def test_addition_by_hand():
    assert tasks.columns("4787", "3625", lambda: True) == ("7+5=12\n8+2=11\n7+6=14\n4+3=8", "8412")
    assert tasks.columns("4787", "3625", lambda: False) == ("7+5=12\n8+2=10\n7+6=13\n4+3=7", "7302")
    assert tasks.columns("99", "99", lambda: True) == ("9+9=18\n9+9=19", "198")


def test_slips_come_at_the_stated_rate_and_in_built_in_tasks_alone():
    rng, worked = random.Random(0), lambda problem, **said: careless.careless(Config(**said))(problem, rng, 0.75)
    problem = Problem("9999+9999", "19998", tasks.columns("9999", "9999", lambda: True)[0])
    remembered = sum(worked(problem).solution.count("=19") for _ in range(2000))
    assert remembered / 6000 == pytest.approx(0.25, abs=0.02)
    (other,) = tasks.generated("countdown", 1).held_out
    kept = sum(worked(other, task="countdown") == other for _ in range(2000))
    assert kept / 2000 == pytest.approx(0.25, abs=0.03)
    for said in ({"data": "my.jsonl"}, {"task": "reasoning_gym:gcd"}):
        assert [worked(problem, **said) for _ in range(9)] == [problem] * 9


@pytest.mark.parametrize("task", tasks.GENERATORS)
def test_guessing_does_not_pay(task):
    drawn = tasks.generated(task, 5).draw(random.Random(1), 2000)
    answers = Counter(problem.answer for problem in drawn)
    assert answers.most_common(1)[0][1] / 2000 < 0.02
    verifier = verifiers.load(tasks.GENERATORS[task][1])
    for guess in (*map(str, range(1, 30)), "1+1", "2*2", "10+10", "20-1"):
        assert sum(verifier(guess, p.answer) for p in drawn[:500]) / 500 < 0.02, guess


@pytest.mark.parametrize("task", tasks.GENERATORS)
def test_training_and_held_out_problems_share_no_question(task, monkeypatch):
    first = tasks.generated(task, 300)
    held_out = {p.question for p in first.held_out}
    assert len(held_out) == 300
    assert held_out == {p.question for p in tasks.generated(task, 300).held_out}  # the same for every run
    ordered = lambda question: tuple(sorted(re.findall(r"\d+", question)))
    assert not {ordered(q) for q in held_out} & {ordered(p.question) for p in first.draw(random.Random(3), 20000)}
    # with almost nothing left to draw, held-out questions keep coming up and are passed over
    digit = lambda rng, filler: Problem(str(rng.randrange(10)), "1")
    monkeypatch.setitem(tasks.GENERATORS, "tiny", (digit, "number"))
    tiny = tasks.generated("tiny", 8)
    drawn = {p.question for p in tiny.draw(random.Random(3), 50)}
    assert len(drawn) == 2 and not drawn & {p.question for p in tiny.held_out}


# ---- the user's own problems -----------------------------------------------------------------------------------------


def write(tmp_path, *rows):
    path = tmp_path / "my.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_sound_file(tmp_path):
    path = write(tmp_path, row(0), row(1, solution="s", hint="h"))
    assert jsonl.load_problems(path) == [Problem("q0", "a0"), Problem("q1", "a1", "s")]
    path = write(tmp_path, *[row(i, hint=f"h{i}") for i in range(40)])
    source = jsonl.from_file(path, 500, "exact", "hint")
    assert len(source.held_out) == 4 and len(source.known) == 40
    assert source.held_out == jsonl.from_file(path, 500, "exact", "hint").held_out
    drawn = source.draw(random.Random(0), 36)
    assert {p.question for p in drawn} == {f"q{i}" for i in range(40)} - {p.question for p in source.held_out}
    assert all(p.privileged == "h" + p.question[1:] for p in drawn)
    assert len(source.draw(random.Random(0), 100)) == 100  # more than there are: with repeats


def test_a_text_of_the_problems_own_is_shown_as_it_is():
    """Also the name of another choice; and of a right sample without a word no reference stands in its place."""
    assert tasks.teacher_view(Problem("q", "a", "s", "answer"), "answer") == tasks.prompt(Problem("q", "a"), "answer")
    assert tasks.teacher_view(Problem("1+1", "2", privileged=""), "answer") == student_prompt(Problem("1+1", "2"))
