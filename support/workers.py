"""Start a program in as many processes as pay on this machine: python -m support.workers 0 train.py ARGS (0: choose).

What torchrun does on one machine, told by the same variables; without its own process of 200 MB, and without its page
of text behind the one line of a user's mistake.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.errors import UserError
from support.program import program

MOST = 8
LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # a machine's other addresses may change while it works
PATIENCE = 120.0  # seconds from the failure of a process until those that still wait for it are killed


def cores() -> int:
    """Those that this program may use: fewer than the machine has where a container or a user's setting says so."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        count = min(count, max(1, quota // period))
    return count


def choose(argv: list[str], cores: int) -> int:
    """How many processes suit train.py's options: a core each, and a question an update each; for some one alone.

    One where a model of --init would be held as often, the GPU does the work, or --help and the like are asked for.
    """
    pairs = zip(argv, [*argv[1:], ""])
    words = dict(word.partition("=")[::2] if "=" in word else (word, after) for word, after in pairs)
    said: dict[str, str] = {word.removeprefix("--"): value for word, value in words.items() if word.startswith("-")}
    if "resume" in said:
        with contextlib.suppress(OSError, ValueError, TypeError):  # train.py says what is wrong with it
            said = json.loads(Path(said.get("out", ""), "config.json").read_text(encoding="utf-8")) | said
    alone = said.get("init") or said.get("device", "cpu") != "cpu" or said.get("halve_micro_batch", False) is not False
    if alone or os.name == "nt" or {"help", "-h"} & said.keys():
        return 1
    with contextlib.suppress(ValueError):
        return max(1, min(cores, MOST, int(said.get("prompts_per_step", 16))))
    return 1


def start(command: list[str], workers: int) -> int:
    """Run the command in so many processes that find each other -> the first one's exit code that is not 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    env = {**os.environ, **{name: str(value) for name, value in told.items()}}
    if sys.platform in LOOPBACK:
        env.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    running: list[subprocess.Popen] = []

    def end(number, frame) -> None:  # a terminal's Ctrl-C has reached them all; a signal to this process alone has not
        for worker in running:
            worker.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    for rank in range(workers):
        running.append(subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
    codes = wait(running)
    for rank, code in enumerate(codes):
        if code < 0:
            sys.stderr.write(f"{command[1]}: process {rank} was killed by signal {-code}\n")
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def wait(running: list[subprocess.Popen]) -> list[int]:
    """The exit codes of all: the failure of one is the end of the others, which they notice by themselves."""
    failed = 0.0
    while None in (codes := [worker.poll() for worker in running]):
        if any(codes):
            failed = failed or time.monotonic()
            if time.monotonic() - failed > PATIENCE:
                for worker in running:
                    worker.kill()
        time.sleep(0.05)
    return [worker.returncode for worker in running]


@program
def main(argv: list[str]) -> int:
    asked, *command = argv
    if not (asked.isdecimal() and len(asked) < 4):
        raise UserError(f"WORKERS={asked:.60}: the number of processes is needed, or 0 for as many as pay here")
    workers = int(asked) or choose(command[1:], cores())
    command = [sys.executable, *command]
    if workers == 1:
        os.execv(sys.executable, command)
    return start(command, workers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
