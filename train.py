"""Train a small transformer with RLSD or GRPO: warm start, then rollout, update, teacher, log, step by step.

python train.py                        # 4-digit addition, minutes on a laptop CPU
python train.py --method grpo          # the same protocol without the teacher
python train.py --data my.jsonl --verifier my_rules.py:check
python train.py --init FOLDER          # a published Llama or Qwen model instead of random weights

Left out, and what the method becomes without it: more than one update of a batch (the policy ratio is 1 up to rounding,
and its clip idle: REINFORCE with group advantages), a KL term to a reference policy (nothing holds the policy near its
start but the learning rate; the paper has none either), an entropy bonus, a critic, replay of old samples.
"""

import math
import sys

import torch
from torch import Tensor

import tasks
from baselines import methods
from config import Config
from harness.options import parse_config
from harness.run import LEFT, Run
from model import Transformer
from published.rounded_adam import Optimizer
from rlsd import lambda_at, rlsd_loss
from rollout import Rollout, evidence, parts_of, rollout, score
from support.numbers import nan_loss, nothing_moves
from support.processes import add_up, total, total_norm
from support.program import program


def train(config: Config) -> int:
    """Warm start, then step by step; `run` is all that surrounds a step (harness/run.py)."""
    with Run(config) as run:
        policy, teacher, optimizer = run.policy, run.teacher, run.optimizer
        if not config.resume:
            run.warm_start()  # supervised steps, in both views
            if config.method not in ("grpo", "opd"):  # opd's teacher is another model
                move(teacher, policy, share=1.0)
            run.start()  # the first evaluation, in both views
        fitted = run.fitted(update)  # update itself, unless --halve_micro_batch
        for step in run.steps():
            schedule = config.rlsd_lambda, config.rlsd_lambda_warmup_steps, config.rlsd_lambda_decay_steps
            lam = lambda_at(step, *schedule) if config.method == "rlsd" else 0.0
            batch = rollout(policy, run.source, run.verifier, config, step)
            run.show(step, batch, lam)  # samples.jsonl, where it is time
            metrics = fitted(policy, teacher, optimizer, batch, config, lam)
            sync(teacher, policy, step, config)
            run.log(step, batch, lam, metrics)  # evaluates, where it is time
    return 0


def update(
    policy: Transformer, teacher: Transformer | None, optimizer: Optimizer, batch: Rollout, config: Config, lam: float
) -> dict[str, float]:
    """One optimizer step on the mean over all completion tokens -> loss, gradient norm before clipping, means.

    Nothing is stepped where loss or gradient is not finite: that would spoil every weight.
    """
    mask = batch.samples.mask  # (N, T)
    rows = batch.advantages.nonzero()[:, 0] if config.method in ("rlsd", "grpo") else methods.moving(batch, config)
    tokens, scored = total(mask.sum()), total(mask[rows].sum())  # samples without advantage count, and move nothing
    if scored == 0:
        return nothing_moves(batch, tokens)
    metrics = {"loss": 0.0}
    optimizer.zero_grad()
    for part in parts_of(batch, rows, config):
        loss, means = loss_of(policy, teacher, part, config, lam, tokens)
        loss.backward()
        metrics["loss"] += loss.item()
        share = float(part.samples.mask.sum() / scored)
        metrics |= {name: metrics.get(name, 0.0) + share * value for name, value in means.items()}
    metrics = add_up(policy, teacher, metrics)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
    metrics["grad_norm"] = total_norm(norm).item()
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
        optimizer.step()
    return metrics


def loss_of(
    policy: Transformer, teacher: Transformer | None, batch: Rollout, config: Config, lam: float, tokens: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the configured method on (a part of) a batch of `tokens` tokens in all, and rlsd_loss's metrics."""
    if config.method in ("opsd", "sdpo", "opd"):
        return methods.distillation(policy, teacher, batch, config, tokens), {}
    old, advantages, mask = batch.samples.logps, batch.advantages, batch.samples.mask
    logps = score(policy, batch, config, tasks.student_prompt)  # (N, T), the only one with a gradient
    teacher_logps = evidence(teacher, batch, config, logps.detach()) if teacher and lam > 0 else None  # (N, T)
    eps_w = config.rlsd_reweight_clip_range
    try:
        loss, metrics = rlsd_loss(logps, old, teacher_logps, advantages, mask, lam=lam, eps_w=eps_w, denominator=tokens)
    except ValueError:
        loss, metrics = nan_loss(mask, logps, old, teacher_logps), {}
    if config.method == "grpo+opsd":
        loss = loss + config.opsd_weight * methods.distillation(policy, teacher, batch, config, tokens)
    return loss, metrics


def sync(teacher: Transformer | None, policy: Transformer, step: int, config: Config) -> None:
    """What update `step` does to the teacher: a copy every K updates (rlsd), moving average (sdpo), nothing."""
    interval = config.rlsd_teacher_sync_interval
    if config.method == "rlsd" and interval and step % interval == 0:
        move(teacher, policy, share=1.0)
    if config.method == "sdpo":
        move(teacher, policy, share=config.sdpo_ema)


@torch.no_grad()
def move(teacher: Transformer | None, policy: Transformer, share: float) -> None:
    """Move the teacher's weights towards the policy's; share 1 copies them."""
    assert teacher is not None  # every method but grpo has one
    for mine, policys in zip(teacher.parameters(), policy.parameters()):
        mine.lerp_(policys, share)


@program(left=LEFT)
def main(argv: list[str]) -> int:
    return train(parse_config(argv, __doc__))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
