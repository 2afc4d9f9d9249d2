"""math-verify in a process of its own: its judgements, its time limit, its deaths."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from noted import noted

from harness.problems import verifier_of
from sources.scorers import scorer
from support import child
from support.child import ROOT, Limited, Worker
from verifiers import Failed


@pytest.fixture(scope="module")
def math_verify():
    pytest.importorskip("math_verify")
    return verifier_of("math_verify")


def running(pid):
    """Whether a process is there and not merely waiting to be collected."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- judgements ------------------------------------------------------------------------------------------------------


# MATH's forms of an answer, and a few more, two spaces apart; each accepts itself
FORMS = r"""
12  -3  0.5  .5  1,234  1,234,567  12{,}345  10{,}000  \frac{1}{2}  \frac12  \frac 12  \frac34  -\frac{3}{4}
\dfrac{1}{2}  \tfrac{1}{2}  \frac{\sqrt{3}}{2}  \frac{1+\sqrt{5}}{2}  \frac{x+1}{x-1}  \frac{\pi}{4}  1/2
3\frac{1}{2}  3 \frac 12  2\tfrac{1}{3}  3 1/2  \sqrt{2}  \sqrt2  2\sqrt{3}  3\sqrt[3]{2}  \sqrt[4]{5}  \pi  2\pi
25\pi  \frac{1}{\pi}  e  e^2  i  3+4i  -2-i  \infty  -\infty  90^\circ  60^{\circ}  135^{\circ}  \sin 30^\circ
45\text{ degrees}  50\%  12.5\%  50%  \$18.90  \$5  \$1,234.50  \$32{,}348  x  x^2  x^2+2x+1  2x-3y  (x+1)(x-1)  x=5
x = 5  y=2x+3  y = \frac{1}{2}x - 3  x=1,2  f(x)=x^2  p - q  x \in [0,1]  x>3  x \ge 3  x\leq -2  0<x<5  1 < x \le 4
2 \le x < 5  (1,2)  (3, -4)  (1,2,3)  \left(\frac{1}{2}, 3\right)  (\frac{3}{5},\frac{8}{3}]  [0,1]  [0, \infty)
(-\infty, 3)  (-\infty,-1)\cup(1,\infty)  (-\infty,2] \cup [3,\infty)  [-2,1) \cup (1,5]  (0,1)  \{1,2,3\}  \{1\}
\{1, 2\}  \left\{1,2\right\}  \emptyset  \varnothing  \{x | x>3\}  1,2  1, 2, 3  -1, 3  1,-2  \sqrt{2}, -\sqrt{2}
1\pm\sqrt{2}  \pm 2  3 \pm 2\sqrt{2}  \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}  \begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}  \text{Yes}  \text{yes}  \text{even}  \text{odd}  \text{Monday}
\text{east}  \text{(A)}  \text{(B)}  \textbf{(C)}  (A)  A  B  C  (C)  \text{A}  \text{A,B}  \text{Evelyn}
\text{ellipse}  \text{hyperbola}  \text{two lines}  even  Monday  Evelyn  two lines  parabola  \text{June 20}
\text{neither}  \mbox{June 20}  5\text{ cm}  5 cm  12\text{ inches}  12 \mbox{ units}  10 \text{ square units}
5\text{ cm}^2  5\,\text{cm}^2  5 \text{ m/s}  864 \mbox{ inches}^2  18\text{ feet}  6 \text{ hours}  3:45
6:00 \text{ a.m.}  2:00 \text{ PM}  12_5  12_{5}  1011_2  2516_8  4210_{5}  1000_{10}  4C7_{16}  BAC_{16}
0.\overline{3}  0.1\overline{6}  0.\overline{142857}  2^{10}  10^5  3.5 \times 10^4  2.5\cdot 10^{-3}  6 \times 10^9
2^3 \cdot 3^2  2\times 3  5!  \binom{5}{2}  {5 \choose 2}  \log_2 3  \ln 2  \log 5  \log_{10} 2  \sin x  \cos \theta
\tan^{-1} 2  \frac{\sin x}{x}  \theta  \alpha+\beta  a^2+b^2  ab  xy  abc  2xy  x^3y^2  |x|  \lfloor x \rfloor
\lceil 3.5 \rceil  |x-3|  \left| x \right|  \sum_{k=1}^n k  \int_0^1 x dx  1:2  2:3  3:4:5  \frac{a}{b}  k^2  n(n+1)/2
\frac{n(n+1)}{2}  3x+4y=5  x^2+y^2=1  4x-3y+2z-5=0  y = x^2  (x-2)^2 + (y+3)^2 = 16  \mathbf{i}+\mathbf{j}
\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}  \frac{1}{2}\text{ or }2  2 \text{ and } 3  1 \text{ or } 2  \text{1 and 2}
3 \text{ or } -3  x=1 \text{ or } x=2  \boxed{5}  $5$  \(5\)  5\sqrt{2} \text{ cm}  11\sqrt2  \frac{5\sqrt{3}}{3}
\sqrt{\frac{2}{3}}  (2,12)  (0,9)  (5,\infty)  (2,3]\cup[4,5)  \mathbb{R}  (-\infty, \infty)
\left[-\frac{1}{2}, \frac{1}{2}\right]  18  -\sqrt{3}  7^{2/3}  x^{1/2}  \frac{3}{56}  \frac{270}7\text{ degrees}
70 \sqrt{2}  9901  13535  \left( 3, \frac{\pi}{2} \right)  \$36  \$18.9  1.36  4343_6  1 \frac{4}{5}  -5 \le x \le 5
0.75  75\%  \text{(E)}  \left(2,\frac{3}{2}\right)  (6,31,-1)  \dfrac{9}{7}  a+b+c  \cot x  \sec 2x  \text{Navin}
5\text{ and }7  16,\!000  3,\!450  40_9  101_2  \frac{\sqrt{a}}{b}  2n+1  \text{TRUE}  no  No  10:15  x+y\sqrt{2}
24^\circ  \ 18.90  -\frac{35}{9}  f^{-1}(x)  \frac{1}{3}x+2  \,5
"""
EQUAL = r"""
12|12.0 $12$ \boxed{12} **12** \$12 $12 12. (12) \frac{24}{2} x=12 12\cdot1 5+7 \frac{36}3
0.5|1/2 \frac12 .5 0.50 $\frac12$ \boxed{\frac{1}{2}}
(x+1)^2|x^2+2x+1 1+2x+x^2
\sqrt{8}|2\sqrt{2} $2\sqrt2$
\frac{1}{\sqrt2}|\frac{\sqrt2}{2}
\sqrt{6+2\sqrt5}|1+\sqrt5
\{1,2,3\}|\{3,2,1\}
1,2|2,1
3.5 \times 10^4|35000 35,000
2^{10}|1024
\binom{5}{2}|10
\$18.90|18.90 $18.9$ \$18.9
\$1,234.50|1234.5
\$32{,}348|32348 32,348
16,\!000|16000
3 1/2|7/2 3.5 3\frac12
-3 1/2|-3.5
5 cm|5\text{cm} 5.0cm
5\text{ cm}^2|5cm^2
\text{Yes}|yes Yes
\text{(A)}|A (A)
50\%|50%
12_5|12_{5}
90^\circ|90^{\circ}
x=5|5 5=x
y=2x+3|2x+3 y=3+2x
1 \text{ or } 2|1,2 2,1
xy+yz+zx|xy+xz+yz
x>1|(1,\infty)
\begin{pmatrix} 1/2 \\ 2 \end{pmatrix}|\begin{pmatrix}0.5\\2\end{pmatrix}
"""
OTHER = r"""
12|13 12=13 13=12 12\approx13 12\neq13 12\to13 12\ldots 12\%  1200\% 12% 12_5 12_{5} 12! 12' 12^\circ 12\circ
12|\pm12 11,12 12;13 12:1 12<13
12|12>11 11=12 x=13=12 12cm 12\text{cm} 12apples twelve 12@ 12# 12) 12\&13 12\mod13 \overline{12} 12_{} "12"
12|12\cup13 12\in13 1,2 x=y=12 [12,12] x=[12,12.0] \left[12,\frac{24}{2}\right] [12,12) (12,12)
[12,12]|12 12.0
1/3|0.33333333 0.333333333333333333333333 0.3 \frac{33333333}{100000000}
\pi|3.14159265 3.141592653589793238462643383279 22/7 \frac{22}{7}
2\pi|6.283185307179586
1+\pi|4.141592653589793
e^2|7.389056
\sqrt{2}|1.41421356 1.4142135623730951
10^{-20}|10^{-30} 0
0|10^{-20} 0.0000001
(1/3,1)|(0.33333333,1)
\{1/3\}|\{0.33333333\}
[0,1/3]|[0,0.33333333]
\begin{pmatrix}1/3\\2\end{pmatrix}|\begin{pmatrix}0.33333333\\2\end{pmatrix}
5 cm|5km 5 5\text{km} 5cm^2 5m
5|5cm 5\text{cm} 5km
5 m|5g 5 5s
5 MW|5mW
5 cm^2|25cm 5cm^3 5cm
2ab|2 2a
listen|silent
\text{no}|on
A|a B (B)
E|e
50\%|0.5 50
\$5|€5 £5
3:45|\frac{1}{15} 3.75
6:00 \text{ a.m.}|6:00\text{p.m.}
12_5|12 7 12_6
\log_{23} 4|\log_{2}34
(1,2)|(2,1) [1,2] [1,2) (1,3)
x=5|y=5 x=6 6
f'(x)|f(x)
x^2=-1|x^2=-4
0.\overline{3}|0.3 0
3\frac12|\frac32
1 \text{ or } 2|1 2
"""


