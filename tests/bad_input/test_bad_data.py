"""Data files: whatever bytes they hold, they are read as they stand or refused by line."""

import json
import random
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from refused import ROOT, TINY, TRIED, one_line, refused
from slowness import patience

import tasks
import train
from config import Config
from harness.problems import load_source
from sources import jsonl
from support.errors import UserError

SOUND = b"".join(json.dumps({"question": f"{i}+1", "answer": str(i + 1)}).encode() + b"\n" for i in range(12))
ROW = '{"question": "q", "answer": "a"}'


def big(question: int = 1, answer: int = 1, **more) -> bytes:
    return json.dumps({"question": "q" * question, "answer": "a" * answer, **more}).encode()


FILES = {  # after twelve sound lines: bytes, words of the message
    "NUL between the lines": (b"\x00", "x.jsonl:13", "not JSON"),
    "NUL in a string": (b'{"question": "a\x00b", "answer": "c"}', "x.jsonl:13", "not JSON"),
    "invalid UTF-8": (b'{"question": "\xff", "answer": "c"}', "x.jsonl:13", "byte 14 is not UTF-8"),
    "UTF-16": (ROW.encode("utf-16"), "x.jsonl:13", "not UTF-8"),
    "a byte order mark in the middle": (b"\xef\xbb\xbf" + ROW.encode(), "x.jsonl:13", "not JSON"),
    "old Macintosh line ends": (ROW.encode() + b"\r" + ROW.encode(), "not JSON"),
    "two objects on a line": (ROW.encode() * 2, "not JSON: Extra data"),
    "cut off": (ROW.encode()[:-5], "not JSON"),
    "single quotes": (b"{'question': 'a', 'answer': 'b'}", "not JSON"),
    "deep": (b'{"question": ' + b"[" * 100_000, "not JSON"),
    "a number of 10,000 digits": (b'{"question": "q", "answer": ' + b"9" * 10_000 + b"}", "x.jsonl:13"),
    "array": (b'["question", "answer"]', "a JSON object is needed, not list"),
    "string": (b'"question"', "a JSON object is needed, not str"),
    "null": (b"null", "a JSON object is needed, not NoneType"),
    "no question": (b'{"answer": "a"}', "no key 'question'"),
    "NaN as answer": (b'{"question": "q", "answer": NaN}', "'answer' must be a string, not float"),
    "a number as answer": (b'{"question": "q", "answer": 7}', "'answer' must be a string, not int", 'write "7"'),
    "an empty question": (b'{"question": "", "answer": "a"}', "'question' is empty\n"),
    "white space as answer": (b'{"question": "q", "answer": " \\n"}', "'answer' is empty"),
    "white space as solution": (b'{"question": "q", "answer": "a", "solution": " "}', "'solution' is empty"),
    "a list as solution": (b'{"question": "q", "answer": "a", "solution": ["s"]}', "'solution' must be a string"),
    "the marker in the solution": (b'{"question": "q", "answer": "a", "solution": "#### a"}', "contains ####"),
    "the marker in the answer": (b'{"question": "q", "answer": "#### a"}', "contains ####"),
    "a line of 50 MB": (b'{"question": "' + b"q" * 50_000_000 + b'"}', "x.jsonl:13", "no key 'answer'"),
    "a question of 50 MB": (big(question=50_000_000), "x.jsonl:13: 'question' has 50000000 characters"),
    "a solution of 2 MB": (big(solution="s" * 2_000_000), "'solution' has 2000000 characters"),
    "a question of 900,000 characters": (big(question=900_000), "x.jsonl:13", "--max_seq_len 256"),
    "an answer longer than a completion": (big(answer=60), "x.jsonl:13", "--max_new_tokens 40"),
    "GSM8K's form and a solution": (b'{"question": "q", "answer": "s\\n#### 1", "solution": "s"}', "'answer' contains"),
    "nothing behind the marker": (b'{"question": "q", "answer": "so it is ####"}', "'answer' contains ####"),
    "two markers": (b'{"question": "q", "answer": "a #### 1 #### 2"}', "'answer' contains ####"),
    "five of its characters": (b'{"question": "q", "answer": "a ##### 1"}', "'answer' contains ####"),
    "the marker in the question": (b'{"question": "q #### 3", "answer": "a"}', "'question' contains ####"),
    "an object as answer": (b'{"question": "q", "answer": {"a": 1}}', "not dict", "json.dumps"),
    "a list as answer": (b'{"question": "q", "answer": ["a"]}', "not list", "json.dumps"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_line_is_named(tmp_path, capsys, name):
    line, *words = FILES[name]
    (tmp_path / "x.jsonl").write_bytes(SOUND + line + b"\n")
    options = [*TINY, "--data", tmp_path / "x.jsonl", "--out", tmp_path / "run", "--warm_dir", tmp_path]
    refused(capsys, train.main, options, *words, kind="data")
    assert not (tmp_path / "run").exists()


ROWS_OF = {  # whole files as other people have them, or with too little in them: bytes, words of the message
    "CSV": (b"question,answer\n1+1,2\n1+2,3\n", "x.jsonl:1", "not JSON", "each line is an object like"),
    "one array": (json.dumps([{"question": "q", "answer": "a"}]).encode(), "x.jsonl:1", "on a line of its own"),
    "an array, indented": (json.dumps([{"question": "q"}], indent=1).encode(), "x.jsonl:1", "on a line of its own"),
    "an object of rows": (b'{"data": [{"question": "q", "answer": "a"}]}', "x.jsonl:1", "no key 'question'", "each"),
    "an object, indented": (json.dumps({"question": "q"}, indent=1).encode(), "x.jsonl:1", "each line is an object"),
    "Parquet": (b"PAR1\x15\x04\x15\xff\n\x00", "x.jsonl:1", "Parquet", "JSON Lines"),
    "gzip": (b"\x1f\x8b\x08\x00", "x.jsonl:1", "gzip"),
    "zip": (b"PK\x03\x04\x14\xff", "x.jsonl:1", "zip"),
    "UTF-16": (SOUND.decode().encode("utf-16"), "x.jsonl:1", "save it as UTF-8"),
    "UTF-16 without a mark": (SOUND.decode().encode("utf-16-le"), "x.jsonl:1", "save it as UTF-8"),
    "UTF-16, big end first": (SOUND.decode().encode("utf-16-be"), "x.jsonl:1", "save it as UTF-8"),
    "UTF-32": (SOUND.decode().encode("utf-32"), "x.jsonl:1", "save it as UTF-8"),
    "Latin-1": ('{"question": "é", "answer": "a"}'.encode("latin-1"), "x.jsonl:1", "not UTF-8", "in UTF-8"),
    "prompt and response": (b'{"prompt": "q", "response": "a"}', "rename 'prompt' to", "rename 'response' to 'answer'"),
    "problem and answer": (b'{"problem": "q", "answer": "a"}', "rename 'problem' to 'question'"),
    "other case": (b'{" Question": "q", "Answer": "a"}', "rename ' Question' to 'question'", "'Answer'"),
    "messages": (b'{"messages": [{"role": "user", "content": "q"}]}', "no key 'question', no key 'answer'", "like"),
    "a solution and no answer": (b'{"question": "q", "solution": "so 3"}', "no key 'answer'; each line"),
    "nothing": (b"", "0 problem(s)", "at least 2"),
    "blank lines": (b"\n \n\r\n", "0 problem(s)", "at least 2"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "0 problem(s)", "at least 2"),
    "one problem": (ROW.encode(), "1 pro", "at least 2"),
}


@pytest.mark.parametrize("name", ROWS_OF)
def test_other_peoples_files_are_told_what_is_expected(tmp_path, capsys, name):
    content, *words = ROWS_OF[name]
    (tmp_path / "x.jsonl").write_bytes(content)
    refused(capsys, train.main, [*TINY, "--data", tmp_path / "x.jsonl", "--out", tmp_path / "o"], *words, kind="data")


HINT = ["--privileged_key", "hint"]
FAULTS = {  # a row that is sound JSON, more options, words
    "a long prompt": ({"question": "q" * 300, "answer": "1"}, [], "304 tokens"),
    "a long solution": ({"question": "q", "answer": "1", "solution": "so " * 300}, [], "--max_new_tokens"),
    "a long reference": ({"question": "q", "answer": "1", "hint": "so " * 300}, HINT, "tokens"),
    "no reference": ({"question": "q", "answer": "1"}, HINT, "no key 'hint'"),
    "a reference in other case": ({"question": "q", "answer": "1", "Hint": "h"}, HINT, "rename 'Hint' to 'hint'"),
    "a null reference": ({"question": "q", "answer": "1", "hint": None}, HINT, "'hint' is empty"),
    "a null answer": ({"question": "q", "answer": None}, [], "'answer' is empty, null is no text\n"),
    "no solution": ({"question": "q", "answer": "1", "solution": None}, ["--privileged", "solution"], "no solution"),
    "no solution in the warm start": ({"question": "q", "answer": "1"}, ["--warm_solutions", "0.5"], "no solution"),
    "no number": ({"question": "q", "answer": "one"}, ["--verifier", "number"], "no completion"),
    "a question again": ({"question": " 3+1 ", "answer": "4"}, [], "the question of line 4 again"),
    "a lone surrogate": ({"question": "q", "answer": "\ud800"}, [], "no completion"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("option", ["--data", "--eval_data"])
def test_every_fault_is_told_with_its_file_and_line(tmp_path, capsys, name, option):
    """Wherever the row stands, of the file that trains as of that which is held out."""
    row, more, words = FAULTS[name]
    sound = [{"question": f"{i}+1", "answer": str(i + 1), "solution": "s", "hint": "h"} for i in range(12)]
    other = [{**r, "question": "other " + r["question"]} for r in sound]
    for name, rows in (("x.jsonl", [*sound[:7], row, *sound[7:]]), ("other.jsonl", other)):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    trains, held_out = ("x.jsonl", "other.jsonl") if option == "--data" else ("other.jsonl", "x.jsonl")
    argv = [*TINY, *more, "--data", tmp_path / trains, "--eval_data", tmp_path / held_out, "--out", tmp_path / "run"]
    refused(capsys, train.main, argv, f"{tmp_path / 'x.jsonl'}:8: ", words, kind="data")


def test_what_a_tokenizer_cannot_write_is_told_with_its_line(tmp_path, monkeypatch):
    def prompt(problem):
        if problem.question == "7+1":
            raise ValueError("the tokenizer has no token for '7'")
        return []

    monkeypatch.setattr(tasks, "student_prompt", prompt)
    with pytest.raises(UserError, match=r"sound.jsonl:8: the tokenizer has no token for '7'"):
        load_source(Config(data=write(tmp_path, SOUND)))


def test_held_out_problems_of_their_own(tmp_path, capsys):
    """All of --data trains, --eval_problems of the others are held out, and no question is in both."""
    (tmp_path / "x.jsonl").write_bytes(SOUND)
    (tmp_path / "y.jsonl").write_bytes(SOUND.replace(b'"question": "', b'"question": "y'))
    files = (str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl"))
    source = jsonl.from_file(files[0], 5, "exact", eval_path=files[1])
    assert len(source.held_out) == 5 and all(p.question.startswith("y") for p in source.held_out)
    assert source.held_out == jsonl.from_file(files[0], 5, "exact", eval_path=files[1]).held_out
    assert {p.question for p in source.draw(random.Random(0), 12)} == {f"{i}+1" for i in range(12)}
    assert len(source.known) == 24 and len(jsonl.from_file(files[0], 50, "exact", eval_path=files[1]).held_out) == 12
    ask = [*TINY, "--out", tmp_path / "run", "--data", files[0], "--eval_data"]
    refused(capsys, train.main, [*ask, files[0]], "x.jsonl:1: the question of line 1 again", kind="data")
    (tmp_path / "y.jsonl").write_bytes(b'\n{"question": "3 +1", "answer": "4"}\n{"question": "3+1 ", "answer": "4"}')
    refused(capsys, train.main, [*ask, files[1]], f"y.jsonl:3: the question of {files[0]}:4 again", kind="data")
    (tmp_path / "y.jsonl").write_bytes(b"\n")
    refused(capsys, train.main, [*ask, files[1]], "y.jsonl: 0 problem(s)", "at least 1", kind="data")
    refused(capsys, train.main, [*TINY, "--eval_data", files[1]], "--eval_data", "--data", kind="options")


GSM = [  # as GSM8K has it
    {"question": f"A farmer has {i} hens.", "answer": f"He has {i}+1 = <<{i}+1>>\nSo\n#### {2 * i + 1}"}
    for i in range(12)
]


def test_the_form_of_gsm8k_is_read_as_it_stands(tmp_path, capsys):
    """What stands before the marker is the solution, to the letter, and what the model imitates is the text itself."""
    problems = jsonl.load_problems(write(tmp_path, "\n".join(map(json.dumps, GSM)).encode()))
    for problem, row in zip(problems, GSM):
        assert problem.answer == row["answer"].split()[-1]
        assert tasks.decode(tasks.target(problem)) == row["answer"]
    shown = jsonl.load_problems(write(tmp_path, "\n".join(map(json.dumps, GSM)).encode()), "answer")
    assert [p.privileged for p in shown] == [row["answer"] for row in GSM]


def test_whole_texts_as_answers_are_not_taken_without_a_word(tmp_path, capsys):
    """The marker taken out, all is the answer; a verifier of the user's own may want just that, and gets no note."""
    whole = "\n".join(json.dumps({**row, "answer": row["answer"].replace("#### ", "")}) for row in GSM).encode()
    path = write(tmp_path, whole)
    (tmp_path / "v.py").write_text("def check(c, a):\n    return 0.0\n")
    load_source(Config(data=path, verifier="exact"))
    assert capsys.readouterr().out.startswith(f"note: {path}: 12 of 12 answers are whole texts")
    load_source(Config(data=path, verifier=f"{tmp_path}/v.py:check"))
    load_source(Config(data=write(tmp_path, SOUND + whole), warm_solutions=0.0))  # half of them, no solution shown
    assert capsys.readouterr().out == ""


def test_the_advice_about_the_marker_is_right_when_it_is_followed(tmp_path):
    """`leave it out and what stands before it`, to the letter, gives the problem that was meant."""
    for row in GSM:
        both = {**row, "solution": "He has them."}
        with pytest.raises(UserError, match="leave it out and what stands before it"):
            jsonl.load_problems(write(tmp_path, json.dumps(both).encode()))
        followed = {**both, "answer": both["answer"].partition("####")[2]}
        (problem,) = jsonl.load_problems(write(tmp_path, json.dumps(followed).encode()))
        assert problem.answer.strip() == row["answer"].split()[-1] and problem.solution == "He has them."


UNREACHABLE = {"number": "twelve", "choice": "F", "expression": "1 + 1", "exact": "\ud800", "math_verify": r"\frac{1}{"}


@pytest.mark.parametrize("verifier, answer", UNREACHABLE.items())
def test_answers_that_no_completion_can_reach_are_named(tmp_path, capsys, verifier, answer):
    if verifier == "math_verify":
        pytest.importorskip("math_verify")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"question": q, "answer": answer}) + "\n" for q in "ab"))
    options = [*TINY, "--data", tmp_path / "x.jsonl", "--verifier", verifier, "--out", tmp_path / "run"]
    refused(capsys, train.main, options, "x.jsonl:1", "no completion can earn", kind="data")


def test_files_that_are_no_files(tmp_path, capsys):
    refused(capsys, train.main, [*TINY, "--data", tmp_path], "cannot be read: Is a directory", kind="data")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(capsys, train.main, [*TINY, "--data", tmp_path / "loop"], "cannot be read", kind="data")
    refused(capsys, train.main, [*TINY, "--data", tmp_path / ("x" * 300)], "too long", kind="data")
    refused(capsys, train.main, [*TINY, "--data", tmp_path / "none.jsonl"], "none.jsonl: cannot be read", kind="data")


def test_what_is_read_as_it_stands(tmp_path):
    """A byte order mark at the start, CRLF, blank lines, no line end at the last, unknown keys: no problem changes."""
    sound = jsonl.load_problems(write(tmp_path, SOUND))
    assert jsonl.load_problems(write(tmp_path, b"\xef\xbb\xbf" + SOUND.replace(b"\n", b"\r\n\r\n")[:-4])) == sound
    assert jsonl.load_problems(write(tmp_path, SOUND.replace(b"}", b', "note": 7}'))) == sound
    (twice,) = jsonl.load_problems(write(tmp_path, b'{"question": "a", "question": "b", "answer": "c"}'))
    assert twice.question == "b"  # the last value counts, as everywhere in JSON


def write(folder, content: bytes) -> str:
    (folder / "sound.jsonl").write_bytes(content)
    return str(folder / "sound.jsonl")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.dictionaries(st.sampled_from(["question", "answer", "solution", "hint"]), VALUES, max_size=4)
LINES = st.binary(max_size=30) | ROWS.map(lambda row: json.dumps(row).encode()) | VALUES.map(lambda v: repr(v).encode())


@given(st.lists(LINES, max_size=4), st.sampled_from([b"\n", b"\r\n"]), st.sampled_from(["", "hint", "question"]))
@example([b'{"question": "\\ud800", "answer": "\\u0000"}'], b"\n", "")
def test_any_bytes_are_read_or_refused_by_line(tmp_path_factory, lines, end, key):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(end.join(lines))
    TRIED["data, fuzzed"] += 1
    try:
        problems = jsonl.load_problems(str(path), key)
    except UserError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
        return
    for problem in problems:
        assert problem.question.strip() and problem.answer.strip()
        tasks.student_prompt(problem), tasks.teacher_prompt(problem), tasks.target(problem)


MEASURED = """import sys, time, train
from harness import console
status = train.main(sys.argv[1:])
print(time.process_time(), console.peak_memory("cpu"))
sys.exit(status)"""


def test_hundred_thousand_lines_take_seconds(tmp_path):
    """A fresh process, so that its memory can be told: the whole of a file that is read and checked, then refused."""
    rows = (f'{{"question": "{i}+1", "answer": "{i + 1}", "solution": "so {i}"}}\n' for i in range(100_000))
    (tmp_path / "x.jsonl").write_text("".join(rows) + '{"question": "last", "answer": "none"}\n')
    options = [*TINY, "--data", str(tmp_path / "x.jsonl"), "--verifier", "number", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", MEASURED, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    one_line(done.stderr, "train.py", "x.jsonl:100001: no completion can earn")
    TRIED["data"] += 1
    seconds, gib = map(float, done.stdout.split())
    assert seconds < patience(30) and gib < 1.5  # a million: 22 s and 0.85 GiB, 0.4 of them torch's
