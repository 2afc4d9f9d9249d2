"""The study's arithmetic, on curves made by hand; the report from committed runs is made in full."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
import train
from harness.checkpoint import State
from harness.options import parse_config
from study import bootstrap, execute, language, plan, probe, report, scores

SAMPLES = execute.ROOT / "results" / "make_train" / "rlsd_samples.jsonl"


def run(values, seed=0, method="grpo", task="addition", samples=256, lr="", **extra):
    curve = [
        {
            "step": 5 * i,
            "pass@1": v,
            "leakage": 0.0,
            "reward": v,
            "entropy": 1 - v,
            "lambda": 0.1,
            "clipped_low": 0.01,
            "clipped_high": 0.03,
            "seconds": 1.0,
            **extra,
        }
        for i, v in enumerate(values)
    ]
    return {
        "name": "",
        "options": "--eval_problems 400 --lr 1",
        "task": task,
        "method": method,
        "seed": seed,
        "samples": samples,
        "lr": lr,
        "curve": curve,
    }


def test_figures_of_a_run_by_hand():
    r = run([0.2, 0.4, 0.8, 0.9], no_spread=0.25)
    assert scores.final(r) == pytest.approx(0.85) and scores.area(r) == pytest.approx(0.575) and scores.start(r) == 0.2
    assert scores.updates_to(r, 0.4) == 5 and scores.updates_to(r, 0.6) == 7.5 and scores.updates_to(r, 0.1) == 1
    assert np.isnan(scores.updates_to(r, 0.95))  # never is not late
    assert scores.entropy_while_learning(r) == pytest.approx(0.15)
    on_countdown = run([0.1, 0.3, 0.4, 0.9], task="countdown")  # whose rewards start and end lower
    assert scores.entropy_while_learning(on_countdown) == pytest.approx(0.65)
    assert scores.clip_share(r, of_all=False) == pytest.approx(0.04) and scores.clip_share(
        r, of_all=True
    ) == pytest.approx(0.03)
    r["curve"][0] |= {"lambda": 0.0, "clipped_low": 9.0}
    r["curve"][1] |= {"no_spread": 1.0, "clipped_low": 9.0}
    assert scores.clip_share(r, of_all=False) == pytest.approx(0.04)  # without evidence there is nothing to clip
    assert scores.leakage(run([0.1, 0.2], leakage=0.3)) == 0.3


def test_intervals():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    e = bootstrap.mean([*values, float("nan")])
    assert e.n == 400 and e.value == pytest.approx(values.mean())
    assert e.high - e.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    e = bootstrap.ratio([2, 4, 6, float("nan")], [1, 2, 3, 4])
    assert (e.value, e.low, e.high, e.n) == pytest.approx((2, 2, 2, 3))
    assert bootstrap.mean([]).n == bootstrap.ratio([], []).n == 0


@pytest.mark.parametrize(
    "low, high, n, expected",
    [
        (0.01, 0.1, 5, "holds"),
        (-0.1, -0.01, 5, "does not hold"),
        (-0.01, 0.015, 5, "does not hold"),
        (-0.1, 0.1, 5, "undecided"),
        (0.01, 0.1, 4, "undecided"),
        (-0.1, -0.01, 4, "undecided"),
    ],
)
def test_verdicts(low, high, n, expected):
    assert bootstrap.Estimate(0.0, low, high, n).verdict(0.0, 0.02) == expected


def test_pairs_and_speed_take_the_same_seeds():
    """Every seed has a curve of its own, so a pairing by place instead of seed would show."""
    grpo = {s: [0.1 * s, 0.5, 0.9 - 0.1 * s, 1.0, 1.0] for s in (0, 1, 2)}
    rlsd = {s: [0.1 * s, 0.9 - 0.1 * s, 1.0, 1.0, 1.0] for s in (2, 1, 7)}
    study = scores.Study([run(v, s) for s, v in grpo.items()] + [run(v, s, "rlsd") for s, v in rlsd.items()])
    mine, theirs = study.pairs(scores.area, "addition", "rlsd", "grpo")
    assert mine == pytest.approx([np.mean(rlsd[s]) for s in (1, 2)]) and theirs == pytest.approx(
        [np.mean(grpo[s]) for s in (1, 2)]
    )
    figure, never, target = study.speed("addition", "rlsd")
    assert target == pytest.approx(0.1 + 0.9 * 0.9) and never == 0 and figure.n == 2
    to = lambda v: scores.updates_to(run(v), target)
    assert figure.value == pytest.approx((to(grpo[1]) + to(grpo[2])) / (to(rlsd[1]) + to(rlsd[2])))
    assert scores.Study([run([0.5, 0.52])]).speed("addition", "rlsd") is None  # nothing was gained


def test_a_peak_is_one_in_the_other_runs_too():
    noise = np.random.default_rng(0).normal(0, 0.03, (10, 12))
    flat = [run(list(0.9 + row)) for row in noise]
    rise, fall = scores.peak_and_fall(flat)
    assert fall.low < 0.02  # the highest of twelve noisy values is no peak
    hill = [run([0.2, 0.9, 0.5, 0.4, 0.4], s) for s in range(5)]
    rise, fall = scores.peak_and_fall(hill)
    assert (rise.value, fall.value) == pytest.approx((0.7, 0.5))


def rows_of(text, claim):
    return [line for line in text.splitlines() if line.startswith(f"| {claim}")]


def test_report_of_few_runs_gives_no_verdicts(tmp_path):
    runs = [run([0.2, 0.9, 0.95], s, m, no_spread=0.0) for s in (0, 1) for m in ("grpo", "rlsd", "opsd")]
    text = report.write([*runs, run([0.2, 0.8], 100, lr="1e-4")], [], {}, SAMPLES, tmp_path).read_text()
    assert "undecided |" in rows_of(text, "RLSD ends above GRPO (addition)")[0]
    assert rows_of(text, "RLSD ends above GRPO (countdown)")[0].split("|")[3:5] == [" - ", " 0 "]
    assert (tmp_path / "study.png").stat().st_size > 10_000 and (tmp_path / "credit.png").stat().st_size > 10_000


def test_report_of_a_clear_case(tmp_path):
    """RLSD ends 0.1 above GRPO and leaks nothing; OPSD rises, falls and leaks."""
    shift = lambda s: 0.001 * s
    runs = [run([0.2, 0.5, 0.8 + shift(s), 0.8], s, no_spread=0.0) for s in range(6)]
    runs += [run([0.2, 0.7, 0.9, 0.9 + shift(s)], s, "rlsd", no_spread=0.0) for s in range(6)]
    runs += [run([0.2, 0.8, 0.5, 0.5 + shift(s)], s, "opsd", no_spread=0.0, leakage=0.4) for s in range(6)]
    text = report.write(runs, [], {}, SAMPLES, tmp_path).read_text()
    for claim in (
        "RLSD ends above GRPO (addition)",
        "OPSD rises first",
        "OPSD leaks (addition)",
        "RLSD does not leak (addition)",
        "One extra forward",
    ):
        assert rows_of(text, claim)[0].endswith("| holds |"), rows_of(text, claim)


def test_names_and_options_of_the_study_are_sound(tmp_path):
    runs = plan.study()
    assert len({r.name for r in runs}) == len(runs) and {r.name for r in plan.quick()} <= {r.name for r in runs}
    tuned = {r.seed for r in runs if r.lr}
    assert not tuned & {r.seed for r in runs if not r.lr}  # rates are chosen on seeds that nothing else uses
    for method in ("grpo", "rlsd", "opsd"):
        assert sum(r.method == method and r.task == "addition" and not r.lr for r in runs) >= 10
    for r in runs:
        parse_config(r.arguments(tmp_path / "a folder"))


def test_learning_rates_are_the_best_of_the_committed_tuning():
    """By final pass@1; of two that end alike, the one that got there earlier."""
    tuning = scores.Study(execute.read(execute.ROOT / "results" / "study")).tuning
    for (task, samples), rates in plan.RATES.items():
        for method, rate in rates.items():
            found = {}
            for lr in plan.TUNED[task, samples] + plan.LATER.get((task, samples, method), ()):
                name = f"{task}/{method}-{samples}-lr{lr}/"
                runs = [r for r in tuning if r["name"].startswith(name)]
                found[lr] = [round(np.mean([f(r) for r in runs]), 3) for f in (scores.final, scores.area)]
            assert rate == max(found, key=found.get), (task, samples, method, found)


def test_finished_runs_are_kept_and_missing_ones_are_made(tmp_path, monkeypatch):
    trained = []

    def fake(options, out):
        trained.append(out)
        out.mkdir(parents=True, exist_ok=True)
        rows = [{"step": step, "pass@1": 0.5} for step in range(61)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(execute, "train", fake)
    runs = plan.quick()
    execute.execute(runs[:4], tmp_path / "runs", tmp_path / "results")
    first = len(trained)
    execute.execute(runs, tmp_path / "runs", tmp_path / "results")
    assert sorted(r["name"] for r in execute.read(tmp_path / "results")) == sorted(r.name for r in runs)
    assert first >= 4 and {p.parent for p in trained} >= {tmp_path / "runs" / r.name for r in runs}
    monkeypatch.setitem(plan.RATES["addition", 256], "grpo", "7e-4")
    execute.execute(plan.quick(), tmp_path / "runs", tmp_path / "results")  # another rate is another run
    for run in (r for r in runs if r.method == "grpo"):
        assert len([p for p in trained if p.parent == tmp_path / "runs" / run.name]) == 2
        assert len({p for p in trained if p.parent == tmp_path / "runs" / run.name}) == 2


def test_rows_of_an_older_study_are_left_out():
    kept, other = plan.quick()[:2]
    rows = [{"name": kept.name, "options": kept.options}, {"name": other.name, "options": other.options + " --lr 1"}]
    assert execute.current(rows, plan.quick()) == rows[:1]


def test_a_line_that_is_no_whole_run_of_its_own_counts_nowhere(tmp_path, capsys):
    """Torn, edited, cut short, another's figures, or there already: named by file and line, and passed over."""
    made = [plan.Run("addition", 256, "grpo", seed) for seed in (0, 1)]
    curve = [{"step": step, "reward": 0.5, **({} if step % 5 else {"pass@1": 0.5})} for step in range(61)]
    rows = [
        {
            "name": r.name,
            "options": r.options,
            **{k: getattr(r, k) for k in ("task", "method", "seed", "samples", "lr")},
        }
        | {"curve": curve}
        for r in made
    ]
    whole = json.dumps(rows[0])
    bad = [
        whole,  # a second time
        whole[:-20],
        json.dumps({**rows[1], "curve": curve[:-1]}),
        json.dumps({**rows[1], "curve": curve[:30] + curve[31:]}),
        json.dumps({**rows[1], "curve": [{**curve[0], "pass@1": float("nan")}, *curve[1:]]}),
        json.dumps(rows[1]).replace("0.5", "1e999"),
        json.dumps({**rows[1], "seed": 7}),  # another seed by the same figures
        json.dumps({**rows[0], "name": made[1].name, "options": made[1].options}),
        json.dumps({**rows[1], "curve": None}),
        *("[]", "1", "null", '{"name": "x"}', '{"name": [], "options": ""}', "[" * 100_000, "\x00", ""),
    ]
    (tmp_path / "addition.jsonl").write_text("\n".join([whole, *bad]))
    assert execute.read(tmp_path) == rows[:1]
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(": passed over: ")[0] for line in told] == [
        f"{tmp_path}/addition.jsonl:{i}" for i in range(2, 2 + len(bad) - 1)
    ]
    with (tmp_path / "addition.jsonl").open("a") as file:
        file.write(json.dumps(rows[1]) + "\n")
    assert execute.read(tmp_path) == rows


