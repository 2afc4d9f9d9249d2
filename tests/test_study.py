"""The study's arithmetic, on curves made by hand; the report from committed runs is made in full."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_headroom import SMALL, flat, measured, sampled, updated

import reproduce
import tasks
import train
from config import Config
from harness.options import parse_config
from model import token_logps
from study import bootstrap, compare, cost, execute, figures, first_page, language, plan, probe, report, scores
from support.errors import UserError

SAMPLES = execute.ROOT / "results" / "make_train" / "rlsd_samples.jsonl"
words = lambda legend: [text.get_text() for text in legend.get_texts()]


def run(values, seed=0, method="grpo", task="addition", samples=256, lr="", **extra):
    same = {"leakage": 0.0, "lambda": 0.1, "clipped_low": 0.01, "clipped_high": 0.03, "seconds": 1.0, **extra}
    curve = [{"step": 5 * i, "pass@1": v, "reward": v, "entropy": 1 - v, **same} for i, v in enumerate(values)]
    cell = {"task": task, "method": method, "seed": seed, "samples": samples, "lr": lr}
    return {"name": "", "options": "--eval_problems 400 --lr 1", **cell, "curve": curve}


def test_figures_of_a_run_by_hand():
    r = run([0.2, 0.4, 0.8, 0.9], no_spread=0.25)
    assert scores.final(r) == pytest.approx(0.85) and scores.area(r) == pytest.approx(0.575) and scores.start(r) == 0.2
    assert scores.updates_to(r, 0.4) == 5 and scores.updates_to(r, 0.6) == 7.5 and scores.updates_to(r, 0.1) == 1
    assert np.isnan(scores.updates_to(r, 0.95))  # never is not late
    assert scores.entropy_while_learning(r) == pytest.approx(0.15)
    on_countdown = run([0.1, 0.3, 0.4, 0.9], task="countdown")  # whose rewards start and end lower
    assert scores.entropy_while_learning(on_countdown) == pytest.approx(0.65)
    assert [scores.clip_share(r, of_all) for of_all in (False, True)] == pytest.approx([0.04, 0.03])
    r["curve"][0] |= {"lambda": 0.0, "clipped_low": 9.0}
    r["curve"][1] |= {"no_spread": 1.0, "clipped_low": 9.0}
    assert scores.clip_share(r, of_all=False) == pytest.approx(0.04)  # without evidence there is nothing to clip
    assert scores.leakage(run([0.1, 0.2], leakage=0.3)) == 0.3


def test_that_no_leak_was_seen_is_not_that_there_is_none():
    """Of 400 problems, which all seeds share: the interval reaches 3 / 400 at least, however few completions cite."""
    of = lambda *shares: scores.leaked([run([0.1], s, leakage=share) for s, share in enumerate(shares)])
    assert (of(0, 0).value, of(0, 0).low, of(0, 0).high) == (0, 0, 0.0075)
    assert of(0, 0.0025).value == 0.00125 and of(0, 0.0025).high == 0.0075
    assert (of(0.4, 0.4).low, of(0.4, 0.4).high, of().n) == (0.4, 0.4, 0)
    assert scores.held_out({"options": "--eval_problems 400 --eval_problems 50 --lr 1"}) == 50  # as train.py reads it


def test_intervals():
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    e = bootstrap.mean([*values, float("nan")])
    assert e.n == 400 and e.value == pytest.approx(values.mean())
    assert e.high - e.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    e = bootstrap.ratio([2, 4, 6, float("nan")], [1, 2, 3, 4])
    assert (e.value, e.low, e.high, e.n) == pytest.approx((2, 2, 2, 3))
    assert bootstrap.mean([]).n == bootstrap.ratio([], []).n == 0


def test_verdicts():
    """At the mark itself nothing lies above it; a margin is for what does not hold; none under five seeds."""
    expected = {(0.01, 0.1, 5): "holds", (0.0, 0.1, 5): "undecided", (-0.1, 0.02, 5): "does not hold"}
    expected |= {of: "undecided" for of in ((-0.1, 0.0201, 5), (0.01, 0.1, 4), (-0.1, -0.01, 4))}
    for (low, high, n), verdict in expected.items():
        of = bootstrap.Estimate(0.0, low, high, n)
        assert of.verdict(0.0, 0.02) == verdict, of
        assert bootstrap.Estimate(0.0, -high, -low, n).below(0.0) == of.verdict(0.0)
    marks = {1.2: "holds", 1.0: "undecided", 0.8: "does not hold"}
    assert {mark: bootstrap.Estimate(1.0, 0.9, 1.1, 5).below(mark) for mark in marks} == marks


def test_the_axis_counts_every_updates_tokens():
    """An update without an evaluation too; two runs at the mean of what each had sampled by then."""
    lengths = [(10, 20, 30), (30, 20, 10)]
    runs = [{"samples": 100, "curve": [{"step": 0, "pass@1": 0.1}]} for _ in lengths]
    for one, tokens in zip(runs, lengths):
        one["curve"] += [{"step": i, "length": n, "lambda": 0.1 * (i < 3)} for i, n in enumerate(tokens, start=1)]
        one["curve"][1] |= {"clipped_low": 0.1, "clipped_high": 0.2}
        one["curve"][2] |= {"clipped_low": 0.2, "clipped_high": 0.2}
        one["curve"][-1] |= {"pass@1": 0.5, "clipped_low": 0.9, "clipped_high": 0.1}
    assert [point[:2] for point in figures.over_tokens(runs, "pass@1")] == [(0.0, 0.1), (6.0, 0.5)]
    clipped = [point[:2] for point in figures.over_tokens(runs, "clipped")]
    assert clipped == [pytest.approx(p) for p in ((2.0, 0.3), (4.0, 0.4))]  # where lambda is above 0


def test_the_clock_of_the_cost_holds_its_updates_and_nothing_else(monkeypatch):
    """The first update is not timed, nor what stands before it; every forward pass over the samples is counted."""
    events, update, clock = [], train.update, iter([100.0, 106.0])
    monkeypatch.setattr(train, "update", lambda *args: events.append("update") or update(*args))
    monkeypatch.setattr(cost.time, "process_time", lambda: events.append("clock") or next(clock))
    monkeypatch.setattr(cost.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=2_048_000))
    lazy = ModuleType("lazy")  # as transformers has them: to ask for a name imports more
    lazy.__getattr__ = lambda name: monkeypatch.setitem(sys.modules, f"imported{len(sys.modules)}", lazy)
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    small = "--hidden_size 32 --num_layers 1 --prompts_per_step 2 --group_size 4 --max_new_tokens 40 --chain 2"
    for options, scorings in (("--method grpo", 1), ("", 2), ("--evidence contrastive", 3), ("--method opsd", 2)):
        events.clear()
        clock = iter([100.0, 106.0])
        found = cost.measure([*small.split(), *options.split()])
        assert events == ["update", "clock", *["update"] * cost.UPDATES, "clock"]
        assert found == {"seconds": round(6 / cost.UPDATES, 4), "scorings": scorings, "peak MiB": 2000.0}


def test_pairs_and_speed_take_the_same_seeds():
    """Every seed has a curve of its own, so a pairing by place instead of seed would show."""
    grpo = {s: [0.1 * s, 0.5, 0.9 - 0.1 * s, 1.0, 1.0] for s in (0, 1, 2)}
    rlsd = {s: [0.1 * s, 0.9 - 0.1 * s, 1.0, 1.0, 1.0] for s in (2, 1, 7)}
    study = scores.Study([run(v, s) for s, v in grpo.items()] + [run(v, s, "rlsd") for s, v in rlsd.items()])
    expected = [pytest.approx([np.mean(of[s]) for s in (1, 2)]) for of in (rlsd, grpo)]
    assert [*study.pairs(scores.area, "addition", "rlsd", "grpo")] == expected
    figure, never, target = study.speed("addition", "rlsd")
    assert target == pytest.approx(0.1 + 0.9 * 0.9) and never == 0 and figure.n == 2
    to = lambda v: scores.updates_to(run(v), target)
    assert figure.value == pytest.approx((to(grpo[1]) + to(grpo[2])) / (to(rlsd[1]) + to(rlsd[2])))
    assert scores.Study([run([0.5, 0.52])]).speed("addition", "rlsd") is None  # nothing was gained


def test_a_peak_is_one_in_the_other_runs_too():
    noise = np.random.default_rng(0).normal(0, 0.03, (10, 12))
    flat = [run(list(0.9 + row)) for row in noise]
    assert scores.peak_and_fall(flat)[1].low < 0.02  # the highest of twelve noisy values is no peak
    hill = [run([0.2, 0.9, 0.5, 0.4, 0.4], s) for s in range(5)]
    assert [of.value for of in scores.peak_and_fall(hill)] == pytest.approx([0.7, 0.5])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, one after another; each is closed again."""
    made = []
    monkeypatch.setattr(figures.plt.Figure, "savefig", lambda self, to, **_: made.append(self) or Path(to).touch())
    yield made
    assert not figures.plt.get_fignums()


