"""support/workers.py: as many processes as pay, and one end for all of them; the threads of each."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import ROOT, load, until
from test_determinism import left_behind

import config
from harness import threads
from support import workers

TINY = (
    "--hidden_size 32 --num_layers 1 --warm_batch 9 --steps 2 --prompts_per_step 4 --group_size 4 --max_new_tokens 24 "
    "--chain 1 --eval_every 2 --eval_problems 5 --verifier rule.py:check --out run --warm_dir warm"
).split()
RULE = "def check(completion, answer):\n    return sum(map(ord, completion)) % 3 / 2\n"


# ---- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, of_two, of_many",
    [
        ("", 2, 8),
        ("--steps 3 --seed=4", 2, 8),
        ("--prompts_per_step 4", 2, 4),
        ("--prompts_per_step=1", 1, 1),
        ("--prompts_per_step x", 1, 1),  # train.py says what is wrong
        ("--halve_micro_batch", 1, 1),
        ("--device cuda", 1, 1),
        ("--device=cpu", 2, 8),
        ("--init folder", 1, 1),
        ("--help", 1, 1),
        ("-h", 1, 1),
        ("--resume --out run", 2, 3),
        ("--out run", 2, 8),  # of another run
        ("--resume --out nowhere", 2, 8),
        ("--resume", 2, 8),
        ("--resume --out gpu", 1, 1),
    ],
)
def test_a_core_each_and_a_question_each(tmp_path, monkeypatch, line, of_two, of_many):
    monkeypatch.chdir(tmp_path)
    for name, options in {"run": {"prompts_per_step": 3}, "gpu": {"device": "cuda"}}.items():
        (tmp_path / name).mkdir()
        saved = {**vars(config.Config()), "fingerprint": "", **options}
        (tmp_path / name / "config.json").write_text(json.dumps(saved))
    ran, command = [], ["train.py", *line.split()]
    monkeypatch.setattr(workers, "start", lambda *told: ran.append(told) or 0)
    monkeypatch.setattr(workers.os, "execv", lambda *told: ran.append((told[1], told.index(sys.executable) + 1)))
    for told, cores, of in (("0", 1, 1), ("0", 2, of_two), ("0", 64, of_many), ("3", 64, 3), ("1", 64, 1)):
        monkeypatch.setattr(workers, "cores", lambda: cores)
        ran.clear()
        workers.main([told, *command])
        assert ran[0] == ([sys.executable, *command], of)


@pytest.mark.parametrize("limit, expected", [("max 100000", 6), ("250000 100000", 2), ("5000 100000", 1), ("", 6)])
def test_a_containers_share_of_the_cores_counts(monkeypatch, limit, expected):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(1 if pid else 6)), raising=False)
    monkeypatch.setattr(workers.Path, "read_text", lambda _: limit)
    assert workers.cores() == expected


@pytest.mark.parametrize("told", ["x", "-1", "2.0", "", "1000"])
def test_what_is_no_number_of_processes_is_one_line(capsys, told):
    assert workers.main([told, "train.py"]) == 2
    error = capsys.readouterr().err
    assert f"WORKERS={told}" in error and error.count("\n") == 1


# ---- one end for all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, code",
    [
        ("pass", 0),
        ("sys.exit(2)", 2),
        ("sys.exit(3 if rank == 1 else 0)", 3),
        ("sys.exit(4 - rank)", 4),
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(99)", 128 + 9),
        ("rank == 2 and sys.exit(5); time.sleep(99)", 128 + 9),
    ],
)
def test_the_first_failure_is_the_exit_code_and_none_is_left(tmp_path, monkeypatch, capfd, own_signals, body, code):
    """Also of processes that would wait for ever for one that has ended."""
    head = "import os, sys, time\nrank = int(os.environ['RANK'])\n"
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_PORT GLOO_SOCKET_IFNAME"
    told = f"print(*(os.environ.get(k) for k in '{names}'.split()), flush=1)"
    (tmp_path / "program.py").write_text(f"{head}{told}\n{body}\n")
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    began, program = time.monotonic(), str(tmp_path / "program.py")
    assert workers.start([sys.executable, program], 3) == code
    assert time.monotonic() - began < 60
    printed = capfd.readouterr()
    places = sorted(line.split() for line in printed.out.splitlines())
    assert [place[:4] for place in places] == [[str(k), str(k), "3", "3"] for k in range(3)]
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "None")
    assert len({place[4] for place in places}) == 1 and {place[5] for place in places} == {loopback}
    killed = {k for k in range(3) if f"{program}: process {k} was killed by signal 9\n" in printed.err}
    assert killed == ({0, 1, 2} - ({2} if "== 2" in body else set()) if code > 128 else set())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_this_process_alone_ends_all(monkeypatch, own_signals, number):
    wait = workers.wait
    signal.signal(number, lambda *_: None)  # where none is installed, this test fails, and no other ends
    monkeypatch.setattr(workers, "wait", lambda running: (os.kill(os.getpid(), number), wait(running))[1])
    assert workers.start([sys.executable, "-c", "import time; time.sleep(20)"], 2) == 128 + signal.SIGTERM


def launched(folder: Path, options: str) -> subprocess.Popen:
    """What `make train` starts, in a process group of its own, as in a terminal."""
    (folder / "rule.py").write_text(RULE)
    command = [sys.executable, "-m", "support.workers", "2", str(ROOT / "train.py"), *TINY, *options.split()]
    env = {**{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)


def ended(run: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, the rest of what it says, and its errors."""
    out, err = run.communicate()
    return run.returncode, out, err