def test_the_committed_runs_are_whole(capsys):
    folder = execute.ROOT / "results" / "study"
    lines = sum(len(path.read_text().splitlines()) for path in folder.glob("*.jsonl"))
    assert len(execute.current(execute.read(folder), plan.study())) == len(plan.study()) == lines
    assert capsys.readouterr().out == ""


# ---- probe -----------------------------------------------------------------------------------------------------------


def test_cosines_by_hand():
    vectors = [torch.tensor(v) for v in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])]
    table = probe.cosines([{"GRPO": v, "twice": 2 * v} for v in vectors])
    assert table["GRPO"] == pytest.approx([5**-0.5, 5**-0.5, 1.0], abs=1e-4)  # each against the sum of the others
    assert table["twice"] == table["GRPO"]
    for cosine, worth in ((0.4, 4), (-0.4, -4)):  # the second leads away
        found = bootstrap.samples_worth([cosine] * 2, [0.2, 0.2])
        assert (found.value, found.low, found.high) == pytest.approx((worth, worth, worth))


def test_gains_of_adams_step_by_hand():
    """A coordinate a hundred times as large has no more say in Adam's step than any other."""
    vectors = [torch.tensor(v) for v in ([100.0, 1.0], [100.0, -1.0], [100.0, 1.0])]
    gains = probe.cosines([{"GRPO": v, "half": v / 2} for v in vectors], adam=True)
    assert gains["half"] == gains["GRPO"]
    others = torch.tensor([[200.0, 0.0], [200.0, 2.0], [200.0, 0.0]])
    expected = [torch.cosine_similarity(v / torch.tensor([100.0, 1.0]), o, dim=0) for v, o in zip(vectors, others)]
    assert gains["GRPO"] == pytest.approx([e.item() for e in expected], abs=1e-4)


