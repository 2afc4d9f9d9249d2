"""What a run does without: rewards, a verifier that can be satisfied, a picture, updates, an end of the warm start."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tasks
import train
from harness import console, curves, evaluation, run, warm_start
from harness.checkpoint import State
from harness.models import build_model
from model import Samples
from support import files, judge

pytestmark = pytest.mark.usefixtures("own_signals")
ROOT = Path(train.__file__).parent
TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 8 --warm_batch 4 --steps 4 --prompts_per_step 2 --group_size 4 "
    "--chain 2 --max_new_tokens 32 --eval_every 2 --eval_problems 3 --save_every 2 --lr 0.01"
).split()


def options(folder, name, *more, rule="float(sum(map(ord, completion)) % 2)"):
    (folder / "rules.py").write_text(
        f"n = 0\ndef check(completion, answer):\n    global n\n    n += 1\n    return {rule}\n"
    )
    paths = ["--out", str(folder / name), "--warm_dir", str(folder / "warm"), "--verifier", f"{folder}/rules.py:check"]
    return [*TINY, *paths, *more]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- rewards ---------------------------------------------------------------------------------------------------------

# Calls: 20 targets; 9 of the evaluation before RL; 8 an update, and 6 of the evaluation after every second one.
OUTAGES = {
    "everything": "True",
    "all but the targets": "n > 20",
    "every update": "n > 29 and (n - 30) % 22 < 16",
    "one whole update": "37 < n <= 45",
    "one group of an update": "41 < n <= 45",
    "all but one of each group": "n > 29 and (n - 30) % 22 < 16 and (n - 30) % 22 % 4",
    "one whole evaluation": "45 < n <= 51",
    "the first evaluation": "20 < n <= 29",
    "every evaluation": "20 < n <= 29 or n > 29 and (n - 30) % 22 >= 16",
}
METHODS = [
    "--method rlsd",
    "--method grpo",
    "--method opsd",
    "--method sdpo --micro_batch 1",
    "--method grpo+opsd",
    "--evidence contrastive",
    "--rlsd_negative_only --micro_batch 3",
]


@pytest.mark.parametrize(
    "outage, method",
    [(outage, METHODS[0]) for outage in OUTAGES]
    + [(outage, method) for outage in ("every update", "all but one of each group") for method in METHODS[1:]],
)
def test_a_run_outlives_rewards_that_are_missing(tmp_path, capsys, monkeypatch, outage, method):
    """--on_verifier_error drop: samples at every shown step, no figure of nothing, no file named that is not there."""
    monkeypatch.setattr(curves, "curves", None)  # they have tests of their own
    rule = f"1 / 0 if {OUTAGES[outage]} else float(sum(map(ord, completion)) % 2)"
    more = ["--on_verifier_error", "drop", *method.split()]
    assert train.main(options(tmp_path, "run", *more, rule=rule)) == 0
    said, out = capsys.readouterr().out, tmp_path / "run"
    rows, dropped = files.metrics_of(out), outage in ("everything", "all but the targets", "every update")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows[1:]:
        whole = dropped or (outage == "one whole update" and row["step"] == 2)
        assert ("reward" in row, "entropy" in row, "weight" in row and row["weight"] == 0) == (
            not whole,
            not whole,
            False,
        )
        assert row["verifier errors"] == 8 or not whole
    judged = [row["step"] for row in rows if "pass@1" in row]
    none = {"one whole evaluation": [0, 4], "the first evaluation": [2, 4], "every update": [0, 2, 4]}
    assert judged == (
        none[outage] if outage in none else [] if "eve" in outage or "all but the t" in outage else [0, 2, 4]
    )
    shown = lines(out / "samples.jsonl")
    assert [row["step"] for row in shown] == [2, 2, 4, 4]
    assert all({"question", "completion", "reward"} <= row.keys() and row["question"] for row in shown)
    assert all((row["reward"] is None) == dropped for row in shown if row["step"] == 4)
    assert ("none has a reward" in said) == (4 not in judged and judged != [])
    assert ("no evaluation has a reward" in said) == (not judged)
    for name in ("best.pt", "last.pt", "curves.png"):
        assert (out / name).exists() or f"{name} left out" in said or name not in said


def test_a_group_that_is_dropped_whole_is_shown_with_its_text():
    """Its mask is empty, so the tokens are read without it, to the end token."""
    config = train.parse_config([*TINY, "--on_verifier_error", "drop"])
    texts = [tasks.encode(text) + [tasks.END] for text in ("one", "three", "5", "")]
    problem = tasks.Problem("q", "a")
    config.group_size = 4
    rewards, samples, advantages = judge.without_failed(torch.full((4,), math.nan), Samples.of(texts), config)
    batch = train.Rollout([problem] * 4, samples, rewards, advantages)
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


def data(folder, n=30, answer="{i}"):
    rows = [json.dumps({"question": f"say {i}", "answer": answer.format(i=i)}) for i in range(n)]
    (folder / "d.jsonl").write_text("\n".join(rows) + "\n")
    return ["--data", str(folder / "d.jsonl")]


def own(folder, *more, rule):
    given = options(folder, "run", *data(folder), *more, rule=rule)
    chain = given.index("--chain")
    return given[:chain] + given[chain + 2 :]


@pytest.mark.parametrize(
    "rule, words",
    [
        ("float(completion == f'#### {answer}')", "verifier: 20 of 20 targets of the warm start earn 1\n"),
        (
            "float(completion == f'#### {answer}') if n % 2 else 0.3",
            "verifier: 10 of 20 targets of the warm start earn 1, 0.65 in the mean\n",
        ),
        ("0.5", "verifier: 0 of 20 targets of the warm start earn 1, 0.5 in the mean\nwarm start"),
        ("float(completion == answer)", "0 of 20 targets of the warm start earn 1\nnote: the verifier gives 0"),
        ("1 / 0", "verifier: 0 of 20 targets of the warm start earn 1\nwarm start"),
    ],
)
def test_what_the_verifier_gives_to_the_targets_is_said_before_anything_is_trained(tmp_path, capsys, rule, words):
    assert train.main(own(tmp_path, "--on_verifier_error", "drop", "--steps", "0", rule=rule)) == 0
    out = capsys.readouterr().out
    assert words in out and out.index(words) < out.index("warm start: step=")
    assert "problems: 27 to train on, 3 held out\n" in out


def test_a_verifier_that_fails_on_a_target_costs_no_warm_start(tmp_path, capsys):
    assert train.main(own(tmp_path, rule="{}['x']")) == 2
    err = capsys.readouterr().err
    assert "d.jsonl:1" in err and "KeyError" in err and err.count("\n") == 1 and not (tmp_path / "warm").exists()


def test_the_diagnosis_names_the_verifier(tmp_path, capsys):
    made = own(tmp_path, "--steps", "10", "--eval_every", "10", rule="float(completion == '{}')")
    assert train.main(made) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: nothing is learned")]
    assert "such as '#### 0'" in note and "--group_size" not in note
    assert [row["reward"] for row in lines(tmp_path / "run" / "samples.jsonl")] == [0, 0]


def test_a_verifier_that_grades_keeps_its_own_figure(tmp_path, capsys):
    """Also where no reward of an evaluation lies between 0 and 1: the fall to nothing is a figure too."""
    rule = "0.5 if n <= 20 + 6 else 0.0"
    assert train.main(own(tmp_path, rule=rule)) == 0
    rows, said = lines(tmp_path / "run" / "metrics.jsonl"), capsys.readouterr().out
    assert [row["held-out reward"] for row in rows if "pass@1" in row] == [0.5, 0, 0]
    assert (
        "held-out reward 0.500 -> 0.000" in said and "best.pt: the policy after update 0, held-out score 0.500" in said
    )


# ---- after the last update -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["import", "draw", "a row"])
def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch, fault):
    if fault == "import":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        broken = lambda *args: {}["weight"] if fault == "a row" else 1 / 0
        monkeypatch.setattr(curves, "curves", broken)
    assert train.main(options(tmp_path, "run")) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("curves.png left out: ") and not err
    assert not (tmp_path / "run" / "curves.png").exists()


def test_the_export_comes_before_the_picture(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(run, "export", lambda *args: order.append("export"))
    monkeypatch.setattr(console, "finish", lambda out: order.append("picture"))
    assert train.main(options(tmp_path, "run", "--steps", "1")) == 0
    assert order == ["export", "picture"]


def test_no_updates_are_an_evaluation(tmp_path, capsys):
    """--steps 0: every file is there, and --resume goes on to the figures of a run that never stopped."""
    assert train.main(options(tmp_path, "a", "--steps", "0")) == 0
    out = capsys.readouterr().out
    assert "in 0 updates" in out and "no held-out problem" not in out
    assert {"config.json", "metrics.jsonl", "last.pt", "best.pt"} <= {path.name for path in (tmp_path / "a").iterdir()}
    assert train.main(["--resume", "--out", str(tmp_path / "a"), "--steps", "0", "--verifier", rule_of(tmp_path)]) == 0
    assert train.main(["--resume", "--out", str(tmp_path / "a"), "--steps", "2", "--verifier", rule_of(tmp_path)]) == 0
    assert train.main(options(tmp_path, "b", "--steps", "2")) == 0
    kept = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in "ab"]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def rule_of(folder):
    return f"{folder}/rules.py:check"


# ---- a warm start that is cut short ----------------------------------------------------------------------------------


class Cut(Exception):
    pass


def warmed(folder, config, interrupt=None):
    model = build_model(config)
    warm_start.warm_start(model, tasks.generated("addition", 3, 2), config, interrupt or SimpleNamespace(signal=0))
    (path,) = folder.glob("*.pt")
    return model.state_dict(), torch.load(path, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at_pace(monkeypatch, seconds):
    """A clock on which a step takes so long, and nothing else any time."""
    now, loss = [0.0], warm_start.imitation_loss
    monkeypatch.setattr(warm_start.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(
        warm_start, "imitation_loss", lambda *args: (now.__setitem__(0, now[0] + seconds), loss(*args))[1]
    )


def cut_at(monkeypatch, step):
    """The `step`-th step from here raises in its middle, as a kill ends it; what was made before it is kept."""
    at_pace(monkeypatch, 4)
    loss, calls = warm_start.imitation_loss, []

    def counted(*args):
        calls.append(args)
        if len(calls) == step:
            raise Cut
        return loss(*args)

    monkeypatch.setattr(warm_start, "imitation_loss", counted)
    return calls


@pytest.mark.parametrize("cuts", [[1], [2], [8], [4, 3], [2, 2, 2, 2, 2, 2, 2]])
def test_a_warm_start_that_is_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, cuts):
    config = train.parse_config([*TINY, "--warm_dir", str(tmp_path / "a")])
    whole, kept = warmed(tmp_path / "a", config)
    config.warm_dir = str(tmp_path / "b")
    for cut in cuts:
        with monkeypatch.context() as inner:
            cut_at(inner, cut)
            with pytest.raises(Cut):
                warmed(tmp_path / "b", config)
    with monkeypatch.context() as inner:
        calls = cut_at(inner, 99)
        again, kept_again = warmed(tmp_path / "b", config)
        assert len(calls) == 8 - sum(cut - 1 for cut in cuts)
    assert same(whole, again) and same(kept["model"], kept_again["model"]) and kept_again["moments"] == []
    assert len(list((tmp_path / "b").iterdir())) == 1  # nothing is left beside it


def test_ctrl_c_in_the_warm_start_keeps_what_was_made(tmp_path, monkeypatch, capsys):
    config = train.parse_config([*TINY, "--warm_dir", str(tmp_path / "a")])
    whole, _ = warmed(tmp_path / "a", config)
    interrupt, loss = SimpleNamespace(signal=0), warm_start.imitation_loss
    config.warm_dir = str(tmp_path / "b")
    with monkeypatch.context() as inner:
        calls = cut_at(inner, 99)
        counted = warm_start.imitation_loss
        pressed = lambda *args: (setattr(interrupt, "signal", 2 * (len(calls) == 4)), counted(*args))[1]
        inner.setattr(warm_start, "imitation_loss", pressed)
        with pytest.raises(console.Interrupted, match="after its step 5: the same command goes on"):
            warmed(tmp_path / "b", config, interrupt)
    assert warm_start.imitation_loss is loss
    again, _ = warmed(tmp_path / "b", config)
    assert same(whole, again) and "step=5/8" in capsys.readouterr().out


def test_two_runs_with_one_warm_start_do_not_harm_each_other(tmp_path, monkeypatch):
    """The slower one's checkpoint replaces the finished file; whoever comes then goes on from it."""
    config = train.parse_config([*TINY, "--warm_dir", str(tmp_path)])
    with monkeypatch.context() as inner:
        cut_at(inner, 5)
        with pytest.raises(Cut):
            warmed(tmp_path, config)
    (path,) = tmp_path.glob("*.pt")
    slow = path.read_bytes()
    whole, _ = warmed(tmp_path, config)
    path.write_bytes(slow)
    again, _ = warmed(tmp_path, config)
    assert same(whole, again)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.update(step=0),
        lambda kept: kept.update(step=9),
        lambda kept: kept.update(step=-1),
        lambda kept: kept.update(step=math.nan),
        lambda kept: kept.update(step=[4]),
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
def test_a_checkpoint_of_a_warm_start_that_does_not_fit_is_made_anew(tmp_path, monkeypatch, capsys, change):
    config = train.parse_config([*TINY, "--warm_dir", str(tmp_path)])
    whole, _ = warmed(tmp_path, config)
    (path,) = tmp_path.glob("*.pt")
    path.unlink()
    with monkeypatch.context() as inner:
        cut_at(inner, 5)
        with pytest.raises(Cut):
            warmed(tmp_path, config)
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == 4
    change(kept)
    torch.save(kept, path)
    capsys.readouterr()
    again, _ = warmed(tmp_path, config)
    assert same(whole, again) and capsys.readouterr().out.count("it is made anew") == 1


