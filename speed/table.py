"""The rows of the table with their goals, the machine they were measured on, and the page that they make."""

import contextlib
import gc
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

from speed.matrix_products import floor_decode, floor_decode_512, floor_update, floor_update_published
from speed.memory import memory
from speed.sampling import length, sampling, sampling_512, sampling_published
from speed.several import PLAIN, in_two, rlsd_step, train_beside_another, train_in_one, train_memory
from speed.steps import beside_grpo, beside_trl, published_beside_trl
from speed.workload import SMOKE, Run, Skipped


class Row(NamedTuple):
    """One line of the table: the goal is a least ratio or a greatest one, or there is none."""

    work: str
    beside: str
    goal: str
    measure: Callable[[Run], dict]


def in_one_thread(measure: Callable[[Run], dict], run: Run) -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure(run)
    finally:
        torch.set_num_threads(threads)


GENERATE, GRPO = "transformers `generate`, same weights", "GRPO step, 16 prompts x 16, steps/s"
SMOL = "SmolLM2-135M's shape"
ONE = "one process, one thread"
OURS, PRODUCTS, FULL = "our GRPO step, same samples", "its matrix products alone", "full log-softmax + gather"
TRL = "TRL `GRPOTrainer`, its defaults: bfloat16, gradient checkpointing"
PLAIN_TRL = "TRL `GRPOTrainer` in float32 without checkpointing, as ours"
TWO = "GRPO step, 16 prompts x 16, 2 processes each, steps/s"
one_thread = lambda measure: partial(in_one_thread, measure)
ROWS = {
    "sampling": Row(
        "sampling 16 prompts x 16, at most 64 tokens, one thread, tokens/s", GENERATE, ">= 2.5", one_thread(sampling)
    ),
    "sampling-512": Row(
        "sampling 4 prompts x 16 at width 512, 8 layers, 128 tokens each, one thread, tokens/s",
        GENERATE,
        ">= 1.5",
        one_thread(sampling_512),
    ),
    "sampling-135m": Row(
        f"{SMOL}: sampling 8 prompts of 80 x 8, 32 tokens each, tokens/s", GENERATE, ">= 1.3", sampling_published
    ),
    "grpo-step": Row(GRPO, TRL, ">= 3", beside_trl),
    "grpo-step-plain": Row(GRPO, PLAIN_TRL, ">= 2.2", partial(beside_trl, **PLAIN)),
    "grpo-step-2": Row(TWO, TRL, ">= 3", partial(in_two, worker="trl")),
    "grpo-step-plain-2": Row(TWO, PLAIN_TRL, ">= 2.2", partial(in_two, worker="trl-plain")),
    "grpo-step-135m": Row(f"{SMOL}: GRPO step, 64 x 16 tokens, steps/s", PLAIN_TRL, ">= 1.5", published_beside_trl),
    "rlsd-lambda": Row("RLSD step with the teacher pass, time", OURS, "<= 1.12", partial(beside_grpo, lam=0.5)),
    "rlsd-lambda-2": Row(
        "RLSD step with the teacher pass, 2 processes each, time", OURS, "<= 1.12", partial(in_two, worker="teacher")
    ),
    "rlsd-zero": Row("RLSD step at lambda 0, time", OURS, "<= 1.01", partial(beside_grpo, lam=0.0)),
    "floor-decode": Row("sampling 256 rows, one thread, time a token", PRODUCTS, "<= 2.3", one_thread(floor_decode)),
    "floor-decode-512": Row(
        "sampling 64 rows at width 512, one thread, time a token", PRODUCTS, "-", one_thread(floor_decode_512)
    ),
    "floor-update": Row(
        "update on 256 samples of 34 tokens, one thread, time", PRODUCTS, "<= 1.8", one_thread(floor_update)
    ),
    "floor-update-135m": Row(
        f"{SMOL}: update on 64 samples of 16 tokens, time", PRODUCTS, "<= 1.3", floor_update_published
    ),
    "memory": Row("memory of scoring and backward, 256 x 64 tokens, vocabulary 50,000", FULL, "<= 0.5", memory),
    "rlsd-2": Row("RLSD step in 2 processes, steps/s", ONE, ">= 1.75", partial(rlsd_step, workers=2)),
    "rlsd-4": Row("RLSD step in 4 processes, steps/s", ONE, "-", partial(rlsd_step, workers=4)),
    "train": Row("a fifth of `make train`, speed", "the same with `WORKERS=1`", "-", train_in_one),
    "train-busy": Row(
        "a fifth of `make train` beside one busy program, time", "the same, idle", "<= 2.2", train_beside_another
    ),
    "train-memory": Row("memory of a fifth of `make train`, all processes", "700 MB", "<= 1", train_memory),
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
    finally:
        gc.collect()  # models in cycles, which would take the next row's memory
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
