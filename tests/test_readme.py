"""The README's table of equations points at the right lines, and its figures stand in the committed results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_equation_points_at_its_function():
    rows = re.findall(r"`(\w+)`, (\w+\.py):(\d+)", README)
    assert len(rows) >= 7
    for function, file, line in rows:
        text = (ROOT / file).read_text().splitlines()[int(line) - 1]
        assert text.startswith(f"def {function}("), f"README: {function} is not at {file}:{line}"


def test_figures_are_those_of_the_committed_runs():
    lines = re.findall(r"\| `python train.py( --method grpo)?`[^|]*\|([^\n]+)\|", README)
    assert len(lines) == 2
    for method, cells in lines:
        path = ROOT / "results" / "make_train" / ("grpo.jsonl" if method else "rlsd.jsonl")
        rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}
        assert [float(c) for c in cells.split("|")] == [rows[step]["pass@1"] for step in (0, 20, 40, 60, 100, 200)]
    first = json.loads((ROOT / "results/make_train/rlsd.jsonl").read_text().splitlines()[1])
    assert f"step=1 reward={first['reward']:.4g} length={first['length']:.4g} entropy={first['entropy']:.4g}" in README


def test_the_examples_of_the_readme_are_options_that_exist():
    import train

    for command in re.findall(r"python train\.py ([^`#\n|]+)", README):
        args = command.split()
        known = {f.name for f in train.dataclasses.fields(train.Config)}
        assert {a[2:] for a in args if a.startswith("--")} <= known | {"help"}, command
