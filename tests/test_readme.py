"""The pages: short enough, each link leads somewhere, and each figure stands in the committed results."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ours import ours

import reproduce
from config import Config
from harness.options import CHANGEABLE
from rlsd import group_advantages
from study import bootstrap, execute, headroom, plan, scores

ROOT = Path(__file__).parent.parent
README, REPORT = ((ROOT / page).read_text() for page in ("README.md", "results/report.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ours("docs/*.md", "examples/*/README.md", "results/*.md")]


def prose(page: str) -> str:
    """A page, its line breaks as spaces."""
    return " ".join((ROOT / page).read_text().split())


def recorded(name: str):
    return json.loads((ROOT / f"results/{name}.json").read_text())


def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Where `#...` may lead: headings as code hosts name them."""
    heads = re.findall(r"^#+ (.*)$", without_code(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path)):
        file, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            there = path.parent / file if file else path
            assert there.exists() and (not anchor or anchor in anchors(there)), link


def test_every_equation_points_at_its_function_and_the_lines_shown_are_the_lines_of_the_code():
    rows = re.findall(r"`(\w+)`,\s(\w+\.py):(\d+)", README)
    assert len({row[0] for row in rows}) >= 6
    for function, file, line in rows:
        text = (ROOT / file).read_text().splitlines()[int(line) - 1]
        assert text.startswith(f"def {function}("), f"README: {function} is not at {file}:{line}"
    method = README.split("\n## The method")[1].split("\n## ")[0]
    shown = re.findall(r"In code: `([^`]+)`", " ".join(method.split()))
    code = [line.split("  #")[0].strip() for line in (ROOT / "rlsd.py").read_text().splitlines()]
    assert len(shown) == 3 and set(shown) <= set(code)


def test_figures_are_those_of_the_committed_runs():
    lines = re.findall(r"\| `python train.py( --method grpo)?`[^|]*\|([^\n]+)\|", README)
    assert len(lines) == 2
    for method, cells in lines:
        path = ROOT / "results" / "make_train" / ("grpo.jsonl" if method else "rlsd.jsonl")
        rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}
        assert [float(c) for c in cells.split("|")] == [rows[step]["pass@1"] for step in (0, 20, 40, 60, 100, 200)]
    first = json.loads((ROOT / "results/make_train/rlsd.jsonl").read_text().splitlines()[1])
    assert f"step=1 reward={first['reward']:.4g} length={first['length']:.4g} entropy={first['entropy']:.4g}" in README


def test_the_credit_shown_is_what_sample_printed():
    """The README's and the page's lines, remarks aside, and how many tokens the student was sure of."""
    printed = (ROOT / "results" / "credit.txt").read_text()
    for text, least in ((README, 3), ((ROOT / "docs/credit.md").read_text(), 9)):
        shown = re.findall(r"^ +\d+ '.*?(?=  +[(a-z]|$)|^ +token .*$|^(?:right|wrong): .*$", text, re.MULTILINE)
        assert len(shown) >= least and all(line in printed for line in shown), shown
    of_one = printed.split("completion: ")[1].splitlines()[2:]
    figures = [line.split() for line in of_one if re.match(r" +\d+ '", line)]
    sure = [float(row[-1]) for row in figures if float(row[-6]) > 0.999]
    said = prose("README.md")
    assert f"In the right answer {len(sure)} of {len(figures)} tokens have a P_S above 0.999" in said
    assert max(map(abs, sure)) <= 0.001 and "a push of at most 0.001" in said


def test_options_that_the_pages_name_exist():
    known = {f.name for f in dataclasses.fields(Config)}
    for path in (ROOT / "README.md", *ours("docs/*.md", "examples/support_rules/README.md")):
        for command in re.findall(r"python train\.py ([^`#\n|]+)", path.read_text()):
            named = {word[2:] for word in command.split() if word.startswith("--")}
            assert named <= known | {"help"}, (path.name, command)
    assert [name for name in CHANGEABLE if f"`--{name}`" not in prose("docs/faults.md")] == []
    own = re.findall(r"^\| `--(\w+)", (ROOT / "docs/methods.md").read_text(), re.MULTILINE)
    assert set(own) == {f.name for f in dataclasses.fields(Config) if f.name.startswith("rlsd_")} | {"evidence"}


