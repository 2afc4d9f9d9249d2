"""Steps, scores and figures of study/localise.py by hand; a run on a data set of two made-up problems."""

import hashlib
import itertools
import json
import types
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import sharp_state

import tasks
from model import Samples, token_logps
from study import localise


@pytest.fixture
def model():
    return sharp_state("--max_seq_len", "400")[1].policy.eval()


# ---- steps -----------------------------------------------------------------------------------------------------------


def cut(text):
    begins = localise.steps_of(text)
    return [text[a:b] for a, b in itertools.pairwise(begins)]


def test_steps_by_hand():
    assert cut("We add. So x = 3.5!\n\nThen\ny = 2") == ["We add. ", "So x = 3.5!\n\n", "Then\n", "y = 2"]
    assert cut("1. First we add.\n2. Stop") == ["1. First we add.\n", "2. Stop"]  # a number is no step
    assert cut("\\[\nf(2) = 4\n\\]\nDone. ") == ["\\[\nf(2) = 4\n", "\\]\nDone. "]
    assert cut("word") == ["word"]


@given(st.text(alphabet="ab1.!? \n\\[é", min_size=1, max_size=40))
def test_steps_are_the_text_in_order(text):
    steps = cut(text)
    assert "".join(steps) == text and all(steps)
    assert all(sum(map(str.isalnum, step)) > 2 for step in steps[:-1])


def test_marked_steps_by_hand():
    text = "aaaa. bbbb. cccc. dddd"
    begins = [0, 6, 12, 18, 22]
    of = lambda part: localise.marked_steps(begins, text, (text.index(part), text.index(part) + len(part)))
    assert of("bbbb.") == [1] and of("bbbb. cccc.") == [1, 2] and of(". bbbb. c") == [1]
    assert of("bb. ccc") == [1, 2]  # three of five each
    assert localise.marked_steps([0, 5, 9], "aaa. bbb.", (1, 7)) == [0, 1]  # of the second just half
    assert of("bb") == [1] and of("a. bb") == [0]  # no half: the one with most, the first of equals


def test_a_token_belongs_to_the_step_of_its_last_byte(monkeypatch):
    pieces = ["é one", ".", " Two", ".\n", "\n", "Thr", "ee"]
    tokenizer = types.SimpleNamespace(decode_single_token_bytes=lambda i: pieces[i].encode())
    monkeypatch.setattr(tasks, "FORMAT", types.SimpleNamespace(tokenizer=tokenizer))
    text = "".join(pieces)
    steps = localise.step_of_tokens(list(range(7)), text, localise.steps_of(text))
    assert steps.tolist() == [0, 0, 1, 1, 1, 2, 2]
    with pytest.raises(localise.UserError, match="changes the text"):
        localise.step_of_tokens(list(range(6)), text, localise.steps_of(text))


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_training_steps_and_the_entropy_is_written_out(model, monkeypatch):
    prompt, completion = tasks.encode("12+34"), tasks.encode("a wrong sum")
    monkeypatch.setattr(localise, "SCORE_CHUNK", 4 * model.config.vocab_size)  # in parts of four tokens
    logps, entropies = localise.scored(model, prompt, completion, True)
    expected = token_logps(model, [prompt], Samples.of([completion]), 1.0)[0]
    p = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1].softmax(dim=-1)
    assert torch.allclose(logps, expected, atol=1e-5)
    assert torch.allclose(entropies, -(p * p.log()).sum(dim=-1), atol=1e-4)
    assert torch.equal(localise.scored(model, prompt, completion, False)[0], logps)


def test_a_row_holds_the_sums_over_steps_in_each_view(model):
    text = "So x = 3. Then y = 4."
    shown = {"answer": "7", "wrong answer": "8"}
    one = localise.Solution("P_1", "somebody", "x + y?", text, (0, 9), shown)
    row = localise.row_of(model, "small", one)
    assert row["marked"] == [0] and row["tokens"] == [10, 11]
    assert row.keys() == {"model", "problem", "writer", "marked", "tokens", "student", "entropy", *shown}
    for view, privileged in {"student": "", **shown}.items():
        prompt = tasks.prompt(tasks.Problem("x + y?", ""), privileged)
        logps = token_logps(model, [prompt], Samples.of([tasks.encode(text)]), 1.0)[0]
        assert row[view] == pytest.approx([logps[:10].sum().item(), logps[10:].sum().item()], abs=2e-3)
    assert localise.row_of(model, "small", one._replace(question="x" * 400)) is None  # beyond the context