def band(axis, i, x):
    """From where to where the i-th band reaches at x."""
    at = [float(y) for at, y in axis.collections[i].get_paths()[0].vertices if at == x]
    return pytest.approx((min(at), max(at)))


def bars(axis):
    """Of every series of error bars its points, and of each direction the ends of its bars."""
    ends = lambda lines, k: [[float(end[k]) for end in bar] for bar in lines.get_segments()]
    return [(of[0].get_xydata().tolist(), *(ends(lines, k) for k, lines in enumerate(of[2]))) for of in axis.containers]


def test_the_curves_show_every_panel_and_method(drawn, tmp_path):
    """Of the task that is asked for. A leakage of hardly anything does not fill its panel."""
    of = lambda m, s, **more: run([0.2, 0.9], s, m, leakage=0.01, length=30.0, **more)
    runs = [of(m, s) for s in range(5) for m in ("grpo", "rlsd")]
    aside = [of("opd", 0), of("opsd", 0, task="countdown"), of("opsd", 0, samples=32), of("opsd", 12)]
    figures.curves_figure(scores.Study(runs + aside), tmp_path / "x.png", "addition")
    assert [[len(axis.lines), len(axis.collections)] for axis in drawn[0].axes] == [[2, 2]] * 4
    highest = [axis.get_ylim()[1] for axis in drawn[0].axes]  # of pass@1, leakage, entropy, what the clip held
    assert highest[1] == 0.05 and 0.04 <= highest[3] < 0.05
    assert words(drawn[0].legends[0]) == ["rlsd (5)", "grpo (5)"]


def test_the_figures_of_what_credit_is_worth_show_every_estimate(drawn, tmp_path):
    """A row a regime, first on top; a bar from end to end of each interval; nothing where nothing was measured."""
    of, out = bootstrap.Estimate, tmp_path / "x.png"
    wide = {"addition": of(2.0, 1.5, 4.0, 5), "countdown": of(np.nan, np.nan, np.nan, 0)}
    panel = {"wide": wide, "OPSD": {"addition": of(1.0, 0.5, 1.5, 5), "countdown": of(-1.0, -2.0, 0.5, 5)}}
    figures.headroom_figure({"before RL": panel, "after RL": panel}, 1.1, out)
    figures.bias_figure({"addition": {"wide": (of(0.9, 0.8, 1.0, 5), of(3.0, 2.0, 5.0, 5))}, "countdown": {}}, out)
    worth, bias = (figure.axes for figure in drawn)
    assert [axis.get_title() for axis in worth + bias] == ["before RL", "after RL", "addition", "countdown"]
    assert [words(figure.legends[0]) for figure in drawn] == [["wide", "OPSD"], ["wide"]]
    for axis in worth:
        found = [([(x, round(y)) for x, y in points], ends) for points, ends in bars(axis)]
        assert found == [([(2, 0)], [[1.5, 4]]), ([(1, 0), (-1, 1)], [[0.5, 1.5], [-2, 0.5]])]
        assert {1, 1.1} == {line.get_xdata()[0] for line in axis.lines if [*line.get_ydata()] == [0, 1]}
        assert list(axis.get_xticks()) == sorted(float(tick.get_text()) for tick in axis.get_xticklabels())
    assert [tick.get_text() for tick in worth[0].get_yticklabels()] == [*wide] and worth[0].yaxis_inverted()
    assert bars(bias[0]) == [([[3.0, 0.9]], [pytest.approx([2, 5])], [pytest.approx([0.8, 1.0])])]
    for axis in bias:
        x, y = axis.lines[-1].get_data()
        assert x[0] < 0.3 and x[-1] > 60 and x * y**2 == pytest.approx(np.ones(len(x)))
        assert axis.get_xscale() == "log" and "cosine" in axis.get_ylabel()


