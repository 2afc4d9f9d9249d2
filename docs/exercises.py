"""The exercises of exercises.md, measured: each one-line change is made in a copy of the repository, which is trained.

python docs/exercises.py        three seeds each, two at a time, one thread each -> results/exercises.json
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
EXERCISES = {  # name: file, the line as it is, the line as it is tried
    "nothing": ("rlsd.py", "", ""),
    "sign": ("rlsd.py", "log_weights = advantages.detach().sign()[:, None] * delta", "log_weights = delta"),
    "clip": ("rlsd.py", "clipped = weights.clamp(1 - eps_w, 1 + eps_w)", "clipped = weights"),
    "std": (
        "rlsd.py",
        "advantages = torch.where(no_spread, 0.0, centred / (std + eps))",
        "advantages = torch.where(no_spread, 0.0, centred)",
    ),
    "teacher": (
        "rollout.py",
        "teacher_logps = score(teacher, batch, config, view)",
        "teacher_logps = score(teacher, batch, config, tasks.student_prompt)",
    ),
    "direction": (
        "rlsd.py",
        "loss = -surrogate.sum() / (tokens.clamp(min=1) if denominator is None else denominator)",
        "loss = surrogate.sum() / (tokens.clamp(min=1) if denominator is None else denominator)",
    ),
}


def changed_copy(name: str, folder: Path) -> Path:
    """This repository in `folder`, with the line of the exercise changed."""
    file, old, new = EXERCISES[name]
    leave = shutil.ignore_patterns(".*", "__pycache__", "runs", "results", "tests")
    shutil.copytree(ROOT, folder, ignore=leave, dirs_exist_ok=True)
    if old:
        text = (folder / file).read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
        (folder / file).write_text(text.replace(old, new))
    return folder


def curve(name: str, seed: int) -> dict[str, list[float]]:
    """pass@1, reward, entropy and mean weight at some updates of a run of 100 updates with this change."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = changed_copy(name, Path(temporary))
        options = f"--steps 100 --eval_every 20 --seed {seed} --out run --warm_dir".split()
        command = [sys.executable, "train.py", *options, str(ROOT / "runs" / "warm_start")]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    at = (20, 60, 100)
    figures = {"pass@1": [rows[0]["pass@1"]] + [rows[step]["pass@1"] for step in at]}
    for figure in ("entropy", "length", "weight", "grad_norm"):
        figures[figure] = [round(rows[step].get(figure, 0.0), 5) for step in (1, *at)]
    return figures


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # --help costs no training
    with ThreadPoolExecutor(2) as pool:
        found = {"nothing": list(pool.map(partial(curve, "nothing"), SEEDS))}  # makes the warm starts
        begun = {name: pool.map(partial(curve, name), SEEDS) for name in EXERCISES if name != "nothing"}
        found |= {name: list(runs) for name, runs in begun.items()}
    result = {"command": "python docs/exercises.py", "updates": [0, 20, 60, 100], "seeds": SEEDS, "runs": found}
    (ROOT / "results" / "exercises.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, runs in found.items():
        print(name, [run["pass@1"] for run in runs], "weight", [run["weight"] for run in runs])


if __name__ == "__main__":
    main()