def test_measures_by_hand():
    row = {"tokens": [2, 4], "student": [-2.0, -8.0], "answer": [-4.0, -6.0], "wrong answer": [-1.0, -7.0]}
    row |= {"entropy": [1.0, 8.0], "marked": [0]}
    found = {name: list(x) for name, x in localise.scores_of(row).items()}
    assert found.pop("chance") == [0, 0] and found.pop("tokens of the step") == [2, 4]
    sums = {"-Delta, r = answer": [2, -2], "-Delta, contrastive": [3, -1]}  # the marked step is the one to blame
    sums |= {"the student's surprisal": [2, 8], "the student's entropy": [1, 8]}
    expected = {f"{name}, summed": x for name, x in sums.items()}
    expected |= {f"{name}, averaged": [x[0] / 2, x[1] / 4] for name, x in sums.items()}
    assert found == expected


def test_the_prior_of_a_problem_is_that_of_the_others():
    """Twenty steps, two a tenth; the others' first steps are marked, its own last one is not looked at."""
    rows = [{"problem": p, "tokens": [1] * 20, "marked": [at]} for p, at in (("a", 0), ("b", 1), ("c", 19), ("c", 4))]
    priors = localise.position_priors(rows)
    assert priors[2].tolist() == [0.5] * 2 + [0.0] * 18 and priors[3].tolist() == priors[2].tolist()
    assert priors[0][[0, 2, 4, 19]] == pytest.approx([1 / 6, 0, 1 / 6, 1 / 6])
    assert localise.position_priors(rows[:1])[0].tolist() == [0.0] * 20  # there is no other


@given(st.lists(st.integers(0, 2), min_size=2, max_size=5), st.data())
def test_figures_with_ties_are_the_mean_over_their_orders(scores, data):
    n = len(scores)
    marked = data.draw(st.lists(st.sampled_from(range(n)), min_size=1, max_size=n - 1, unique=True))
    found = []
    for order in itertools.permutations(range(n)):
        ranked = sorted(range(n), key=lambda i: (-scores[i], order[i]))
        place = [ranked.index(i) for i in range(n)]
        others = [i for i in range(n) if i not in marked]
        above = np.mean([place[i] < place[j] for i in marked for j in others])
        found.append((above, ranked[0] in marked, 1 + min(place[i] for i in marked)))
    assert localise.found_by(np.array(scores, dtype=float), marked) == pytest.approx(np.mean(found, axis=0))


def test_solutions_of_a_problem_are_drawn_together():
    of = localise.over_problems([[1.0, 1.0, 1.0], [0.0]])
    assert (of.value, of.low, of.high, of.n) == (0.75, 0.0, 1.0, 2)
    assert localise.over_problems([[0.4], [0.4, 0.4]]).low == pytest.approx(0.4)


def test_verdicts():
    estimate = lambda low, high, n=5: localise.Estimate((low + high) / 2, low, high, n)
    above, level = estimate(0.01, 0.1), estimate(-0.1, 0.1)
    assert localise.verdict(estimate(0.51, 0.6), above) == "finds it, beyond its place"
    assert localise.verdict(estimate(0.51, 0.6), level) == "finds it"
    assert localise.verdict(estimate(0.4, 0.6), above) == "level with chance"
    assert localise.verdict(estimate(0.4, 0.49), level) == "points elsewhere"
    assert localise.verdict(estimate(0.51, 0.6, 4), above) == localise.verdict(estimate(0.4, 0.49, 4), level) == "few"