def test_a_policy_of_another_shape_is_one_line_and_exit_code_2(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert probe.main(["--policy", str(folder), "--batches", "1"]) == 2
    torch.save({"model": {"embed.weight": torch.zeros(2, 2)}}, tmp_path / "last.pt")
    assert probe.main(["--policy", str(tmp_path), "--batches", "1"]) == 2
    assert probe.main(["--batches", "many"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(e.startswith("probe.py: ") for e in errors)


def test_deciding_tokens():
    problem = tasks.Problem("95+17", "112", "5+7=12\n9+1=11")
    right = tasks.target(problem)
    assert probe.deciding_tokens(right, problem) == [12] and tasks.decode(right)[7:13] == "9+1=11"  # 11, not 10
    slip = tasks.target(tasks.Problem("95+17", "102", "5+7=12\n9+1=10"))
    assert probe.deciding_tokens(slip, problem) == [12]
    ten = tasks.Problem("85+17", "102", "5+7=12\n8+1=10")  # 10, not 9: they differ in the first token
    assert probe.deciding_tokens(tasks.target(ten), ten) == [11]


def test_gradients_of_the_probe_are_those_of_the_training_step():
    config = parse_config(
        [
            "--hidden_size",
            "32",
            "--num_layers",
            "1",
            "--prompts_per_step",
            "4",
            "--group_size",
            "4",
            "--max_grad_norm",
            "1e9",
        ]
    )
    state = State(config)
    batch = train.rollout(
        state.policy, tasks.generated("addition", 5), lambda c, a: float(sum(map(ord, c)) % 2), config, 1
    )
    found = probe.gradients(state.policy, batch, config)
    for name, lam in (("GRPO", 0.0), ("RLSD, eps_w 0.2, lambda 0.5 (paper)", 0.5)):
        fresh = State(config)
        train.update(fresh.policy, fresh.teacher, fresh.optimizer, batch, config, lam)
        expected = torch.cat([p.grad.flatten() for p in fresh.policy.parameters()])
        assert torch.allclose(found[name], expected, atol=1e-5)
    shares = probe.evidence_shares(state.policy, batch, config)
    assert all(0 <= row[k] <= 1 + 1e-6 for row in shares for k in row if k != "right")


def test_probes_of_the_study_are_sound(tmp_path):
    for name, options, run in plan.probes() + plan.quick_probes():
        own, config = probe.parse([*options.split(), "--warm_dir", str(tmp_path)])
        assert own.batches >= 5 and config.seed == int(name.rpartition("-")[2])
        assert run is None or (run.warm_seed, run.task, run.seed) == (config.warm_seed, config.task, config.seed)


def test_a_probe_is_measured_once_and_its_policy_trained_first(tmp_path, monkeypatch):
    calls = []

    def fake(name, options):
        calls.append(name)
        if name == "study/probe.py":
            Path(options[options.index("--keep") + 1]).write_text('{"pass@1": 0.5}')

    monkeypatch.setattr(execute, "program", fake)
    wanted = [one for one in plan.probes() if one.name.endswith("-0")]
    for _ in range(2):
        execute.execute_probes(wanted, tmp_path / "runs", tmp_path / "results")
    assert calls.count("study/probe.py") == len(wanted) and calls.count("train.py") == 1
    assert {row["name"] for row in execute.read(tmp_path / "results")} == {one.name for one in wanted}


def test_what_a_probe_of_five_policies_says():
    probes = [
        {"name": f"countdown-{k}", "cosines": {"GRPO": [0.2, 0.2], "RLSD, eps_w 4, lambda 1": [0.2 + 0.02 * k] * 2}}
        for k in range(5)
    ]
    for one in probes:
        one |= {"adam": one["cosines"], "pass@1": 0.1, "teacher pass@1": 0.9, "samples": 32}
    found = bootstrap.worth(probes, report.WIDE_WEIGHTS, "adam")
    assert found.n == 5 and found.value == pytest.approx(np.mean([1 + 0.1 * k for k in range(5)]) ** 2)
    assert found.low < found.value < found.high
    (row,) = report.credit_claims(probes)
    assert row[0] == "Wide weights are worth more samples (countdown, before RL)" and row[-1] == "holds"
    assert "5 policies, 10 batches of 32 samples" in report.probe_tables(probes)
    (row,) = report.credit_claims(probes[:1])  # one policy gives no verdict
    assert row[-1] == "undecided"


def test_the_language_models_page_is_its_runs_and_its_figures_stand_on_our_pages():
    rows = language.read()
    page = language.page(rows)
    assert (language.ROOT / "results/language.md").read_text() == page
    assert len({(row["name"], row["options"]) for row in rows}) == len(rows) == 49
    said = (language.ROOT / "README.md").read_text() + (language.ROOT / "docs/study.md").read_text()
    finals = {m: page.split(f"\n| {m} |")[1].split("|")[2].split()[0] for m in ("grpo", "rlsd", "opsd")}
    assert finals == {"grpo": "0.251", "rlsd": "0.286", "opsd": "0.727"}
    assert all(f"OPSD takes it to {finals['opsd']}" in said and f"({finals[m]})" in said for m in ("grpo", "rlsd"))


def test_a_methods_rate_is_the_best_of_its_tuning_runs_alone():
    run = lambda method, lr, tickets, last: {
        "method": method,
        "lr": lr,
        "tickets": tickets,
        "curve": [{"step": 0, "pass@1": 0.0}, {"step": 10, "pass@1": last}, {"step": 20, "pass@1": last}],
    }
    rows = [run("grpo", "1e-5", 100, 0.4), run("grpo", "2e-5", 100, 0.6), run("grpo", "4e-5", 7, 0.9)]
    rows += [run("rlsd", "2e-5", 100, 0.5), run("rlsd", "1e-5", 100, 0.5)]
    rates = language.best_rates(rows)
    assert rates["grpo"] == "2e-5" and rates["rlsd"] == "1e-5"
