"""Problems and scorers of the reasoning-gym package."""

import ast
import inspect
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS
from small_runs import again, figures, refused

import tasks
import train
from harness.problems import verifier_of
from sources import gym, scorers
from support.child import Limited

SIMPLE = "reasoning_gym:chain_sum,max_terms=2,max_digits=2"
REFUSED = {"polynomial_multiplication", "simple_integration", "intermediate_integration"}
EVALUATING = REFUSED | {"countdown", "puzzle24", "string_insertion", "spiral_matrix", "binary_matrix"}
EVALUATING |= {"n_queens", "number_sorting"}
EVALUATING_THEIR_OWN = {"basic_arithmetic", "bitwise_arithmetic", "codeio"}  # text of the package's making, no answer
draw = lambda task, n, seed=0, held_out=5: gym.source(task, held_out).draw(random.Random(seed), n)


def reward(problem, completion, task):
    return verifier_of(task)(completion, problem.answer)


# ---- no scorer evaluates model text ----------------------------------------------------------------------------------


def calls(source):
    """Names of all functions and methods that a piece of code calls."""
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {getattr(f, "id", getattr(f, "attr", "")) for f in functions}


def test_the_scorers_that_evaluate_are_known():
    """Read from the installed sources; a helper that a scorer calls stands in the same file."""
    evaluating, files = set(), set()
    for name, (dataset, _) in DATASETS.items():
        if name == "propositional_logic":  # its parse_expr is a parser of its own, and it gives no reference answers
            continue
        if calls(textwrap.dedent(inspect.getsource(dataset.score_answer))) & scorers.EVALUATION:
            evaluating.add(name)
        if calls(Path(inspect.getsourcefile(dataset)).read_text()) & (scorers.EVALUATION - {"compile"}):
            files.add(name)
    assert evaluating == EVALUATING and files == EVALUATING | EVALUATING_THEIR_OWN


def test_the_refusal_looks_at_the_scorer_and_not_at_a_list(monkeypatch):
    monkeypatch.setattr("reasoning_gym.create_dataset", lambda *args, **options: None)  # what comes after takes seconds
    refused = set()
    for name in DATASETS:
        try:
            scorers.make_dataset(name)
        except ValueError as error:
            assert "is refused: its scorer evaluates model text" in str(error)
            refused.add(name)
    assert refused == REFUSED
    # eval of number_sorting: of the entry's answer
    source = inspect.getsource(DATASETS["number_sorting"][0].score_answer)
    assert source.count("eval(") == 1 and 'eval(entry["answer"])' in source


@pytest.mark.parametrize("name", ["countdown", "binary_matrix", "n_queens", "string_insertion", "number_sorting"])
def test_hostile_answers_are_not_run(name, tmp_path):
    task = f"reasoning_gym:{name}"
    problem = draw(task, 1, held_out=1)[0]
    opens = f"open('{tmp_path}/there', 'w')"
    for text in (opens, f"[{opens}]", f"__import__('os').mkdir('{tmp_path}/d')"):
        assert reward(problem, text, task) == 0.0
    assert not list(tmp_path.iterdir())


def test_an_answer_that_would_take_for_ever_is_worth_nothing(monkeypatch):
    monkeypatch.setattr(Limited.ask, "__kwdefaults__", {"seconds": 1.0})
    problem = draw("reasoning_gym:coin_flip", 1, held_out=1)[0]  # its scorer makes a Fraction of the text
    assert reward(problem, "1e999999999", "reasoning_gym:coin_flip") == 0.0
    assert reward(problem, problem.answer, "reasoning_gym:coin_flip") == 1.0


# ---- judgements ------------------------------------------------------------------------------------------------------

JUDGED = "chain_sum countdown puzzle24 binary_matrix spiral_matrix n_queens string_insertion game_of_life_halting "
JUDGED += "gsm_symbolic word_ladder gcd prime_factorization"


@pytest.mark.parametrize("name", JUDGED.split())
def test_references_earn_the_reward_and_other_answers_do_not(name):
    task = f"reasoning_gym:{name}"
    for problem in draw(task, 3, held_out=2):
        assert reward(problem, problem.answer, task) == 1.0
        assert reward(problem, tasks.decode(tasks.target(problem)), task) == 1.0
        for text in ("", "no", f"#### {problem.answer} #### {problem.answer}", problem.answer + " or 7", "9" * 20_000):
            assert reward(problem, text, task) == 0.0, text


def test_part_marks_are_no_marks():
    task = "reasoning_gym:prime_factorization"
    problem = draw(task, 1)[0]
    n = eval(problem.answer.replace("×", "*"))
    dataset = scorers.make_dataset("prime_factorization")
    assert 0 < dataset.score_answer(str(n), dataset[problem.answer.row]) < 1
    assert reward(problem, str(n), task) == 0.0
    with pytest.raises(ValueError):  # a scorer that raises: worth nothing either
        dataset.score_answer("x", dataset[problem.answer.row])
    assert reward(problem, "x", task) == 0.0


