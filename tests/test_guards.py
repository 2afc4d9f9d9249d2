"""Numbers that are not finite, policies that collapsed, memory that is too small: said in plain words, and survived."""

import contextlib
import copy
import math
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from noted import noted
from small_runs import ROOT, TINY, again, figures, lines, load, options, refused, same, sharp_state

import rollout
import train
from harness import evaluation, memory, run, warm_start
from harness.checkpoint import State
from harness.watch import Watch, is_finite, keep_skipped
from support.errors import UserError

pytestmark = pytest.mark.usefixtures("own_signals", "no_picture")


def spoil(monkeypatch, steps):
    """The loss of these calls of loss_of is nan."""
    calls, loss_of = [], train.loss_of

    def spoiled(*args):
        calls.append(args)
        loss, means = loss_of(*args)
        return (loss * math.nan if len(calls) in steps else loss), means

    monkeypatch.setattr(train, "loss_of", spoiled)


# ---- not finite ------------------------------------------------------------------------------------------------------


def test_a_policy_whose_logits_overflow_ends_in_one_line(tmp_path, monkeypatch, capsys):
    """Its weights are finite, and what it computes is not: no sample has a log-probability."""
    monkeypatch.setattr(run, "warm_start", lambda model, *rest: model.norm.weight.data.fill_(3e38))
    refused(capsys, options(tmp_path, "a", "--steps 12"), "10 updates in a row were skipped")
    rows = figures(tmp_path / "a")
    assert [row.get("skipped", 0) for row in rows] == [0] + 10 * [1]
    assert all(row["entropy"] is None for row in rows[1:])
    shown = lines(tmp_path / "a" / "samples.jsonl")
    assert len(shown) == 10 and all(row.keys() == {"step", "question", "completion", "reward"} for row in shown)


def test_an_update_that_is_not_finite_is_skipped_counted_and_kept(tmp_path, monkeypatch):
    spoil(monkeypatch, [2])
    state = lambda model, teacher, optimizer, *_: copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    before = noted(monkeypatch, train, "update", state)  # the weights and moments before each update
    assert train.main(options(tmp_path, "run")) == 0
    assert [row.get("skipped", 0) for row in figures(tmp_path / "run")] == [0, 0, 1, 0, 0]
    one, two, three, four = before
    assert same(two, three) and not same(one[0], two[0]) and not same(three[0], four[0])
    (path,) = (tmp_path / "run").glob("skipped-*")
    kept = load(path)
    assert path.name == "skipped-2-0.pt" and kept["step"] == 2 and math.isnan(kept["metrics"]["loss"])
    assert kept["tokens"].shape == kept["mask"].shape == kept["logps"].shape and len(kept["completions"]) == 8
    assert kept["rewards"].tolist() == [float(sum(map(ord, text)) % 2) for text in kept["completions"]]


def test_a_gradient_alone_that_is_not_finite_is_skipped_too(tmp_path):
    config, state, batch = prepared(tmp_path)
    state.policy.embed.weight.register_hook(lambda gradient: gradient * math.inf)
    before = copy.deepcopy(state.policy.state_dict())
    metrics = train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)
    assert math.isfinite(metrics["loss"]) and not math.isfinite(metrics["grad_norm"])
    assert same(before, state.policy.state_dict()) and not is_finite(metrics)


@pytest.mark.parametrize("who", ["policy", "teacher", "sampler"])
@pytest.mark.parametrize("micro_batch", ["0", "1"])
def test_log_probabilities_that_are_not_finite_are_no_crash(tmp_path, who, micro_batch):
    config, state, batch = prepared(tmp_path, "--micro_batch", micro_batch)
    with torch.no_grad():
        if who == "sampler":
            batch.samples.logps[batch.advantages.nonzero()[0], 0] = math.nan
        else:
            (state.policy if who == "policy" else state.teacher).embed.weight.fill_(math.nan)
    before = copy.deepcopy(state.policy.state_dict())
    assert math.isnan(train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)["loss"])
    assert same(before, state.policy.state_dict()) or who == "policy"
    batch.advantages.zero_()  # nothing to score: the sampler's own figures tell
    loss = train.update(state.policy, state.teacher, state.optimizer, batch, config, 0.5)["loss"]
    assert math.isnan(loss) == (who == "sampler") or loss == 0