def row_of(text, claim):
    """The first one, as the line that it is."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {claim}")]
    assert lines, f"no row for {claim}"
    return lines[0]


@pytest.mark.parametrize("n", [2, 6])
def test_report_of_a_clear_case_and_no_verdicts_of_few_runs(tmp_path, n):
    """RLSD ends 0.1 above GRPO and leaks nothing; OPSD rises, falls and leaks."""
    of = lambda m, up, end, s, **leak: run([0.2, up, end, end + 0.001 * s], s, m, no_spread=0.0, **leak)
    runs = [of(*how, s) for how in (("grpo", 0.5, 0.8), ("rlsd", 0.7, 0.9)) for s in range(n)]
    runs += [of("opsd", 0.8, 0.5, s, leakage=0.4) for s in range(n)]
    tuned = [run([0.2, 0.8], s, lr="1e-4", leakage=0.1 * (s - 99)) for s in (100, 101)]
    text = report.write([*runs, *tuned], [], [], {}, SAMPLES, tmp_path).read_text()
    ends = "RLSD ends above GRPO (addition)", "OPSD rises first", "One extra forward"
    for claim in (*ends, "OPSD leaks (addition)", "RLSD does not leak (addition)"):
        assert row_of(text, claim).endswith("| undecided |" if n < 5 else "| holds |"), row_of(text, claim)
    assert "| 0.0001 | 0.500 | 0.500 | 0.1500 | 2 |" in text  # leakage of the tuning too
    assert "| 0.0000 [0.0000, 0.0075] |" in row_of(text.split("## Every cell")[1], "addition | rlsd")
    assert "|  |  |  |" in row_of(text.split("## Every cell")[1], "addition | grpo")  # beside itself
    assert "perfect evidence give?\n\nNot run yet" in text
    assert row_of(text, "RLSD ends above GRPO (countdown)").split("|")[3:6] == [" - ", " > 0 ", " 0 "]
    assert (tmp_path / "study.png").stat().st_size > 10_000 and (tmp_path / "credit.png").stat().st_size > 10_000


def test_the_first_page_quotes_claims_that_were_measured_or_is_not_there():
    names = sorted({" ".join(name.split()) for name in re.findall(r"{([^}]*)}", first_page.TEN)})
    claims = [[name, "", f"figure {i}.", "", "5", "holds"] for i, name in enumerate(names)]
    page = first_page.first_page(claims)
    assert len(names) == 21 and all(f"figure {i}." in page for i in range(21)) and "{" not in page
    for missing in ([], [[names[0], "", "-", "", "0", "undecided"]]):
        assert first_page.first_page(missing + claims[1:]) == ""


def test_the_words_of_the_first_page_fit_the_verdicts():
    """Of the committed report: each line's claims hold, or do not, as its words say."""
    text = (execute.ROOT / "results/report.md").read_text()
    after, perfect = "after 60 updates of GRPO)", "An oracle's marks are worth 1.2 times the samples (addition, "
    fails = "RLSD ends above GRPO (addition)", "RLSD ends above GRPO (countdown)", "... in half the updates (addition)"
    fails += "... in half the updates (countdown)", "RLSD pays somewhere", perfect + "before RL)"
    fails += "RLSD leads with contrastive evidence", f"Wide weights point where GRPO does (countdown, {after}"
    fails += (f"Wide weights are worth more over a run's samples (countdown, {after}",)
    holds = "OPSD leaks (addition)", "RLSD does not leak (addition)", "One extra forward pass", perfect + after
    holds += "Credit sits on the deciding tokens (wrong", f"Wide weights point where GRPO does (addition, {after}"
    assert [claim for claim in fails if not row_of(text, claim).endswith(" | does not hold |")] == []
    assert [claim for claim in holds if not row_of(text, claim).endswith(" | holds |")] == []
    assert "by the whole interval: none." in text  # of what others propose


def test_tables_and_claims_are_of_the_runs_that_they_name():
    """A seed ends 0.01 below the one before; on fresh seeds each rate has a pair of its own; OPD is half as fast."""
    ends = lambda value, s: [0.2, 0.5, value - 0.01 * s, value - 0.01 * s]
    runs = [run(ends(0.8, s), s, m, seconds=1.0 + (m == "opd")) for s in range(6) for m in ("grpo", "rlsd", "opd")]
    for method, value in {"grpo": 0.8, "rlsd-swapped": 0.9, "grpo-swapped": 0.7, "rlsd": 0.8}.items():
        runs += [run(ends(value, s), s + 10, method, "countdown") for s in range(6)]
    study = scores.Study(runs)
    halves = report.by_warm_start(study).split("\n| rlsd | ")[1].split(" | ")
    assert [half.split(" [")[0] for half in halves[:2]] == ["0.780", "0.770"]
    rows = {row[0].partition(" (")[0]: row for row in report.outcome_claims(study)}
    assert "OPD takes 2.00 [2.00, 2.00] of" in rows["No larger teacher needed by the end"][1]
    for at in ("RLSD leads at GRPO's learning rate", "RLSD leads at its own learning rate"):
        assert rows[at][2].startswith("0.050 [") and rows[at][4:] == ["6", "holds"]


