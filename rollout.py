"""From a rollout to a loss: what each method shows its teacher, and what it makes of the scores.

method        teacher sees                 teacher's weights               loss
grpo          -                            -                               rlsd_loss at lambda 0
rlsd          x, r                         the policy, synced every K      rlsd_loss
opsd          x, r                         the initial ones                full-vocabulary JSD
sdpo          x, a right sample            moving average of the policy    JSD on top-100 and tail
grpo+opsd     x, r                         the initial ones                sum of grpo and opsd
opd           x                            another, larger model           full-vocabulary reverse KL
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tasks
from baselines import losses
from config import Config
from model import Samples, Transformer, completion_states, token_logps
from rlsd import rlsd_loss
from support import processes
from verifiers import MARKER, final_answer


@dataclass
class Rollout:
    """N samples, the group_size of one question next to each other; problems has one entry a sample.

    A sample whose verifier failed may be dropped: its reward is nan, its advantage 0, its mask empty (judge.py).
    hints: privileged text that the group itself supplies, a sample's each; None where there is none.
    """

    problems: list[tasks.Problem]
    samples: Samples
    rewards: Tensor
    advantages: Tensor
    hints: list[str | None] = field(default_factory=list)
    verifier_errors: int = 0

    def right_and_wrong(self) -> Tensor:
        """The sample of the highest and that of the lowest reward; dropped ones (nan) are neither."""
        return torch.stack([self.rewards.nan_to_num(-1.0).argmax(), self.rewards.nan_to_num(2.0).argmin()])

    def rows(self, index: Tensor) -> "Rollout":
        picked = index.tolist()
        problems, hints = ([of_all[i] for i in picked if of_all] for of_all in (self.problems, self.hints))
        return Rollout(problems, self.samples.rows(index), self.rewards[index], self.advantages[index], hints)


def teacher_view(problem: tasks.Problem, config: Config) -> list[int]:
    """The teacher's prompt: it shows the problem's own privileged text if it has one, else what --privileged says."""
    if problem.privileged:
        return tasks.prompt(problem, problem.privileged)
    return tasks.teacher_prompt(problem, config.privileged)


def autocast(config: Config):
    return torch.autocast("cuda", dtype=torch.bfloat16) if config.bf16 else nullcontext()


def sampling(config: Config, temperature: float, seed: int) -> dict[str, Any]:
    """What every call of `sample` is handed: where a completion ends, and how it is drawn, with the noise of a seed."""
    ends = {"max_new_tokens": config.max_new_tokens, "stop_token": tasks.FORMAT.end}
    return {**ends, "temperature": temperature, "generator": torch.Generator().manual_seed(seed)}


def score(model: Transformer, batch: Rollout, config: Config, view: Callable[[tasks.Problem], list[int]]) -> Tensor:
    """Log-probabilities (N,T) of the batch's completions after the prompts that `view` makes of its problems."""
    with autocast(config):
        return token_logps(model, [view(p) for p in batch.problems], batch.samples, config.temperature)


def rows_of(batch: Rollout, config: Config) -> Tensor:
    """The samples that move the policy: with an advantage (rlsd, grpo), another right sample (sdpo), or any reward."""
    if config.method in ("rlsd", "grpo"):
        return batch.advantages.nonzero().squeeze(1)
    moves = ~batch.rewards.isnan()
    if config.method == "sdpo":
        moves &= torch.tensor([hint is not None for hint in batch.hints], device=moves.device)
    return moves.nonzero().squeeze(1)


def parts_of(batch: Rollout, rows: Tensor, config: Config) -> list[Rollout]:
    """The rows of a batch, in order, in parts of one forward and backward pass each (`micro_batches`).

    With --fsdp all processes run a block together, and as often: where there are fewer parts, on nothing. Completions
    of one token, or dropped ones, would not run the blocks twice as others do (model.completion_states): they get pads.
    """
    parts = [batch.rows(index) for index in micro_batches(batch, rows, config)]
    if not config.fsdp:
        return parts
    nothing = batch.rows(torch.zeros(1, dtype=torch.long))
    nothing.samples.mask = torch.zeros_like(nothing.samples.mask)
    parts = parts + [nothing] * (processes.most(len(parts)) - len(parts))
    for part in parts:
        s, short = part.samples, 2 - part.samples.tokens.shape[1]
        if short > 0:
            part.samples = Samples(*(torch.nn.functional.pad(x, (0, short)) for x in (s.tokens, s.mask, s.logps)))
    return parts


def micro_batches(batch: Rollout, rows: Tensor, config: Config) -> list[Tensor]:
    """The rows, in order, in parts of at most micro_batch rows and micro_tokens tokens; a longer row is one by itself.

    A part's tokens are rows x (longest prompt + longest completion), as padding makes them.
    """
    lengths = batch.samples.mask.sum(dim=1).tolist()
    parts: list[list[int]] = []
    longest = (0, 0)
    for i in rows.tolist():
        size = (longest_view(batch, i, config) if config.micro_tokens else 0, lengths[i])
        joint = (max(longest[0], size[0]), max(longest[1], size[1]))
        many = bool(parts) and len(parts[-1]) == config.micro_batch
        if not parts or many or 0 < config.micro_tokens < (len(parts[-1]) + 1) * sum(joint):
            parts.append([])
            joint = size
        parts[-1].append(i)
        longest = joint
    return [torch.tensor(part, device=rows.device) for part in parts]