def test_countdown_is_judged_by_our_expression():
    metadata = {"metadata": {"numbers": [6, 61, 94, 4], "target": 309}}
    judge = scorers.OUR_JUDGES["countdown"]
    assert judge("94*4 - 61 - 6", metadata) and judge("94*4-(61+6) = 309", metadata)
    for wrong in ("309", "94*4-61-6+0", "94*4-61", "94*4-61-6 = 310", "(94*4-61-6)*(4-4+1)", "94*4 - 67"):
        assert not judge(wrong, metadata), wrong
    assert not judge("6*4", {"metadata": {"numbers": [6, 4, 1], "target": 24}})  # all of them are to be used
    four = {"metadata": {"numbers": [8, 5, 10, 6]}}
    assert scorers.OUR_JUDGES["puzzle24"]("10*(8-5)-6", four) and not scorers.OUR_JUDGES["puzzle24"]("6*4*1*1", four)


def test_other_right_answers_are_right():
    dataset = scorers.make_dataset("n_queens")
    right = lambda problem: dataset[problem.answer.row]["metadata"]["valid_answers"]
    problem = next(p for p in draw("reasoning_gym:n_queens", 30) if len(right(p)) > 1)
    for answer in right(problem):
        assert reward(problem, answer, "reasoning_gym:n_queens") == 1.0


def test_equal_answers_to_different_questions_are_judged_by_their_own(monkeypatch):
    """Two problems with one answer text: an answer right for the one alone must not pass for the other."""
    task = "reasoning_gym:n_queens"
    first, second = draw(task, 2)
    forged = gym.Reference(str(first.answer))
    forged.row = second.answer.row
    judge = verifier_of(task)
    assert judge(first.answer, first.answer) == 1.0 and judge(first.answer, forged) == 0.0


# ---- problems --------------------------------------------------------------------------------------------------------


def test_worked_solutions_come_along_without_their_marker():
    problems = draw("reasoning_gym:gsm_symbolic", 20)
    assert all(p.solution and "####" not in p.solution and p.solution.strip() == p.solution for p in problems)
    teacher = tasks.teacher_prompt(problems[0], "solution")
    assert problems[0].solution in tasks.decode(teacher)
    assert draw(SIMPLE, 1)[0].solution is None


def test_settings_reach_the_generator():
    for problem in draw(SIMPLE, 20):
        numbers = problem.question.split(": ")[1].split(" =")[0].split()
        assert len(numbers) == 3 and max(int(n) for n in numbers[::2]) < 100


def test_training_and_held_out_problems_share_no_question():
    for task, held_out in (("reasoning_gym:chain_sum,max_terms=2,max_digits=1", 20), (SIMPLE, 50)):
        source = gym.source(task, held_out)
        apart = {p.question for p in source.held_out}
        assert len(apart) == len(source.held_out) and source.held_out == gym.source(task, held_out).held_out
        drawn = source.draw(random.Random(1), 1000)
        assert not apart & {p.question for p in drawn}
        indices = {p.answer.row for p in source.held_out}
        if "digits=1" in task:  # the very questions do come up again under other indices
            assert len({p.question for p in drawn}) < 200
            again = [gym._problem(task, random.Random(i)) for i in range(300)]
            assert any(p.question in apart and p.answer.row not in indices for p in again)


def test_of_few_questions_a_tenth_is_held_out():
    source = gym.source("reasoning_gym:chain_sum,max_terms=2,max_digits=1", 300)  # fewer than 200 questions
    assert 5 <= len(source.held_out) <= 20
    with pytest.raises(ValueError, match="too few different questions"):
        gym.source("reasoning_gym:chain_sum,max_terms=2,max_digits=1", 1).draw(
            type("Stuck", (random.Random,), {"randrange": lambda self, n: source.held_out[0].answer.row})(0), 5
        )


def test_of_a_handful_of_questions_one_is_held_out(monkeypatch):
    def problem(task, rng):
        return tasks.Problem(f"question {rng.randrange(5)}", "1", "solved")

    monkeypatch.setattr(gym, "_problem", problem)
    assert len(gym.source("reasoning_gym:few", 8).held_out) == 1
    # "question 1" + "1" and + "solved", as prompts hold them; "solved\n", one token for ####, " 1" and the end
    assert gym._sizes(problem("", random)) == (11, 16, 11)


def test_a_reference_that_could_not_be_read_back_is_no_problem(monkeypatch):
    """No text, an empty one, one with our marker in it, one that its own scorer refuses."""

    class Made(list):
        def score_answer(self, text, entry):
            return float(text != "refused")

    answers = [None, 7, " ", "1 #### 2", "refused", " 12 "]
    made = Made({"question": "q", "answer": answer, "metadata": {}} for answer in answers)
    monkeypatch.setattr(scorers, "make_dataset", lambda task: made)
    item = scorers.reasoning_gym_scorer("made")
    sound = {"question": "q", "answer": "12", "solution": None}
    assert [item("item", i) for i in range(6)] == [False] * 5 + [sound]


