"""A function in a process of its own: what hangs is killed, what dies starts again, what is large may not grow.

Two sides in one file, a line of JSON each way. `Worker` and `Limited` ask; `python child.py MODULE FUNCTION ... PID`
answers with what FUNCTION(...) makes.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from functools import partial

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
if __name__ == "__main__":  # ours are found from the root, and no file of this folder stands for another module
    sys.path[:] = [ROOT, *(entry for entry in sys.path if entry != HERE)]

from verifiers import Failed  # noqa: E402

STARTING = 300.0  # seconds on the clock until a function is ready
MAX_SAID = 100_000  # characters of an error that are kept
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
UNREAD = 74  # the exit status of a process that could not answer: EX_IOERR
UNREADABLE = "its answer cannot be read: it wrote into the pipe of its answers, or closed it"
ANSWERING, PATIENCE = 3.0, 20  # seconds of processor time, whatever else the machine does; as many times on the clock
MEMORY = 4 << 30  # bytes of address space: what asks for more fails, and the machine goes on
FIXED = {"PYTHONHASHSEED": "0"}  # some generators draw from sets of strings
FIXED |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space


# ---- the side that asks ----------------------------------------------------------------------------------------------


class Worker:
    """A process that answers one request at a time; it ends with this object, and with this program however it ends."""

    def __init__(self, module: str, function: str, *arguments: str, **options):
        self.command, self.options = (module, function, *arguments), options
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
        command = [sys.executable, __file__, *self.command, str(os.getpid())]
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
    failed = Failed(value)
    failed.trace, failed.status = trace, None if status == "failed" else status
    raise failed


def _end(process: subprocess.Popen, pids: list[int], requests: queue.SimpleQueue) -> None:
    _kill(*(pids if process.poll() is None else pids[:1]))
    requests.put(None)
    process.wait()


def _kill(leader: int, *others: int) -> None:
    """A process with all of its group, and others that may have left that."""
    for kill, pid in [*((os.kill, pid) for pid in others), (getattr(os, "killpg", os.kill), leader)]:
        with contextlib.suppress(OSError):
            kill(pid, KILL)


class Limited(Worker):
    """A function of ours over a package, each request limited in processor time and memory; ValueError without it."""

    def __init__(self, package: str, module: str, function: str, *arguments: str):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install -r requirements/tasks.txt")
        self.package, options = package, {"stderr": subprocess.DEVNULL, "env": {**os.environ, **FIXED}}
        super().__init__("support.child", "limited", module, function, *arguments, **options)

    def ask(self, *request, seconds: float = ANSWERING):
        """The answer to a request; None if it takes too much time, or memory; False where the function raises."""
        super().ask()  # one that cannot be made says so
        try:
            return super().ask(seconds, *request, seconds=PATIENCE * seconds)
        except TimeoutError:
            return None
        except Failed as failed:
            if failed.status not in (None, -signal.SIGPROF):
                raise Failed(f"the worker of {self.package} has died on {str(request)[:80]}: {failed}") from None
            return None if failed.status else False


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
        except BaseException as error:  # a library's own, sys.exit
            cause = error.__cause__ if isinstance(error, Failed) else error
            text = str(error) if cause is not error else "".join(traceback.format_exception_only(error))
            trace = "".join(traceback.format_exception(cause, limit=-50)) if cause else ""
            return "failed", text[:MAX_SAID], trace[:MAX_SAID]
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


def limited(module: str, function: str, *arguments: str) -> Callable:
    """What FUNCTION(...) makes, held to its memory, and to its seconds of processor time at each request."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answer = getattr(importlib.import_module(module), function)(*arguments)
    if not hasattr(signal, "setitimer"):  # Windows
        return lambda seconds, *request: answer(*request)

    def timed(seconds: float, *request):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # ends this process, also where the other is gone by then
        try:
            return answer(*request)
        except MemoryError:  # what is left of memory after that is no judge of others
            signal.raise_signal(signal.SIGPROF)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return timed


def main(module: str, function: str, *arguments: str) -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, it is this process that ends, and not the run
    *made_of, parent = arguments
    serve(partial(getattr(importlib.import_module(module), function), *made_of), int(parent))


if __name__ == "__main__":
    main(*sys.argv[1:])
