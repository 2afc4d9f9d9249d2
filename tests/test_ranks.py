"""Several processes do what one does: run by torchrun, compared figure by figure."""

import dataclasses
import importlib.util
import json
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recorded
import torch

import tasks
import train
from harness import evaluation, warm_start
from harness.checkpoint import State
from model import Samples
from published import weights
from rlsd import group_advantages
from support import processes
from support.micro_batches import parts_of

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--hidden_size",
    "32",
    "--num_layers",
    "1",
    "--warm_steps",
    "3",
    "--warm_batch",
    "4",
    "--steps",
    "3",
    "--prompts_per_step",
    "4",
    "--group_size",
    "4",
    "--max_new_tokens",
    "48",
    "--eval_every",
    "3",
    "--eval_problems",
    "5",
    "--save_every",
    "2",
]
RULE = "def check(completion, answer):\n    return float(sum(map(ord, completion)) % 3 == 0)\n"


def run(folder, name, *options, processes=2, program=(ROOT / "train.py",)):
    """train.py under torchrun, or in this process where one is enough."""
    options = [*map(str, options), "--out", str(folder / name)]
    if processes == 1:
        assert train.main(options) == 0
        return None
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", *map(str, program)]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def tiny(folder, *options):
    (folder / "rules.py").write_text(RULE)
    return [*TINY, "--verifier", f"{folder}/rules.py:check", "--warm_dir", folder / "warm", *options]


def curve(folder, name):
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens/s")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--rlsd_teacher_sync_interval", "2"], ["--method", "opsd", "--micro_batch", "3"]])
def test_two_processes_make_the_run_of_one(tmp_path, options):
    for more in (
        tiny(tmp_path, *options),
        ["--resume", "--steps", "5", "--verifier", f"{tmp_path}/rules.py:check"],
    ):  # to an end without an evaluation
        run(tmp_path, "one", *more, processes=1)
        done = run(tmp_path, "two", *more)
        assert done.returncode == 0, done.stderr
    one, two = curve(tmp_path, "one"), curve(tmp_path, "two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1, 2, 3, 4, 5]
    assert any(row.get("grad_norm", 0) > 0 for row in one)
    for a, b in zip(one, two):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    first, second = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("one", "two"))
    assert all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)


