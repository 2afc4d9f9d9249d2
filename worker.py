"""Scorers of other packages, in a process of their own: what hangs is ended after a time limit, what dies starts again.

Two programs in one file: `Worker` asks, and `python worker.py math_verify` or `python worker.py reasoning_gym TASK`
answers, a line of JSON each way. Model text is never evaluated here: a scorer that would do so is refused by name.
"""

import atexit
import contextlib
import difflib
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec

from verifiers import MARKER, exact, expression, final_answer, number

MAX_TEXT, MAX_LATEX = 10_000, 500  # characters of a final answer; longer ones score 0.0 unread
SCORING = 3.0  # seconds of processor time: a reward must not depend on what else the machine does
PATIENCE, STARTING = 20, 300.0  # times as many on the clock, for what waits instead; seconds on the clock
MEMORY = 4 << 30  # bytes of address space: what asks for more fails, and the machine goes on
SIZE = 20_000  # problems of a reasoning_gym task; word_ladder refuses to have more

# ---- the side that asks ----------------------------------------------------------------------------------------------


class Worker:
    """A process that answers requests, started at the first one, ended at exit."""

    def __init__(self, package: str, *arguments: str):
        self.command = [package, *arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()  # a trainer may score from several threads
        atexit.register(self.close)
        if find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -r requirements-tasks.txt")

    def ask(self, *request, seconds: float = SCORING):
        """The answer to a request, None if it takes more than `seconds`; ValueError if two workers die of it."""
        with self.lock:
            for _ in range(2):
                if self.process is None:
                    self._start()
                try:
                    return self._exchange([seconds, *request], PATIENCE * seconds)
                except (EOFError, OSError) as error:
                    if self.close() == -signal.SIGPROF or isinstance(error, TimeoutError):
                        return None
                except BaseException:  # Ctrl-C: the reply still to come would answer the next request
                    self.close()
                    raise
        raise ValueError(f"the worker of {self.command[0]} died twice on {str(request)[:80]}")

    def close(self) -> int | None:
        """End the process at once, whatever it is doing; its exit status."""
        process, self.process = self.process, None
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        assert process.stdin is not None and process.stdout is not None  # pipes, as _start asks for
        process.stdout.close()
        with contextlib.suppress(OSError):  # a request that never got through
            process.stdin.close()
        return process.wait()

    def _start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",  # some generators draw from sets of strings
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }  # each thread takes address space
        self.process = subprocess.Popen(
            [sys.executable, __file__, *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )  # Ctrl-C is for the run, which ends its step first
        try:
            fault = self._exchange(None, STARTING)
        except (EOFError, OSError) as error:
            fault = f"the worker of {self.command[0]} does not start: {type(error).__name__}"
        if fault:
            self.close()
            raise ValueError(fault)

    def _exchange(self, request: list | None, seconds: float):
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        if request is not None:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        if not select.select([process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)


worker = cache(Worker)  # one process for each package and task


def math_verify(completion: str, answer: str) -> float:
    """1.0 if math-verify finds the final answer, read as one LaTeX expression, equal to the reference."""
    text = final_answer(completion)
    return float(text is not None and len(text) <= MAX_LATEX and worker("math_verify").ask(text, answer) is True)


vars(math_verify)["reads_reference"] = True  # can_be_earned asks it too


# ---- the side that answers -------------------------------------------------------------------------------------------


def serve(make: Callable[[], Callable]) -> None:
    """Say that `make` went well (null) or how it failed, then answer requests until the other side is gone."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply

    def reply(value) -> None:
        print(json.dumps(value), file=replies, flush=True)

    try:
        function = make()
    except Exception as error:
        return reply(" ".join(str(error).split()) or type(error).__name__)
    reply(None)
    for line in sys.stdin:
        seconds, *request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # ends this process, also where the other is gone by then
        try:
            value = function(*request)
        except MemoryError:  # worth nothing; the next request finds a fresh process
            return reply(False)
        except Exception:  # a scorer's own fault, recursion included: not an answer that earns anything
            value = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(value)


def math_verify_scorer() -> Callable[[str, str], bool]:
    """equal(text, answer) by math-verify, its own time limits off: they raise outside the main thread."""
    from math_verify import LatexExtractionConfig, parse, verify

    @lru_cache(maxsize=10_000)
    def read(text: str) -> list:
        # the LaTeX grammar alone: the other one hands what it finds to sympy's parse_expr, which evaluates
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    def equal(text: str, answer: str) -> bool:
        text, answer = bare(text), bare(answer)
        if "$" in text or r"\boxed" in text:  # several answers, or one among other words
            return False
        return bool(verify(read(answer), read(text), timeout_seconds=None))

    return equal


def bare(text: str) -> str:
    r"""A LaTeX expression without what is put around the whole of it: $...$, \(...\), \[...\], \boxed{...}."""
    for pattern in (r"\$\$([^$]+)\$\$", r"\$([^$]+)\$", r"\\\((.+)\\\)", r"\\\[(.+)\\\]", r"\\boxed\{(.+)\}"):
        match = re.fullmatch(pattern, text.strip(), re.DOTALL)
        text = match[1] if match else text
    return text.strip()


def reasoning_gym_scorer(task: str) -> Callable:
    """answer("item", i) -> {question, answer, solution} or False; answer("score", i, text) -> is the score 1?

    Raises ValueError, in one line, for an unknown task or setting, and for a scorer that evaluates model text.
    """
    dataset = make_dataset(task)
    name = task.split(",")[0]

    @lru_cache(maxsize=10_000)
    def entry(index: int) -> dict:
        random.seed(index)  # list_functions draws from the global generator
        return dataset[index]

    def score(index: int, text: str) -> bool:
        judge = OUR_JUDGES.get(name)
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
    """The generator of "NAME" or "NAME,setting=value,..."; its scorer is looked at before it is used."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name, *settings = task.split(",")
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
        raise ValueError(f"reasoning_gym has no task {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    evaluates = EVALUATION & set(DATASETS[name][0].score_answer.__code__.co_names)
    if evaluates and name not in OUR_JUDGES and name not in EVALUATES_ITS_OWN_TEXT:
        raise ValueError(f"reasoning_gym:{name} is refused: its scorer evaluates model text ({min(evaluates)})")
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in ("seed", "size") or key not in DATASETS[name][1].__dataclass_fields__:
            known = ", ".join(k for k in DATASETS[name][1].__dataclass_fields__ if k not in ("seed", "size"))
            raise ValueError(f"reasoning_gym:{name} has no setting {setting!r}; it has {known or 'none'}")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    try:
        return reasoning_gym.create_dataset(name, seed=0, size=SIZE, **values)
    except Exception as error:
        raise ValueError(f"reasoning_gym:{task} cannot be made: {type(error).__name__}: {error}") from error


EVALUATION = {"eval", "exec", "compile", "literal_eval", "parse_expr", "sympify"}
EVALUATES_ITS_OWN_TEXT = {"number_sorting"}  # eval of the reference alone


def uses_all(text: str, numbers: list[int], target: int) -> bool:
    """An expression over all of the given numbers, each used once, that reaches the target."""
    used = sorted(int(n) for n in re.findall(r"[0-9]+", text.partition("=")[0]))
    return used == sorted(numbers) and expression(text, f"{' '.join(map(str, numbers))} = {target}") == 1.0


def is_reference(text: str, entry: dict) -> bool:
    return exact(text, entry["answer"]) == 1.0


OUR_JUDGES: dict[str, Callable[[str, dict], bool]] = {
    # whose own scorer evaluates model text
    "countdown": lambda text, entry: uses_all(text, entry["metadata"]["numbers"], entry["metadata"]["target"]),
    "puzzle24": lambda text, entry: uses_all(text, entry["metadata"]["numbers"], 24),
    "n_queens": lambda text, entry: text in entry["metadata"]["valid_answers"],
    "binary_matrix": is_reference,
    "spiral_matrix": is_reference,
    "string_insertion": is_reference,
    # whose own scorer accepts anything that is not empty, and the first of several numbers
    "game_of_life_halting": is_reference,
    "gsm_symbolic": lambda text, entry: number(text, entry["answer"]) == 1.0,
}


SCORERS: dict[str, Callable[..., Callable]] = {"math_verify": math_verify_scorer, "reasoning_gym": reasoning_gym_scorer}

if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(lambda: SCORERS[sys.argv[1]](*sys.argv[2:]))