@pytest.mark.parametrize("form", [form for line in FORMS.strip().split("\n") for form in line.split("  ")])
def test_each_form_of_a_reference_accepts_itself(math_verify, form):
    """And a dollar of text before it does not matter: it is MATH's own writing of money."""
    for completion in (form, f"so\n#### {form}", f"${form}$", f"\\boxed{{{form}}}"):
        if not (form.startswith(("$", r"\boxed", r"\(")) and completion != form) and "$" not in form[1:]:
            assert math_verify(completion, form) == 1.0, completion


@pytest.mark.parametrize("line", [*EQUAL.strip().split("\n"), *OTHER.strip().split("\n")])
def test_what_is_equal_and_what_is_not(math_verify, line):
    answer, texts = line.split("|", 1)
    wrong = line in OTHER
    found = {text: math_verify(text, answer) for text in texts.split()}
    assert found == dict.fromkeys(found, 0.0 if wrong else 1.0)


@pytest.mark.parametrize(
    "completion, answer, reward",
    [
        *((said, "12", 0) for said in ("", "\ud800", "11 or 12", "$11$ or $12$", "#### 12 #### 12")),
        *((said, "12", 0) for said in (r"\boxed{11}, \boxed{12}", r"11 \text{ or } 12", r"so \boxed{12}")),
        ("1" * 500, "1" * 500, 1),
        ("1" * 501, "1" * 501, 0),
        (r"\(x+1\)", "1+x", 1),
        ("x>1", r"(1,\infty)", 0),  # the package treats reference and answer differently: the other way it is right
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
    first = scorer("math_verify").pids
    monkeypatch.setattr(Limited.ask, "__kwdefaults__", {"seconds": 1.0})
    for text in ("9^{9^{9^9}}", "10^9!"):
        assert math_verify(text, "1") == 0.0
        assert scorer("math_verify").end is None  # ended, not left to count on
    monkeypatch.undo()
    assert not any(map(running, first))
    assert math_verify("2/4", "1/2") == 1.0  # a new one answers


def test_threads_get_their_own_answers(math_verify):
    """math-verify's own time limit raises outside the main thread."""
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: [math_verify(f"{i}", f"{k}") for k in range(8)], range(8)))
    assert results == [[float(i == k) for k in range(8)] for i in range(8)]


