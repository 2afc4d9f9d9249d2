"""A verifier of the user's own may do anything: it is named, counted, and never becomes a reward."""

import math
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from small_runs import ROOT, SOME, TINY, again, lines, options, refused, sharp_state
from test_worker import gone

import rollout
import tasks
import train
from config import Config
from harness.problems import load_source, verifier_of
from model import Samples
from rlsd import group_advantages
from sources.scorers import scorer
from sources.verifier_process import Rule
from support import judge
from support.errors import UserError


def config_of(tmp_path, *more):
    (tmp_path / "out").mkdir(exist_ok=True)
    return train.parse_config([*TINY, "--out", str(tmp_path / "out"), *more])


def judged(verifier, config, said=("one", "two", "three")):
    samples = Samples.of([tasks.encode(text) for text in said])
    problems = [tasks.Problem("1+1", "2", origin=f"my.jsonl:{i + 7}") for i in range(len(said))]
    if isinstance(verifier, Rule):
        verifier.seconds = config.verifier_timeout
    return rollout.verify(verifier, samples, problems, config)


RULES = """
import math, os, signal, subprocess, sys, threading, time

class Unfloatable:
    def __float__(self): raise OSError("no number here")

class Slow:
    def __float__(self): time.sleep(60)

class Mute:
    def __repr__(self): time.sleep(60)

class NoException(BaseException): pass  # as those that func_timeout and Rust's panics raise

class Unprintable(Exception):
    def __str__(self): raise KeyboardInterrupt

def deaf():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)

def no_exception(c, a): raise NoException("stopped")
def surrogate(c, a): raise ValueError("half a \\ud800 pair")
def raises(c, a): return {}["oops"]
def unprintable(c, a): raise Unprintable
def interrupts(c, a): raise KeyboardInterrupt("by itself")
def exits(c, a): sys.exit(0)
def recurses(c, a): return recurses(c, a)
def ends(c, a): os._exit(0)
def crashes(c, a): os.kill(os.getpid(), signal.SIGSEGV)
def kills_all(c, a): os.killpg(0, signal.SIGKILL)
def hangs(c, a):
    while True: pass
def in_c(c, a): return 9 ** 9 ** 9  # one call that Python cannot interrupt
def deaf_and_hangs(c, a): deaf(); time.sleep(60)
def swallows(c, a):
    while True:
        try: time.sleep(60)
        except BaseException: pass
def own_alarm(c, a):
    signal.alarm(5); signal.alarm(0)
    while True: pass
def stops_itself(c, a): os.kill(os.getpid(), signal.SIGSTOP)
def leaves_the_group(c, a): os.setsid(); time.sleep(60)
def kills_its_watcher(c, a): os.setpgid(0, 0); os.kill(os.getppid(), 9); time.sleep(1000)
def to_all(line):
    for fd in range(3, 30):
        try: os.write(fd, line)
        except OSError: pass
    return 0.0
def forges(c, a): return to_all(b'["done", 1.0, ""]\\n')
def forges_a_number(c, a): return to_all(b'0123456789abcdef ["done", 1.0, ""]\\n')
def junk(c, a): return to_all(b"5")
def a_long_line(c, a):
    while True: to_all(b"5" * 60_000)
def closes(c, a): os.closerange(3, 256); return 0.0
def closes_and_opens(c, a): os.closerange(3, 256); open(__file__).fileno(); return 0.0
def slow_float(c, a): return Slow()
def slow_repr(c, a): return Mute()
def big_repr(c, a): return "x" * 10_000_000
def nan(c, a): return math.nan
def no_float(c, a): return Unfloatable()
def long_text(c, a): return "x\\n" * 9999
def control(c, a): raise ValueError("\\x1b[31m \\u202e red")

def slow(c, a): time.sleep(0.3); return 1.0
def forks(c, a):
    if pid := os.fork(): print(pid, file=open(__file__ + ".pids", "a"), flush=True)
    return 1.0
def forks_and_fails(c, a):
    if not (pid := os.fork()): raise SystemExit(3)
    print(pid, file=open(__file__ + ".pids", "a"), flush=True)
    return 0.5
def prints(c, a):
    print("step=7 reward=1", end="")
    os.write(1, b"from below\\n")
    subprocess.run(["echo", "from a child"])
    return 0.5
def changes(c, a):
    os.chdir("/")
    os.environ["OMP_NUM_THREADS"] = "7"
    os.umask(0o777)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    return 0.5
"""
HANGING = "it took longer than --verifier_timeout 0.5 seconds"
UNREADABLE = "its answer cannot be read: it wrote into the pipe of its answers, or closed it"
BAD = {
    "no_exception": "NoException: stopped",
    "surrogate": "ValueError: half a",
    "raises": "KeyError: 'oops'",
    "unprintable": "Unprintable: <",
    "interrupts": "KeyboardInterrupt: by itself",
    "exits": "SystemExit: 0",
    "recurses": "RecursionError",
    "ends": "its process ended with exit code 0",
    "crashes": "its process ended by signal 11 (Segmentation fault)",
    **dict.fromkeys(["kills_all", "kills_its_watcher"], "its process was killed"),
    **dict.fromkeys(["forges", "forges_a_number", "junk", "a_long_line", "closes", "closes_and_opens"], UNREADABLE),
    **dict.fromkeys(["hangs", "in_c", "deaf_and_hangs", "swallows", "own_alarm", "stops_itself"], HANGING),
    **dict.fromkeys(["leaves_the_group", "slow_float", "slow_repr"], HANGING),
    "big_repr": "it returned 'xxx",
    "nan": "it returned nan",
    "no_float": "OSError: no number here",
    "long_text": "it returned 'x",
    "control": "ValueError: ",
}
RULES += f"""
def on_two(rule):  # every other completion is worth 0.5
    return lambda c, a: rule(c, a) if c == "two" else 0.5
for name in {list(BAD)}:
    globals()[name] = on_two(globals()[name])
"""
OUR_WORDS = ("it returned", "its process", "its answer", "it took longer")  # no error that Python has a traceback of


