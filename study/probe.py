"""Where could token credit pay? One policy, many batches: how close is one batch's gradient to that of many?

    python -m study.probe [options of train.py] [--batches 60]

For every weighting of the same samples: the cosine between one batch's gradient and the mean GRPO gradient of all the
other batches. It is the first-order gain of a step of unit length and needs no learning rate. Where noise rules, the
ratio of squared cosines is the ratio of samples that two weightings need for the same step.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import tasks
import train
from baselines.losses import opsd_loss
from baselines.methods import logits
from baselines.readings import agreement
from config import Config
from harness.console import Interrupt, interruptible
from harness.evaluation import evaluate, evaluate_teacher
from harness.memory import explained
from harness.models import build_model
from harness.options import parse_config
from harness.problems import load_source
from harness.warm_start import warm_start
from model import Transformer
from rlsd import evidence_weights, rlsd_loss
from rollout import Rollout, score
from study.bootstrap import samples_worth
from study.oracles import deciding_tokens
from support.errors import UserError, reading
from support.files import fill, load, replace
from support.program import Parser, program
from verifiers import Verifier

WEIGHTINGS = {  # lambda, eps_w of rlsd_loss
    "GRPO": (0.0, 0.2),
    "RLSD, eps_w 0.2, lambda 0.5 (paper)": (0.5, 0.2),
    "RLSD, eps_w 0.9, lambda 1": (1.0, 0.9),
    "RLSD, eps_w 4, lambda 1": (1.0, 4.0),
    "RLSD, eps_w 20, lambda 1": (1.0, 20.0),
}


def gradients(model: Transformer, batch: Rollout, config: Config) -> dict[str, torch.Tensor]:
    """The flat gradient that each weighting makes of one and the same batch."""
    tokens = batch.samples.mask.sum()
    part = batch.rows(batch.advantages.nonzero().squeeze(1))
    mask, A = part.samples.mask, part.advantages
    logps = score(model, part, config, tasks.student_prompt)
    teachers = partial(tasks.teacher_view, privileged=config.privileged)
    with torch.no_grad():
        teacher = score(model, part, config, teachers)
        teacher_logits = logits(model, list(map(teachers, batch.problems)), batch.samples, config.temperature)
    student = logps.detach()
    unsigned = student + A.sign()[:, None] * (teacher - student).abs()
    weightings = {name: (teacher, *how) for name, how in WEIGHTINGS.items()} | {
        "agreement: weight 1 where sign(A) Delta > 0.02, else 0": (agreement(student, teacher, A), 1.0, 1.0),
        "weight 1 where |Delta| > 0.02, else 0": (agreement(student, unsigned, A), 1.0, 1.0),
    }
    loss = {
        name: rlsd_loss(logps, student, evidence, A, mask, lam=lam, eps_w=eps_w, denominator=tokens)[0]
        for name, (evidence, lam, eps_w) in weightings.items()
    }
    prompts = list(map(tasks.student_prompt, batch.problems))
    student_logits = logits(model, prompts, batch.samples, config.temperature)
    loss["OPSD, full vocabulary"] = opsd_loss(student_logits, teacher_logits, tokens)
    parameters = list(model.parameters())
    found = {name: torch.autograd.grad(of, parameters, retain_graph=True) for name, of in loss.items()}
    return {name: torch.cat([g.flatten() for g in gradient]) for name, gradient in found.items()}


def cosines(per_batch: list[dict[str, torch.Tensor]], adam: bool = False) -> dict[str, list[float]]:
    """Cosine of each weighting's gradient with the mean GRPO gradient of the other batches, batch by batch.

    adam: of Adam's step in its place, the gradient over the root of its own mean square. It is the first-order gain of
    a step of unit length along it, over the length of the mean GRPO gradient.
    """
    total = sum(g["GRPO"] for g in per_batch)
    found = {}
    for name in per_batch[0]:
        mine = torch.stack([g[name] for g in per_batch])
        steps = mine / mine.square().mean(dim=0).sqrt().add(1e-8) if adam else mine
        pairs = zip(steps, per_batch)
        found[name] = [round(torch.cosine_similarity(s, total - g["GRPO"], dim=0).item(), 5) for s, g in pairs]
    return found


def evidence_shares(model: Transformer, batch: Rollout, config: Config) -> list[dict]:
    """Of each sample with an advantage: share of |Delta|, and of the weight moved at eps_w 0.2, by kind of token.

    deciding: see oracles.py. first: where the teacher's own style, to cite the reference, could begin.
    """
    part = batch.rows(batch.advantages.nonzero().squeeze(1))
    with torch.no_grad():
        student = score(model, part, config, tasks.student_prompt)
        teacher = score(model, part, config, partial(tasks.teacher_view, privileged=config.privileged))
        weights, delta = evidence_weights(part.advantages, teacher, student, part.samples.mask)
    moved = (weights.clamp(0.8, 1.2) - 1).abs()
    rows = []
    for i, completion in enumerate(part.samples.completions()):
        deciding = deciding_tokens(completion, part.problems[i])
        if deciding:
            row = {"right": part.advantages[i].item() > 0, "uniform": len(deciding) / len(completion)}
            for name, x in {"|Delta|": delta.abs()[i], "moved": moved[i]}.items():
                for kind, at in {"deciding": deciding, "first": [0]}.items():
                    row[f"{name} {kind}"] = (x[at].sum() / x.sum().clamp(min=1e-12)).item()
            rows.append(row)
    return rows


def parse(argv: list[str], name: str = "probe.py", about: str | None = __doc__) -> tuple[argparse.Namespace, Config]:
    parser = Parser(name, about, epilog="every other option is one of train.py")
    parser.add_argument("--batches", type=int, default=60, help="batches of samples (default: 60)")
    parser.add_argument("--keep", default="", help="file for the figures (JSON)")
    parser.add_argument("--policy", default="", help="a run's folder: probe its last policy, not the warm start")
    own, rest = parser.parse_known_args(argv)
    if not 2 <= own.batches <= 10**6:
        parser.error(f"--batches {own.batches}: at least 2 are needed, each beside the others")
    return own, parse_config(rest)


@explained()
def policy_of(folder: str, config: Config, source: tasks.Source) -> Transformer:
    model = build_model(config)
    if not folder:
        warm_start(model, source, config, Interrupt())
        return model
    with reading(f"--policy {folder}: no checkpoint of this model"):
        fill(model, load(Path(folder) / "last.pt", config.device)["model"])
    return model


@explained()
def measure(model: Transformer, source: tasks.Source, verifier: Verifier, config: Config, batches: int) -> dict:
    """Held-out scores, cosines and Adam's gains a batch of each weighting, shares of the evidence by kind of token."""
    per_batch, shares = [], []
    for step in range(1, batches + 1):
        batch = train.rollout(model, source, verifier, config, step)
        if (batch.advantages != 0).any():
            per_batch.append(gradients(model, batch, config))
            if config.task == "addition" and config.filler == 0:
                shares += evidence_shares(model, batch, config)
    if len(per_batch) < 2:
        raise UserError(
            f"{len(per_batch)} of {batches} batches have a group whose rewards differ; 2 at least are needed"
        )
    summary = {}
    for name in ("right", "wrong"):
        rows = [row for row in shares if row["right"] == (name == "right")]
        kinds = [kind for kind in rows[0] if kind != "right"] if rows else []
        summary[name] = {kind: float(np.mean([row[kind] for row in rows])) for kind in kinds} | {"samples": len(rows)}
    return {
        **evaluate(model, source, verifier, config),
        **evaluate_teacher(model, source, verifier, config),
        "samples": config.prompts_per_step * config.group_size,
        "shares": summary,
        "cosines": cosines(per_batch),
        "adam": cosines(per_batch, adam=True),
    }


