"""The lesson: docs/lesson.ipynb runs from end to end, and says what its committed outputs and results/ say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LESSON = ROOT / "docs" / "lesson.ipynb"
CELLS = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def said(cell: dict) -> str:
    """What the cell printed, as text."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def check_claims(cells: list[dict]) -> None:
    """What the text says of the runs, whose figures have other last digits on another processor."""
    line = r"^(\w+) +update \d+: pass@1 ([\d.]+), answers that cite ([\d.]+)$"
    found = re.findall(line, "\n".join(map(said, cells)), re.MULTILINE)
    figures = {name: (float(right), float(cites)) for name, right, cites in found}  # the last ones of each run
    assert figures.keys() == {"RLSD", "GRPO", "OPSD"}
    (rlsd, rlsd_cites), (grpo, grpo_cites) = figures["RLSD"], figures["GRPO"]
    assert abs(rlsd - grpo) < 0.1 and min(rlsd, grpo) > 0.6
    assert figures["OPSD"][1] > 0.2 and max(rlsd_cites, grpo_cites) < 0.02
    (loss,) = [said(cell) for cell in cells if "loss minus GRPO's" in said(cell)]
    assert re.match(r"lambda 0: loss minus GRPO's -?0\.0   largest difference of a gradient 0\.0\n", loss)
    assert "-A_hat / tokens: True" in loss and "changed by the teacher: 0\n" in loss


def test_it_is_small_whole_and_says_what_each_cell_shows():
    assert LESSON.stat().st_size < 600_000 and 20 <= len(CELLS) <= 30
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1)), "run from a fresh start"
    for cell in CODE:
        about = source(cell).splitlines()[:3]
        assert [line.startswith("# ") for line in about] == [True, True, False], source(cell)
        assert "error" not in {output["output_type"] for output in cell["outputs"]}
    assert sum("image/png" in output.get("data", {}) for cell in CODE for output in cell["outputs"]) >= 4
    assert not re.search(r"(?:/home/|/root/|/tmp/|/work/|/Users/)\w", LESSON.read_text(encoding="utf-8"))


def test_its_committed_outputs_show_what_it_says():
    check_claims(CODE)
    (minutes,) = re.findall(r"all cells so far: ([\d.]+) minutes", said(CODE[-1]))
    assert f"**Time:** {minutes} minutes" in source(CELLS[0])
    (length,) = re.findall(r"lambda 0.5, eps_w 0.2 .* length ([\d.]+)\n", "".join(map(said, CODE)))
    derivation = " ".join((ROOT / "docs/derivation.md").read_text(encoding="utf-8").split())
    assert f"a gradient of the paper's settings has {length} times GRPO's length" in derivation
    parts = [float(part) for part in re.findall(r"(?:0\.8|1\.2|between) ([-+][\d.]+)", "".join(map(said, CODE)))]
    assert len(parts) == 6 and abs(sum(parts) - 1) < 0.003
    raised_right, raised_wrong, lowered = parts[0], parts[3], parts[5]
    assert f"{1.1 * (raised_right + raised_wrong) + 0.9 * lowered:.2f}" == length
    (text,) = [" ".join(source(cell).split()) for cell in CELLS if "beyond the largest multiplier" in source(cell)]
    said_of = f"{raised_right} in right answers and {raised_wrong:.3f} in wrong ones"
    assert said_of in text and f"leads the other way: {lowered}. RLSD" in text
    report = (ROOT / "results" / "report.md").read_text()
    study = re.findall(r"[\d.]+ \[-?[\d.]+, [\d.]+\]", "".join(map(source, CELLS)))
    assert len(study) == 2
    assert all(re.search(rf"\| {re.escape(figure)} \| [<>] [\d.]+ \| 10 \|", report) for figure in study)


def test_its_exercises_are_lines_of_the_code_and_their_answers_those_measured():
    """In the lesson and in docs/exercises.md."""
    sys.path.insert(0, str(ROOT / "docs"))
    from exercises import EXERCISES

    runs = json.loads((ROOT / "results" / "exercises.json").read_text())["runs"]
    last = {name: ", ".join(f"{run['pass@1'][-1]:.3f}" for run in found) for name, found in runs.items()}
    asked = [source(cell) for cell in CELLS if "<details>" in source(cell)]
    page = (ROOT / "docs/exercises.md").read_text().splitlines()
    assert len(asked) == 5 and runs.keys() == EXERCISES.keys()
    for name, (file, old, new) in EXERCISES.items():
        assert any(old in line and last[name] in line for line in page), name
        if old:
            (text,) = [text for text in asked if f"\n{old}   # as it is\n{new}   # as you try it\n" in text]
            question, answer = text.split("<details>")
            assert f"(`{file}`)" in question and answer.count("</details>") == 1
            assert f"**{last[name]}** (as the code stands: {last['nothing']})" in answer
    of = lambda name, figure, i, digits: ", ".join(f"{run[figure][i]:.{digits}f}" for run in runs[name])
    (clip,) = [text for text in asked if "Take the clip away" in text]
    assert f"{of('clip', 'grad_norm', 0, 0)}, not" in clip and f"not {of('nothing', 'grad_norm', 0, 2)}." in clip
    early = (of(name, "pass@1", 1, 3) for name in ("clip", "nothing"))
    assert "pass@1 is {}, where the original has {}".format(*early) in clip


def run(cells: int | None, folder: Path) -> list[dict]:
    """The first cells of the lesson, or all, run in a kernel started in `folder` -> code cells with outputs."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(LESSON, as_version=4)
    notebook.cells = notebook.cells[:cells]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_it_runs_from_end_to_end_where_it_lies(tmp_path):
    """In docs/; what needs no trained model comes out to the letter, the rest as the text claims.

    Its loop is that of train.py: the same held-out scores, from the warm start it has kept.
    """
    made = run(None, LESSON.parent)
    check_claims(made)
    exact = [i for i, cell in enumerate(CODE) if "exact" in cell["metadata"].get("tags", ())]
    assert len(exact) >= 4
    for i in exact:
        assert said(made[i]) == said(CODE[i]) != "", source(CODE[i])
    (common,) = re.findall(r'COMMON = "(.*?)".split', "\n".join(map(source, made)))
    (options,) = re.findall(r'learn\("RLSD", (.*)\)', "\n".join(map(source, made)))
    given = [*common.split(), *options.replace('"', "").split(", "), "--eval_every", "5"]
    command = [sys.executable, "train.py", *given, "--out", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    curve = " ".join(f"{row['pass@1']:.3f}" for row in map(json.loads, rows) if "pass@1" in row)
    assert f"pass@1 on the way: {curve}\n" in "".join(map(said, made)) and len(curve.split()) == 13


@pytest.mark.slow
def test_it_starts_in_the_root_as_well():
    made = run(4, ROOT)
    assert said(made[1]) == said(CODE[1]) != ""
