"""A trained run is asked a problem: groups are drawn until one has both right and wrong answers."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from config import Config
from credit.tokens import Sample, credited, right_and_wrong
from model import Transformer
from rollout import rollout
from support.errors import reading
from tasks import Problem, Source
from verifiers import Verifier


@dataclass
class Trained:
    """A run that can be asked: the file of its weights, its options, the model, its problems and their verifier."""

    weights: Path
    config: Config
    model: Transformer
    source: Source
    verifier: Verifier


def ask(run: Trained, problem: Problem, tries: int) -> tuple[list[str], list[Sample]]:
    """What was drawn, line by line, and a right and a wrong sample of one group; a single one where none has both."""
    source, shown, config = replace(run.source, draw=lambda rng, n: [problem]), None, run.config
    for group in range(1, tries + 1):
        batch = rollout(run.model, source, run.verifier, config, step=group)
        rewarded = (~batch.rewards.isnan()).nonzero().squeeze(1)  # the others are dropped
        if len(rewarded):
            shown = batch.rows(rewarded)
            if shown.advantages.any():
                break
    if shown is None:
        return [f"{tries} groups, and the verifier has failed on every sample: no reward, no credit"], []
    spread = bool(shown.advantages.any())
    pair = shown.rows(right_and_wrong(shown.rewards) if spread else torch.tensor([0]))
    with reading(f"{run.weights} gives no probabilities"):  # weights that are finite, and too large
        samples = credited(run.model, run.model, pair, config, config.rlsd_lambda)
    right = f"{int((shown.rewards == 1).sum())} of {len(shown.rewards)} samples right"
    if not spread:
        drawn = f"{tries} groups, each of equal rewards (the last: {right}): A = 0, no credit. Try more --tries"
    else:
        drawn = f"group {group}: {right}" + ("; those before it had equal rewards: A = 0" if group > 1 else "")
    return [
        f"reference answer: {problem.answer}",
        f"{run.weights}, seed {config.seed}, {drawn}",
        f"lambda {config.rlsd_lambda:g}, eps_w {config.rlsd_reweight_clip_range:g}",
    ], samples
