"""The study's arithmetic, on curves made by hand; the report from committed runs is made in full."""

import json

import numpy as np
import pytest
import torch

import probe
import report
import reproduce
import tasks
import train


def run(values, seed=0, method="grpo", task="addition", samples=256, lr="", **extra):
    curve = [{"step": 5 * i, "pass@1": v, "leakage": 0.0, "reward": v, "entropy": 1 - v, "lambda": 0.1, "clipped_low": 0.01,
              "clipped_high": 0.03, "seconds": 1.0, **extra} for i, v in enumerate(values)]
    return {"name": "", "task": task, "method": method, "seed": seed, "samples": samples, "lr": lr, "curve": curve}


def test_figures_of_a_run_by_hand():
    r = run([0.2, 0.4, 0.8, 0.9])
    assert report.final(r) == pytest.approx(0.85) and report.area(r) == pytest.approx(0.575)
    assert report.updates_to(r, 0.4) == 5 and report.updates_to(r, 0.6) == 7.5
    assert report.updates_to(r, 0.95) == 15 and report.updates_to(r, 0.1) == 1
    assert report.entropy_while_learning(r) == pytest.approx(0.15) and report.clip_share(r) == pytest.approx(0.04)
    assert report.last_leakage(run([0.1, 0.2], leakage=0.3)) == 0.3


def test_intervals():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    mean, low, high = report.interval(values)
    assert mean == pytest.approx(values.mean()) and high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert report.interval([0.5] * 4) == (0.5, 0.5, 0.5)
    ratio, low, high = report.ratio_interval([2, 4, 6], [1, 2, 3])
    assert (ratio, low, high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("low, high, expected", [(0.01, 0.1, "holds"), (-0.1, -0.01, "does not hold"),
                                                 (-0.01, 0.015, "does not hold"), (-0.1, 0.1, "undecided at this scale")])
def test_verdicts(low, high, expected):
    assert report.verdict(low, high, 0.0, 0.02) == expected


def test_pairs_and_speed_take_the_same_seeds():
    runs = [run([0.0, 0.5, 1.0, 1.0], s) for s in (0, 1, 2)] + [run([0.0, 1.0, 1.0, 1.0], s, "rlsd") for s in (1, 2, 7)]
    study = report.Study(runs)
    assert study.pairs("addition", "grpo", "rlsd", 256, report.area) == ([0.625] * 2, [0.75] * 2)
    figures, seeds, target = report.speed_row(study, "addition", "rlsd", 256)
    assert seeds == 2 and target == pytest.approx(0.9) and figures[0] == pytest.approx(9 / 4.5)


def test_report_of_few_runs_says_what_it_has(tmp_path):
    runs = [run([0.2, 0.9, 0.95], s, m) for s in (0, 1) for m in ("grpo", "rlsd", "opsd")] + [run([0.2, 0.8], 100, lr="1e-4")]
    text = report.write(runs, tmp_path).read_text()
    assert "RLSD ends above GRPO (addition)" in text and "does not hold" in text and "countdown" not in text
    assert (tmp_path / "study.png").stat().st_size > 10_000 and (tmp_path / "credit.png").stat().st_size > 10_000


def test_names_and_options_of_the_study_are_sound(tmp_path):
    runs = reproduce.study()
    assert len({r.name for r in runs}) == len(runs) and {r.name for r in reproduce.quick()} <= {r.name for r in runs}
    tuned = {r.seed for r in runs if r.lr}
    assert not tuned & {r.seed for r in runs if not r.lr}  # rates are chosen on seeds that nothing else uses
    for method in ("grpo", "rlsd", "opsd"):
        assert sum(r.method == method and r.task == "addition" and not r.lr for r in runs) >= 10
    for r in runs:
        train.parse_config(r.arguments(tmp_path / "a folder"))


def test_finished_runs_are_kept_and_missing_ones_are_made(tmp_path, monkeypatch):
    trained = []

    def fake(options, out):
        trained.append(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.jsonl").write_text(json.dumps({"step": 0, "pass@1": 0.5}) + "\n")

    monkeypatch.setattr(reproduce, "train", fake)
    runs = reproduce.quick()
    reproduce.execute(runs[:4], tmp_path / "runs", tmp_path / "results")
    first = len(trained)
    reproduce.execute(runs, tmp_path / "runs", tmp_path / "results")
    assert sorted(r["name"] for r in reproduce.read(tmp_path / "results")) == sorted(r.name for r in runs)
    assert first >= 4 and {str(p) for p in trained} >= {str(tmp_path / "runs" / r.name) for r in runs}


# ---- probe -----------------------------------------------------------------------------------------------------------

def test_cosines_by_hand():
    vectors = [torch.tensor(v) for v in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])]
    table = probe.cosines([{"GRPO": v, "twice": 2 * v} for v in vectors])
    assert table["GRPO"] == pytest.approx([5**-0.5, 5**-0.5, 1.0], abs=1e-4)  # each against the sum of the others
    assert table["twice"] == table["GRPO"]
    assert probe.samples_worth([0.4, 0.4], [0.2, 0.2]) == pytest.approx((4, 4, 4))


def test_deciding_tokens():
    problem = tasks.Problem("95+17", "112", "5+7=12\n9+1=11")
    right = tasks.target(problem)
    assert probe.deciding_tokens(right, problem) == [12] and tasks.decode(right)[7:13] == "9+1=11"  # 11, not 10
    slip = tasks.target(tasks.Problem("95+17", "102", "5+7=12\n9+1=10"))
    assert probe.deciding_tokens(slip, problem) == [12]
    ten = tasks.Problem("85+17", "102", "5+7=12\n8+1=10")  # 10, not 9: they differ in the first token
    assert probe.deciding_tokens(tasks.target(ten), ten) == [11]


def test_gradients_of_the_probe_are_those_of_the_training_step():
    config = train.parse_config(["--hidden_size", "32", "--num_layers", "1", "--prompts_per_step", "4", "--group_size", "4",
                                 "--max_grad_norm", "1e9"])
    state = train.State(config)
    batch = train.rollout(state.model, tasks.generated("addition", 5), lambda c, a: float(sum(map(ord, c)) % 2), config, 1)
    found = probe.gradients(state.model, batch, config)
    for name, lam in (("GRPO", 0.0), ("RLSD, eps_w 0.2, lambda 0.5 (paper)", 0.5)):
        fresh = train.State(config)
        train.update(fresh.model, fresh.teacher, fresh.optimizer, batch, config, lam)
        expected = torch.cat([p.grad.flatten() for p in fresh.model.parameters()])
        assert torch.allclose(found[name], expected, atol=1e-5)
    shares = probe.evidence_shares(state.model, batch, config)
    assert all(0 <= row[k] <= 1 + 1e-6 for row in shares for k in row if k != "right")