def test_other_mistakes_are_not_taken_for_numbers(tmp_path):
    config, state, batch = prepared(tmp_path)
    batch.advantages = batch.advantages[:-1]
    with pytest.raises(ValueError, match="does not fit a mask"):
        train.loss_of(state.policy, state.teacher, batch, config, 0.0, torch.tensor(1))


def test_ten_in_a_row_stop_the_run_over_a_resume_too(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, range(1, 99))
    assert train.main(options(tmp_path, "run", "--steps 6")) == 0
    refused(capsys, again(tmp_path / "run", "--steps 40"), "10 updates in a row were skipped", "lower --lr")
    assert figures(tmp_path / "run")[-1]["step"] == 10


def test_nine_skipped_one_good_and_nine_more_are_no_ten_in_a_row(tmp_path):
    watch = watch_of(tmp_path)
    for skipped in [1] * 9 + [0] + [1] * 9:
        watch.look(FINE | ({"skipped": 1} if skipped else {}))
        watch.stop_if_hopeless()
    watch.look(FINE | {"skipped": 1})
    with pytest.raises(UserError, match="10 updates in a row"):
        watch.stop_if_hopeless()


def test_the_first_ten_skipped_batches_are_kept(tmp_path):
    config, _, batch = prepared(tmp_path)
    for step in range(1, 13):
        keep_skipped(batch, {"loss": math.nan, "grad_norm": 1.0}, step, config)
    assert {path.name for path in tmp_path.glob("skipped-*")} == {f"skipped-{step}-0.pt" for step in range(1, 11)}


def test_weights_that_are_not_finite_are_refused_before_rl(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "warm_start", lambda model, *rest: model.embed.weight.data.fill_(math.nan))
    refused(capsys, options(tmp_path, "run"), "weights are not all finite", "--warm_lr")


# ---- collapse --------------------------------------------------------------------------------------------------------


def watch_of(tmp_path, *more, problems=0, target=""):
    return Watch(train.parse_config([*TINY, "--out", str(tmp_path), *more]), 0, problems, target)


FINE = {"entropy": 0.5, "no_spread": 0.5, "length": 20.0, "reward": 0.5}


@pytest.mark.parametrize(
    "row, words",
    [
        ({"entropy": 0.0004}, "collapsed"),
        ({"no_spread": 1.0, "reward": 1.0}, "take harder problems"),
        ({"no_spread": 1.0, "reward": 0.0}, "take easier problems"),
        ({"length": 31.7}, "run to --max_new_tokens 32"),
        ({"verifier errors": 8, "length": math.nan, "reward": math.nan}, "failed on every sample"),
    ],
)
def test_a_collapse_is_named_once_a_spell(tmp_path, row, words):
    watch = watch_of(tmp_path)
    said = [watch.look(FINE | new) for new in [{}] * 3 + [row] * 30 + [{}] + [row] * 9 + [{}] + [row] * 15]
    at = [i for i, notes in enumerate(said) if notes]
    assert at == [12, 53] and all(len(said[i]["notes"]) == 1 and words in said[i]["notes"][0] for i in at)


def test_figures_that_do_not_exist_or_lie_just_inside_the_bounds_are_no_sign(tmp_path):
    """Left out, null in the file, or nan: of an update or an evaluation whose samples were all dropped."""
    inside = FINE | {"entropy": 0.0006, "no_spread": 0.99, "length": 31.0, "verifier errors": 7}
    missing = {}, {"pass@1": math.nan, "greedy": math.nan}, {name: math.nan for name in [*FINE, "loss", "weight"]}
    for row in (*missing, inside, inside | {"no_spread": 1.0}):
        watch = watch_of(tmp_path, "--method", "opsd" if row.get("no_spread") == 1 else "rlsd")  # one needs no spread
        assert not any(watch.look(row | {"step": 1, "lambda": 0.5}) for _ in range(50))