# ---- the process -----------------------------------------------------------------------------------------------------


def gone(*pids):
    for _ in range(600):
        if not any(map(running, pids)):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A worker that answers with what a piece of code defines as f."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(code, kind=Worker):
        (tmp_path / "served.py").write_text(f"{code}\ndef make():\n    return f\n")
        return kind(*["json"] * (kind is Limited), "served", "make")

    return make


def test_one_that_has_died_is_started_again(math_verify):
    math_verify("1", "1")
    for victim in (0, 1):  # the one that watches, the one that answers
        pids = list(scorer("math_verify").pids)
        os.kill(pids[victim], signal.SIGKILL)
        assert gone(pids[0])  # the one that watches goes after the one that answers
        scorer("math_verify").process.wait(60)  # a dead leader is not reaped before its last thread
        assert math_verify("1/2", "0.5") == 1.0
        assert not set(scorer("math_verify").pids) & set(pids)


def test_the_limit_of_a_scorer_is_one_of_processor_time(monkeypatch, served):
    """On a loaded machine a clock would take the reward from right answers."""
    waiting = served("from time import sleep as f", Limited)
    assert waiting.ask(0.5, seconds=0.2) is None and waiting.ask(0.5, seconds=0.2) is None
    assert waiting.end is not None  # it has answered
    monkeypatch.setattr(child, "PATIENCE", 1)
    assert waiting.ask(60, seconds=0.2) is None and waiting.end is None  # but it may not wait for ever