# ---- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
def champ(tmp_path, monkeypatch, model):
    """A data set in CHAMP's form in which nothing has to be downloaded, and a model that takes no folder."""
    written = "We count zebras. That gives nine. So it is nine."
    marks = {w: {"text": written, "start_idx": 17, "end_idx": 33} for w in ("A", "B")}
    marks["C"] = {"text": "It is ten.", "start_idx": None, "end_idx": None}  # right
    talk = {w: {"messages": [{"text": written}, {"text": "It is nine." if w == "A" else None}]} for w in "ABC"}
    same = {"_text": "How many?", "_answer": "10", "ch_list": ["H_1", "C_1"], "conversations": talk}
    same |= {"solution": {"steps": [{"_text": "Count."}, {"_text": "Ten."}]}, "fws_annotations": marks}
    problems = {f"P_{i}": {"identifier": f"P_{i}", **same} for i in range(8)}
    wheel = tmp_path / "runs/champ" / localise.WHEEL
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        data = {"problems": problems, "hints": {"H_1": {"_text": "Look closely."}}, "concepts": {}}
        archive.writestr("champ_dataset/dataset_files/v0.json", json.dumps(data))
    monkeypatch.setattr(localise, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(tasks, "FORMAT", tasks.BYTES)
    for name, value in {"ROWS": "rows.jsonl", "PAGE": "page.md", "DATA": "runs/champ"}.items():
        monkeypatch.setattr(localise, name, tmp_path / value)
    for name, made in {"load_tokenizer": None, "chat": tasks.BYTES, "load": model}.items():
        monkeypatch.setattr(localise, name, lambda *_, made=made: made)
    return wheel


def test_wrong_solutions_alone_one_of_each_problem_first(champ):
    found = localise.solutions_of(champ)
    assert len(found) == 16 and {one.writer for one in found} == {"A", "B"}
    assert {one.problem for one in found[:8]} == {f"P_{i}" for i in range(8)}
    (one,) = (one for one in found if (one.problem, one.writer) == ("P_1", "A"))
    assert one.text[slice(*one.marked)] == "That gives nine."
    shown = {"answer": "10", "solution": "Count.\nTen.", "hint": "Look closely."}
    assert one.shown == shown | {"wrong answer": "It is nine."}
    assert all("wrong answer" not in one.shown for one in found if one.writer == "B")  # no last message


def test_scored_once_resumed_and_no_text_is_kept(champ, tmp_path, capsys):
    rows, command = tmp_path / "rows.jsonl", ["--init", "a/small"]
    assert localise.main(["--report"]) == 2 and localise.main([]) == 2
    assert localise.main([*command, "--limit", "2"]) == 0
    first = rows.read_text()
    rows.write_text(first + first[:40])  # a kill within a line
    assert localise.main(command) == 0
    assert rows.read_text().startswith(first) and len(localise.read()) == len(rows.read_text().splitlines()) == 16
    assert "16 solutions, 2 scored before" in capsys.readouterr().out
    assert not {"zebras", "nine", "Count", "closely"} & set(rows.read_text().replace('"', " ").split())
    whole, page = rows.read_text(), (tmp_path / "page.md").read_text()
    assert localise.main(command) == 0 and rows.read_text() == whole  # nothing twice
    assert localise.main([*command, "--name", "other", "--limit", "3"]) == 0  # another model
    assert "\n## small\n\n16 of 444 solutions, 8 problems; 3.0 steps each, 1.0 of them marked (0 more" in page
    assert page.split("| chance |")[1].splitlines()[0].startswith(" 8 | 0.500 [0.500, 0.500] | 0.333 [0.333, 0.333] |")
    assert "\n## other\n\n3 of 444" in (tmp_path / "page.md").read_text()


def test_data_that_are_not_the_published_ones_are_one_line(champ, monkeypatch, capsys):
    champ.write_bytes(b"other")
    assert localise.main(["--init", "small"]) == 2
    champ.unlink()
    offline = types.SimpleNamespace(returncode=1, stderr="no network")
    monkeypatch.setattr(localise.subprocess, "run", lambda *_, **__: offline)
    assert localise.main(["--init", "small"]) == 2
    changed, missing = capsys.readouterr().err.splitlines()
    assert "not the file that was published" in changed and "put it there yourself: no network" in missing


def test_the_committed_page_is_that_of_the_committed_scores():
    rows = localise.read()
    assert localise.PAGE.read_text() == localise.page(rows)
    keys = [(row["model"], row["problem"], row["writer"]) for row in rows]
    assert len(set(keys)) == len(keys) > 0