@pytest.mark.slow
def test_ctrl_c_in_the_shared_warm_start_then_the_same_command_makes_the_same_bits(tmp_path):
    """Nobody has typed torchrun: one line says how many work, one where it ended, and nothing is left running."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    code, out, err = ended(launched(tmp_path / "whole", "--warm_steps 300"))
    assert (code, err) == (0, "") and out.splitlines()[0] == "processes: 2, threads in each: 1"
    parts = launched(tmp_path / "parts", "--warm_steps 300")
    until(parts, "warm start: step=0/300")
    time.sleep(0.3)
    os.killpg(parts.pid, signal.SIGINT)  # as a terminal does: make's program, and each process
    code, out, err = ended(parts)
    assert (code, err) == (130, "")
    (step,) = re.findall(r"^interrupted in the warm start after its step (\d+): the same command goes on$", out, re.M)
    with pytest.raises(ProcessLookupError):
        os.killpg(parts.pid, 0)
    code, out, err = ended(launched(tmp_path / "parts", "--warm_steps 300"))
    assert (code, err) == (0, "") and f"step={step}/300" in out and 0 < int(step) < 300
    assert left_behind(tmp_path / "whole") == left_behind(tmp_path / "parts")


@pytest.mark.slow
def test_a_signal_to_the_parent_alone_ends_all_with_a_checkpoint(tmp_path):
    run = launched(tmp_path, "--warm_steps 0 --steps 100000")
    until(run, "step=3 ")
    run.send_signal(signal.SIGTERM)
    code, out, err = ended(run)
    assert (code, err) == (143, "")
    assert out.splitlines()[-1].startswith(f"interrupted after step {load(tmp_path / 'run/last.pt')['step']}; ")


def test_a_users_mistake_is_one_line(tmp_path):
    code, out, err = ended(launched(tmp_path, "--group_size 1"))
    assert (code, out) == (2, "") and err.startswith("train.py: --group_size 1") and err.count("\n") == 1


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, environment, expected",
    [
        ({}, {}, 1),
        ({"hidden_size": 224}, {}, 1),
        ({"hidden_size": 256}, {}, 6),
        ({"hidden_size": 256}, {"LOCAL_WORLD_SIZE": "1"}, 6),
        ({"hidden_size": 256}, {"LOCAL_WORLD_SIZE": "2"}, 1),
        ({"init": "folder"}, {}, 6),
        ({"device": "cuda"}, {}, 6),
        ({}, {"OMP_NUM_THREADS": "6"}, 6),  # as torch has taken it
        ({"threads": 3}, {"OMP_NUM_THREADS": "6"}, 3),
        ({"threads": 3, "hidden_size": 256}, {"LOCAL_WORLD_SIZE": "2"}, 3),
    ],
)
def test_threads_of_a_process(monkeypatch, options, environment, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        assert threads.settle(config.Config(**options)) == torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
