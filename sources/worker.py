"""Verifiers in a process of their own, the user's and other packages': what hangs is killed, what dies starts again.

Two programs in one file, a line of JSON each way. `Worker` asks; `python worker.py FILE.py NAME PID`, `math_verify PID`
or `reasoning_gym TASK PID` answers, and `jinja2 PID` with what a chat template makes of its values. Model text is never
evaluated here: a scorer that would do so is refused by name.
"""

import contextlib
import ctypes
import difflib
import importlib.util
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from datetime import datetime
from functools import cache, lru_cache, reduce

sys.path[:0] = [str(__import__("pathlib").Path(__file__).parents[1])] * (__name__ == "__main__")

from verifiers import MARKER, Failed, bare, closes, exact, expression, final_answer, number, reward_of

STARTING = 300.0  # seconds on the clock until a function is ready
MAX_SAID = 100_000  # characters of an error that are kept
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
UNREAD = 74  # the exit status of a process that could not answer: EX_IOERR
UNREADABLE = "its answer cannot be read: it wrote into the pipe of its answers, or closed it"
MAX_TEXT, MAX_LATEX = 10_000, 500  # characters of a final answer; longer ones score 0.0 unread
SCORING, PATIENCE = 3.0, 20  # seconds of processor time, whatever else the machine does; as many times on the clock
MEMORY = 4 << 30  # bytes of address space: what asks for more fails, and the machine goes on
SIZE = 20_000  # problems of a reasoning_gym task; word_ladder refuses to have more
FIXED = {"PYTHONHASHSEED": "0"}  # some generators draw from sets of strings
FIXED |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space


# ---- the side that asks ----------------------------------------------------------------------------------------------


class Worker:
    """A process that answers one request at a time; it ends with this object, and with this program however it ends."""

    def __init__(self, *command: str, **options):
        self.command, self.options = command, options
        self.lock = threading.Lock()  # a trainer may score from several threads
        self.end: weakref.finalize | None = None

    def ask(self, *request, seconds: float = 0.0):
        """The answer to a request, or if there is none a start; Failed, or TimeoutError after `seconds` (0: never)."""
        with self.lock:
            try:
                if self.end is not None and self.process.poll() is not None:  # since the last request
                    self.close()
                if self.end is None:
                    self._start()
                if request:
                    return self._exchange(seconds, *request)
            except queue.Empty:
                self.close()
                raise TimeoutError(f"it took longer than {seconds or STARTING:g} seconds") from None
            except BaseException as error:  # Ctrl-C among them: the reply still to come would answer the next request
                if not isinstance(error, Failed) or error.status is not None:
                    self.close()
                raise

    def _start(self) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **self.options}
        command = [sys.executable, *self.command, str(os.getpid())]
        self.process = subprocess.Popen(command, start_new_session=True, **options)  # Ctrl-C is for the run
        self.pids, self.numbers = [self.process.pid], list[bytes]()
        self.requests, self.replies = queue.SimpleQueue[bytes | None](), queue.SimpleQueue[bytes]()
        self.end = weakref.finalize(self, _end, self.process, self.pids, self.requests)
        threading.Thread(target=_carry, args=(self.process, self.requests, self.replies), daemon=True).start()
        self.pids.append(self._exchange(STARTING))

    def _exchange(self, seconds: float, *request):
        """The answer that carries the number of this request, or of the first: the end of the process tells that."""
        self.numbers[1:] = [os.urandom(8).hex().encode()]  # a rule that writes to all of its files knows none
        self.requests.put(b"%s %s\n" % (self.numbers[-1], json.dumps(request).encode()))
        return _value_of(self.replies.get(timeout=seconds or None), self.numbers)

    def close(self) -> None:
        """End the process, whatever it is doing, and what it has started; the next request starts another."""
        if self.end is not None:
            self.end()
        self.end = None


