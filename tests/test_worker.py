"""math-verify in a process of its own: its judgements, its time limit, its deaths."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import reasoning
import train
import verifiers
import worker

ROOT = os.path.dirname(worker.__file__)


@pytest.fixture(scope="module")
def math_verify():
    pytest.importorskip("math_verify")
    return verifiers.load("math_verify")


def running(pid):
    """Whether a process is there and not merely waiting to be collected."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- judgements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, answer, reward",
    [
        ("12", "12", 1),
        ("so\n#### 1/2", "0.5", 1),
        (r"$\frac12$", "1/2", 1),
        (r"\boxed{\frac{1}{2}}", "1/2", 1),
        (r"\(x+1\)", "1+x", 1),
        ("(x+1)^2", "x^2+2x+1", 1),
        (r"\{2,1\}", r"\{1,2\}", 1),
        ("1,234", "1234", 1),
        (r"\sqrt{8}", r"$2\sqrt{2}$", 1),
        ("13", "12", 0),
        ("11 or 12", "12", 0),
        (r"\boxed{11}, \boxed{12}", "12", 0),
        ("$11$ or $12$", "12", 0),
        (r"11 \text{ or } 12", "12", 0),
        (r"so \boxed{12}", "12", 0),
        ("#### 12 #### 12", "12", 0),
        ("", "12", 0),
        (r"\pm 12", "12", 0),
        ("11=12", "11", 0),
        ("1" * 500, "1" * 500, 1),
        ("1" * 501, "1" * 501, 0),
        (r"(1,\infty)", "x>1", 1),  # the package treats reference and answer differently
        ("x>1", r"(1,\infty)", 0),
        ("\ud800", "12", 0),
    ],
)
def test_math_table(math_verify, completion, answer, reward):
    result = math_verify(completion, answer)
    assert type(result) is float and result == reward


def test_model_text_is_never_evaluated(math_verify, tmp_path):
    for text in (
        f"__import__('os').system('touch {tmp_path}/there')",
        f"1+open('{tmp_path}/there','w').close()",
        f"(lambda: open('{tmp_path}/there', 'w'))()",
    ):
        assert math_verify(text, "1") == math_verify(f"$1+{text}$", "1") == 0.0
    assert not list(tmp_path.iterdir())


def test_hostile_text_costs_its_time_limit_and_nothing_else(math_verify, monkeypatch):
    math_verify("1", "1")  # started
    first = worker.worker("math_verify").process.pid
    monkeypatch.setattr(worker.Worker.ask, "__kwdefaults__", {"seconds": 1.0})
    for text in ("9^{9^{9^9}}", "10^9!"):
        assert math_verify(text, "1") == 0.0
        assert worker.worker("math_verify").process is None  # ended, not left to count on
    monkeypatch.undo()
    assert not running(first)
    assert math_verify("2/4", "1/2") == 1.0  # a new one answers