def longest_view(batch: Rollout, i: int, config: Config) -> int:
    """Tokens of the longest prompt that sample i is scored after, by the policy or by the teacher."""
    problem, hint = batch.problems[i], batch.hints[i] if batch.hints else None
    prompts = [tasks.student_prompt(problem)]
    prompts += [teacher_view(problem, config)] if config.method in ("rlsd", "opsd", "grpo+opsd") else []
    prompts += [tasks.prompt(problem, hint)] if hint else []
    return max(map(len, prompts))


def loss_of(
    model: Transformer, teacher: Transformer | None, batch: Rollout, config: Config, lam: float, tokens: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the configured method on (a part of) a batch of `tokens` tokens in all, and rlsd_loss's metrics."""
    if config.method in ("opsd", "sdpo", "opd"):
        return distillation(model, teacher, batch, config, tokens), {}
    logps = score(model, batch, config, tasks.student_prompt)
    teacher_logps = evidence(teacher, batch, config, logps.detach()) if lam > 0 else None
    old, mask, how = batch.samples.logps, batch.samples.mask, {"lam": lam, "eps_w": config.rlsd_reweight_clip_range}
    loss, metrics = loss_or_nan(logps, old, teacher_logps, batch.advantages, mask, **how, denominator=tokens)
    if config.method == "grpo+opsd":
        loss = loss + config.opsd_weight * distillation(model, teacher, batch, config, tokens)
    return loss, metrics


def loss_or_nan(
    logps: Tensor, old_logps: Tensor, teacher_logps: Tensor | None, advantages: Tensor, mask: Tensor, **how
):
    """`rlsd_loss`; nan, and so is its gradient, where it finds log-probabilities that are not finite."""
    try:
        return rlsd_loss(logps, old_logps, teacher_logps, advantages, mask, **how)
    except ValueError:
        if all(torch.isfinite(x[mask]).all() for x in (logps, old_logps, teacher_logps) if x is not None):
            raise
        return logps.sum() * math.nan, {}


@torch.no_grad()
def evidence(teacher: Transformer | None, batch: Rollout, config: Config, student_logps: Tensor) -> Tensor:
    """The one extra forward pass: the same completions after the prompt that shows the reference; then its readings."""
    assert teacher is not None  # every method but grpo has one
    teacher_logps = score(teacher, batch, config, lambda p: teacher_view(p, config))
    if config.evidence == "contrastive":
        hinted = zip(batch.problems, batch.hints)
        prompts = [teacher_view(p, config) if hint is None else tasks.prompt(p, hint) for p, hint in hinted]
        with autocast(config):
            misled_logps = token_logps(teacher, prompts, batch.samples, config.temperature)
        has_wrong = torch.tensor([hint is not None for hint in batch.hints], device=student_logps.device)
        teacher_logps = losses.contrastive(student_logps, teacher_logps, misled_logps, has_wrong)
    if config.evidence == "agreement":
        teacher_logps = losses.agreement(student_logps, teacher_logps, batch.advantages)
    if config.rlsd_negative_only:
        teacher_logps = losses.negative_only(student_logps, teacher_logps, batch.advantages)
    if config.rlsd_thought_only:
        thought = tasks.thought_mask(batch.samples.tokens)
        teacher_logps = losses.thought_only(student_logps, teacher_logps, thought)
    return teacher_logps


def distillation(
    model: Transformer, teacher: Transformer | None, batch: Rollout, config: Config, tokens: Tensor
) -> Tensor:
    """opsd_loss, sdpo_loss or opd_loss on every token of the student's own samples."""
    assert teacher is not None  # every method but grpo has one
    plain = [tasks.student_prompt(p) for p in batch.problems]
    if config.method == "sdpo":
        shown = [tasks.prompt(p, hint) for p, hint in zip(batch.problems, batch.hints)]
    else:
        shown = plain if config.method == "opd" else [teacher_view(p, config) for p in batch.problems]
    with autocast(config):
        with torch.no_grad():
            teacher_logits = logits(teacher, shown, batch.samples, config.temperature)
        student_logits = logits(model, plain, batch.samples, config.temperature)
    if config.method == "sdpo":
        return losses.sdpo_loss(student_logits, teacher_logits, tokens, config.opsd_beta)
    if config.method == "opd":
        return losses.opd_loss(student_logits, teacher_logits, tokens)
    return losses.opsd_loss(student_logits, teacher_logits, tokens, config.opsd_beta)


def logits(model: Transformer, prompts: list[list[int]], samples: Samples, temperature: float) -> Tensor:
    """(M,V) logits over temperature at each completion token of the samples, row by row."""
    return model.head(completion_states(model, prompts, samples)).float() / temperature


# ---- privileged text from the group itself ---------------------------------------------------------------------------


def takes_hints(config: Config) -> bool:
    """Does a sample of the group serve as privileged text?"""
    return config.method == "sdpo" or config.evidence == "contrastive"


def group_hints(batch: Rollout, config: Config) -> list[str | None]:
    """SDPO: another sample of the group that is right, whole. Contrastive evidence: a wrong final answer of it."""
    texts = [tasks.decode(c) for c in batch.samples.completions()]
    fits = lambda text: len(tasks.encode(text)) <= config.max_new_tokens  # bytes that are no UTF-8 come back longer
    right = [reward == 1.0 for reward in batch.rewards.tolist()]
    G = config.group_size
    hints: list[str | None] = []
    for i in range(len(texts)):
        start = i // G * G
        others = [start + (i - start + k) % G for k in range(1, G)]  # from the next one round: never the sample itself
        if config.method == "sdpo":
            found = [texts[j] for j in others if right[j] and fits(texts[j])]
        else:
            wrong = [final_answer(texts[j]) for j in [i, *others] if not right[j] and MARKER in texts[j]]
            found = [answer for answer in wrong if answer and fits(answer)]
        hints.append(found[0] if found else None)
    return hints
