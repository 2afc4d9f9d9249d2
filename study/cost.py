"""What an update of each method costs beside GRPO's, on the same samples: forward passes, processor seconds, memory.

    python -m study.cost                 every method in a process of its own, turn by turn -> results/cost.json

One thread, and processor seconds instead of the clock, so that other jobs on the machine matter less.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from support.program import Parser, program

ROOT = Path(__file__).parent.parent
CONSTANT = "--rlsd_lambda_decay_steps 0"
OPTIONS = {"grpo": "--method grpo", "rlsd": CONSTANT, "rlsd-contrastive": f"{CONSTANT} --evidence contrastive"}
OPTIONS |= {method: f"--method {method}" for method in ("opsd", "sdpo", "grpo+opsd")}
ROUNDS, UPDATES = 5, 3


def measure(options: list[str]) -> dict:
    """Updates on one batch, sampled by the untrained model and given rewards by lot; the first is not timed."""
    import torch

    import model
    import rollout
    import tasks
    import train
    from harness.checkpoint import State
    from harness.options import parse_config

    torch.set_num_threads(1)
    config = parse_config(["--warm_steps", "0", *options])
    state = State(config)
    lots = torch.Generator().manual_seed(0)
    verifier = lambda completion, answer: float(torch.rand(1, generator=lots) < 0.5)
    batch = train.rollout(state.policy, tasks.generated("addition", 1), verifier, config, 1)
    if rollout.takes_hints(config):
        batch.hints = [problem.answer for problem in batch.problems]
    scorings: list[int] = []
    run = model.completion_states  # every forward pass over the samples, of student and teacher, by whoever names it

    def run_and_count(*args):
        scorings.append(1)
        return run(*args)

    rooms = [name for name, room in list(sys.modules.items()) if getattr(room, "completion_states", None) is run]
    with contextlib.ExitStack() as stack:
        for room in rooms:
            stack.enter_context(mock.patch(f"{room}.completion_states", run_and_count))
        for update in range(UPDATES + 1):
            if update == 1:
                began, counted = time.process_time(), len(scorings)
            lam = 0.5 if config.method == "rlsd" else 0.0
            train.update(state.policy, state.teacher, state.optimizer, batch, config, lam)
    return {
        "seconds": round((time.process_time() - began) / UPDATES, 4),
        "scorings": (len(scorings) - counted) // UPDATES,
        "peak MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


@program
def main(argv: list[str]) -> int:
    parser = Parser("cost.py", __doc__)
    parser.add_argument("--only", default="", help="measure one method here and print its figures")
    args = parser.parse_args(argv)
    if args.only:
        print(json.dumps(measure(OPTIONS[args.only].split())))
        return 0
    found: dict[str, dict] = {name: {"seconds": [], "peak MiB": []} for name in OPTIONS}
    for _ in range(ROUNDS):
        for name in OPTIONS:
            command = [sys.executable, "-m", "study.cost", "--only", name]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            figures = json.loads(subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True).stdout)
            found[name]["scorings"] = figures["scorings"]
            for figure in ("seconds", "peak MiB"):
                found[name][figure].append(figures[figure])
            print(name, figures, flush=True)
    report = {"command": "python -m study.cost", "methods": found}
    (ROOT / "results" / "cost.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