def _carry(process: subprocess.Popen, requests: queue.SimpleQueue, replies: queue.SimpleQueue) -> None:
    """Take requests there and replies back, in a thread: who waits for an answer must not wait for a pipe."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError), process.stdout, process.stdin:
        for request in iter(requests.get, None):
            with contextlib.suppress(OSError):  # it has ended, and its last words are to be read
                process.stdin.write(request)
                process.stdin.flush()
            replies.put(process.stdout.readline(1 << 24))  # no line of ours is as long


def _value_of(line: bytes, numbers: list[bytes]):
    number, _, told = line.partition(b" ")
    status, value, trace = -KILL, UNREADABLE if line else "its process was killed", ""  # with what watches it
    if number in numbers:
        with contextlib.suppress(ValueError):  # torn
            status, value, trace = json.loads(told)
    if status == "done":
        return value
    raise Failed(value, trace, None if status == "failed" else status)


def _end(process: subprocess.Popen, pids: list[int], requests: queue.SimpleQueue) -> None:
    _kill(*(pids if process.poll() is None else pids[:1]))
    requests.put(None)
    process.wait()


def _kill(leader: int, *others: int) -> None:
    """A process with all of its group, and others that may have left that."""
    for kill, pid in [*((os.kill, pid) for pid in others), (getattr(os, "killpg", os.kill), leader)]:
        with contextlib.suppress(OSError):
            kill(pid, KILL)


class Rule(Worker):
    """A verifier of the user's own, `name` in the file `path`: what it does, it does to another process than this."""

    def __init__(self, path: str, name: str):
        super().__init__(__file__, os.path.abspath(path), name, stderr=None if sys.__stderr__ else subprocess.DEVNULL)
        self.ask()

    def __call__(self, completion: str, answer: str, seconds: float = 0.0) -> float:
        try:
            return reward_of(self.ask(completion, answer, seconds=seconds))
        except TimeoutError:
            raise Failed(f"it took longer than --verifier_timeout {seconds:g} seconds") from None


class Scorer(Worker):
    """The scorer of a package; ValueError where that is not installed."""

    def __init__(self, package: str, *arguments: str):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -r requirements-tasks.txt")
        super().__init__(__file__, package, *arguments, stderr=subprocess.DEVNULL, env={**os.environ, **FIXED})

    def ask(self, *request, seconds: float = SCORING):
        """The answer to a request; None if it takes too much time, or memory; False where the scorer raises."""
        super().ask()  # a task that cannot be made says so
        try:
            return super().ask(seconds, *request, seconds=PATIENCE * seconds)
        except TimeoutError:
            return None
        except Failed as failed:
            if failed.status not in (None, -signal.SIGPROF):
                raise Failed(f"the worker of {self.command[1]} has died on {str(request)[:80]}: {failed}") from None
            return None if failed.status else False


worker = cache(Scorer)  # one process for each package and task


def math_verify(completion: str, answer: str) -> float:
    """1.0 if the final answer equals the reference, both read as one LaTeX expression (`math_verify_scorer`)."""
    text = final_answer(completion)
    return float(text is not None and len(text) <= MAX_LATEX and worker("math_verify").ask(text, answer) is True)


vars(math_verify)["reads_reference"] = True  # can_be_earned asks it too


# ---- the side that answers -------------------------------------------------------------------------------------------


