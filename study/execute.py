"""Runs and probes that `results` lacks are made, two at a time, one thread each; those that it has are read."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from study.plan import SHARED, Probe, Run
from support import errors
from support.files import append, metrics_of

ROOT = Path(__file__).resolve().parents[1]

CURVE = "step reward length entropy no_spread lambda clipped_low clipped_high grad_norm seconds".split()
CURVE += ["pass@1", "greedy", "leakage", "teacher pass@1"]


def unfinished(what: str, wanted: list, results: Path) -> list:
    """The runs or probes that are not in `results` yet."""
    results.mkdir(parents=True, exist_ok=True)
    finished = {(row["name"], row["options"]) for row in read(results)}
    todo = [one for one in wanted if (one.name, one.options) not in finished]
    print(f"{len(wanted)} {what}, {len(wanted) - len(todo)} finished before", flush=True)
    return todo


def execute(runs: list[Run], folder: Path, results: Path) -> None:
    """Train what is not in `results` yet, two at a time, task by task: first its warm starts, each once."""
    todo = unfinished("runs", runs, results)
    with ThreadPoolExecutor(2) as pool:
        for _, group in groupby(todo, key=lambda run: run.task):
            part = list(group)
            jobs = [
                ([*run.arguments(folder), "--steps", "1"], run.out(folder / "warm_runs"))
                for run in {run.warm_seed: run for run in part if run.method != "opd"}.values()
            ]
            if any(run.method == "opd" for run in part):
                larger = f"{SHARED} --method grpo --hidden_size 96 --warm_slip 0 --steps 5"
                jobs.append(([*larger.split(), "--warm_dir", str(folder / "warm_start")], folder / "teacher"))
            list(pool.map(lambda job: train(*job), jobs))
            for row in pool.map(lambda run: trained(run, folder), part):
                append(results / f"{row['task']}.jsonl", row)
                first, last = row["curve"][0], row["curve"][-1]
                print(f"{row['name']}: pass@1 {first['pass@1']:.3f} -> {last['pass@1']:.3f}", flush=True)


def trained(run: Run, folder: Path) -> dict:
    train(run.arguments(folder), run.out(folder))
    curve = [{k: round(row[k], 5) for k in CURVE if k in row} for row in metrics_of(run.out(folder))]
    return {k: getattr(run, k) for k in "name options task method seed samples lr".split()} | {"curve": curve}


def execute_probes(wanted: list[Probe], folder: Path, results: Path) -> None:
    """Measure what is not in `results` yet, two at a time; a policy whose run is not at hand is trained again."""

    def measure(probe: Probe) -> dict:
        keep = folder / "probes" / f"{probe.name}.json"
        keep.parent.mkdir(parents=True, exist_ok=True)
        options = [*probe.options.split(), "--warm_dir", str(folder / "warm_start"), "--keep", str(keep)]
        if probe.run:
            train(probe.run.arguments(folder), probe.run.out(folder))
            options += ["--policy", str(probe.run.out(folder))]
        program("study/probe.py", options)
        return {"name": probe.name, "options": probe.options, **json.loads(keep.read_text())}

    todo = unfinished("probes", wanted, results)
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(measure, todo):
            append(results / "probes.jsonl", row)
            print(f"probe {row['name']}: pass@1 {row['pass@1']:.3f}", flush=True)


def train(options: list[str], out: Path) -> None:
    """One run of train.py; a finished one is left, a killed one goes on."""
    resumed = (out / "last.pt").exists()
    if resumed and metrics_of(out)[-1]["step"] == json.loads((out / "config.json").read_text())["steps"]:
        return
    program("train.py", ["--resume", "--out", str(out)] if resumed else [*options, "--out", str(out)])


def program(name: str, options: list[str]) -> None:
    """A program of this repository, in one thread of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(ROOT / name), *options], env=env, capture_output=True, text=True)
    if done.returncode:
        raise errors.UserError(f"{name} {' '.join(options)}: {done.stderr.strip()}")


def read(results: Path) -> list[dict]:
    """Finished runs and probes of a folder or file, each once; a line that is none, as a kill may leave one, is passed
    over with a word."""
    rows: dict[tuple[str, str], dict] = {}
    for path in sorted(results.glob("*.jsonl")) if results.is_dir() else [results] * results.is_file():
        for i, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                json.dumps(row, allow_nan=False)
                if (row["name"], row["options"]) in rows:
                    raise ValueError("the run of a line above again")
                if "curve" in row:  # every update of it, under the name of its own cell and seed
                    run = Run(*(row[name] for name in ("task", "samples", "method", "seed", "lr")))
                    steps = int(row["options"].split("--steps ")[-1].split()[0])
                    if run.name != row["name"] or [x["step"] for x in row["curve"]] != list(range(steps + 1)):
                        raise ValueError("no whole run of its name")
                rows[row["name"], row["options"]] = row
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                print(f"{path}:{i}: passed over: {errors.one_line(error)}")
    return list(rows.values())


def current(rows: list[dict], wanted: list) -> list[dict]:
    """The rows of these runs or probes; those of an older version of the study, with other options, are left out."""
    known = {(one.name, one.options) for one in wanted}
    return [row for row in rows if (row["name"], row["options"]) in known]