def test_the_costs_are_ratios_round_by_round(tmp_path, monkeypatch, capsys):
    """Each method is measured by a process of its own, turn by turn."""
    grpo = {"seconds": [1.0, 2.0, 4.0], "peak MiB": [10.0, 20.0, 30.0], "scorings": 1}
    rlsd = {"seconds": [2.0, 3.0, 4.0], "peak MiB": [25.0, 26.0, 27.0], "scorings": 2}
    turns = ({**of, **{k: of[k][i] for k in ("seconds", "peak MiB")}} for i in range(3) for of in (grpo, rlsd))
    assert json.loads((execute.ROOT / "results/cost.json").read_text())["methods"].keys() == cost.OPTIONS.keys()
    options = {"OPTIONS": {"grpo": "--method grpo", "rlsd": ""}, "ROUNDS": 3, "ROOT": tmp_path}
    asked, here = [], lambda command, **_: capsys.readouterr() and cost.main(command[3:]) or capsys.readouterr()
    for name, value in {**options, "measure": lambda options: asked.append(options) or next(turns)}.items():
        monkeypatch.setattr(cost, name, value)
    monkeypatch.setattr(cost.subprocess, "run", lambda *args, **_: SimpleNamespace(stdout=here(*args).out))
    (tmp_path / "results").mkdir()
    assert cost.main([]) == 0 and asked == [["--method", "grpo"], []] * 3
    found = json.loads((tmp_path / "results/cost.json").read_text())
    assert found == {"command": "python -m study.cost", "methods": {"grpo": grpo, "rlsd": rlsd}}
    lines = report.cost_table(found).splitlines()
    assert lines[2:] == ["| grpo | 1 | 1.00 [1.00, 1.00] | 0 |", "| rlsd | 2 | 1.50 [1.00, 2.00] | 6 |"]


def test_half_the_updates_are_not_clear_where_a_run_never_arrives():
    """Forty runs four times as fast; with one that stays where it began the interval is still above the mark."""
    slow, fast = [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0], [0.0] + [1.0] * 7
    cell, seeds = ("addition", "rlsd", 256, True), range(10, 50)  # fresh ones
    for last, verdict in ((fast, "holds"), ([0.0] * 8, "undecided")):
        runs = [run(last if s == 49 else fast, s, "rlsd") for s in seeds]
        study = scores.Study([run(slow, s) for s in seeds] + runs)
        _, speed = report.pays(study, "", *cell)
        figure, never, target = study.speed(*cell)
        assert figure.low > 2 and speed[-1] == verdict and speed[1].endswith(f"{int(verdict == 'undecided')} never")
        reached = [35 if np.isnan(x := scores.updates_to(r, target)) else x for r in runs]  # at the last update
        assert never == (35 in reached)
        assert figure.value == pytest.approx(40 * scores.updates_to(run(slow), target) / sum(reached))
    assert [report.clear(v, 1) for v in ("holds", "does not hold")] == ["undecided", "does not hold"]
    assert report.both("holds", "holds") == "holds" and report.both("undecided", "does not hold") == "does not hold"


def test_names_and_options_of_the_study_are_sound(tmp_path):
    runs = plan.study()
    assert len({r.name for r in runs}) == len(runs) and {r.name for r in plan.quick()} <= {r.name for r in runs}
    for kind in ("seed", "warm_seed"):  # rates are chosen on seeds, and a warm start, that nothing else uses
        assert not {getattr(r, kind) for r in runs if r.lr} & {getattr(r, kind) for r in runs if not r.lr}
    for method in ("grpo", "rlsd", "opsd"):
        assert sum(r.method == method and r.task == "addition" and not r.lr for r in runs) >= 10
    for r in runs:
        parse_config(r.arguments(tmp_path / "a folder"))
    for name, options, run in plan.probes() + plan.quick_probes():
        own, config = probe.parse([*options.split(), "--warm_dir", str(tmp_path)])
        assert own.batches >= 5 and config.seed == int(name.rpartition("-")[2])
        assert run is None or (run.warm_seed, run.task, run.seed) == (config.warm_seed, config.task, config.seed)


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