def test_answers_of_more_than_ten_thousand_characters_are_not_read(monkeypatch):
    monkeypatch.setattr(gym, "scorer", lambda *made: type("Credulous", (), {"ask": lambda *request: True}))
    answer = gym.Reference("1")
    answer.row = 0
    judge = gym.verifier("reasoning_gym:gcd")
    assert [judge("1" * n, answer) for n in (10_000, 10_001)] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["isomorphic_strings", "ransom_note", "list_functions", "chain_sum"])
def test_the_same_seed_draws_the_same_problems_in_any_process(name):
    """Some generators draw from sets of strings or from the global generator: other processes, other problems."""
    task = f"reasoning_gym:{name}"
    first = draw(task, 5)
    scorers.scorer("reasoning_gym", name).close()
    random.seed(7)
    draw(task, 3, seed=9)  # another history
    assert [(p.question, p.answer) for p in draw(task, 5)] == [(p.question, p.answer) for p in first]


def test_too_long_ones_are_passed_over_once_the_rest_is_checked(monkeypatch):
    source = gym.source("reasoning_gym:needle_haystack", 1)
    longest = max(gym._sizes(p)[0] for p in source.known)
    assert max(gym._sizes(p)[0] for p in source.draw(random.Random(5), 30)) <= longest
    everything = [gym._problem("reasoning_gym:needle_haystack", random.Random(i)) for i in range(60)]
    assert max(gym._sizes(p)[0] for p in everything) > longest


def test_a_problem_that_cannot_be_made_in_time_is_named(monkeypatch):
    monkeypatch.setattr(Limited, "ask", lambda self, *request, seconds: None)
    with pytest.raises(ValueError, match="reasoning_gym:lcm: problem .* is not made within"):
        gym.source("reasoning_gym:lcm", 2)


# ---- in a run --------------------------------------------------------------------------------------------------------

TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 2 --warm_batch 4 --steps 2 --eval_every 1 --prompts_per_step 2 "
    "--group_size 2 --max_new_tokens 12 --eval_problems 3 --save_every 1"
).split()


def test_a_run_and_its_resumption(tmp_path):
    more = [*TINY, "--task", SIMPLE, "--warm_dir", str(tmp_path / "warm")]
    assert train.main([*more, "--out", str(tmp_path / "whole")]) == 0
    assert train.main([*more, "--out", str(tmp_path / "parts"), "--steps", "1"]) == 0
    assert train.main(again(tmp_path / "parts", "--steps 2")) == 0
    whole, parts = (figures(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts and len(whole) == 3


def test_another_version_of_the_package_is_another_run(tmp_path, monkeypatch, capsys):
    run = ["--task", SIMPLE, "--steps", "1", "--warm_steps", "0", "--out", str(tmp_path / "run")]
    assert train.main([*TINY, *run]) == 0
    monkeypatch.setattr(gym, "package_version", lambda task: "0.0.0")
    refused(capsys, again(tmp_path / "run", "--steps 2"), "start a new run")


def test_what_no_problems_can_be_made_of_is_named():
    for task, words in {
        "": "has no task ''",
        "gcd,max_numbers": "has no setting 'max_numbers'; it has min_numbers",
        **{f"gcd,{word}": f"has no setting '{word}'" for word in ("depth=2", "seed=2", "size=2")},
        "composite": "cannot be made",
    }.items():
        with pytest.raises(ValueError, match=words):
            scorers.make_dataset(task)


@pytest.mark.parametrize(
    "options, words",
    [
        ("reasoning_gym:chain_sums", "has no task 'chain_sums'; it has chain_sum"),
        ("reasoning_gym:polynomial_multiplication", "refused: its scorer evaluates model text (parse_expr)"),
        ("reasoning_gym:gcd,max_numbers=many", "cannot be made"),
        ("reasoning_gym:rush_hour", "no reference answer"),
        ("reasoning_gym:gcd --chain 3", "--chain"),
        ("reasoning_gym:spell_backward --max_new_tokens 4", "raise it"),
        ("reasoning_gym:arc_1d", "--max_seq_len 256; raise it"),
        ("reasoning_gym:gcd --privileged solution", "has no solution to show"),
        ("nonsense", "is none of addition, countdown, nor like reasoning_gym:NAME"),
    ],
)
def test_errors_are_one_line(options, words, tmp_path, capsys):
    asked = ["--task", *options.split(), "--eval_problems", "2", "--out", tmp_path / "run"]
    assert len(refused(capsys, asked, words)) < 400
    assert not (tmp_path / "run").exists()


def test_its_verifier_judges_its_own_problems_alone(tmp_path, capsys):
    data = tmp_path / "my.jsonl"
    data.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "2"}\n')
    asked = ["--data", data, "--verifier", "reasoning_gym:gcd", "--out", tmp_path / "run"]
    refused(capsys, asked, "of --task reasoning_gym:gcd alone")


def test_neither_package_is_imported_in_the_run_itself():
    code = "import sys, train; from sources import gym; gym.source('reasoning_gym:gcd', 2); "
    code += "assert not {'reasoning_gym', 'math_verify'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(train.__file__).parent).returncode == 0