def test_a_package_that_is_missing_is_told_where_its_verifier_is_named(tmp_path, monkeypatch, capsys):
    """And in a run one line says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    scorer.cache_clear()  # another test may have asked it
    with pytest.raises(ValueError, match="math_verify is not installed"):
        verifier_of("math_verify")
    assert verifier_of("exact")("#### 1", "1") == 1
    data = tmp_path / "my.jsonl"
    data.write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "2"}\n')
    for more in (["--data", str(data), "--verifier", "math_verify"], ["--task", "reasoning_gym:gcd"]):
        refused(capsys, ["--out", tmp_path / "run", "--warm_steps", "0", *more], "requirements/tasks.txt")


def rule(tmp_path, name):
    (tmp_path / "rules.py").write_text(RULES)
    return verifier_of(f"{tmp_path}/rules.py:{name}")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_verifier_is_named_and_counted_and_the_run_is_unharmed(tmp_path, capfd, name):
    """Stopped with one line and its traceback; or, where that was chosen, told once while the other samples count."""
    words, verifier = BAD[name], rule(tmp_path, name)
    pids = list(verifier.pids)
    limit = ["--verifier_timeout", "0.5" if words is HANGING else "60"]
    with pytest.raises(UserError) as stopped:
        judged(verifier, config_of(tmp_path, *limit))
    line = str(stopped.value)
    assert line.startswith("verifier, on my.jsonl:8 '1+1' with the completion 'two': ") and words in line
    assert line.isprintable() and len(line) < 700
    kept = (tmp_path / "out" / "verifier_error.txt").read_text()
    assert words in kept.splitlines()[0] and kept.endswith("\n\nquestion:\n1+1\ncompletion:\ntwo\n")
    assert ("Traceback" in kept) == (not words.startswith(OUR_WORDS))
    config = config_of(tmp_path, *limit, "--on_verifier_error", "drop", "--out", str(tmp_path / "second"))
    (tmp_path / "second").mkdir()
    rewards = judged(verifier, config)
    assert rewards[0] == rewards[2] == 0.5 and math.isnan(rewards[1])
    err = capfd.readouterr().err
    assert words in err and "verifier_error.txt" in err and err.count("\n") == 1
    judged(lambda c, a: 1 / 0, config)
    assert capfd.readouterr().err == ""  # the first one only
    assert words in (tmp_path / "second" / "verifier_error.txt").read_text()
    verifier.close()
    assert gone(*pids)


def test_a_verifier_may_replace_the_json_that_answers(tmp_path):
    (tmp_path / "rules.py").write_text("import json\njson.dumps = json.loads = None\ndef check(c, a): return 0.5\n")
    assert judged(verifier_of(f"{tmp_path}/rules.py:check"), config_of(tmp_path)) == [0.5] * 3


def test_a_reward_is_read_once(tmp_path):
    class Two:  # another number at each read
        numbers = iter([0.25, 7.0])
        __float__ = lambda self: next(self.numbers)

    assert judged(lambda c, a: Two(), config_of(tmp_path), said=["a"]) == [0.25]


def test_time_within_the_limit_is_given_to_every_call_anew(tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    for seconds, calls in ((1.0, 5), (0.0, 1)):
        config = config_of(tmp_path, "--verifier", f"{tmp_path}/rules.py:slow", "--verifier_timeout", str(seconds))
        verifier = load_source(config)[1]
        assert verifier.seconds == seconds and judged(verifier, config, said=["a"] * calls) == [1.0] * calls


@pytest.mark.parametrize("name, reward", [("forks", 1.0), ("forks_and_fails", 0.5)])
def test_a_fork_of_a_verifier_neither_answers_nor_goes_on(tmp_path, name, reward):
    verifier = rule(tmp_path, name)
    assert judged(verifier, config_of(tmp_path), said=["a"] * 20) == [reward] * 20
    pids = [int(pid) for pid in (tmp_path / "rules.py.pids").read_text().split()]
    assert len(pids) == 20 and gone(*pids)


def test_nothing_that_a_verifier_changes_is_changed_here(tmp_path):
    def here():
        mask = os.umask(0)
        os.umask(mask)
        return os.getcwd(), dict(os.environ), mask, signal.getsignal(signal.SIGINT), torch.get_default_dtype()

    before, drawn = here(), torch.initial_seed()
    assert judged(rule(tmp_path, "changes"), config_of(tmp_path)) == [0.5] * 3
    assert here() == before and torch.initial_seed() == drawn


def test_a_second_ctrl_c_is_no_failure_of_the_verifier(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        judged(Mock(side_effect=KeyboardInterrupt), config_of(tmp_path, "--on_verifier_error", "zero"))


def test_the_message_is_not_written_through_a_link(tmp_path):
    config = config_of(tmp_path, "--on_verifier_error", "zero")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out" / "verifier_error.txt").symlink_to(tmp_path / "mine.txt")
    judged(lambda c, a: 1 / 0, config)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert "ZeroDivisionError" in (tmp_path / "out" / "verifier_error.txt").read_text()


def test_each_process_tells_its_own_first_failure(tmp_path, monkeypatch, capsys):
    config = config_of(tmp_path, "--on_verifier_error", "zero")
    for number in (0, 1):
        monkeypatch.setattr(judge.processes, "rank", lambda: number)
        monkeypatch.setattr(judge, "told", set())
        judged(lambda c, a: {}[f"in process {number}"], config)
    assert capsys.readouterr().err.count("in process") == 2
    for number, name in enumerate(["verifier_error.txt", "verifier_error-1.txt"]):
        assert f"in process {number}" in (tmp_path / "out" / name).read_text()


def test_a_failure_is_told_where_the_locale_knows_no_letters(tmp_path):
    """A completion of an untrained model is full of U+FFFD, which ASCII lacks."""
    given = options(tmp_path, "out", "--on_verifier_error zero --steps 1", rule="{}[completion + '\\u00e9']")
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, ROOT / "train.py", *given], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert "\u00e9" in (tmp_path / "out" / "verifier_error.txt").read_text("utf-8")


def test_what_a_verifier_prints_stays_out_of_the_log(tmp_path, capfd):
    rule(tmp_path, "prints").close()
    paths = ["--out", str(tmp_path / "out"), "--warm_dir", str(tmp_path / "warm")]
    assert train.main([*TINY, *paths, "--verifier", f"{tmp_path}/rules.py:prints"]) == 0
    printed = capfd.readouterr()
    for said in ("step=7 reward=1", "from below", "from a child"):
        assert said not in printed.out and said in printed.err
    steps = [line.split()[0] for line in printed.out.splitlines() if line.startswith("step=")]
    assert steps == [f"step={step}" for step in range(5)]


# ---- zero and drop ---------------------------------------------------------------------------------------------------


def test_a_dropped_sample_leaves_the_advantages_of_the_rest():
    nan = math.nan
    whole = torch.tensor([1.0, 0.0, 0.5, 0.5])
    rewards = torch.tensor([1.0, nan, 0.0, 0.0, nan, nan, nan, nan, nan, 1.0, nan, nan, 0.5, 1.0, nan, 0.0, *whole])
    config = Config(on_verifier_error="drop", group_size=4)
    _, masked, advantages = judge.without_failed(rewards, Samples.of([[1]] * len(rewards)), config)
    assert torch.equal(masked.mask[:, 0], ~rewards.isnan())
    expected = torch.zeros(20)
    for group in ([0, 2, 3], [12, 13, 15], [16, 17, 18, 19]):
        expected[group] = group_advantages(rewards[group], len(group))
    assert torch.equal(advantages, expected)


def test_a_failed_sample_is_worth_nothing_with_zero(tmp_path):
    config = config_of(tmp_path, "--on_verifier_error", "zero")
    _, state = sharp_state()
    given = iter([math.nan, 1.0, 0.0, 1.0, math.nan, 0.0, math.nan, 1.0])
    batch = train.rollout(state.policy, tasks.generated("addition", 3, 2), lambda c, a: next(given), config, 1)
    assert batch.rewards.tolist() == [0, 1, 0, 1, 0, 0, 0, 1]
    assert torch.equal(batch.advantages, group_advantages(batch.rewards, 4))
    assert batch.verifier_errors == 3


@pytest.mark.parametrize("method", ["rlsd", "sdpo", "opsd"])
def test_a_run_counts_its_failures_and_resumes_with_another_policy(tmp_path, capsys, method):
    """Stopped by its verifier, a run goes on from its checkpoint with the policy that it is resumed with."""
    rule = f"{SOME} if sum(map(ord, completion)) % 3 else None"
    given = options(tmp_path, "out", f"--method {method} --eval_problems 8", rule=rule)
    refused(capsys, given, "it returned None")
    assert train.main([*given, "--on_verifier_error", "drop", "--steps", "2"]) == 0
    assert "the sample takes no part" in capsys.readouterr().err
    assert train.main(again(tmp_path / "out", "--steps 4 --on_verifier_error zero")) == 0
    assert "verifier_errors=" in capsys.readouterr().out
    rows = lines(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert sum(row["verifier errors"] for row in rows[1:]) > 0
    assert all("held-out verifier errors" in rows[i] for i in (0, 2, 4))


def test_without_a_run_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = Samples.of([tasks.encode("x")], "cpu")
    with pytest.raises(UserError, match="1 / 0|division"):
        rollout.verify(lambda completion, answer: 1 / 0, samples, [tasks.Problem("q", "a")], Config())
    assert not list(tmp_path.iterdir())