def show(found: dict) -> None:
    count = len(found["cosines"]["GRPO"])
    print(f"pass@1 {found['pass@1']:.3f}, teacher {found['teacher pass@1']:.3f}; {count} x {found['samples']} samples")
    print(f"{'weighting of the same samples':58} {'cosine':>7}   samples worth [95 %]   ... by Adam's step")
    for label, values in found["cosines"].items():
        worth = [samples_worth(found[kind][label], found[kind]["GRPO"]).text(2) for kind in ("cosines", "adam")]
        print(f"{label:58} {np.mean(values):7.3f}   {'   '.join(worth)}")
    for name, share in found["shares"].items():
        print(f"{name} samples:", ", ".join(f"{k} {v:.3f}" for k, v in share.items()))


def finish(found: dict, show: Callable[[dict], None], keep: str) -> int:
    """Show what was measured, and keep it where --keep says -> exit code 0."""
    show(found)
    if keep:
        replace(Path(keep), lambda path: path.write_text(json.dumps(found) + "\n"))
    return 0


@program
def main(argv: list[str]) -> int:
    with interruptible():
        own, config = parse(argv)
        source, verifier = load_source(config)
        model = policy_of(own.policy, config, source)
        return finish(measure(model, source, verifier, config, own.batches), show, own.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
