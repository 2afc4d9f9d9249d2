"""Distillation over the full vocabulary: the losses of OPSD, SDPO and OPD.

M completion tokens of a batch in one row, V vocabulary: logits are (M,V), taken at the sampling temperature. Gradients
flow through the student alone. Every loss divides by `denominator` tokens, so that micro-batches add up.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generalised_jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    """Divergence of two (M,V) logits, in nats a token (M,): KL(T||S) at beta 0, KL(S||T) at 1, the JSD at 0.5.

    beta KL(T||M) + (1 - beta) KL(S||M) with M = beta T + (1 - beta) S in between. OPSD (arXiv 2601.18734).
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: {beta} is outside [0, 1]")
    student = F.log_softmax(student_logits, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach(), dim=-1)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logsumexp(torch.stack([teacher + math.log(beta), student + math.log(1 - beta)]), dim=0)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def opsd_loss(student_logits: Tensor, teacher_logits: Tensor, denominator: float | Tensor, beta: float = 0.5) -> Tensor:
    """On-policy self-distillation: match the teacher that sees r at every token of the student's own samples.

    Student (x) and teacher (x, r) logits (M,V) -> scalar. The teacher keeps the initial weights. arXiv 2601.18734.
    """
    return generalised_jsd(student_logits, teacher_logits, beta).sum() / denominator


def sdpo_loss(
    student_logits: Tensor, teacher_logits: Tensor, denominator: float | Tensor, beta: float = 0.5, top_k: int = 100
) -> Tensor:
    """As OPSD, over the teacher's top_k tokens and one bucket for the rest; r is a successful sample of the group.

    Samples without such an r are left out by the caller; whether `denominator` counts their tokens is the caller's
    choice (methods.distillation counts them: no update is larger for having less to learn from). arXiv 2601.20802.
    """
    k = min(top_k, student_logits.shape[-1] - 1)
    index = teacher_logits.topk(k, dim=-1).indices
    student, teacher = _with_tail(student_logits, index), _with_tail(teacher_logits, index)
    return generalised_jsd(student, teacher, beta).sum() / denominator


def opd_loss(student_logits: Tensor, teacher_logits: Tensor, denominator: float | Tensor) -> Tensor:
    """On-policy distillation from an external teacher that sees x alone: reverse KL, (M,V) logits -> scalar."""
    return opsd_loss(student_logits, teacher_logits, denominator, beta=1.0)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=-1)


def _with_tail(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probabilities at `index` (M,k) and of all the rest together: (M, k + 1)."""
    logps = F.log_softmax(logits, dim=-1)
    rest = logps.scatter(-1, index, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logps.gather(-1, index), rest], dim=-1)
