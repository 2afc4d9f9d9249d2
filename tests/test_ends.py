"""How a program ends: with an exit code and at most one line, wherever its output goes and whatever fails."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import errors

ROOT = Path(__file__).parent.parent
PROGRAM = """
import os, sys
from support.errors import UserError
from support.program import Parser, program

@program(left=os.environ.get("LEFT", ""))
def main(argv):
    parser = Parser("tiny.py", "about")
    parser.add_argument("--do", default="nothing")
    do = parser.parse_args(argv).do
    with open("first.txt", "w") as file:  # must not get the number of a closed stream
        print("said \\u2028 \\x00 \\udcff", flush=do == "flush")
        print("noted", file=sys.stderr)
        os.system("echo a child >&2")
    if do == "user":
        raise UserError("mend\\nthis \\x1b[2J")
    if do == "file":
        open("/nowhere/file")
    if do == "interrupt":
        raise KeyboardInterrupt
    if do == "crash":
        raise RuntimeError("a mistake of ours")
    if do == "told":
        sys.stderr.write("told\\n")
        return 2
    if do == "input":
        try:
            input()
        except EOFError:
            print("end of input")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def tiny(tmp_path, request):
    """Runs a small program in a shell, with its streams as the shell's words say: (exit code, output, errors)."""
    (tmp_path / "tiny.py").write_text(PROGRAM)
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": request.param, "PYTHONIOENCODING": "ascii"}
    how = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "pass_fds": [writer]}

    def run(words, **more):
        command = ["bash", "-c", f'"{sys.executable}" tiny.py {words}']
        done = subprocess.run(command, env={**env, "CLOSED": str(writer), **more}, **how)
        assert not (tmp_path / "first.txt").exists() or (tmp_path / "first.txt").read_text() == ""
        err = [line for line in done.stderr.splitlines() if line not in ("noted", "a child")]
        return done.returncode, done.stdout, err

    yield run
    os.close(writer)


@pytest.mark.parametrize(
    "words, code, says",
    [
        ("", 0, None),
        ("--help", 0, None),
        ("--do", 2, "tiny.py: argument --do: expected one argument"),
        ("--do user", 2, r"tiny.py: mend this \x1b[2J"),
        ("--do file", 2, "tiny.py: /nowhere/file: No such file or directory"),
        ("--do interrupt", 130, None),
        ("--do told", 2, "told"),
        *((f"{do} >&-", 2, "tiny.py: ") for do in ("", "--help", "--do flush")),
        *((f"{do} >/dev/full", 2, "tiny.py: ") for do in ("", "--help", "--do flush")),
        ("--do told >/dev/full", 2, None),
        *((f"{do} 2>&-", 0, None) for do in ("", "--help", "--do flush")),
        ("--do user 2>&-", 2, None),
        ("--do user 2>/dev/full", 2, None),
        *((f"{do} >&$CLOSED", 2, None) for do in ("", "--help", "--do flush")),  # nobody reads the pipe: `| head`
        ("--do input <&-", 0, None),
        ("--do user <&- >&- 2>&-", 2, None),
    ],
)
def test_an_end_is_an_exit_code_and_a_line(tiny, words, code, says):
    got, out, err = tiny(words)
    assert got == code and len(err) <= 1 and (says is None or err and err[0].startswith(says)), err
    if code == 0 and "--help" not in words:
        assert out.startswith(r"said \u2028") and ("end of input" in out) == ("input" in words)


@pytest.mark.parametrize(
    "words, code, says",
    [
        ("0 --do interrupt", 130, "interrupted at once; a checkpoint"),
        ("0 --do user", 2, r"mend this \x1b[2J"),
        ("0 --do flush >&$CLOSED", 2, "Broken pipe"),
        ("0 --do user >&$CLOSED", 2, (r"mend this \x1b[2J", "Broken pipe")),  # unbuffered, the pipe comes first
        ("1 --do interrupt", 130, ""),
        ("1 --do user", 2, ""),  # which takes the second that torch takes
    ],
)
def test_a_program_of_hours_says_how_it_ended_in_one_process(tiny, words, code, says):
    rank, _, words = words.partition(" ")
    got, _, err = tiny(words, LEFT="a checkpoint", RANK=rank, WORLD_SIZE="2")
    assert got == code and len(err) == (rank == "0")
    assert all(line.startswith("tiny.py: ") and line.endswith(says) for line in err)


def test_a_mistake_of_ours_is_shown_whole(tiny):
    got, _, err = tiny("--do crash")
    assert got == 1 and err[0].startswith("Traceback") and err[-1] == "RuntimeError: a mistake of ours"


def test_text_that_shows_is_left_as_it_is_and_what_hides_is_told():
    assert errors.visible("héllo, 世界: \\ 1\u2800\u202e\t") == r"héllo, 世界: \ 1\u2800\u202e\t"


def test_an_error_is_one_line_of_bounded_length():
    assert errors.one_line(ValueError("a\n b")) == "ValueError: a b"
    assert errors.one_line(errors.UserError("x" * errors.LONGEST_LINE)) == "x" * errors.LONGEST_LINE
    assert len(errors.one_line(errors.UserError("x" * 5000))) == errors.LONGEST_LINE


def test_every_program_ends_like_that():
    """Every one of the repository that takes a command line."""
    found = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("study/*.py")]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in body):
            found.add(path.relative_to(ROOT).as_posix())
            (main,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main"]
            assert "program" in ast.unparse(main.decorator_list[0]), path
    assert {"train.py", "sample.py", "plot.py", "reproduce.py", "bench.py", "study/probe.py"} <= found
