"""The other methods: what each shows its teacher, and what it makes of the scores.

method        teacher sees                 teacher's weights               loss
grpo          -                            -                               rlsd_loss at lambda 0
rlsd          x, r                         the policy, synced every K      rlsd_loss
opsd          x, r                         the initial ones                full-vocabulary JSD
sdpo          x, a right sample            moving average of the policy    JSD on top-100 and tail
grpo+opsd     x, r                         the initial ones                sum of grpo and opsd
opd           x                            another, larger model           full-vocabulary reverse KL

A batch here is a Rollout (rollout.py), or a part of one.
"""

from dataclasses import replace

import torch
from torch import Tensor

import tasks
from baselines import losses
from config import Config
from model import Samples, Transformer, completion_states
from verifiers import MARKER, final_answer


def moving(batch, config: Config) -> Tensor:
    """The samples (M,) that move the policy without an advantage: with a right neighbour (sdpo), or any reward."""
    moves = ~batch.rewards.isnan()
    if config.method == "sdpo":
        moves &= torch.tensor([hint is not None for hint in batch.hints], device=moves.device)
    return moves.nonzero().squeeze(1)


def distillation(policy: Transformer, teacher: Transformer | None, batch, config: Config, tokens: Tensor) -> Tensor:
    """opsd_loss, sdpo_loss or opd_loss on every token of the student's own samples, over `tokens` tokens in all."""
    assert teacher is not None  # every method but grpo has one
    plain = [tasks.student_prompt(problem) for problem in batch.problems]
    shown = plain
    if config.method != "opd":
        problems = with_hints(batch).problems if config.method == "sdpo" else batch.problems
        shown = [tasks.teacher_view(problem, config.privileged) for problem in problems]
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=config.bf16):
        with torch.no_grad():
            teacher_logits = logits(teacher, shown, batch.samples, config.temperature)  # (M, V)
        student_logits = logits(policy, plain, batch.samples, config.temperature)
    if config.method == "sdpo":
        return losses.sdpo_loss(student_logits, teacher_logits, tokens, config.opsd_beta)
    if config.method == "opd":
        return losses.opd_loss(student_logits, teacher_logits, tokens)
    return losses.opsd_loss(student_logits, teacher_logits, tokens, config.opsd_beta)


def logits(model: Transformer, prompts: list[list[int]], samples: Samples, temperature: float) -> Tensor:
    """(M,V) logits over temperature at each completion token of the samples, row by row."""
    return model.head(completion_states(model, prompts, samples)).float() / temperature


# ---- privileged text from the group itself ---------------------------------------------------------------------------


def with_hints(batch):
    """The batch, each sample's hint in the place of its problem's privileged text."""
    pairs = zip(batch.problems, batch.hints)
    return replace(batch, problems=[p if hint is None else replace(p, privileged=hint) for p, hint in pairs])


def group_hints(batch, config: Config) -> list[str | None]:
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