def test_the_comparison_with_ms_swift_is_that_of_the_recorded_cases():
    """Its samples' advantages are (r - mean) / (std + 1e-4), the authors' and ours divide by std + 1e-6."""
    largest = [0.0, 0.0, 0.0]
    for case in json.loads((ROOT / "tests/data/oracle.json").read_text())["cases"]:
        rewards, recorded = (torch.tensor(case[name], dtype=torch.float64) for name in ("rewards", "advantages"))
        r = rewards.view(-1, case["group_size"])
        swift = ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).view(-1)
        ours = group_advantages(rewards, case["group_size"])
        pairs = (swift, recorded), (ours, recorded), (swift, ours)
        largest = [max(so_far, float((a - b).abs().max())) for so_far, (a, b) in zip(largest, pairs)]
    row = " | ".join(f"{x:.1e}".replace("e-0", "e-") for x in largest)
    assert f"| advantages of the samples, float64 | {row} |" in (ROOT / "docs/trainers.md").read_text()


def table(text: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose head begins with the cell `first`, by column."""
    cells = lambda line: [cell.strip() for cell in line.strip("| ").split(" | ")]
    head, _, *rows = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [dict(zip(cells(head), cells(row))) for row in rows]


def test_the_verdicts_are_those_of_the_report():
    """docs/study.md shows some of the report's rows, in its order and to the letter, and counts the verdicts of all."""
    short = lambda row: [row[name] for name in ("claim", "figure [95 % interval]", "holds if", "seeds", "verdict")]
    rows = [short(row) for row in table(REPORT, "claim") if row["seeds"] != "0"]
    shown = [short(row) for row in table((ROOT / "docs/study.md").read_text(), "claim")]
    assert shown == [row for row in rows if row in shown]
    found = Counter(row[-1] for row in rows)
    verdicts = f"{found['holds']} hold, {found['does not hold']} do not, {found['undecided']} are undecided"
    counts = f"{len(shown)} rows of {len(rows)}; the report has all. Of the {len(rows)}, {verdicts}."
    assert counts in prose("docs/study.md")
    (pays,) = (row[1] for row in shown if row[0].startswith("RLSD pays somewhere"))
    assert f"the best reached {pays}" in prose("README.md")
    (one_pass,) = (row[1].split()[0] for row in shown if row[0] == "One extra forward pass")
    (cost,) = re.findall(r"\| rlsd \| 2 \| ([\d.]+)", REPORT)
    speed = prose("docs/speed.md")
    assert f"the study's {one_pass} is of" in speed and f"its table of costs, {cost}, leaves" in speed


def test_intervals_in_words_are_those_of_the_results():
    """Of docs/study.md and the README; and how much of the marked solutions has been scored."""
    results = {name: (ROOT / f"results/{name}.md").read_text() for name in ("report", "language", "localise")}
    study, found = prose("docs/study.md"), prose("README.md").split("## What we found")[1].split(" ## ")[0]
    for page in (study, found, prose("docs/derivation.md")):
        quoted = re.findall(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", page)
        assert len(quoted) >= 2 and [q for q in quoted if q not in "".join(results.values())] == []
    measured = (ROOT / "results/headroom.jsonl").read_text().count("\n")
    assert f"{measured} of its {len(headroom.cells())} cells are measured" in study
    done, marked = re.findall(r"(\d+) of (\d+) solutions", results["localise"])[0]
    score = "score of a step"
    verdicts = [row["verdict"] for row in table(results["localise"], score) if "Delta" in row[score]]
    level, finds, other = map(verdicts.count, ("level with chance", "finds it", "points elsewhere"))
    assert f"{done} of the {marked} are scored" in study and level + finds + other == len(verdicts) == 8
    assert level == 8 and f"{level} are level with chance" in study


def test_a_verdict_follows_from_its_figure_and_the_mark_beside_it():
    """Of all rows of the report but those of two marks."""
    for row in table(REPORT, "claim"):
        side, _, mark = row["holds if"].partition(" ")
        if side in "<>" and row["seeds"] != "0":
            low, high = map(float, re.findall(r"-?[\d.]+", row["figure [95 % interval]"].split("[")[1]))
            if side == "<":
                low, high, mark = -high, -low, f"-{mark}"
            margin = 0.02 if re.match("RLSD (ends above|leads)|OPSD stays", row["claim"]) else 0.0
            of = bootstrap.Estimate(0.0, low, high, int(row["seeds"].split()[0]))
            assert row["verdict"] == of.verdict(float(mark), margin), row


def test_the_bound_is_that_of_the_papers_settings():
    """Multipliers lie in [1 - lambda eps_w, 1 + lambda eps_w] (docs/derivation.md)."""
    reach = Config().rlsd_lambda * Config().rlsd_reweight_clip_range
    most, usual = f"{((1 + reach) / (1 - reach)) ** 2:.2f}", f"{(1 + reach) ** 2:.2f}"
    assert f"divides the samples needed by {most} at most" in prose("README.md")
    study, section = prose("docs/study.md"), prose("results/report.md")
    assert f"are worth more than {most}, nor than {usual} where tokens of noise have no evidence" in section
    rows = {row["claim"].partition(" (addition, after")[0]: row for row in table(REPORT, "claim")}
    marks = rows["An oracle's marks are worth 1.2 times the samples"]["measured"]
    (oracle,) = re.findall(r"1.1 and 0.9: ([\d.]+)", marks)
    rlsd = rows["The paper's weights are worth more samples"]["figure [95 % interval]"].split()[0]
    assert f"an oracle in that range gives {oracle}, RLSD {rlsd}." in prose("README.md")
    assert f"worth more than {most} times the samples, and {usual} times where noise tokens" in study


def test_the_report_is_the_one_that_the_committed_runs_make(tmp_path):
    made = reproduce.write_report(plan.study(), plan.probes(), tmp_path, ROOT / "results", tmp_path)
    assert made.read_text() == REPORT


def test_ratios_of_the_bench_and_reasons_for_missed_goals_are_those_of_its_last_run():
    speed, bench, page = prose("docs/speed.md"), recorded("bench"), (ROOT / "results/bench.md").read_text()
    run = [row for row in bench["rows"] if "skipped" not in row]
    quoted = [row["ratio"] for row in table((ROOT / "docs/speed.md").read_text(), "work")]
    assert quoted == [f"{row['ratio']:.3g}" for row in run] and all(row["work"] in page for row in run)
    rows = {row["name"]: row for row in bench["rows"]}
    reached = [row["reached"] for row in rows.values() if row.get("reached") is not None]
    assert (reached.count(False), len(reached)) == (12, 19) and "Twelve of nineteen goals are missed" in speed
    for row, ratio in (("grpo-step", "2.41"), ("grpo-step-plain", "1.75")):
        ours, theirs = (min(rows[name][key] for name in (row, f"{row}-2")) for key in ("seconds", "seconds_beside"))
        assert f"{theirs / ours:.2f}" == ratio and f"{ratio} for" in speed
    most = max(rows["train-memory"]["bytes"]), rows["train-memory"]["ratio"] * 700e6
    assert f"{most[1] / 1e6:.0f} MB for 700" in speed and most[0] < 765e6
    stages, shares = bench["profile"]["stages"], bench["operations"]
    teacher = stages["teacher forward"]["seconds"]
    rest = bench["profile"]["seconds"] - teacher
    decode, backward = (stages[name]["seconds"] / rest for name in ("decode", "backward"))
    assert f"Decode is {decode:.0%} of our step and backward {backward:.0%}".replace("%", " %") in speed
    assert f"It takes {1000 * teacher:.0f} ms beside the {1000 * rest:.0f} of all else" in speed
    assert f"{shares['bmm'] + shares['mm']:.0%} of the time; alone".replace("%", " %") in speed
    numbers = re.findall(r"^[\d.]+(?: [\d.]+)?$", (ROOT / "results/speed_reasons.txt").read_text(), re.MULTILINE)
    imported, more, *seconds = [float(x) for line in numbers for x in line.split()]
    slower = sum(seconds[3:]) / sum(seconds[:3]) / 2
    assert f"slow each other down by {slower:.2f} only" in speed and f"so {2 / slower:.2f} is there" in speed
    assert f"{imported:.0f} MiB that nobody shares" in speed and f"and {more - imported:.0f} more" in speed


def test_every_file_is_named_where_one_looks_for_it():
    """The top level in the README's tree; a room's in CONTRIBUTING's map, in its row; the pages in their list."""
    listed = set(re.findall(r"\]\((\w+\.(?:md|ipynb))\)", (ROOT / "docs/README.md").read_text()))
    assert listed == {path.name for path in ours("docs/*.md", "docs/*.ipynb")} - {"README.md"}
    tree = README.split("## The files")[1].split("```")[1]
    top = {p.name for p in ours("*") if p.name[0] != "."} - {"README.md"}
    named = lambda file: re.search(rf"(?<![\w.]){re.escape(file)}(?![\w])", tree)
    assert [file for file in sorted(top) if not named(file)] == []
    assert [p.parent.name for p in ours("*/*.py") if f"{p.parent.name}/" not in tree] == []
    files = set()
    for row in table((ROOT / "CONTRIBUTING.md").read_text(), "room"):
        room = "" if row["room"] == "top" else row["room"].strip("`")
        files |= {room + file for file in re.findall(r"`([\w.]+)`", row["file"])}
    there = {p.relative_to(ROOT).as_posix() for p in ours("*.py", "*/*.py", "credit/page.html")}
    assert files == {p for p in there if not p.startswith("tests/") and not p.endswith("__init__.py")}


@pytest.mark.parametrize("with_git", [False, True])
def test_a_scratch_file_is_not_ours(tmp_path, monkeypatch, with_git):
    (tmp_path / "docs").mkdir()
    for file in ("README.md", "CONTRIBUTING.md", "docs/README.md", "train.py"):
        (tmp_path / file).write_text("`train.py`, docs/README.md")
    if with_git:
        if not shutil.which("git"):
            pytest.skip("no git here")
        for command in ("init", "add ."):
            subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    for scratch in ("scratch.py", "docs/notes.md"):
        (tmp_path / scratch).touch()
    monkeypatch.setattr("ours.ROOT", tmp_path)
    assert ours("*.py", "docs/*.md") == [tmp_path / "train.py", tmp_path / "docs" / "README.md"]


def test_pages_name_files_that_are_there_in_lines_no_longer_than_those_of_the_code():
    """And the README is short."""
    assert len(README.splitlines()) <= 160 and len(README.split()) <= 1600  # read in one sitting
    file = r"(?<![\w/])(?:results|docs|tests|examples)/[\w/]+\.(?:md|json|png|py|jsonl)"
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ours("docs/*.md"), ROOT / "Makefile"):
        text, is_prose = page.read_text(), page.suffix == ".md"
        assert [name for name in re.findall(file, text) if not (ROOT / name).exists()] == [], page.name
        assert [x for x in text.splitlines() if len(x) > 120 and x[0] != "|" and is_prose] == [], page.name


def test_reliability_quotes_the_recorded_figures():
    page = (ROOT / "results/reliability.md").read_text()
    for file, of in recorded("mutants")["files"].items():
        assert f"{of['killed']} of {of['mutants']}" in page, file
    sampled, parts = recorded("mutants")["sampled"], (ROOT / "tests" / "mutation.md").read_text().split("## By sample")
    tried, killed = (sum(of[what] for of in sampled.values()) for what in ("tried", "killed"))
    assert re.search(rf"{len(sampled)} files\s30 at random .*: {killed:,} of {tried:,} are killed", page, re.DOTALL)
    assert tried == sum(of["drawn"] for of in sampled.values())
    low = [file for file, of in sampled.items() if of["killed"] < 0.85 * of["tried"]]
    assert re.findall(r"(?:- |, )`([\w/]+\.py)`", parts[1]) == low
    covered = re.findall(r"^(\S+) .* ([\d.]+)%$", (ROOT / "results" / "coverage.txt").read_text(), re.MULTILINE)
    shares = [float(share) for name, share in covered if name != "TOTAL"]
    assert len(shares) == 37 and f"{covered[-1][1]} %, no file under {min(shares)} %" in page
    faults, museum, refused = recorded("faults"), recorded("museum"), recorded("bad_input")["inputs_tried"]
    assert f"{faults['kills']} of {faults['kills']}" in page and f"one of {faults['finished runs']}" in page
    assert f"{museum['caught']} of {museum['pieces']}" in page and f"{refused:,}" in page
    planted = recorded("planted")
    files = len({row["file"] for row in planted["rows"]})
    assert f"in {files} files" in page and f"{planted['seen']} of {planted['mistakes']}" in page
    assert f"asks for {recorded('learning_test')['margin']}" in page


def test_speed_and_size_of_published_models_are_those_measured():
    found = recorded("models")
    speed, run = found["SmolLM2-135M-Instruct, float32"], found["RLSD step of Qwen3-0.6B's shape"]
    updates = found["SmolLM2-135M-Instruct, two updates of 8 samples"]
    one, many = (speed[f"tokens/s, {rows} rows"] for rows in (1, 16))
    seconds, gib, tokens = f"{updates['CPU seconds']} s", f"{updates['peak GiB']} GiB", updates["tokens a sample"]
    models, example = prose("docs/models.md"), prose("examples/smollm2/README.md")
    assert f"{one} tokens a second on one CPU thread, {many:.0f} for 16 rows" in models
    assert f"take {seconds} of CPU time and {gib} in float32" in models
    assert f"{tokens} tokens each) take {seconds}, start and one evaluation included, and {gib}:" in example
    assert f"{one} tokens a second for a single answer, {many:.0f} for 16 rows" in example
    step = f"peaked at {run['peak GiB']} GiB, and the whole run took {run['CPU seconds']:.0f} s of CPU time"
    assert step in prose("docs/speed.md")


def test_the_times_of_make_train_and_make_test_are_those_recorded():
    logs = [(ROOT / "results" / f"make_{name}.txt").read_text() for name in ("train", "test")]
    found = [re.findall(r"^real\s+(\d+)m([\d.]+)s", log, re.MULTILINE) for log in logs]
    (idle, busy), (tests, beside) = ([60 * int(m) + float(s) for m, s in times] for times in found)
    assert f"{idle / 60:.1f} minutes on two idle ones, {busy / 60:.1f} beside a busy program" in README
    assert f"took {idle:.0f} s with the machine to itself and {busy:.0f} s beside" in prose("docs/speed.md")
    said = f"# the same for the tests: {tests / 60:.0f} minutes on two idle cores, {beside / 60:.0f} beside"
    assert f"make test      {said}" in README and "failed" not in logs[1]


def test_what_make_llm_reaches_is_what_its_log_says():
    log = (ROOT / "results" / "make_llm.txt").read_text()
    shares = r"share right: ([\d.]+) before RL \(shown the rule: ([\d.]+)\), ([\d.]+) after (\d+) updates"
    before, shown, after, updates = re.search(shares, log).groups()
    minutes, gib = re.search(r"^([\d.]+) minutes$", log, re.MULTILINE)[1], max(re.findall(r"peak_GiB=([\d.]+)", log))
    example = prose("examples/support_rules/README.md")
    for text in (prose("README.md"), example):
        assert f"{before} right before RL, {after} after {updates} updates" in text
        assert f"{float(minutes):.0f} minutes on two idle cores" in text and f"{float(gib):.1f} GiB" in text
    assert f"shown the rule, in {shown}" in example
    for said in re.findall(r"^  (?:right|before|after): +(.*)$", log, re.MULTILINE):
        assert said in example
    log = (ROOT / "results" / "make_llm_cuda.txt").read_text()
    before, _, after, updates = re.search(shares, log).groups()
    minutes = re.search(r"^([\d.]+) minutes$", log, re.MULTILINE)[1]
    seconds = re.findall(r"updates \((\d+) s\)", log)[-1]
    said = f"takes {minutes} minutes after the download, {seconds} s of them for its {updates} updates, from {before}"
    assert f"{said} to {after} " in prose("docs/models.md") and "one NVIDIA H100" in log.splitlines()[0]


def test_the_derivation_quotes_the_probes():
    page = prose("docs/derivation.md")
    found = bootstrap.families(execute.read(ROOT / "results/probe"))
    of_wrong = lambda name: f"{np.mean([p['shares']['wrong'][name] for p in found['addition']]):.0%}".replace("%", " %")
    uniform, first, deciding = map(of_wrong, ("uniform", "moved first", "moved deciding"))
    assert f"{deciding} of the weight moved falls on the first wrong token ({uniform} of the tokens), and " in page
    assert f"and {first} on the first token of all" in page
    worth = lambda family, how, kind: bootstrap.worth(found[family], f"RLSD, eps_w {how}", kind)
    wide, later = (worth(f, "4, lambda 1", "adam").text(2) for f in ("countdown", "countdown-after-grpo"))
    assert f"worth {wide} times the samples on five warm starts, and {later} times" in page
    paper, adam = (f"{worth('addition', '0.2, lambda 0.5 (paper)', x).value:.2f}" for x in ("cosines", "adam"))
    assert f"worth {paper} times GRPO's samples, by the gradient ({adam} by Adam's step)" in page
    assert f"weights are worth {paper} times GRPO's samples (section 5)" in page
    runs = scores.Study(execute.read(ROOT / "results/study")).runs("countdown", "grpo")
    (before,) = {run["curve"][0]["teacher pass@1"] for run in runs}
    after = [probe["teacher pass@1"] for probe in found["countdown-after-grpo"]]
    mean, least, most = (f"{x + 1e-9:.3f}" for x in (np.mean(after), min(after), max(after)))  # halves go up
    assert f"from {before + 1e-9:.3f} to {mean} (five runs from one warm start, {least} to {most}, " in page


def test_equal_rewards_leave_a_residue_in_trl_and_none_here():
    """TRL's samples' advantages are (r - mean) / (std + 1e-4), in float32; the last digits are the processor's."""
    figures = r"of ([\d,]+) groups .* 16\) (\d+) get .*? the largest ([\d.]+)\."
    groups, above, largest = re.search(figures, prose("docs/trainers.md")).groups()
    residues = []
    for reward, size in itertools.product(range(1, 100), range(2, 17)):
        r = torch.full((1, size), reward / 100)
        residues.append(float(((r - r.mean(1)) / (r.std(1) + 1e-4)).abs().max()))
        assert not group_advantages(r[0], size).any()
    assert len(residues) == int(groups.replace(",", ""))
    assert sum(x > 1e-4 for x in residues) == pytest.approx(int(above), rel=0.1)
    assert max(residues) == pytest.approx(float(largest), rel=0.1)