@pytest.mark.slow
def test_two_machines_make_the_run_of_one_process(tmp_path):
    """Two of torchrun's agents, each in a folder of its own that holds the verifier and nothing else of the other's."""
    options = [*map(str, tiny(tmp_path))]
    run(tmp_path, "one", *options, processes=1)
    options += ["--out", "run", "--warm_dir", "warm"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    torchrun += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = []
    for machine in range(2):
        (tmp_path / f"machine_{machine}").mkdir()
        command = [*torchrun, f"--node_rank={machine}", str(ROOT / "train.py"), *options]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
        agents.append(subprocess.Popen(command, cwd=tmp_path / f"machine_{machine}", **how))
    said = [agent.communicate() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "processes: 2, threads in each: 1\n" in said[0][0] and said[1][0] == ""
    one, two = curve(tmp_path, "one"), curve(tmp_path / "machine_0", "run")
    assert [row["step"] for row in two] == [0, 1, 2, 3] and any(row.get("grad_norm", 0) > 0 for row in two)
    for a, b in zip(one, two):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    assert list((tmp_path / "machine_1").iterdir()) == []  # process 0 writes


@pytest.mark.slow
def test_gradients_and_samples_are_those_of_one_process(tmp_path, monkeypatch):
    """Of a whole update in 1, 2 and 3 processes: gradients to 1e-6 of their norm, samples token for token."""
    monkeypatch.setattr(train, "update", train.update)  # taken back at the end
    options = tiny(tmp_path, "--chain", 1, "--prompts_per_step", 16, "--micro_batch", 5, "--max_grad_norm", 1e6)
    options += ["--seed", 4]  # draws questions twice, in neighbouring places, and each time has noise of its own
    found = {}
    for k in (1, 2, 3):
        folder = tmp_path / f"of_{k}"
        folder.mkdir()
        more = ["--steps", 1, "--eval_every", 9]
        if k == 1:
            assert recorded.main([*map(str, (folder, *options, *more, "--out", folder / "run"))]) == 0
        else:
            done = run(folder, "run", *options, *more, processes=k, program=(recorded.__file__, folder))
            assert done.returncode == 0, done.stderr
        found[k] = [torch.load(folder / f"{rank}.pt") for rank in range(k)]
    (one,) = found.pop(1)
    groups = [question for question, _ in one["samples"][::4]]
    assert any(a == b for a, b in zip(groups, groups[1:]))
    assert one["gradient"].norm() > 0.01
    for several in found.values():
        assert sorted(s for process in several for s in process["samples"]) == sorted(one["samples"])
        for process in several:
            assert (process["gradient"] - one["gradient"]).norm() < 1e-6 * one["gradient"].norm()


EXCHANGES = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
from support import errors
from support import processes

processes.join("cpu")
r, p, q = processes.rank(), *(torch.nn.Parameter(torch.zeros(2)) for _ in "pq")
model = torch.nn.Linear(2, 1)
torch.nn.init.constant_(model.weight, r)
processes.same_weights(None, model)
assert (model.weight == 0).all()
assert processes.together(lambda: {"a": r}) == [{"a": 0}, {"a": 1}, {"a": 2}]
for failing in (0, 1, 2):  # all learn of it, and process 0 alone is to say so
    processes.apart = True
    try:
        processes.together(lambda: open("/nowhere/at/all") if r == failing else None)
        raise AssertionError
    except errors.UserError as error:
        assert str(error) == "/nowhere/at/all: No such file or directory" and processes.speaks() == (r == 0)
assert processes.most(15 if r == 1 else 0) == 15
assert processes.most(2 - r) == 2
assert processes.gather(torch.full((r, 4), r)).tolist() == [[1] * 4, [2] * 4, [2] * 4]  # all fell
assert processes.gather(torch.zeros(0, 4)).shape == (0, 4) and processes.total(torch.zeros(0).sum()) == 0
own = torch.tensor(r)
assert processes.total(own) == 3 and own == r
assert processes.gather(torch.full((2 - r, 1), r)).tolist() == [[0], [0], [1]]
p.grad, q.grad = None if r == 1 else torch.tensor([1.0, r]), torch.tensor([10.0, 0.0])
figures = {"a": 1.0, "b": 2.0} if r == 1 else {"a": 1.0}
assert processes.add_up(torch.nn.ParameterList([p, q]), None, figures) == {"a": 3.0, "b": 2.0}
assert p.grad.tolist() == [2.0, 2.0] and q.grad.tolist() == [30.0, 0.0]
processes.stop()
"""


def test_every_exchange_leaves_all_processes_with_what_it_says(tmp_path):
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    done = run(tmp_path, "x", processes=3, program=(tmp_path / "exchanges.py", ROOT))
    assert done.returncode == 0, done.stderr


FAILS = """
import os, signal, time
judged = 0

def check(completion, answer):
    global judged
    judged += 1
    if os.environ["RANK"] == "1" and judged > 26:  # 20 of the warm start, some 6 in the first evaluation
        open(__file__ + ".failed", "w").close()
        HOW
    return float(sum(map(ord, completion)) % 3 == 0)
"""


# the parent of this process' parent, which is the run: a verifier's own process watches over it
KILL = "os.kill(int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1]), signal.SIGKILL)"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise KeyError('no such rule')", KILL])
def test_where_one_process_fails_each_other_one_ends_with_a_line(tmp_path, how):
    (tmp_path / "bad.py").write_text(FAILS.replace("HOW", how))
    began = time.time()
    done = run(tmp_path, "x", *tiny(tmp_path, "--verifier", f"{tmp_path}/bad.py:check"), processes=3)
    failed = (tmp_path / "bad.py.failed").stat().st_mtime
    assert time.time() - failed < 20 + 5 * (failed - began)  # what came before tells how slow the machine is
    assert done.returncode != 0
    assert not re.search(rf'File "{re.escape(str(ROOT))}/\w+\.py', done.stderr)  # torchrun's own traceback comes last
    said = sorted(line for line in done.stderr.splitlines() if line.startswith("train.py: "))
    assert said[:2] == [f"train.py: process {k} ends, as another one has ended" for k in (0, 2)]
    assert len(said) == 2 + ("raise" in how) and all("no such rule" in line for line in said[2:])


MISPLACED = ["RANK=abc", "RANK=5 WORLD_SIZE=2", "WORLD_SIZE=0", "RANK= WORLD_SIZE=", "RANK=-1", "WORLD_SIZE=1e3"]
LOST = ["WORLD_SIZE=2 RANK=0", "WORLD_SIZE=2 RANK=1 MASTER_ADDR=localhost MASTER_PORT=x"]  # nobody has said where


@pytest.mark.parametrize("more", [[], ["--fsdp", "--warm_steps", "0"]])
@pytest.mark.parametrize("told", MISPLACED + LOST)
def test_a_place_that_torchrun_never_gives_is_refused(tmp_path, monkeypatch, capsys, told, more):
    monkeypatch.setattr(processes, "apart", False)
    for name, value in (pair.split("=") for pair in told.split()):
        monkeypatch.setenv(name, value)
    assert train.main([*map(str, tiny(tmp_path, "--out", tmp_path / "x", *more))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and error.count("\n") == 1
    assert ("RANK=" in error and "WORLD_SIZE=" in error) if told in MISPLACED else "by torchrun" in error
    assert not (tmp_path / "x").exists()


def test_a_users_mistake_is_told_once(tmp_path):
    done = run(tmp_path, "x", *tiny(tmp_path, "--group_size", "1"))
    assert sum(line.startswith("train.py: --group_size 1") for line in done.stderr.splitlines()) == 1


def test_another_machine_that_nobody_knows_is_named_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processes, "apart", False)
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "nobody.invalid",
        "MASTER_PORT": "29511",
    }.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *a: asked.append(a))
    assert train.main([*map(str, tiny(tmp_path, "--out", tmp_path / "x"))]) == 2
    error = capfd.readouterr().err
    assert "do not find each other" in error and error.count("\n") == 1 and not asked


ENDS = """
import os, signal, sys

sys.path.insert(0, sys.argv.pop(1))
import train
from support import processes

update = train.update


def interrupted(*args):
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(*args)


train.update = interrupted
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_process_0_alone_chooses_the_folder_and_speaks(tmp_path):
    """Of two that start at once without --out, either in two processes; and of one whose folder is another's."""
    (tmp_path / "ends.py").write_text(ENDS)
    options = [*map(str, tiny(tmp_path, "--warm_steps", 0)), "--steps", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [str(tmp_path / "ends.py"), str(ROOT)]
    runs = [subprocess.Popen([*torchrun, *program, *options], env=env, **how) for _ in range(2)]
    said = [run.communicate()[0] for run in runs]
    folders = ["runs/addition-rlsd-0", "runs/addition-rlsd-0.2"]
    rule = f"--verifier {shlex.quote(f'{tmp_path}/rules.py:check')}"
    lines = [line for text in said for line in text.splitlines() if line.startswith("interrupted ")]
    assert sorted(lines) == [
        f"interrupted after step 1; python train.py --resume --out {folder} {rule} goes on" for folder in folders
    ]
    assert sorted(map(str, tmp_path.glob("runs/addition*"))) == [str(tmp_path / folder) for folder in folders]
    (tmp_path / folders[0] / "metrics.jsonl").write_text("hello\n")
    before = sorted(path.read_bytes() for path in (tmp_path / folders[0]).iterdir())
    for more, words in (
        (["--resume", "--out", folders[0], "--verifier", options[options.index("--verifier") + 1]], "metrics.jsonl:1"),
        ([*options, "--out", folders[0]], "already holds a run"),
    ):
        done = subprocess.run([*torchrun, *program, *more], env=env, cwd=tmp_path, capture_output=True, text=True)
        own = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
        assert done.returncode != 0 and len(own) == 1 and words in own[0]
    assert before == sorted(path.read_bytes() for path in (tmp_path / folders[0]).iterdir())


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_an_evaluation_in_parts_draws_the_same_tokens(monkeypatch, world):
    """Some problems are asked twice, with other answers: the second has noise of its own in any number of parts."""
    config = train.parse_config(["--max_new_tokens", "6"])
    policy, questions = State(config).policy, "1+2 3+4 1+2 5+6 7+8".split()
    held_out = [tasks.Problem(question, str(i), solution=f"{i} #### {i}") for i, question in enumerate(questions)]
    drawn, judged = [], lambda completion, answer: float(drawn.append((answer, completion)) is not None)
    monkeypatch.setattr(processes, "together", lambda work: [work() or [(0.0, 0.0, False)]])

    def tried(evaluate):
        drawn.clear()
        source = tasks.Source(lambda *_: [], held_out, held_out, "number")
        evaluate(policy, source, judged, config)
        return list(drawn)

    for evaluate in (evaluation.evaluate, evaluation.evaluate_teacher):
        monkeypatch.setenv("WORLD_SIZE", "1")
        whole = tried(evaluate)
        assert len(set(whole)) > 4
        monkeypatch.setenv("WORLD_SIZE", str(world))
        parts = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            parts += tried(evaluate)
        monkeypatch.setenv("RANK", "0")
        assert sorted(parts) == sorted(whole)


@pytest.mark.parametrize("world", [2, 3, 9])
def test_a_warm_start_in_parts_has_the_loss_and_the_gradient_of_the_whole(monkeypatch, world):
    """Of 7 examples: nine processes leave two without any."""
    config = train.parse_config(["--warm_batch", "7"])
    model, source = State(config).policy, tasks.generated("addition", 2)

    def scored():
        model.zero_grad()
        loss = warm_start.imitation_loss(model, source, config, random.Random(3))
        if loss.requires_grad:
            loss.backward()
        return torch.cat(
            [
                loss.detach()[None],
                *(torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()),
            ]
        )

    whole = scored()
    monkeypatch.setenv("WORLD_SIZE", str(world))
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(scored())
    assert sum(bool(part.any()) for part in parts) == min(7, world)
    assert torch.allclose(sum(parts), whole, atol=1e-6) and whole[1:].norm() > 0.1


def test_equal_questions_stay_in_one_process(monkeypatch):
    questions = [tasks.Problem(q, "1") for q in ("a", "b", "a", "c", "b", "a")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        shares.append([p.question for p in processes.share(questions)])
    assert shares == [["a", "a", "c", "a"], ["b", "b"]]


# ---- --fsdp ----------------------------------------------------------------------------------------------------------

PUBLISHED = all(map(importlib.util.find_spec, ("transformers", "tokenizers", "safetensors")))
SHARES = """
import sys

sys.path.insert(0, sys.argv.pop(1))
import rollout
import train

update, sample = train.update, rollout.sample


def checked(model, teacher, optimizer, *rest):
    metrics = update(model, teacher, optimizer, *rest)
    own = list(model.parameters())
    for held in (own, list(teacher.parameters()), [p.grad for p in own], [optimizer.state[p]["exp_avg"] for p in own]):
        share = sum(x.to_local().numel() for x in held) / sum(x.numel() for x in held)
        assert 0.45 < share < 0.55, share
    return metrics


def unhindered(model, *rest, **options):
    samples = sample(model, *rest, **options)
    assert not any(hasattr(p, "full_tensor") for p in model.parameters())  # no process waited for another at a token
    return samples


train.update, rollout.sample = checked, unhindered
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_sharded_weights_make_the_run_of_one_process(tmp_path, monkeypatch):
    """Every process holds half, and either way goes on from either's files; from and to a published folder, if it can.

    Two questions for one process and one for the other, in parts of some 300 tokens: passes differ in number.
    """
    start = "--hidden_size 32 --num_layers 2 --warm_steps 0"
    if PUBLISHED:
        from test_pretrained import bpe, published

        published(tmp_path / "tiny", "qwen3 tied", shape={"vocab_size": 950, "max_position_embeddings": 512})
        bpe("qwen", tmp_path / "tiny/tokenizer.json")
        start = f"--init {shlex.quote(str(tmp_path))}/tiny"
    (tmp_path / "shares.py").write_text(SHARES)
    (tmp_path / "rules.py").write_text(RULE)
    monkeypatch.setattr(tasks, "FORMAT", tasks.FORMAT)
    new = f"{start} --verifier {shlex.quote(str(tmp_path))}/rules.py:check --max_seq_len 400 --max_new_tokens 40"
    new += " --prompts_per_step 3 --group_size 4 --eval_problems 4 --eval_every 2 --micro_tokens 300 --steps 2"
    new += " --lr 2e-4 --rlsd_teacher_sync_interval 2 --gradient_checkpointing"
    again = f"--resume --steps 4 --verifier {shlex.quote(str(tmp_path))}/rules.py:check"
    for options, whole, shared in ((new, "one", "two"), (again, "two", "one")):
        run(tmp_path, whole, *shlex.split(options), processes=1)
        done = run(tmp_path, shared, *shlex.split(options), "--fsdp", program=(tmp_path / "shares.py", ROOT))
        assert done.returncode == 0, done.stderr
        one, two = curve(tmp_path, "one"), curve(tmp_path, "two")
        assert [row["step"] for row in one] == [row["step"] for row in two] and one[-1]["grad_norm"] > 0
        for a, b in zip(one, two):
            assert {**b, "peak GiB": 0} == pytest.approx({**a, "peak GiB": 0}, rel=1e-4, abs=1e-6)
        states = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("one", "two")]
        a, b = (flat(state) for state in states)
        assert list(a) == list(b) and len(a) > 40
        assert all(type(x) is torch.Tensor and torch.allclose(x, b[k], atol=1e-5) for k, x in a.items())
        if not PUBLISHED:
            continue
        exported = [weights.read_weights(tmp_path / name / "model") for name in ("one", "two")]
        assert all(torch.allclose(x, exported[1][k], atol=1e-5) for k, x in exported[0].items())


@pytest.mark.parametrize("length", [1, 5])
def test_processes_with_fewer_parts_keep_step_with_passes_on_nothing(monkeypatch, length):
    """Every pass, whatever the completions' length, runs the blocks as often; those on nothing leave no gradient."""
    config = train.parse_config([])
    state = State(config)
    rewards = torch.tensor([0.0, 1.0])
    samples = Samples.of([[5] * length, [6] * length])
    batch = train.Rollout([tasks.Problem("1+1", "2")] * 2, samples, rewards, group_advantages(rewards, 2))
    monkeypatch.setattr(processes, "most", lambda n: 3)
    parts = parts_of(batch, torch.tensor([1]), dataclasses.replace(config, fsdp=True))
    assert [int(part.samples.mask.sum()) for part in parts] == [length, 0, 0]
    runs, hidden = [], state.policy.hidden
    monkeypatch.setattr(state.policy, "hidden", lambda *a, **k: runs.append(1) or hidden(*a, **k))
    for part in parts:
        loss, metrics = train.loss_of(state.policy, state.teacher, part, config, 0.5, torch.tensor(2.0 * length))
        gradients = torch.autograd.grad(loss, list(state.policy.parameters()))
        assert any((g != 0).any() for g in gradients) == bool(part.samples.mask.any())
        assert all(torch.isfinite(g).all() for g in gradients)
    assert len(runs) == 6


def flat(state, path=""):
    """Every tensor of a checkpoint by its path."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    children = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: x for key, child in children for name, x in flat(child, f"{path}/{key}").items()}
