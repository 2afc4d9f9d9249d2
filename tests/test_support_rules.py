"""The example with tickets and policy rules: its generator, its verifier, and that it trains."""

import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
from small_runs import ROOT, lines

import tasks
import train
from harness.problems import verifier_of
from sources import jsonl

FOLDER = ROOT / "examples" / "support_rules"
VERIFIER = f"{FOLDER / 'my_rules.py'}:check"


@pytest.fixture(scope="module")
def made():
    """What make_tickets.py defines."""
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "make_tickets.py")))


def test_the_committed_tickets_are_those_that_the_command_makes(tmp_path):
    command, committed = [sys.executable, FOLDER / "make_tickets.py", "--out"], (FOLDER / "tickets.jsonl").read_bytes()
    subprocess.run([*command, tmp_path / "t.jsonl"], check=True)
    assert (tmp_path / "t.jsonl").read_bytes() == committed
    subprocess.run([*command, tmp_path / "u.jsonl", "--seed", "1"], check=True)
    assert (tmp_path / "u.jsonl").read_bytes() != committed


@pytest.mark.parametrize(
    "goods, price, days, state, rule, decision",
    [
        ("gift card", 20, 3, "sealed", "R1", "refuse"),
        ("gift card", 20, 3, "broken", "R1", "refuse"),
        ("lamp", 20, 3, "broken", "R2", "replace"),
        ("lamp", 20, 365, "broken", "R2", "replace"),
        ("lamp", 20, 366, "broken", "R5", "refuse"),
        ("lamp", 20, 30, "sealed", "R3", "refund 20"),
        ("lamp", 20, 31, "sealed", "R5", "refuse"),
        ("lamp", 20, 30, "opened", "R4", "voucher 20"),
        ("lamp", 20, 31, "opened", "R5", "refuse"),
    ],
)
def test_policy_by_hand(made, goods, price, days, state, rule, decision):
    assert made.decide(goods, price, days, state) == (rule, decision)


def test_every_rule_occurs_and_every_ticket_names_its_rule(made):
    rows = lines(FOLDER / "tickets.jsonl")
    assert len({row["question"] for row in rows}) == len(rows) == 600
    for rule, text in made.POLICY.items():
        mine = [row for row in rows if row["answer"].startswith(rule)]
        assert len(mine) > 60 and all(row["rule"] == text for row in mine)
    check = verifier_of(VERIFIER)
    for problem in jsonl.load_problems(str(FOLDER / "tickets.jsonl"), "rule"):
        assert check(tasks.decode(tasks.target(problem)), problem.answer) == 1.0


def test_verifier_by_hand():
    check = verifier_of(VERIFIER)
    right = ("#### R3 refund 40", "sealed, 12 days\n#### r3 Refund 40 EUR.\n", "#### R3 refund 40.")
    wrong = ["", "####", "R3 refund 40", "#### " + "9" * 100_000, "#### R3 refund 40 #### R3 refund 40"]
    wrong += ["#### R3 refund 40 or R5 refuse", "#### R3 refund 41", "#### R4 refund 40", "#### R3 voucher 40"]
    wrong += ["#### refund 40", "#### R3 refund", "#### R3 refund 4０", "#### R3 refund 040", "#### R3 refund -40"]
    expected = {**dict.fromkeys(right, 1.0), **dict.fromkeys(wrong, 0.0)}
    assert {completion: check(completion, "R3 refund 40") for completion in expected} == expected


def test_the_verifier_is_as_short_as_promised():
    code = [line for line in (FOLDER / "my_rules.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 15


def test_the_command_of_its_readme_trains(tmp_path, monkeypatch):
    """As it stands there, but for the number of steps."""
    text = (FOLDER / "README.md").read_text()
    command = text.split("python train.py ", 1)[1].split("```")[0].replace("\\\n", " ").split()
    monkeypatch.chdir(ROOT)
    few = "--warm_steps 2 --warm_batch 4 --steps 2 --eval_every 1 --prompts_per_step 2 --group_size 4 --eval_problems 5"
    paths = ["--out", str(tmp_path / "run"), "--warm_dir", str(tmp_path / "warm")]
    assert train.main([*command, *few.split(), *paths]) == 0
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2] and all("pass@1" in row for row in rows)


def test_figures_are_those_of_the_committed_runs():
    readme = (FOLDER / "README.md").read_text().splitlines()
    for method, start in (("rlsd", "| RLSD |"), ("grpo", "| `--method grpo` |")):
        (cells,) = (line.split("|")[2:-1] for line in readme if line.startswith(start))
        for seed in range(3):
            rows = {row["step"]: row for row in lines(ROOT / "results/support_rules" / f"{method}-{seed}.jsonl")}
            expected = [f"{rows[s]['pass@1']:.3f}" for s in (0, 50, 100, 200)]
            assert [cell.split(",")[seed].strip() for cell in cells] == expected
