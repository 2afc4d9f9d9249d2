"""Several processes do what one does: run by torchrun, compared figure by figure."""

import dataclasses
import importlib.util
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import recorded
import torch
from noted import noted
from small_runs import ROOT, again, figures, load, options, refused, rule_of

import tasks
import train
from harness import evaluation, warm_start
from harness.checkpoint import State
from model import Samples
from published import weights
from rlsd import group_advantages
from support import processes
from support.micro_batches import parts_of

pytestmark = pytest.mark.usefixtures("own_signals", "no_picture")
TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 3 --warm_batch 4 --steps 3 --prompts_per_step 4 --group_size 4 "
    "--max_new_tokens 48 --eval_every 3 --eval_problems 5 --save_every 2"
).split()
RULE = "float(sum(map(ord, completion)) % 3 == 0)"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
tiny = lambda folder, name, *more: options(folder, name, *more, tiny=TINY, rule=RULE)


def run(args, processes=2, program=(ROOT / "train.py",), torchrun=TORCHRUN, **how):
    command = [*torchrun, f"--nproc_per_node={processes}", *program, *args]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, **how)


def alike(one, two, last):
    """The figures of two runs, to rounding; not one of them gradients of nothing alone."""
    one, two = figures(one), figures(two)
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(last + 1))
    assert any(row.get("grad_norm", 0) > 0 for row in one)
    for a, b in zip(one, two):
        assert {**b, "peak GiB": 0} == pytest.approx({**a, "peak GiB": 0}, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--rlsd_teacher_sync_interval 2", "--method opsd --micro_batch 3"])
def test_two_processes_make_the_run_of_one(tmp_path, more):
    one, two = tmp_path / "one", tmp_path / "two"
    for make in (lambda out: tiny(tmp_path, out.name, more), lambda out: again(out, "--steps 5")):
        assert train.main(make(one)) == 0
        done = run(make(two))
        assert done.returncode == 0, done.stderr
    alike(one, two, 5)  # to an end without an evaluation
    first, second = (load(out / "last.pt")["model"] for out in (one, two))
    assert all(torch.allclose(first[k], second[k], atol=1e-5) for k in first)


@pytest.mark.slow
def test_two_machines_make_the_run_of_one_process(tmp_path):
    """Two of torchrun's agents, each in a folder of its own that holds the verifier and nothing else of the other's."""
    args = tiny(tmp_path, "one")
    assert train.main(args) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for rank in range(2):
        (tmp_path / f"machine_{rank}").mkdir()
        command = [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
        command += [f"--node_rank={rank}", str(ROOT / "train.py"), *args, "--out", "run", "--warm_dir", "warm"]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        agents.append(subprocess.Popen(command, cwd=tmp_path / f"machine_{rank}", **how))
    said = [agent.communicate() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "processes: 2, threads in each: 1\n" in said[0][0] and said[1][0] == ""
    alike(tmp_path / "one", tmp_path / "machine_0" / "run", 3)
    assert list((tmp_path / "machine_1").iterdir()) == []  # process 0 writes


@pytest.mark.slow
def test_gradients_and_samples_are_those_of_one_process(tmp_path, monkeypatch):
    """Of a whole update in 1, 2 and 3 processes: gradients to 1e-6 of their norm, samples token for token."""
    monkeypatch.setattr(train, "update", train.update)  # taken back at the end
    more = "--chain 1 --prompts_per_step 16 --micro_batch 5 --max_grad_norm 1e6 --steps 1 --eval_every 9"
    more += " --seed 4"  # draws questions twice, in neighbouring places, and each time has noise of its own
    found = {}
    for k in (1, 2, 3):
        folder = tmp_path / f"of_{k}"
        folder.mkdir()
        args = tiny(folder, "run", more)
        if k == 1:
            assert recorded.main([str(folder), *args]) == 0
        else:
            done = run(args, k, (recorded.__file__, folder))
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
from support import errors, processes

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
    done = run([], 3, (tmp_path / "exchanges.py", ROOT))
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
    done = run(tiny(tmp_path, "x", "--verifier", tmp_path / "bad.py:check"), 3)
    failed = (tmp_path / "bad.py.failed").stat().st_mtime
    assert time.time() - failed < 20 + 5 * (failed - began)  # what came before tells how slow the machine is
    assert done.returncode != 0
    assert not re.search(rf'File "{re.escape(str(ROOT))}/\w+\.py', done.stderr)  # torchrun's own traceback comes last
    said = sorted(line for line in done.stderr.splitlines() if line.startswith("train.py: "))
    assert said[:2] == [f"train.py: process {k} ends, as another one has ended" for k in (0, 2)]
    assert len(said) == 2 + ("raise" in how) and all("no such rule" in line for line in said[2:])


MISPLACED = ["RANK=abc", "RANK=5 WORLD_SIZE=2", "WORLD_SIZE=0", "RANK= WORLD_SIZE=", "RANK=-1", "WORLD_SIZE=1e3"]
LOST = ["WORLD_SIZE=2 RANK=0", "WORLD_SIZE=2 RANK=1 MASTER_ADDR=localhost MASTER_PORT=x"]  # nobody has said where


@pytest.mark.parametrize("more", ["", "--fsdp --warm_steps 0"])
@pytest.mark.parametrize("told", MISPLACED + LOST)
def test_a_place_that_torchrun_never_gives_is_refused(tmp_path, monkeypatch, capsys, told, more):
    monkeypatch.setattr(processes, "apart", False)
    for name, value in (pair.split("=") for pair in told.split()):
        monkeypatch.setenv(name, value)
    refused(capsys, tiny(tmp_path, "x", more), *(["RANK=", "WORLD_SIZE="] if told in MISPLACED else ["by torchrun"]))
    assert not (tmp_path / "x").exists()


def test_a_users_mistake_is_told_once(tmp_path):
    done = run(tiny(tmp_path, "x", "--group_size 1"))
    assert sum(line.startswith("train.py: --group_size 1") for line in done.stderr.splitlines()) == 1


def test_another_machine_that_nobody_knows_is_named_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processes, "apart", False)
    for pair in ("WORLD_SIZE=2", "RANK=0", "MASTER_ADDR=nobody.invalid", "MASTER_PORT=29511"):
        monkeypatch.setenv(*pair.split("="))
    asked = []
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *a: asked.append(a))
    refused(capfd, tiny(tmp_path, "x"), "do not find each other")
    assert not asked


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
    named = tiny(tmp_path, "", "--warm_steps 0 --steps 2")
    at = named.index("--out")
    args = [*named[:at], *named[at + 2 :]]
    how = {"program": (tmp_path / "ends.py", ROOT), "torchrun": [*TORCHRUN, "--standalone"], "cwd": tmp_path}
    with ThreadPoolExecutor() as pool:
        said = [done.stdout for done in pool.map(lambda _: run(args, **how), range(2))]
    folders = ["runs/addition-rlsd-0", "runs/addition-rlsd-0.2"]
    lines = [line for text in said for line in text.splitlines() if line.startswith("interrupted ")]
    goes_on = f"{shlex.join(rule_of(tmp_path))} goes on"
    assert sorted(lines) == [
        f"interrupted after step 1; python train.py --resume --out {folder} {goes_on}" for folder in folders
    ]
    assert sorted(map(str, tmp_path.glob("runs/addition*"))) == [str(tmp_path / folder) for folder in folders]
    (tmp_path / folders[0] / "metrics.jsonl").write_text("hello\n")
    before = sorted(path.read_bytes() for path in (tmp_path / folders[0]).iterdir())
    for more, words in ((["--resume", *rule_of(tmp_path)], "metrics.jsonl:1"), (args, "already holds a run")):
        done = run([*more, "--out", folders[0]], **how)
        own = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
        assert done.returncode != 0 and len(own) == 1 and words in own[0]
    assert before == sorted(path.read_bytes() for path in (tmp_path / folders[0]).iterdir())


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_an_evaluation_in_parts_draws_the_same_tokens(monkeypatch, world):
    """Some problems are asked twice, with other answers: the second has noise of its own in any number of parts."""
    config = train.parse_config(["--max_new_tokens", "6"])
    policy, questions = State(config).policy, "1+2 3+4 1+2 5+6 7+8".split()
    held_out = [tasks.Problem(question, str(i), solution=f"{i} #### {i}") for i, question in enumerate(questions)]
    source = tasks.Source(lambda *_: [], held_out, held_out, "number")
    monkeypatch.setattr(processes, "together", lambda work: [work() or [(0.0, 0.0, False)]])

    for evaluate in (evaluation.evaluate, evaluation.evaluate_teacher):

        def tried():
            drawn = []
            judged = lambda completion, answer: float(drawn.append((answer, completion)) is not None)
            evaluate(policy, source, judged, config)
            return drawn

        (whole,) = ranks(monkeypatch, 1, tried)
        assert len(set(whole)) > 4
        assert sorted(sum(ranks(monkeypatch, world, tried), [])) == sorted(whole)


def ranks(monkeypatch, world, of):
    """What each of so many processes finds."""
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        yield of()


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
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])

    whole, parts = scored(), list(ranks(monkeypatch, world, scored))
    assert sum(bool(part.any()) for part in parts) == min(7, world)
    assert torch.allclose(sum(parts), whole, atol=1e-6) and whole[1:].norm() > 0.1


