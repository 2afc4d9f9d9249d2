"""What a run does without: rewards, a verifier that can be satisfied, a picture, updates, an end of the warm start."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noted import noted
from small_runs import ROOT, SOME, TINY, again, figures, lines, load, options, refused, same

import tasks
import train
from harness import console, curves, evaluation, run, warm_start
from harness.checkpoint import State
from harness.models import build_model
from model import Samples
from support import files, judge

pytestmark = pytest.mark.usefixtures("own_signals", "no_picture")


# ---- rewards ---------------------------------------------------------------------------------------------------------

# Calls: 20 targets; 9 of the evaluation before RL; 8 an update, and 6 of the evaluation after every second one.
OUTAGES = {  # calls that fail; evaluations that have a reward all the same
    "everything": ("True", []),
    "all but the targets": ("n > 20", []),
    "every update": ("n > 29 and (n - 30) % 22 < 16", [0, 2, 4]),
    "one whole update": ("37 < n <= 45", [0, 2, 4]),
    "one group of an update": ("41 < n <= 45", [0, 2, 4]),
    "all but one of each group": ("n > 29 and (n - 30) % 22 < 16 and (n - 30) % 22 % 4", [0, 2, 4]),
    "one whole evaluation": ("45 < n <= 51", [0, 4]),
    "the first evaluation": ("20 < n <= 29", [2, 4]),
    "every evaluation": ("20 < n <= 29 or n > 29 and (n - 30) % 22 >= 16", []),
}
METHODS = ["--method grpo", "--method opsd", "--method sdpo --micro_batch 1", "--method grpo+opsd"]
METHODS += ["--evidence contrastive", "--rlsd_negative_only --micro_batch 3"]


@pytest.mark.parametrize(
    "outage, method",
    [(outage, "--method rlsd") for outage in OUTAGES]
    + [(outage, method) for outage in ("every update", "all but one of each group") for method in METHODS],
)
def test_a_run_outlives_rewards_that_are_missing(tmp_path, capsys, outage, method):
    """--on_verifier_error drop: samples at every shown step, no figure of nothing, no file named that is not there."""
    fails, with_reward = OUTAGES[outage]
    args = options(tmp_path, "run", "--on_verifier_error drop", method, rule=f"1 / 0 if {fails} else {SOME}")
    assert train.main(args) == 0
    said, out = capsys.readouterr().out, tmp_path / "run"
    rows, dropped = files.metrics_of(out), outage in ("everything", "all but the targets", "every update")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows[1:]:
        whole = dropped or (outage == "one whole update" and row["step"] == 2)
        assert ("reward" in row) == ("entropy" in row) == (not whole) and row.get("weight") != 0
        assert row["verifier errors"] == 8 or not whole
    assert [row["step"] for row in rows if "pass@1" in row] == with_reward
    shown = lines(out / "samples.jsonl")
    assert [row["step"] for row in shown] == [2, 2, 4, 4]
    assert all({"question", "completion", "reward"} <= row.keys() and row["question"] for row in shown)
    assert all((row["reward"] is None) == dropped for row in shown[2:])
    assert ("none has a reward" in said) == (4 not in with_reward != [])
    assert ("no evaluation has a reward" in said) == (not with_reward)
    assert all((out / name).exists() or name not in said for name in ("best.pt", "last.pt"))


def test_a_group_that_is_dropped_whole_is_shown_with_its_text():
    """Its mask is empty, so the tokens are read without it, to the end token."""
    config = train.parse_config([*TINY, "--on_verifier_error", "drop"])
    texts = [tasks.encode(text) + [tasks.END] for text in ("one", "three", "5", "")]
    rewards, samples, advantages = judge.without_failed(torch.full((4,), math.nan), Samples.of(texts), config)
    batch = train.Rollout([tasks.Problem("q", "a")] * 4, samples, rewards, advantages)
    state = State(config)
    rows = evaluation.credited_samples(state.policy, state.teacher, batch, config, 0.5)
    assert [row["completion"] for row in rows] == ["one", "three"] and all(math.isnan(row["reward"]) for row in rows)


@pytest.mark.parametrize(
    "rewards, zero, expected",
    [
        ([1.0, 0.5, 0.0, 0.25], False, {"pass@1": 0.25, "held-out reward": 0.4375}),
        ([1.0, 1.0, 0.0, 0.0], False, {"pass@1": 0.5}),
        ([math.nan, 0.5, 1.0, 1.0], False, {"pass@1": 2 / 3, "held-out reward": 2.5 / 3}),
        ([math.nan, 0.5, 1.0, 1.0], True, {"pass@1": 0.5, "held-out reward": 0.625}),
        ([math.nan] * 4, False, {"pass@1": math.nan}),
        ([math.nan] * 4, True, {"pass@1": 0.0}),
    ],
)
def test_pass_at_1_is_a_share_and_a_graded_verifier_has_a_mean(monkeypatch, rewards, zero, expected):
    config = train.parse_config([*TINY, "--on_verifier_error", "zero" if zero else "drop"])
    problems = [tasks.Problem(f"{i}+{i}", str(2 * i)) for i in range(4)]
    source = tasks.Source(None, problems, problems, "number", None)
    monkeypatch.setattr(evaluation, "verify", lambda *args: list(rewards))
    scores = evaluation.evaluate(build_model(config), source, None, config)
    assert scores.pop("greedy") == pytest.approx(expected["pass@1"], nan_ok=True)
    found = {name: scores[name] for name in ("pass@1", "held-out reward") if name in scores}
    assert found == pytest.approx(expected, nan_ok=True)


# ---- a verifier that cannot be satisfied -----------------------------------------------------------------------------


def own(folder, *more, rule):
    """A run on 30 problems of one's own, of which three are held out."""
    rows = ({"question": f"say {i}", "answer": str(i)} for i in range(30))
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = TINY.index("--chain")
    return options(folder, "run", "--data", folder / "d.jsonl", *more, rule=rule, tiny=TINY[:at] + TINY[at + 2 :])