def test_threads_get_their_own_answers(math_verify):
    """math-verify's own time limit raises outside the main thread."""
    results = {}

    def judge(i):
        results[i] = [math_verify(f"{i}", f"{k}") for k in range(8)]

    threads = [threading.Thread(target=judge, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [float(i == k) for k in range(8)] for i in range(8)}


# ---- the process -----------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_started_again(math_verify):
    math_verify("1", "1")
    process = worker.worker("math_verify").process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert math_verify("1/2", "0.5") == 1.0
    assert worker.worker("math_verify").process.pid != process.pid


def test_the_limit_is_one_of_processor_time(monkeypatch, tmp_path):
    """On a loaded machine a clock would take the reward from right answers."""
    program = tmp_path / "waits.py"
    program.write_text("import time, worker\nworker.serve(lambda: lambda n: time.sleep(n) or 'slept')\n")
    monkeypatch.setattr(worker, "__file__", str(program))
    monkeypatch.setenv("PYTHONPATH", ROOT)
    waiting = worker.Worker("json")
    assert waiting.ask(0.5, seconds=0.2) == "slept"
    monkeypatch.setattr(worker, "PATIENCE", 1)
    assert waiting.ask(60, seconds=0.2) is None and waiting.process is None  # but it may not wait for ever


def test_one_that_dies_again_is_named(tmp_path, monkeypatch):
    program = tmp_path / "dies.py"
    program.write_text("print('null', flush=True)\ninput()\n")
    monkeypatch.setattr(worker, "__file__", str(program))
    dying = worker.Worker("json")
    with pytest.raises(ValueError, match="json died twice on .'some text'") as error:
        dying.ask("some text")
    assert "\n" not in str(error.value) and dying.process is None
    program.write_text("")
    with pytest.raises(ValueError, match="json does not start"):
        worker.Worker("json").ask("x")


def test_it_ends_with_the_program(math_verify):
    """At a clean end, after Ctrl-C, and after a kill that leaves the program no time for anything."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "  # off in the background
        "import verifiers, worker; verifiers.load('math_verify')('1', '1'); "
        "print(worker.worker('math_verify').process.pid, flush=True); time.sleep(float(sys.argv[1]))"
    )
    for seconds, number in ((0, None), (60, signal.SIGINT), (60, signal.SIGKILL)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        pid = int(process.stdout.readline())
        if number:
            process.send_signal(number)
        process.wait(timeout=30)
        for _ in range(100):
            if not running(pid):
                break
            time.sleep(0.1)
        assert not running(pid), number


def test_one_whose_program_is_killed_meanwhile_stops_counting(math_verify):
    """A kill leaves the program no time to end it, and it does not read on before it is done."""
    code = (
        "import verifiers, worker; judge = verifiers.load('math_verify'); judge('1', '1'); "
        "print(worker.worker('math_verify').process.pid, flush=True); "
        "worker.worker('math_verify').ask('9^{9^{9^9}}', '1', seconds=0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(process.stdout.readline())
    time.sleep(0.2)
    process.kill()
    process.wait()
    for _ in range(600):
        if not running(pid):
            break
        time.sleep(0.1)
    assert not running(pid)


def test_what_asks_for_too_much_memory_earns_nothing(monkeypatch, tmp_path):
    program = tmp_path / "greedy.py"
    program.write_text("import sys, worker\nworker.serve(lambda: lambda n: bool(bytearray(n)))\n")
    monkeypatch.setattr(worker, "__file__", str(program))
    monkeypatch.setenv("PYTHONPATH", ROOT)
    greedy = worker.Worker("json")
    assert greedy.ask(10) is True
    before = greedy.process.pid
    assert greedy.ask(1 << 62) is False and greedy.ask(10) is True
    assert greedy.process.pid != before  # what is left of memory after that is no judge of others
    greedy.close()


def test_what_a_library_prints_is_no_reply(monkeypatch, tmp_path):
    program = tmp_path / "chatty.py"
    program.write_text(
        "import os, worker\ndef answer(x):\n    print('hm'); os.system('echo ho')\n    return x\n"
        "worker.serve(lambda: answer)\n"
    )
    monkeypatch.setattr(worker, "__file__", str(program))
    monkeypatch.setenv("PYTHONPATH", ROOT)
    chatty = worker.Worker("json")
    assert [chatty.ask(i) for i in range(3)] == [0, 1, 2]
    chatty.close()


def test_an_interrupted_request_does_not_answer_the_next(math_verify, monkeypatch):
    math_verify("1", "1")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.select, "select", interrupt)
    with pytest.raises(KeyboardInterrupt):
        math_verify("5", "5")
    monkeypatch.undo()
    assert math_verify("5", "6") == 0.0


# ---- in a run --------------------------------------------------------------------------------------------------------


def test_without_the_package_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(worker, "find_spec", lambda name: None)
    for module in (worker, reasoning):
        monkeypatch.setattr(module, "worker", worker.Worker)
    data = tmp_path / "my.jsonl"
    data.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "2"}\n')
    for more in (["--data", str(data), "--verifier", "math_verify"], ["--task", "reasoning_gym:gcd"]):
        assert train.main(["--out", str(tmp_path / "run"), "--warm_steps", "0", "--steps", "1", *more]) == 2
        err = capsys.readouterr().err
        assert "requirements-tasks.txt" in err and err.count("\n") == 1


def test_a_reference_that_cannot_be_read_is_named(math_verify, capsys, tmp_path):
    data = tmp_path / "my.jsonl"
    data.write_text('{"question": "a", "answer": "1/2"}\n{"question": "b", "answer": "\\\\frac{1}{"}\n')
    assert (
        train.main(
            [
                "--data",
                str(data),
                "--verifier",
                "math_verify",
                "--out",
                str(tmp_path / "run"),
                "--warm_steps",
                "1",
                "--steps",
                "1",
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert "my.jsonl:2" in err and "no completion can earn a reward" in err and err.count("\n") == 1