def test_a_gap_between_training_and_held_out_problems_is_noted_once(tmp_path):
    """By the figure that the run is judged by, the last one known; nowhere where problems do not end."""
    for held_out, reward, gap in (
        ({"pass@1": 0.0}, 0.996, True),
        ({"pass@1": 0.45}, 0.996, True),
        ({"pass@1": 0.45}, 0.94, False),
        ({"pass@1": 0.0, "held-out reward": 0.6}, 0.996, False),
        ({"pass@1": math.nan}, 0.996, False),
        ({}, 0.996, False),
    ):
        rows = [{"step": 0} | held_out, {"reward": 0.4}, *[{"reward": reward}] * 30]
        said = [watch_of(tmp_path, problems=problems).look for problems in (54, 0)]
        said = [[look(row).get("notes", []) for row in rows] for look in said]
        assert [i for i, notes in enumerate(said[0]) if notes] == ([11] if gap else []) and not any(said[1])
        assert not gap or ("54 training problems" in said[0][11][0] and "(0.996)" in said[0][11][0])


def test_a_verifier_that_nobody_satisfies_is_named_in_place_of_other_cures(tmp_path):
    watch = watch_of(tmp_path, problems=9, target="'#### 17'")
    cures = {0.0: "the verifier gives 0 to what the warm start teaches, such as '#### 17'", 0.5: "raise --group_size"}
    for reward, cure in cures.items():
        watch.look(FINE)
        (note,) = [watch.look(FINE | {"no_spread": 1.0, "reward": reward}) for _ in range(10)][-1]["notes"]
        assert f"(mean reward {reward:g}); {cure}" in note


def test_a_note_stands_once_in_the_log_over_a_resume_too(tmp_path, capsys):
    assert train.main(options(tmp_path, "run", "--steps 8 --eval_every 9 --save_every 9", rule="1.0")) == 0
    assert train.main(again(tmp_path / "run", "--steps 20")) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: nothing is learned")]
    assert len(notes) == 1 and "mean reward 1" in notes[0]
    rows = figures(tmp_path / "run")
    assert [row["step"] for row in rows if "nothing is learned" in str(row.get("notes"))] == [10]


# ---- memory ----------------------------------------------------------------------------------------------------------


def prepared(tmp_path, *more):
    config, state = sharp_state("--out", str(tmp_path), *more)
    source = train.tasks.generated("addition", 3, 2)
    batch = train.rollout(state.policy, source, lambda c, a: float(sum(map(ord, c)) % 2), config, 1)
    assert len(set(batch.rewards.tolist())) == 2
    return config, state, batch


def limit(monkeypatch, samples):
    """A device that cannot hold more than so many samples of a pass, backward included."""
    loss_of = train.loss_of

    def limited(model, teacher, part, *rest):
        loss, means = loss_of(model, teacher, part, *rest)
        if len(part.problems) > samples:
            loss.backward()  # gradients of a failed pass must not count
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss, means

    monkeypatch.setattr(train, "loss_of", limited)


def test_halved_micro_batches_make_the_run_of_small_ones_and_travel(tmp_path, monkeypatch, capsys):
    assert train.main(options(tmp_path, "small", "--micro_batch 2")) == 0
    limit(monkeypatch, 2)
    calls = noted(monkeypatch, train, "loss_of", lambda model, teacher, part, *_: len(part.problems))
    capsys.readouterr()
    assert train.main(options(tmp_path, "halved", "--halve_micro_batch --steps 2")) == 0
    out = capsys.readouterr().out
    assert "--micro_batch 4 from here on\n" in out and "--micro_batch 2 from here on\n" in out
    failed = sum(size > 2 for size in calls)
    assert train.main(again(tmp_path / "halved", "--steps 4")) == 0
    assert sum(size > 2 for size in calls) == failed == 2 and "from here on" not in capsys.readouterr().out
    a, b = (load(tmp_path / name / "last.pt") for name in ("small", "halved"))
    assert b["micro_batch"] == 2 and same(a["model"], b["model"])


@pytest.mark.parametrize("more, words", [("", "add --halve_micro_batch"), ("--halve_micro_batch", "--max_new_tokens")])
def test_memory_that_never_suffices_names_what_to_lower(tmp_path, monkeypatch, capsys, more, words):
    limit(monkeypatch, 0)
    refused(capsys, options(tmp_path, "run", more), words, "in the update")


