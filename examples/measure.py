"""What docs/models.md and docs/speed.md say of published models' size and speed, measured -> results/models.json.

OMP_NUM_THREADS=1 python examples/measure.py smollm2      # the folder that examples/smollm2 makes; 4 minutes, 9 GiB
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tasks  # noqa: E402
from examples.dry_run import trained  # noqa: E402
from model import sample  # noqa: E402
from published.chat import chat  # noqa: E402
from published.tokenizer import load_tokenizer  # noqa: E402
from published.weights import load  # noqa: E402

QUESTION, NEW_TOKENS, ROUNDS = "Why is the sky blue?", 64, 5


def sampling_speed(folder: Path) -> dict[str, float]:
    """Sampled tokens a second of processor time, prompt included; the median of the rounds, for 1 row and for 16."""
    tasks.FORMAT = chat(load_tokenizer(folder))
    model, prompt = load(folder), tasks.student_prompt(tasks.Problem(QUESTION, ""))
    speeds: dict[int, list[float]] = {1: [], 16: []}
    for _ in range(ROUNDS):
        for rows, found in speeds.items():
            began = time.process_time()
            sample(model, [prompt], group_size=rows, max_new_tokens=NEW_TOKENS, temperature=1.0, stop_token=-1)
            found.append(rows * NEW_TOKENS / (time.process_time() - began))
    return {f"tokens/s, {rows} rows": round(statistics.median(found), 1) for rows, found in speeds.items()}


def two_updates(folder: Path) -> dict[str, float]:
    """Two RLSD updates of 8 samples; every other sample is called right, so that the optimizer steps."""
    options = "--chain 1 --steps 2 --prompts_per_step 1 --group_size 8 --max_new_tokens 64 --max_seq_len 256 "
    options += "--eval_problems 1 --eval_every 1000"
    with tempfile.TemporaryDirectory() as scratch:
        rule = Path(scratch, "every_other.py")
        _, seconds = trained(folder, f"{scratch}/run", rule, options, check=True, stdout=subprocess.DEVNULL)
        lines = Path(scratch, "run/metrics.jsonl").read_text().splitlines()
        steps = [row for row in map(json.loads, lines) if row["step"]]
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps), "no update: no group has spread"
    return {
        "peak GiB": round(max(step["peak GiB"] for step in steps), 2),
        "CPU seconds": round(seconds),
        "tokens a sample": round(statistics.mean(step["length"] for step in steps), 1),
    }


def dry_run(tokenizer: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "examples" / "dry_run.py"), str(tokenizer), f"{folder}/qwen3"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        step = json.loads(Path(folder, "qwen3-run/metrics.jsonl").read_text().splitlines()[1])
    return {
        "peak GiB": round(step["peak GiB"], 2),
        "CPU seconds": float(told.split("the run took ")[1].split()[0]),
        "gradient norm": step["grad_norm"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if torch.get_num_threads() != 1:
        sys.exit("measure.py: the figures are those of one thread: set OMP_NUM_THREADS=1")
    found = {
        "command": "OMP_NUM_THREADS=1 python examples/measure.py smollm2",
        "machine": {"CPUs": os.cpu_count(), "threads": 1, "torch": torch.__version__},
        "SmolLM2-135M-Instruct, float32": sampling_speed(folder),
        "SmolLM2-135M-Instruct, two updates of 8 samples": two_updates(folder),
        "RLSD step of Qwen3-0.6B's shape": dry_run(folder),
    }
    (ROOT / "results" / "models.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