def test_no_time_runs_between_two_requests(monkeypatch):
    monkeypatch.setattr("resource.setrlimit", lambda *args: None)  # this process is held to nothing
    twice, timers = child.limited("operator", "methodcaller", "upper"), (signal.ITIMER_PROF, signal.ITIMER_REAL)
    assert twice(60.0, "a") == "A" and pytest.raises(AttributeError, twice, 60.0, 7)
    left = [signal.setitimer(timer, 0) for timer in timers]  # none may end another test
    assert left == [(0.0, 0.0)] * 2


def test_what_asks_for_too_much_memory_earns_nothing(served):
    greedy = served("f = lambda n: bool(bytearray(n))", Limited)
    assert greedy.ask(10) is True
    before = greedy.pids
    assert greedy.ask(1 << 62) is None and greedy.ask(10) is True
    assert greedy.pids != before  # what is left of memory after that is no judge of others


def test_failures_are_told_apart(served):
    odd = served("import os\ndef f(n):\n    return 1 // n if n >= 0 else os._exit(-n)")
    assert odd.ask(1) == 1
    with pytest.raises(Failed, match="ZeroDivisionError") as error:
        odd.ask(0)
    assert error.value.status is None and odd.end is not None
    assert error.value.trace.startswith("Traceback (most recent call last):\n  File")
    with pytest.raises(Failed, match="its process ended with exit code 7") as error:
        odd.ask(-7)
    assert error.value.status == 7 and odd.end is None and odd.ask(1) == 1
    for code in ("1 / 0", "raise SystemExit(3)", "import os; f = lambda n: os.kill(os.getpid(), 9)"):
        with pytest.raises(Failed, match="its process (was killed|ended by signal 9 )"):
            served(code).ask(1)
    with pytest.raises(Failed, match="^ZeroDivisionError"):  # of its making, and of no request
        served("1 / 0", Limited).ask(1)


@pytest.mark.parametrize("doing", ["time.sleep(60)", "9 ** 9 ** 9", "signal.pause()"])
def test_it_ends_with_the_program_and_what_it_has_started_too(tmp_path, doing):
    """At a clean end, after Ctrl-C, and after a kill that leaves the program no time; also in the middle of C code."""
    (tmp_path / "rules.py").write_text(
        "import multiprocessing, os, signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pool = multiprocessing.get_context('fork').Pool(1)\n"
        f"def check(c, a):\n    if c == 'pids': open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        f"    if c == 'stay': {doing}\n    return 1.0\n"
    )
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "  # off in the background
        f"from sources import verifier_process; check = verifier_process.Rule('{tmp_path}/rules.py', 'check'); "
        "check('pids', ''); print(*check.pids, flush=True); sys.argv[1] == 'end' or check('stay', '')"
    )
    for how, number in (("end", None), ("stay", signal.SIGINT), ("stay", signal.SIGKILL)):
        command = [sys.executable, "-c", code, how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL, cwd=ROOT)
        pids = [*map(int, process.stdout.readline().split()), int((tmp_path / "pid").read_text())]
        if number:
            time.sleep(0.2)
            process.send_signal(number)
        process.wait(timeout=60)
        process.stdout.close()
        assert gone(*pids), (how, number)