def as_trained(name, options):
    """What train.py leaves of a run, with figures of its own; here all at once."""
    out = Path(options[options.index("--out") + 1])
    steps = int(options[len(options) - 1 - options[::-1].index("--steps") + 1])
    rng = np.random.default_rng([ord(c) for c in str(out)])
    rows = [{"step": i, **{name: rng.random() for name in (*execute.CURVE[1:], "loss")}} for i in range(steps + 1)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.jsonl").write_text("".join(json.dumps(row | {"nothing": None}) + "\n" for row in rows))
    (out / "config.json").write_text(json.dumps({"steps": steps}))
    (out / "last.pt").write_text("")


def test_a_run_comes_out_of_its_cell_as_it_went_in(tmp_path, monkeypatch):
    """Recorded, read and put into its cell: every update's figures, under its own task, samples, seeds and rate."""
    asked, folders = [], [tmp_path / "runs", tmp_path / "results"]
    monkeypatch.setattr(execute, "program", lambda *job: asked.append(job[1][-1]) or as_trained(*job))
    made = [plan.Run("addition", 256, "grpo", 3), plan.Run("countdown", 32, "rlsd-wide", 1)]
    made += [plan.Run("countdown", 256, "rlsd", 12), plan.Run("countdown", 256, "grpo", 100, "1e-4")]
    for wanted in (made[:1], made, made):
        execute.execute(wanted, *folders)
    assert len(asked) == len(set(asked)) >= 4 and {str(r.out(folders[0])) for r in made} < set(asked)
    assert sum(len(path.read_text().splitlines()) for path in folders[1].iterdir()) == 4
    study = scores.Study(execute.read(tmp_path / "results"))
    found = [(cell, one) for cell, runs in study.cells.items() for one in runs] + [(None, one) for one in study.tuning]
    assert len(found) == 4
    for r in made:
        ((cell, one),) = [(cell, one) for cell, one in found if one["name"] == r.name]
        assert cell == (None if r.lr else (r.task, r.method, r.samples, r.seed >= 10)) and one["seed"] == r.seed
        lines = (r.out(tmp_path / "runs") / "metrics.jsonl").read_text().splitlines()
        assert one["curve"] == [{k: round(json.loads(line)[k], 5) for k in execute.CURVE} for line in lines]
        assert len(lines) == (241 if r.samples == 32 else 61) and one["options"] == r.options
    monkeypatch.setitem(plan.RATES["addition", 256], "grpo", "7e-4")
    assert str(made[0].out(folders[0])) not in asked
    execute.execute(made, *folders)  # another rate is another run
    assert asked[-1] == str(made[0].out(folders[0])) and len(asked) == len(set(asked))


def test_a_run_of_seven_of_sixty_steps_is_not_finished(tmp_path, monkeypatch):
    asked, out = [], tmp_path / "run"
    monkeypatch.setattr(execute, "program", lambda *args: asked.append(args))
    execute.train(["--steps", "60"], out)
    as_trained("", ["--out", str(out), "--steps", "7"])
    (out / "config.json").write_text('{"steps": 60}')
    execute.train(["--steps", "60"], out)
    as_trained("", ["--out", str(out), "--steps", "60"])
    execute.train(["--steps", "60"], out)
    new, resumed = ["--steps", "60", "--out", str(out)], ["--resume", "--out", str(out)]
    assert asked == [("train.py", new), ("train.py", resumed)]


@pytest.mark.parametrize("options", [[], ["--quick"], ["--report"], ["--quick", "--report"]])
def test_the_quick_cut_touches_nothing_of_the_study(tmp_path, monkeypatch, options):
    """Trained, kept, reported: of the study in results/, of the cut in runs/quick, and nothing of older ones."""
    calls, made = [], []
    home = tmp_path / "runs" / "quick" / "results" if "--quick" in options else tmp_path / "results"
    wanted = plan.quick() if "--quick" in options else plan.study()
    (home / "study").mkdir(parents=True)
    rows = [{"name": one.name, "options": text} for one in wanted[:1] for text in (one.options, "--lr 1")]
    (home / "study" / "addition.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    probed = plan.quick_probes() if "--quick" in options else plan.probes()
    measured = {"name": probed[0].name, "options": probed[0].options}
    (home / "probe").mkdir()
    (home / "probe" / "probes.jsonl").write_text(json.dumps(measured) + "\n")
    (home / "cost.json").write_text('{"methods": 1}')
    folder = tmp_path / "runs" / ("quick" if "--quick" in options else "study")
    pair = [one for one in wanted if one.method == "rlsd"][1].out(folder) / "samples.jsonl"  # the first has none
    pair.parent.mkdir(parents=True)
    pair.touch()  # of the cut; the study's own is committed
    pair = pair if "--quick" in options else tmp_path / "results" / "make_train" / "rlsd_samples.jsonl"
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    note = lambda todo, *folders, **jobs: calls.append((len(todo), *folders, *jobs.values()))
    for name in ("execute", "execute_probes", "headroom.execute"):
        monkeypatch.setattr(f"reproduce.{name}", note)
    monkeypatch.setattr(report, "write", lambda *args: made.append(args) or args[-1])
    assert reproduce.main(options) == 0 and made == [(rows[:1], [measured], [], {"methods": 1}, pair, home)]
    trained = [(len(wanted), folder, home / "study"), (len(probed), folder, home / "probe")]
    trained += [(0 if "--quick" in options else len(reproduce.headroom.cells()), folder, home / "headroom.jsonl", 2)]
    assert calls == ([] if "--report" in options else trained)


def test_a_line_that_is_no_whole_run_of_its_own_counts_nowhere(tmp_path, capsys):
    """Torn, edited, cut short, another's figures, or there already: named by file and line, and passed over."""
    made = [plan.Run("addition", 256, "grpo", seed) for seed in (0, 1)]
    curve = [{"step": step, "reward": 0.5, **({} if step % 5 else {"pass@1": 0.5})} for step in range(61)]
    cell = "name options task method seed samples lr".split()
    rows = [{**{k: getattr(r, k) for k in cell}, "curve": curve} for r in made]
    whole, other = json.dumps(rows[0]), lambda **changed: json.dumps({**rows[1], **changed})
    bad = [
        whole,  # a second time
        whole[:-20],
        *(other(curve=of) for of in (curve[:-1], curve[:30] + curve[31:], None)),
        other(curve=[{**curve[0], "pass@1": float("nan")}, *curve[1:]]),
        other().replace("0.5", "1e999"),
        other(seed=7),  # another seed by the same figures
        json.dumps({**rows[0], "name": made[1].name, "options": made[1].options}),
        *("[]", "1", "null", '{"name": "x"}', '{"name": [], "options": ""}', "[" * 100_000, "\x00", ""),
    ]
    (tmp_path / "addition.jsonl").write_text("\n".join([whole, *bad]))
    assert execute.read(tmp_path) == rows[:1]
    told = [line.partition(": passed over: ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == [f"{tmp_path}/addition.jsonl:{i}" for i in range(2, 2 + len(bad) - 1)]
    with (tmp_path / "addition.jsonl").open("a") as file:
        file.write(json.dumps(rows[1]) + "\n")
    assert execute.read(tmp_path) == rows


def test_the_committed_runs_are_whole(capsys):
    folder = execute.ROOT / "results" / "study"
    lines = sum(len(path.read_text().splitlines()) for path in folder.glob("*.jsonl"))
    rows = execute.current(execute.read(folder), plan.study())
    assert len(rows) == len(plan.study()) == lines
    assert {name for row in rows for update in row["curve"] for name in update} == set(execute.CURVE)
    assert capsys.readouterr().out == ""


# ---- a researcher's own cells ----------------------------------------------------------------------------------------


def test_cells_are_runs_of_the_study_seed_by_seed_with_the_same_options_more():
    runs = plan.chosen("countdown:rlsd,grpo,rlsd", "0-1,11", "--steps=20 --lr 1e-3")
    assert [(r.method, r.seed) for r in runs] == [(m, s) for s in (0, 1, 11) for m in ("rlsd", "grpo")]
    for r in runs:
        assert r.options == f"{dataclasses.replace(r, more='').options} --steps 20 --lr 1e-3"
        config = parse_config(r.options.split())
        assert (config.task, config.method, config.seed, config.steps) == ("countdown", r.method, r.seed, 20)
        assert config.lr == 1e-3 and config.warm_seed == int(r.seed == 11)  # one warm start for both of a pair
    assert plan.chosen("addition:grpo,opsd", "3", "") == [plan.Run("addition", 256, m, 3) for m in ("grpo", "opsd")]


def test_what_was_added_by_the_table_of_contributing_is_a_cell(monkeypatch):
    """A reading of the evidence, a method, a task: known by their names, without a line in study/."""
    field = Config.__dataclass_fields__["evidence"]
    monkeypatch.setattr(field, "metadata", {**field.metadata, "choices": (*field.metadata["choices"], "mine")})
    of = parse_config(plan.chosen("addition:grpo,mine", "0", "")[1].options.split())
    assert (of.method, of.evidence, of.lr) == ("rlsd", "mine", 4e-4)
    monkeypatch.setattr(plan, "METHODS", (*plan.METHODS, "my_method"))
    assert "--method my_method  --lr 4e-4" in plan.Run("addition", 256, "my_method", 0).options
    monkeypatch.setitem(plan.GENERATORS, "my_task", (tasks.addition, "number"))
    assert " --task my_task " in plan.Run("my_task", 256, "grpo", 0).options


@pytest.mark.parametrize(
    "cell, seeds, more, says",
    [
        ("addition:grpo", "0-4", "", "nothing to compare"),
        ("addition:grpo,rlsd", "4-0", "", "nothing to compare"),
        ("addition:grpo,rlsd", "few", "", "0-4"),
        ("addition:grpo,rlsd", "0-", "", "0-4"),
        ("addition:grpo,nobodys", "0", "", "'nobodys' is none of grpo"),
        ("addition:rlsd,plain", "0", "", "'plain' is none of grpo"),  # it is rlsd again
        ("sums:grpo,rlsd", "0", "", "'sums' is none of addition"),
        ("addition:grpo,rlsd", "0", "--seed 3", "--set --seed"),
        ("addition:grpo,rlsd", "0", "--stepz 3", "unrecognized arguments: --stepz"),
    ],
)
def test_cells_that_cannot_be_compared_are_one_line(capsys, cell, seeds, more, says):
    assert reproduce.main(["--cells", cell, "--seeds", seeds, f"--set={more}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_comparison_by_hand_and_no_interval_under_five_seeds(tmp_path):
    """Mine ends 0.1 above GRPO on every seed but one that GRPO lacks; half the updates; twice the seconds."""
    slow, fast = [0.0, 0.2, 0.4, 0.8, 0.8], [0.0, 0.4, 0.8, 0.9, 0.9]
    for n in (4, 5):
        wanted = [plan.Run("addition", 256, m, s) for s in range(n) for m in ("grpo", "mine")]
        rows = [run(fast, s, "mine", seconds=2.0) for s in range(n + 1)] + [run(slow, s, seconds=1.0) for s in range(n)]
        said = compare.write(wanted, rows, tmp_path)
        grpo, mine = (said.split(f"\n| {m} |")[1].splitlines()[0].strip("| ").split(" | ") for m in ("grpo", "mine"))
        assert grpo[:3] == ["1", str(n), "0.800" + " [0.800, 0.800]" * (n == 5)]
        to = lambda v: scores.updates_to(run(v), 0.72)
        shown = [f"{x:.{d}f}" for x, d in ((0.9, 3), (0, 4), (0.1, 3), (0.16, 3), (to(slow) / to(fast), 2), (2, 2))]
        assert [cell.split(" [")[0].split(",")[0] for cell in mine[2:-1]] == shown and "0 never" in mine[6]
        assert ("[" in said, "no interval and no verdict" in said) == (n == 5, n == 4)
        assert mine[1] == str(n) and mine[-1] == ("holds" if n == 5 else "undecided")
        assert (tmp_path / "addition-grpo-mine.png").stat().st_size > 10_000
        assert len({line.count("|") for line in said.splitlines() if line.startswith("|")}) == 1
    few = [*wanted, plan.Run("addition", 256, "few", 0)], [*rows, run(fast, 0, "few")]
    assert "1 seeds: no interval and no verdict" in compare.write(*few, tmp_path)
    with pytest.raises(UserError, match="no finished runs of grpo and mine"):
        compare.write(wanted, rows[: n + 1], tmp_path)


def test_the_figure_of_a_comparison_shows_every_seed(drawn, tmp_path):
    """Of more methods than colours: a band from lowest to highest seed, a dot a pair, a bar from five pairs on."""
    cell = {m: {s: run([0.1, 0.5 + 0.02 * s * i], s) for s in range(5 - i // 2)} for i, m in enumerate("abcdefghi")}
    compare.draw(cell, "nine methods", tmp_path / "x.png")
    (left, right), seeds = drawn[0].axes, [5 - i // 2 for i in range(9)]
    assert words(left.get_legend()) == [f"{m} ({n})" for m, n in zip(cell, seeds)]
    assert drawn[0].get_suptitle() == "nine methods" and all(axis.get_xlabel() for axis in (left, right))
    assert [band(left, i, 5) for i in range(9)] == [(0.5, 0.5 + 0.02 * i * (n - 1)) for i, n in enumerate(seeds)]
    dots = [pytest.approx(0.01 * i * np.arange(n)) for i, n in enumerate(seeds) if i]
    assert [line.get_xdata() for line in right.lines if line.get_marker() == "o"] == dots
    ((point, ends),) = bars(right)  # of b alone
    of = bootstrap.mean(0.01 * np.arange(5))
    assert point == [pytest.approx([of.value, 0])] and ends == [pytest.approx([of.low, of.high])]
    assert right.lines[-1].get_xdata() == [0, 0]
    assert [tick.get_text() for tick in right.get_yticklabels()] == list("bcdefghi") and right.yaxis_inverted()


def test_a_comparison_tells_the_rate_and_a_method_that_changed_nothing(tmp_path):
    """As a reading that the clip hides: every figure of the same runs but their seconds; and not of one seed alone."""
    wanted = [plan.Run("addition", 256, m, s) for s in (0, 1) for m in ("grpo", "rlsd", "clamped")]
    rows = [run([0.0, 0.4, 0.8], s, m, seconds=i) for s in (0, 1) for i, m in enumerate(("rlsd", "clamped"))]
    rows += [run([0.0, 0.4, 0.8 if s else 0.7], s) for s in (0, 1)]
    rows[-1]["options"] += " --lr 2e-4 --warm_lr 3"  # the last one wins
    said = compare.write(wanted, rows, tmp_path)
    assert "| grpo | 1, 2e-4 | 2 |" in said and "| clamped | 1 | 2 |" in said
    (same,) = [line for line in said.splitlines() if "the same runs" in line]
    assert same.startswith("rlsd and clamped are the same runs")


def test_cells_are_made_once_and_reported(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(execute, "program", lambda name, options: made.append(options) or as_trained(name, options))
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    command = ["--cells", "addition:grpo,rlsd", "--seeds", "0-1", "--set", "--steps 20"]
    assert reproduce.main([*command, "--report"]) == 2 and made == []
    for _ in range(2):
        assert reproduce.main(command) == 0 and len(made) == 2 + 4  # two warm starts
    assert reproduce.main([*command, "--report"]) == 0 and len(made) == 6
    table = capsys.readouterr().out.split("\n| rlsd | 4e-4 | 2 |")
    assert len(table) == 4 and table[1].splitlines()[0] == table[3].splitlines()[0]
    assert reproduce.main([*command, "--quick"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


# ---- probe -----------------------------------------------------------------------------------------------------------


def test_cosines_by_hand():
    vectors = [torch.tensor(v) for v in ([1.0, 0.0], [0.0, 2.0], [1.0, 2.0])]
    table = probe.cosines([{"GRPO": v, "twice": 2 * v} for v in vectors])
    assert table["GRPO"] == pytest.approx([17**-0.5, 2**-0.5, 1.0], abs=1e-4)  # each against the sum of the others
    assert table["twice"] == table["GRPO"]
    for cosine, worth in ((0.4, 4), (-0.4, -4)):  # the second leads away
        found = bootstrap.samples_worth([cosine] * 2, [0.2, 0.2])
        assert (found.value, found.low, found.high) == pytest.approx((worth, worth, worth))
    # a coordinate a hundred times as large has no more say in Adam's step than any other; one never moves
    vectors = [torch.tensor([*v, 0.0]) for v in ([100.0, 1.0], [50.0, -1.0], [100.0, 1.0])]
    gains = probe.cosines([{"GRPO": v, "half": v / 2} for v in vectors], adam=True)
    assert gains["half"] == gains["GRPO"]
    others = torch.tensor([[150.0, 0.0, 0.0], [200.0, 2.0, 0.0], [150.0, 0.0, 0.0]])
    size = torch.tensor([7500**0.5, 1.0, 1.0])
    expected = [torch.cosine_similarity(v / size, o, dim=0) for v, o in zip(vectors, others)]
    assert gains["GRPO"] == pytest.approx([e.item() for e in expected], abs=1e-4)


def test_gradients_of_the_probe_are_those_of_the_training_step(monkeypatch):
    """GRPO's, RLSD's and OPSD's by train.update; the two of weights 0 and 1 written out. Away from the defaults."""
    config, policy, batch = sampled("--temperature 0.8 --privileged solution --evidence plain")
    found = probe.gradients(policy, batch, config)
    for name, lam, method in (
        ("GRPO", 0.0, "rlsd"),
        ("RLSD, eps_w 0.2, lambda 0.5 (paper)", 0.5, "rlsd"),
        ("OPSD, full vocabulary", 0.0, "opsd"),
    ):
        assert torch.allclose(found[name], updated(batch, config, lam, method=method), atol=1e-5), name
    views = ([tasks.prompt(p, shown(p)) for p in batch.problems] for shown in (lambda p: "", lambda p: p.solution))
    student, teacher = (token_logps(policy, view, batch.samples, 0.8) for view in views)
    delta, A, mask = (teacher - student).detach(), batch.advantages[:, None], batch.samples.mask
    for name, ones in (
        ("agreement: weight 1 where sign(A) Delta > 0.02, else 0", A.sign() * delta > 0.02),
        ("weight 1 where |Delta| > 0.02, else 0", delta.abs() > 0.02),
    ):
        assert 0 < (ones & mask).sum() < (mask & (A != 0)).sum()
        loss = -(student * A * ones * mask).sum() / mask.sum()
        assert torch.allclose(found[name], flat(loss, policy), atol=1e-5), name
    shares = probe.evidence_shares(policy, batch, config)
    assert all(0 <= row[k] <= 1 + 1e-6 for row in shares for k in row if k != "right")
    monkeypatch.setattr(tasks, "teacher_view", lambda problem, privileged: tasks.student_prompt(problem))
    assert {row["moved first"] for row in probe.evidence_shares(policy, batch, config)} == {0}  # shown nothing


def test_a_probe_is_of_the_batches_that_teach_and_says_what_it_found(tmp_path, monkeypatch, capsys):
    """Of three; all samples of the second have one reward."""
    rewards = iter([*range(16), *[0] * 16, *range(1000)])
    source = tasks.generated("addition", 6), lambda completion, answer: float(next(rewards) % 2)
    monkeypatch.setattr(probe, "load_source", lambda config: source)
    few = ["--eval_problems", "6", "--max_new_tokens", "30", "--batches", "3", "--keep", str(tmp_path / "kept")]
    assert probe.main([*SMALL.split(), *few]) == 0
    shares, said = json.loads((tmp_path / "kept").read_text())["shares"], capsys.readouterr().out
    assert "; 2 x 16 samples" in said and [of["samples"] for of in shares.values()] == [16, 16]
    for name, share in shares.items():
        assert all(0 <= share[x] < 1 for x in share.keys() - {"samples"})
        assert f"{name} samples: uniform {share['uniform']:.3f}, " in said


def test_a_probe_is_measured_once_and_its_policy_trained_first(tmp_path, monkeypatch):
    calls = []
    of = lambda name, options: calls.append(name) or name == "study/probe.py" and measured(options)
    monkeypatch.setattr(execute, "program", of)
    wanted = [one for one in plan.probes() if one.name.endswith("-0")]
    for _ in range(2):
        execute.execute_probes(wanted, tmp_path / "runs", tmp_path / "results")
    assert calls.count("study/probe.py") == len(wanted) and calls.count("train.py") == 1
    assert {row["name"] for row in execute.read(tmp_path / "results")} == {one.name for one in wanted}


def test_what_a_probe_of_five_policies_says():
    probes = [{"name": f"countdown-{k}", "pass@1": 0.1, "teacher pass@1": 0.9, "samples": 32} for k in range(5)]
    for k, one in enumerate(probes):
        one["cosines"] = one["adam"] = {"GRPO": [0.2, 0.2], "RLSD, eps_w 4, lambda 1": [0.2 + 0.02 * k] * 2}
    found = bootstrap.worth(probes, report.WIDE_WEIGHTS, "adam")
    assert found.n == 5 and found.value == pytest.approx(np.mean([1 + 0.1 * k for k in range(5)]) ** 2)
    assert found.low < found.value < found.high
    (row,) = report.credit_claims(probes)
    assert row[0] == "Wide weights are worth more samples (countdown, before RL)" and row[-1] == "holds"
    assert "5 policies, 10 batches of 32 samples" in report.probe_tables(probes)
    assert [row[-1] for row in report.credit_claims(probes[:1])] == ["undecided"]  # one policy gives no verdict


def test_the_language_models_page_is_its_runs_and_its_figures_stand_on_our_pages():
    rows = language.read()
    page = language.page(rows)
    assert (language.ROOT / "results/language.md").read_text() == page
    assert len({(row["name"], row["options"]) for row in rows}) == len(rows) == 49
    fewer = language.page([row for row in rows if not (row["method"] == "grpo" and row["seed"] == 4)])  # its pair goes
    assert "undecided" in fewer.split("\n| rlsd |")[1].splitlines()[0]
    said = (language.ROOT / "README.md").read_text() + (language.ROOT / "docs/study.md").read_text()
    finals = {m: page.split(f"\n| {m} |")[1].split("|")[2].split()[0] for m in ("grpo", "rlsd", "opsd")}
    assert finals == {"grpo": "0.251", "rlsd": "0.286", "opsd": "0.727"}
    assert all(f"OPSD takes it to {finals['opsd']}" in said and f"({finals[m]})" in said for m in ("grpo", "rlsd"))
    both = [row for row in rows if row["method"] in ("grpo", "rlsd") and row["tickets"] == 7]
    narrow = f"{sum(language.alike(row) > 0.98 for row in both)} of"  # runs with hardly a lesson left
    assert f"in {narrow} {len(both)} runs" in " ".join(said.split()) and f"In {narrow} these {len(both)} runs" in said


def test_a_methods_rate_is_the_best_of_its_tuning_runs_alone(tmp_path, monkeypatch, drawn, capsys):
    """Every rate on seeds and tickets of their own; then each method at its best, the two that are compared on five."""
    rows, asked, best = [], [], dict.fromkeys(language.METHODS, "2e-5") | {"opsd": "4e-5"}

    def made(runs, *how):
        asked.append((*how, {(r.method, r.seed, r.lr, r.tickets) for r in runs}))
        for r in runs:
            good = r.lr == best[r.method] or (r.method, r.lr) == ("rlsd", "4e-5")  # of equals the lower
            more = {"tickets": r.tickets, "device": how[1], "quotes": 0.0}
            last = 0.8 + 0.01 * (r.seed % 100) if good else 0.3
            rows.append(run([0.2, last], r.seed, r.method, lr=r.lr, no_spread=0.5, **{"teacher pass@1": 0.9}) | more)

    monkeypatch.setattr(language, "execute", made)
    monkeypatch.setattr(language, "read", lambda: rows)
    monkeypatch.setattr(language, "RESULTS", tmp_path)
    for options in (["model"], ["--report", "--device", "cpu"]):
        assert language.main(options) == 0 and capsys.readouterr().out == f"{tmp_path / 'language.md'}\n"
    tuning = {(m, s, lr, 100) for m in best for s in (100, 101) for lr in language.RATES}
    seeds = {m: 5 if m in ("grpo", "rlsd") else 3 for m in best}
    compared = {(m, s, best[m], 7) for m in best for s in range(seeds[m])}
    assert asked == [(Path("model"), "cpu", 1, of) for of in (tuning, compared)]
    assert (tmp_path / "language.md").read_text() == language.page(rows) and (tmp_path / "language.png").exists()
    (axis,) = drawn[-1].axes
    assert words(axis.get_legend()) == [*best] and axis.get_xlabel() == "update"
    assert [band(axis, i, 5) for i in range(5)] == [(0.8, 0.8 + 0.01 * (seeds[m] - 1)) for m in best]


def test_a_language_run_is_made_of_its_own_options_and_taken_up_again(tmp_path, monkeypatch):
    """Tickets, training, and what is quoted; a run that has ended is not trained again."""
    assert language.python("-c", "print('0.25')") == "0.25\n"
    monkeypatch.setattr(language, "RUNS", tmp_path)
    one, asked = language.Run("opsd", 1, "2e-5"), []

    def fake(script, *options):
        asked.append((Path(script).name, *map(str, options)))
        if asked[-1][0] == "train.py":
            as_trained("", [*asked[-1], "--steps", "60"])
        return "0.25\n"

    monkeypatch.setattr(language, "python", fake)
    said = [language.trained(one, tmp_path / "model", "cpu") for _ in range(2)]
    assert [call[0] for call in asked] == "make_tickets.py train.py language.py make_tickets.py language.py".split()
    config = parse_config([*one.options.split(), "--data", str(tmp_path / "x.jsonl")])
    assert (config.method, config.seed, config.lr, config.steps) == ("opsd", 1, 2e-5, 60)
    assert set(one.options.split()) < set(asked[1]) and said[0] == said[1] and said[0]["quotes"] == 0.25


def test_a_language_runs_checkpoints_go_once_its_row_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "RESULTS", tmp_path)
    monkeypatch.setattr(language, "RUNS", tmp_path / "runs")
    run, curve = language.Run("grpo", 0, "1e-5"), [{"pass@1": 0.1}, {"pass@1": 0.2}]
    weights = tmp_path / "runs" / run.name / "last.pt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    monkeypatch.setattr(language, "trained", lambda run, *_: {"name": run.name, "options": run.options, "curve": curve})
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr(language, "append", lambda *_: 1 / 0)
        language.execute([run], tmp_path, "cpu", 1)
    assert weights.exists() and language.read() == []
    language.execute([run], tmp_path, "cpu", 1)
    assert not weights.exists() and [row["name"] for row in language.read()] == [run.name]