@pytest.mark.parametrize(
    "rule, found",
    [
        ("float(completion == f'#### {answer}')", "20 of 20 targets of the warm start earn 1\n"),
        ("n % 2 or 0.3", "10 of 20 targets of the warm start earn 1, 0.65 in the mean\n"),
        ("0.5", "0 of 20 targets of the warm start earn 1, 0.5 in the mean\nwarm start"),
        ("float(completion == answer)", "0 of 20 targets of the warm start earn 1\nnote: the verifier gives 0"),
        ("1 / 0", "0 of 20 targets of the warm start earn 1\nwarm start"),
    ],
)
def test_what_the_verifier_gives_to_the_targets_is_said_before_anything_is_trained(tmp_path, capsys, rule, found):
    assert train.main(own(tmp_path, "--on_verifier_error drop --steps 0", rule=rule)) == 0
    out = capsys.readouterr().out
    assert f"verifier: {found}" in out and out.index(found) < out.index("warm start: step=")
    assert "problems: 27 to train on, 3 held out\n" in out


def test_a_verifier_that_fails_on_a_target_costs_no_warm_start(tmp_path, capsys):
    refused(capsys, own(tmp_path, rule="{}['x']"), "d.jsonl:1", "KeyError")
    assert not (tmp_path / "warm").exists()


def test_the_diagnosis_names_the_verifier(tmp_path, capsys):
    assert train.main(own(tmp_path, "--steps 10 --eval_every 10", rule="float(completion == '{}')")) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: nothing is learned")]
    assert "such as '#### 0'" in note and "--group_size" not in note
    assert [row["reward"] for row in lines(tmp_path / "run" / "samples.jsonl")] == [0, 0]


def test_a_verifier_that_grades_keeps_its_own_figure(tmp_path, capsys):
    """Also where no reward of an evaluation lies between 0 and 1: the fall to nothing is a figure too."""
    assert train.main(own(tmp_path, rule="0.5 if n <= 20 + 6 else 0.0")) == 0
    rows, said = figures(tmp_path / "run"), capsys.readouterr().out
    assert [row["held-out reward"] for row in rows if "pass@1" in row] == [0.5, 0, 0]
    assert "held-out reward 0.500 -> 0.000" in said
    assert "best.pt: the policy after update 0, held-out score 0.500" in said


# ---- after the last update -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["no package", "a row"])
def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch, fault):
    monkeypatch.undo()  # here it is drawn
    if fault == "no package":  # nor any other extra
        for name in ("matplotlib", "tqdm", "plot"):
            monkeypatch.setitem(sys.modules, name, None)
    else:
        monkeypatch.setattr(curves, "curves", lambda *args: {}["weight"])
    assert train.main(options(tmp_path, "run", "--steps 1")) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("curves.png left out: ") and not err
    assert not (tmp_path / "run" / "curves.png").exists()


