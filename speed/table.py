"""The rows of the table with their goals, the machine they were measured on, and the page that they make."""

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from speed.matrix_products import floor_decode, floor_update
from speed.memory import memory
from speed.sampling import length, sampling, sampling_512
from speed.steps import beside_grpo, beside_trl
from speed.workload import SMOKE, Run, Skipped


class Row(NamedTuple):
    """One line of the table: the goal is a least ratio or a greatest one, or there is none."""

    work: str
    beside: str
    goal: str
    measure: Callable[[Run], dict]


GENERATE, GRPO = "transformers `generate`, same weights", "GRPO step, 16 prompts x 16, steps/s"
OURS, PRODUCTS, FULL = "our GRPO step, same samples", "its matrix products alone", "full log-softmax + gather"
beside_plain_trl = partial(beside_trl, bf16=False, gradient_checkpointing=False)
ROWS = {
    "sampling": Row("sampling 16 prompts x 16, at most 64 tokens, tokens/s", GENERATE, ">= 5", sampling),
    "sampling-512": Row(
        "sampling 4 prompts x 16 at width 512, 8 layers, 128 tokens each, tokens/s", GENERATE, ">= 1.5", sampling_512
    ),
    "grpo-step": Row(GRPO, "TRL `GRPOTrainer`, its defaults: bfloat16, gradient checkpointing", ">= 4", beside_trl),
    "grpo-step-plain": Row(GRPO, "TRL `GRPOTrainer` in float32 without checkpointing, as ours", "-", beside_plain_trl),
    "rlsd-lambda": Row("RLSD step with the teacher pass, time", OURS, "<= 1.12", partial(beside_grpo, lam=0.5)),
    "rlsd-zero": Row("RLSD step at lambda 0, time", OURS, "<= 1.01", partial(beside_grpo, lam=0.0)),
    "floor-decode": Row("sampling 256 rows, time a token", PRODUCTS, "<= 2.5", floor_decode),
    "floor-update": Row("update on 256 samples of 34 tokens, time", PRODUCTS, "<= 2", floor_update),
    "memory": Row("memory of scoring and backward, 256 x 64 tokens, vocabulary 50,000", FULL, "<= 0.5", memory),
    "length": Row("sampling 512 tokens, time a token", "sampling 64 tokens", "<= 1.6", length),
}


HEADER = "| work | beside | median ratio [least..greatest] | goal | reached |", "|---|---|---|---|---|"


def measure(name: str, run: Run) -> dict:
    row = ROWS[name]
    figures = {"name": name, "work": row.work, "beside": row.beside, "goal": row.goal}
    try:
        found = row.measure(run)
    except Skipped as reason:
        return {**figures, "skipped": str(reason)}
    ratio, reached = median(found["ratios"]), None
    if run.size is not SMOKE and row.goal != "-":  # small sizes say nothing about the goals
        sign, limit = row.goal.split()
        reached = ratio >= float(limit) if sign == ">=" else ratio <= float(limit)
    extremes = {"least": min(found["ratios"]), "greatest": max(found["ratios"])}
    return {**figures, "ratio": ratio, **extremes, "reached": reached, **found}


def table_line(row: dict) -> str:
    if "skipped" in row:
        return f"| {row['work']} | {row['beside']} | {row['skipped']} | {row['goal']} | - |"
    ratio = f"{row['ratio']:.3g}" + (f" [{row['least']:.3g}..{row['greatest']:.3g}]" if len(row["ratios"]) > 1 else "")
    reached = {True: "yes", False: "no", None: "-"}[row["reached"]]
    return f"| {row['work']} | {row['beside']} | {ratio} | {row['goal']} | {reached} |"


def machine(device: str) -> dict:
    """What the figures were measured on and with; None for what this system does not tell."""

    def told(question: Callable[[], object]):
        with contextlib.suppress(OSError, AttributeError, StopIteration, ImportError):
            return question()

    def model_name() -> str:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": told(model_name) or platform.processor(),
        "cpus": os.cpu_count(),
        "load_average": told(lambda: os.getloadavg()[0]),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build: the package's metadata may leave +cpu or +cu130 out
        **{package: told(lambda: importlib.metadata.version(package)) for package in ("transformers", "trl")},
    }


def rounded(figures: dict) -> dict:
    """The same figures to four digits, however deep they lie."""
    return json.loads(json.dumps(figures), parse_float=lambda digits: float(f"{float(digits):.4g}"))


def write(result: dict, tables: list[str], out: Path) -> None:
    """The figures as JSON, and beside them the tables as a page to read."""
    out.write_text(json.dumps(result, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    page = ["# Speed and memory", f"`python bench.py`; {about}.", *tables]
    out.with_suffix(".md").write_text("\n\n".join(page) + "\n")