def test_a_closed_or_forgotten_one_has_ended_and_no_two_answers_have_one_number(served, monkeypatch):
    kept, told = served("f = abs"), noted(monkeypatch, child, "_value_of", lambda line, numbers: line)
    assert (kept.ask(-4), kept.ask(-4)) == (4, 4)
    assert len({line.partition(b" ")[0] for line in told}) == 3  # that of the start among them
    pids = kept.pids
    kept.close()
    assert gone(*pids) and kept.ask(-3) == 3
    pids = list(kept.pids)
    del kept
    assert gone(*pids)


def test_it_holds_no_file_of_the_program(tmp_path, served):
    """The lock of a run is one: inherited, it would outlive the run."""
    with open(tmp_path / "held", "w") as held:
        os.set_inheritable(held.fileno(), True)
        code = "import os\ndef f(n):\n    return [os.path.realpath(f'{n}/{fd}') for fd in os.listdir(n)]"
        assert str(tmp_path / "held") not in served(code).ask("/proc/self/fd")


def test_what_a_function_prints_is_no_reply(served):
    code = "import os\ndef f(x):\n    print('hm'); os.system('echo ho'); os.write(1, b'[]')\n    return x"
    chatty = served(code)
    assert [chatty.ask(i) for i in range(3)] == [0, 1, 2]


def test_an_interrupted_request_does_not_answer_the_next(math_verify):
    math_verify("1", "1")
    asked = scorer("math_verify")
    asked.replies = SimpleNamespace(get=lambda timeout: signal.default_int_handler(2, None))
    with pytest.raises(KeyboardInterrupt):
        math_verify("5", "5")
    assert math_verify("5", "6") == 0.0


def test_a_request_that_nobody_reads_does_not_hold_up_the_one_who_asks(served):
    """Longer than a pipe takes, to a process that was stopped between two calls."""
    stopped = served("f = len")
    assert stopped.ask("x") == 1
    os.kill(stopped.pids[1], signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        stopped.ask("x" * 1_000_000, seconds=0.5)
    assert stopped.ask("x" * 1_000_000, seconds=60) == 1_000_000


# ---- a file of the user's own ----------------------------------------------------------------------------------------

POOL = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
def judge(completion, answer):
    return float(answer in completion)
def check(completion, answer):
    with ProcessPoolExecutor(1, mp_context=get_context({!r})) as pool:
        return pool.submit(judge, completion, answer).result()
"""


@pytest.mark.parametrize("start", ["spawn", "fork", "forkserver"])
def test_a_pool_inside_a_verifier(tmp_path, monkeypatch, start):
    (tmp_path / "pool_rules.py").write_text(POOL.format(start))
    monkeypatch.chdir("/")
    check = verifier_of(f"{tmp_path}/pool_rules.py:check")
    assert [check("a 2", "2"), check("a 3", "2")] == [1.0, 0.0]


@pytest.mark.parametrize(
    "name", ["my_rules", "train", "verifiers", "judge", "json", "random", "numpy", "math_verify", "a.b", "règle-1"]
)
def test_a_file_of_any_name_finds_its_neighbours_and_none_of_ours(tmp_path, monkeypatch, name):
    """From any folder. Its neighbours go before packages, but of a name that is taken both are to be had by import."""
    folder = tmp_path / "ein Ordner"
    folder.mkdir()
    for neighbour in ("tasks", "sources", "iniconfig"):  # names of ours too, and of a package
        (folder / f"{neighbour}.py").write_text("def same(a, b):\n    return float(a == b)\n")
    (folder / f"{name}.py").write_text(
        "import importlib.util, iniconfig, json, random, sources, sys, tasks\n"
        "from dataclasses import dataclass\nfrom numpy import prod\n"
        f"@dataclass\nclass A:\n    x: {'float'!r}\n"
        "def check(c, a):\n    assert json.loads('1') == 1 and random.random() < 1\n"
        "    assert not any(map(importlib.util.find_spec, ('rollout', 'harness', 'support'))), sys.path\n"
        f"    assert hasattr(iniconfig, 'same') or {name in ('json', 'random', 'numpy', 'math_verify', 'a.b')}\n"
        "    return A(prod([tasks.same(c, a), sources.same(c, a)])).x\n"
    )
    monkeypatch.chdir(folder)
    check = verifier_of(f"{name}.py:check")
    monkeypatch.chdir("/")
    check.close()  # started again, it is found from elsewhere
    assert [check("1", "1"), check("1", "2")] == [1.0, 0.0]