def test_equal_questions_stay_in_one_process(monkeypatch):
    questions = [tasks.Problem(q, "1") for q in ("a", "b", "a", "c", "b", "a")]
    shares = ranks(monkeypatch, 2, lambda: [p.question for p in processes.share(questions)])
    assert list(shares) == [["a", "a", "c", "a"], ["b", "b"]]


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
    """Every process holds half, and either way goes on from either's files; to and from a published one if it can."""
    start = ["--hidden_size 32 --num_layers 2 --warm_steps 0"]
    if PUBLISHED:
        from test_pretrained import bpe, published

        published(tmp_path / "tiny", "qwen3 tied", shape={"vocab_size": 950, "max_position_embeddings": 512})
        bpe("qwen", tmp_path / "tiny/tokenizer.json")
        start = ["--init", tmp_path / "tiny"]
    (tmp_path / "shares.py").write_text(SHARES)
    monkeypatch.setattr(tasks, "FORMAT", tasks.FORMAT)
    # two questions for one process and one for the other, in parts of some 300 tokens: passes differ in number
    new = "--max_seq_len 400 --max_new_tokens 40 --prompts_per_step 3 --group_size 4 --eval_problems 4 --eval_every 2 "
    new += "--micro_tokens 300 --steps 2 --lr 2e-4 --rlsd_teacher_sync_interval 2 --gradient_checkpointing"
    one, two = tmp_path / "one", tmp_path / "two"
    begin = lambda out: options(tmp_path, out.name, *start, new, tiny=[], rule=RULE)
    for make, whole, shared, last in ((begin, one, two, 2), (lambda out: again(out, "--steps 4"), two, one, 4)):
        assert train.main(make(whole)) == 0
        done = run([*make(shared), "--fsdp"], program=(tmp_path / "shares.py", ROOT))
        assert done.returncode == 0, done.stderr
        alike(one, two, last)
        a, b = (flat(load(out / "last.pt")) for out in (one, two))
        assert list(a) == list(b) and len(a) > 40
        assert all(type(x) is torch.Tensor and torch.allclose(x, b[k], atol=1e-5) for k, x in a.items())
        if PUBLISHED:
            a, b = (weights.read_weights(out / "model") for out in (one, two))
            assert all(torch.allclose(x, b[k], atol=1e-5) for k, x in a.items())


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
    runs = noted(monkeypatch, state.policy, "hidden", lambda *_, **how: 1)
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