def serve(make: Callable[[], Callable], parent: int, loads=json.loads) -> None:  # ours, whatever a rule makes of json
    """Answer with the function that `make` gives, until the other side is gone; what it prints is no answer."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    number = requests.readline().partition(b" ")[0]
    if hasattr(os, "fork"):
        _watch(parent, replies, number)
    pid, function = os.getpid(), None

    def attempt(call: Callable, *arguments):
        try:
            return "done", call(*arguments), ""
        except Failed as error:
            return "failed", str(error), error.trace
        except BaseException as error:  # a library's own, sys.exit
            text = "".join(traceback.format_exception_only(error))
            return "failed", text[:MAX_SAID], traceback.format_exc(-50)[:MAX_SAID]
        finally:
            if os.getpid() != pid:  # a fork that the function has made: it neither answers nor serves
                os._exit(0)

    status, function, trace = attempt(make)
    try:
        _write(replies, number, *(("done", pid, "") if status == "done" else (1, function, trace)))
        for number, _, request in (line.partition(b" ") for line in requests) if status == "done" else ():
            _write(replies, number, *attempt(function, *loads(request)))
    except Exception:  # the function has closed these pipes, or opened files in their place
        os._exit(UNREAD)


def _watch(parent: int, replies, number: bytes) -> None:
    """Go on as a child of this process, which ends the whole group when that child has ended, or the program has."""
    if (child := os.fork()) == 0:
        with contextlib.suppress(Exception):  # Linux has it: this one ends with what watches it, in whatever group
            ctypes.CDLL(None).prctl(1, KILL)  # PR_SET_PDEATHSIG
        return

    def outlive() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        _kill(os.getpid(), child)

    threading.Thread(target=outlive, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    how = f"with exit code {status}" if status >= 0 else f"by signal {-status} ({signal.strsignal(-status)})"
    with contextlib.suppress(OSError):  # nobody is left to read it
        _write(replies, number, status, UNREADABLE if status == UNREAD else f"its process ended {how}", "")
    _kill(os.getpid())


def _write(replies, number: bytes, *told, dumps=json.dumps) -> None:
    with contextlib.suppress(Exception):  # half a line that was printed; whatever a rule has put in its place
        sys.stderr.flush()
    replies.write(b"%s %s\n" % (number, dumps(told).encode()))
    replies.flush()


def rule(path: str, name: str) -> Callable[[str, str], float]:
    """The function of a user's file, its reward read; its neighbours can be imported, and so can it by what it starts.

    It goes by its own name, unless the standard library or an installed package has that.
    """
    folder, stem = os.path.dirname(path), os.path.basename(path).removesuffix(".py")
    ours = os.path.dirname(os.path.abspath(__file__)), folder
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) not in ours]
    sys.argv[:] = [path]
    del sys.modules["verifiers"], sys.modules["__main__"].__file__  # which processes that the file starts would run
    taken = "." in stem or stem in sys.modules or importlib.util.find_spec(stem) is not None
    packages = [i for i, entry in enumerate(sys.path) if entry.endswith("-packages")]  # site-, dist-
    sys.path.insert(len(sys.path) if taken or not packages else packages[0], folder)
    spec = importlib.util.spec_from_file_location(f"_verifier_{stem}" if taken else stem, path)
    assert spec is not None and spec.loader is not None  # the file's name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks its module up here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        said = "".join(traceback.format_exception_only(error))
        raise Failed(f"{path} fails with {said[:MAX_SAID]}", traceback.format_exc(-50)[:MAX_SAID]) from error
    if not callable(function := getattr(module, name, None)):
        raise Failed(f"{path} has no function {name}")
    return lambda completion, answer: reward_of(function(completion, answer))


# ---- math-verify -----------------------------------------------------------------------------------------------------

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


# ---- chat templates --------------------------------------------------------------------------------------------------


def jinja2_renderer() -> Callable:
    """render(template, values) -> the text that transformers makes, "", or none and why."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment

    def fail(message):
        raise ValueError(message)

    env = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})
    env.globals |= {"raise_exception": fail, "strftime_now": lambda form: datetime.now().strftime(form)}

    def render(template: str, values: dict) -> tuple[str, str]:
        try:
            text = env.from_string(template).render(values)
            return (text, "") if len(text) < 10**6 else fail(f"{len(text)} characters are too many")
        except Exception as error:
            return "", f"{type(error).__name__}: {' '.join(str(error).split())}"

    return render


SCORERS: dict[str, Callable[..., Callable]] = {"math_verify": math_verify_scorer, "reasoning_gym": reasoning_gym_scorer}
SCORERS["jinja2"] = jinja2_renderer


def made(package: str, *arguments: str) -> Callable:
    """The scorer of a package, held to its memory, and to its seconds of processor time at each request."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    score = SCORERS[package](*arguments)
    if not hasattr(signal, "setitimer"):  # Windows
        return lambda seconds, *request: score(*request)

    def timed(seconds: float, *request):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # ends this process, also where the other is gone by then
        try:
            return score(*request)
        except MemoryError:  # what is left of memory after that is no judge of others
            signal.raise_signal(signal.SIGPROF)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return timed


if __name__ == "__main__":
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, it is this process that ends, and not the run
    serve(lambda: (made if sys.argv[1] in SCORERS else rule)(*sys.argv[1:-1]), int(sys.argv[-1]))