@pytest.mark.parametrize("pace, told", [(0.5, 2), (4.0, 8), (60.0, 8)])
def test_a_slow_warm_start_says_so_every_few_seconds(tmp_path, monkeypatch, capsys, pace, told):
    """Of 8 steps: at once that it begins, then a line where 3 seconds have gone by, and the last one."""
    now = [0.0]
    monkeypatch.setattr(warm_start.time, "perf_counter", lambda: now[0])
    loss = warm_start.imitation_loss
    monkeypatch.setattr(warm_start, "imitation_loss", lambda *args: (now.__setitem__(0, now[0] + pace), loss(*args))[1])
    warmed(tmp_path, train.parse_config([*TINY, "--warm_dir", str(tmp_path)]))
    out = capsys.readouterr().out.splitlines()
    assert (
        out[0] == "warm start: step=0/8" and len(out) == told + 1 and out[-1].startswith("warm start: step=8/8 loss=")
    )


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
    given = own(tmp_path, "--steps", "1", "--warm_batch", "20", rule="float(len(completion) % 2)")
    at = given.index("--warm_steps")
    given = given[:at] + given[at + 2 :]
    assert train.main(given) == 0
    steps = warm_start.steps_for(train.parse_config(given), SimpleNamespace(train=27))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["warm_steps"] == steps < 700
    assert f"warm start: step={steps}/{steps} " in capsys.readouterr().out
    again = ["--resume", "--out", str(tmp_path / "run"), "--steps", "2", "--verifier", rule_of(tmp_path)]
    assert train.main(again) == 0


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_whose_samples_are_all_dropped_holds_up_nobody(tmp_path):
    """--fsdp runs every block together: process 1 has no reward at all, process 0 none from its second update on."""
    given = options(tmp_path, "run", "--fsdp", "--on_verifier_error", "drop", "--steps", "2")
    given[given.index("--warm_steps") + 1] = "0"
    (tmp_path / "rules.py").write_text(
        "import os\nn = 0\ndef check(completion, answer):\n    global n\n    n += 1\n"
        "    return float(len(completion) % 2) if n < 11 and os.environ['RANK'] == '0' else None\n"
    )
    args = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*args, *given], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    rows = files.metrics_of(tmp_path / "run")
    assert [row.get("verifier errors") for row in rows] == [None, 4, 8] and "reward" in rows[1]
    assert "reward" not in rows[2] and "pass@1" not in rows[2] and (tmp_path / "run" / "best.pt").exists()
