"""The same seed gives the same bits, whatever else differs between two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from small_runs import ROOT, figures, load

PROTOCOL = (
    "--data data.jsonl --verifier rule.py:check --hidden_size 32 --num_layers 1 --warm_steps 3 --warm_batch 8 "
    "--steps 4 --prompts_per_step 4 --group_size 4 --max_new_tokens 12 --eval_every 2 --eval_problems 4 --save_every 2 "
    "--lr 0.01 --rlsd_teacher_sync_interval 2 --evidence contrastive --out run --warm_dir warm"
).split()
WORLDS = (
    {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC", "PYTHONUTF8": "0", "COLUMNS": "80"},
    {"PYTHONHASHSEED": "4711", "LC_ALL": "tr_TR.ISO-8859-9", "TZ": "Asia/Kathmandu", "LANG": "de_DE", "COLUMNS": "20"},
)


def run(folder: Path, world: dict[str, str], files: int) -> None:
    """Warm start, four updates, evaluation and checkpoints, in a folder of its own with other files around."""
    folder.mkdir()
    for i in range(files):
        for name in ("", "warm"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{i}.pt.txt").write_text(str(i))
    rows = ({"question": f"{i} é İı", "answer": f"ß{i}", "solution": f"{i}"} for i in range(40))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rule.py").write_text("def check(completion, answer):\n    return sum(map(ord, completion)) % 3 / 2\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))} | world
    args = [sys.executable, ROOT / "train.py", *PROTOCOL]
    done = subprocess.run(args, cwd=folder, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "warm start: step=3/3" in done.stdout, done.stderr


def bits(x):
    """Tensors as their bytes, so that -0.0 and NaN are told apart too."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), x.numpy().tobytes()
    if isinstance(x, dict):
        return {key: bits(value) for key, value in x.items()}
    return [bits(value) for value in x] if isinstance(x, list) else x


def left_behind(folder: Path) -> tuple:
    (warm,) = (folder / "warm").glob("*.pt")
    files = folder / "run/last.pt", folder / "run/best.pt", warm
    weights = [bits(load(path)) for path in files]
    return warm.name, figures(folder / "run"), (folder / "run" / "samples.jsonl").read_bytes(), weights


def test_hash_seed_locale_time_zone_folder_and_its_files_change_no_bit(tmp_path):
    for name, world, files in (("a", WORLDS[0], 0), ("b Ö", WORLDS[1], 300)):
        run(tmp_path / name, world, files)
    first, second = left_behind(tmp_path / "a"), left_behind(tmp_path / "b Ö")
    assert len(first[1]) == 5 and any(row.get("grad_norm", 0) > 0 for row in first[1])
    assert first == second