def test_the_export_comes_before_the_picture(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(run, "export", lambda *args: order.append("export"))
    monkeypatch.setattr(console, "finish", lambda out: order.append("picture"))
    assert train.main(options(tmp_path, "run", "--steps 1")) == 0
    assert order == ["export", "picture"]


def test_no_updates_are_an_evaluation(tmp_path, capsys):
    """--steps 0: every file is there, and --resume goes on to the figures of a run that never stopped."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert train.main(options(tmp_path, "a", "--steps 0")) == 0
    out = capsys.readouterr().out
    assert "in 0 updates" in out and "no held-out problem" not in out
    assert {"config.json", "metrics.jsonl", "last.pt", "best.pt"} <= {path.name for path in a.iterdir()}
    assert train.main(again(a, "--steps 0")) == 0 == train.main(again(a, "--steps 2"))
    assert train.main(options(tmp_path, "b", "--steps 2")) == 0
    assert same(load(a / "last.pt")["model"], load(b / "last.pt")["model"])


# ---- a warm start that is cut short ----------------------------------------------------------------------------------


def warmed(folder, interrupt=None):
    """Model and checkpoint of a warm start of eight steps in this folder."""
    config = train.parse_config([*TINY, "--warm_steps", "8", "--warm_batch", "4", "--warm_dir", str(folder)])
    model = build_model(config)
    warm_start.warm_start(model, tasks.generated("addition", 3, 2), config, interrupt or SimpleNamespace(signal=0))
    (path,) = folder.glob("*.pt")
    return model.state_dict(), load(path)


def at_pace(monkeypatch, seconds, writing=0):
    """A clock on which a step and a checkpoint take so long, and nothing else any time -> the steps of checkpoints."""
    now = [0.0]
    wait = lambda seconds: now.append(now[-1] + seconds)
    monkeypatch.setattr(warm_start.time, "perf_counter", lambda: now[-1])
    noted(monkeypatch, warm_start, "imitation_loss", lambda *_: wait(seconds))
    return noted(monkeypatch, warm_start, "save", lambda kept, _: wait(writing) or kept["step"])


def cut_at(monkeypatch, step):
    """The `step`-th step from here raises StopIteration, as a kill ends it; what was made before it is kept."""
    at_pace(monkeypatch, 4)
    before = iter(range(1, step))
    return noted(monkeypatch, warm_start, "imitation_loss", lambda *_: next(before))


def cut_off(folder, step):
    with pytest.MonkeyPatch.context() as inner, pytest.raises(StopIteration):
        cut_at(inner, step)
        warmed(folder)


@pytest.mark.parametrize("cuts", [[1], [2], [8], [4, 3], [2, 2, 2, 2, 2, 2, 2]])
def test_a_warm_start_that_is_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys, cuts):
    """Also where the checkpoint of a slower run has taken the place of a finished one: it is the same file."""
    whole, kept = warmed(tmp_path / "a")
    for cut in cuts:
        cut_off(tmp_path / "b", cut)
    calls = cut_at(monkeypatch, 99)
    later, kept_later = warmed(tmp_path / "b")
    again, _ = warmed(tmp_path / "b")  # nothing is left to do
    assert f"found {next((tmp_path / 'b').iterdir())}, step=8/8\n" in capsys.readouterr().out
    assert len(calls) == 8 - sum(cut - 1 for cut in cuts)
    assert same(whole, later) and same(whole, again)
    assert same(kept["model"], kept_later["model"]) and kept_later["moments"] == []
    assert len(list((tmp_path / "b").iterdir())) == 1  # nothing is left beside it


def test_ctrl_c_in_the_warm_start_keeps_what_was_made(tmp_path, monkeypatch, capsys):
    whole, _ = warmed(tmp_path / "a")
    interrupt = SimpleNamespace(signal=0)
    with monkeypatch.context() as inner:
        calls = cut_at(inner, 99)
        counted = warm_start.imitation_loss
        pressed = lambda *args: (setattr(interrupt, "signal", 2 * (len(calls) == 4)), counted(*args))[1]
        inner.setattr(warm_start, "imitation_loss", pressed)
        with pytest.raises(console.Interrupted, match="after its step 5: the same command goes on"):
            warmed(tmp_path / "b", interrupt)
    later, _ = warmed(tmp_path / "b")
    assert same(whole, later) and "step=5/8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        *(lambda kept, step=step: kept.update(step=step) for step in (0, 9, -1, math.nan, [4])),
        lambda kept: kept.update(step=8, model={}),
        lambda kept: kept.pop("moments"),
        lambda kept: kept.update(moments=[]),
        lambda kept: kept["moments"].pop(),
        lambda kept: kept["moments"].reverse(),
        lambda kept: kept["moments"][1].pop("exp_avg"),
        lambda kept: kept["moments"][1].update(exp_avg_sq=torch.zeros(3)),
        lambda kept: kept["moments"][1].update(exp_avg=kept["moments"][1]["exp_avg"].double()),
        lambda kept: kept["moments"].__setitem__(0, "x"),
        lambda kept: kept["model"]["norm.weight"].fill_(math.nan),
        lambda kept: kept["model"].pop("norm.weight"),
    ],
)
def test_a_checkpoint_of_a_warm_start_that_does_not_fit_is_made_anew(tmp_path, capsys, change):
    whole, _ = warmed(tmp_path)
    (path,) = tmp_path.glob("*.pt")
    path.unlink()
    cut_off(tmp_path, 5)
    kept = load(path)
    assert kept["step"] == 4
    change(kept)
    torch.save(kept, path)
    capsys.readouterr()
    later, _ = warmed(tmp_path)
    assert same(whole, later) and capsys.readouterr().out.count("it is made anew") == 1


@pytest.mark.parametrize(
    "pace, writing, told, kept",
    [(0.5, 0, "78", "78"), (1, 0, "48", "48"), (4, 0, "12345678", "12345678"), (10, 1, "12345678", "1478")],
)
def test_a_slow_warm_start_says_so_every_few_seconds(tmp_path, monkeypatch, capsys, pace, writing, told, kept):
    """Of 8 steps: those where 3 seconds have gone by, and the last; kept as often, unless writing takes its time."""
    saved = at_pace(monkeypatch, pace, writing)
    warmed(tmp_path)
    first, *more = capsys.readouterr().out.splitlines()
    assert first == "warm start: step=0/8" and saved == [*map(int, kept)]
    assert [line.split(" loss=")[0] for line in more] == [f"warm start: step={step}/8" for step in told]


@given(st.integers(-1, 10**9), st.integers(0, 10**7), st.integers(1, 2**20))
def test_warm_steps_are_those_asked_for_or_fit_the_data(asked, train_problems, batch):
    config = train.Config(warm_steps=asked, warm_batch=batch)
    steps = lambda n: warm_start.steps_for(config, SimpleNamespace(train=n))
    if asked >= 0:
        assert steps(train_problems) == asked
        return
    assert steps(0) == 700 and warm_start.FEWEST <= steps(max(1, train_problems)) <= steps(10**9) == 700
    assert steps(train_problems + 1) <= steps(train_problems + 100)
    shown = steps(max(1, train_problems)) * batch / max(1, train_problems)
    assert shown <= warm_start.PASSES or steps(max(1, train_problems)) == warm_start.FEWEST


def test_the_steps_of_a_run_are_written_down(tmp_path, capsys):
    """-1 is resolved before config.json and the key of the warm start are written, so that a resumed run agrees."""
    given = own(tmp_path, "--steps 1 --warm_batch 20 --warm_steps=-1", rule="float(len(completion) % 2)")
    assert train.main(given) == 0
    steps = warm_start.steps_for(train.parse_config(given), SimpleNamespace(train=27))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["warm_steps"] == steps < 700
    assert f"warm start: step={steps}/{steps} " in capsys.readouterr().out
    assert train.main(again(tmp_path / "run", "--steps 2")) == 0


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_whose_samples_are_all_dropped_holds_up_nobody(tmp_path):
    """--fsdp runs every block together: process 1 has no reward at all, process 0 none from its second update on."""
    rule = "float(len(completion) % 2) if n < 11 and __import__('os').environ['RANK'] == '0' else None"
    given = options(tmp_path, "run", "--fsdp --on_verifier_error drop --steps 2 --warm_steps 0", rule=rule)
    args = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    done = subprocess.run([*args, *given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = files.metrics_of(tmp_path / "run")
    assert [row.get("verifier errors") for row in rows] == [None, 4, 8] and "reward" in rows[1]
    assert "reward" not in rows[2] and "pass@1" not in rows[2] and (tmp_path / "run" / "best.pt").exists()
