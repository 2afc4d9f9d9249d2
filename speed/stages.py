"""Where the time of an RLSD step goes, stage by stage."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import model
import rollout
import train
from speed.steps import Trainer
from speed.turns import now
from speed.workload import DEFAULT, NEVER, Run, draw, new_model, random_prompts


class Stopwatch:
    """Seconds by stage; a stage that runs inside another one is taken out of it."""

    def __init__(self, device: str):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside = 0.0  # seconds of stages within the one that is running

    def timed(self, stage: str, function: Callable) -> Callable:
        def run_and_time(*args, **kwargs):
            outer, self.inside = self.inside, 0.0
            start = now(self.device)
            result = function(*args, **kwargs)
            elapsed = now(self.device) - start
            self.seconds[stage] += elapsed - self.inside
            self.inside = outer + elapsed
            return result

        return run_and_time


def profile(run: Run) -> dict:
    """Seconds and shares of the stages of an RLSD step with its teacher pass, means over the rounds."""
    trainer, watch = Trainer(run, "rlsd", share=0.6), Stopwatch(run.device)
    trainer.step(0, 0.5)
    optimizer = trainer.state.optimizer
    loop = {  # what the loop calls by these names, in whichever of its files it does so
        "noise": "row_noise",
        "prefill": "_prefill",
        "decode": "sample",
        "verify": "verify",
        "student forward and loss": "loss_of",
        "teacher forward": "evidence",
    }
    stages: list[tuple[str, Any, str]]
    stages = [(s, room, name) for s, name in loop.items() for room in (model, rollout, train) if hasattr(room, name)]
    stages += [("backward", Tensor, "backward"), ("optimizer", torch.nn.utils, "clip_grad_norm_")]
    stages += [("optimizer", optimizer, "zero_grad"), ("optimizer", optimizer, "step")]
    step = watch.timed("rest", trainer.step)
    with contextlib.ExitStack() as patches:
        for stage, room, name in stages:
            patches.enter_context(patch.object(room, name, watch.timed(stage, getattr(room, name))))
        for i in range(1, run.rounds + 1):
            step(i, 0.5)
    seconds = {stage: watch.seconds[stage] for stage in [*(stage for stage, _, _ in stages), "rest"]}
    wall = sum(seconds.values())
    return {
        "seconds": wall / run.rounds,
        "stages": {stage: {"seconds": s / run.rounds, "share": s / wall} for stage, s in seconds.items()},
    }


def operations(run: Run) -> dict[str, float]:
    """Share of each of torch's operations in the sampler's own time, 256 rows in one thread; those above 1 %."""
    model, prompts = new_model(run, DEFAULT), random_prompts(run.size.prompts, 8, 8)
    sampled = partial(draw, model, prompts, run.size.group, run.size.tokens, NEVER)
    sampled(0)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # or torch's profiler would write lines of its own
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        sampled(1)
    seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    shares = {name.removeprefix("aten::"): s / sum(seconds.values()) for name, s in seconds.items()}
    return {name: share for name, share in sorted(shares.items(), key=lambda of: -of[1]) if share > 0.01}


def operations_table(shares: dict[str, float]) -> str:
    lines = [f"| {name} | {share:.1%} |" for name, share in shares.items()]
    return "\n".join(["| operation of the sampler, one thread | share |", "|---|---|", *lines])


def profile_table(stages: dict[str, dict[str, float]]) -> str:
    lines = [f"| {stage} | {1000 * of['seconds']:.1f} | {of['share']:.1%} |" for stage, of in stages.items()]
    return "\n".join(["| stage of an RLSD step | ms | share |", "|---|---|---|", *lines])