NO_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "linux": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "windows": RuntimeError("alloc_cpu.cpp:83] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    "python": MemoryError(),
    "size": RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807, 2]"),
}


@pytest.mark.parametrize(
    "module, name, words",
    [
        (rollout, "sample", "in the rollout: lower --prompts_per_step"),
        (evaluation, "sample", "in the evaluation: lower --eval_problems"),
        (warm_start, "token_logps", "in the warm start: lower --warm_batch"),
        (train, "loss_of", "in the update with 8 samples a pass: lower --micro_batch"),
        (run, "State", "in the run: lower --hidden_size"),
        (State, "save", "in the run: lower --hidden_size"),
    ],
)
@pytest.mark.parametrize("kind", NO_MEMORY)
def test_every_phase_names_its_own_option(tmp_path, monkeypatch, capsys, module, name, words, kind):
    full = NO_MEMORY[kind].with_traceback(None)  # one object for all cases
    monkeypatch.setattr(module, name, Mock(side_effect=full))
    whose = "GPU's" if kind == "cuda" else "machine's"
    refused(capsys, options(tmp_path, "run"), f"the {whose} memory is too small {words}")


def test_other_errors_are_not_taken_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "sample", lambda *args, **kwargs: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        train.main(options(tmp_path, "run"))


@pytest.mark.parametrize(
    "more, words",
    [
        ("--hidden_size 32768", "lower --hidden_size, --num_layers"),
        ("--hidden_size 1024 --num_layers 9", "lower --hidden_size, --num_layers"),
        ("--group_size 1048576", "lower --prompts_per_step or --group_size"),
        ("--prompts_per_step 1048576", "lower --prompts_per_step or --group_size"),
    ],
)
def test_what_the_machine_can_never_hold_is_refused_before_it_is_made(tmp_path, monkeypatch, capsys, more, words):
    """A machine of 1 GiB, whatever this one has; nothing is drawn, and no folder is begun."""
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 2**15)
    monkeypatch.setattr(run, "State", None)
    refused(capsys, options(tmp_path, "run", more), "machine's memory of 1.0 GiB is too small", words)
    assert not (tmp_path / "run").exists()


def test_what_fits_is_not_refused(tmp_path, monkeypatch):
    """20 bytes a parameter, 16 without a teacher: a byte less is refused."""
    config = train.parse_config([*TINY, "--hidden_size", "1024"])
    source = train.tasks.generated("addition", 3, 2)
    parameters = sum(p.numel() for p in State(config).policy.parameters())
    for method, each in (("rlsd", 20), ("grpo", 16)):
        config.method = method
        for needed, fits in ((each * parameters, True), (each * parameters - 1, False)):
            monkeypatch.setattr(memory.os, "sysconf", lambda name: needed if name == "SC_PAGE_SIZE" else 1)
            with contextlib.nullcontext() if fits else pytest.raises(UserError, match="lower --hidden_size"):
                memory.check_memory(config, source)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not enforced everywhere")
def test_an_allocation_that_fails_is_one_line(tmp_path):
    """torch's own words for it, of a machine that gives this process 6 GB of addresses."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9,) * 2); import train; "
        "from harness import memory; memory.check_memory = lambda *args: None; sys.exit(train.main(sys.argv[1:]))"
    )
    args = [sys.executable, "-c", limited, *options(tmp_path, "run", "--hidden_size 32768")]
    done = subprocess.run(args, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "the machine's memory is too small in the run" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_an_optimizer_that_is_out_of_memory_is_not_asked_twice(tmp_path, monkeypatch):
    """Its step may be half done: the same gradient must not move the weights again."""
    config, state, batch = prepared(tmp_path, "--halve_micro_batch")
    asked = []

    def step():
        asked.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(state.optimizer, "step", step)
    with pytest.raises(UserError, match="the optimizer's step"), memory.explained():
        memory.halving(train.update, config)(state.policy, state.teacher, state.optimizer, batch, config, 0.5)
    assert asked == [1]
