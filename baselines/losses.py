"""What RLSD is compared with: distillation losses over the full vocabulary, and other readings of the same evidence.

M completion tokens of a batch in one row, V vocabulary: logits are (M,V), taken at the sampling temperature. Gradients
flow through the student alone. Every loss divides by `denominator` tokens, so that micro-batches add up.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- distillation ----------------------------------------------------------------------------------------------------


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
    choice (methods.py counts them: no update is larger for having less to learn from). arXiv 2601.20802.
    """
    k = min(top_k, student_logits.shape[-1] - 1)
    index = teacher_logits.topk(k, dim=-1).indices
    student, teacher = _with_tail(student_logits, index), _with_tail(teacher_logits, index)
    return generalised_jsd(student, teacher, beta).sum() / denominator


def opd_loss(student_logits: Tensor, teacher_logits: Tensor, denominator: float | Tensor) -> Tensor:
    """On-policy distillation from an external teacher that sees x alone: reverse KL, (M,V) logits -> scalar."""
    return opsd_loss(student_logits, teacher_logits, denominator, beta=1.0)


def opd_sampled_loss(logps: Tensor, teacher_logps: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """The same gradient in expectation from the sampled tokens alone: policy gradient with A_t = log pi_T - log pi_S.

    A_t is held constant and multiplies the student's log-probability: log pi_T - log pi_S as a loss of its own would
    have no teacher in its gradient. logps, teacher_logps, mask (N,T) -> scalar.
    """
    valid = mask.bool()
    advantages = torch.where(valid, teacher_logps - logps, 0.0).detach()
    return -(advantages * torch.where(valid, logps, 0.0)).sum() / denominator


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=-1)


def _with_tail(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probabilities at `index` (M,k) and of all the rest together: (M, k + 1)."""
    logps = F.log_softmax(logits, dim=-1)
    rest = logps.scatter(-1, index, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logps.gather(-1, index), rest], dim=-1)


# ---- other readings of the evidence ----------------------------------------------------------------------------------
# Each returns what to hand to rlsd_loss in place of teacher_logps; (N,T) in, (N,T) out, nothing else changes.


def contrastive(student_logps: Tensor, teacher_logps: Tensor, misled_logps: Tensor, has_wrong: Tensor) -> Tensor:
    """Delta = log P_T+ - log P_T-: the teacher shown a wrong answer of the group replaces the student in the ratio.

    Samples (N,) without a wrong answer in their group keep RLSD's Delta. CEPO (arXiv 2605.19436), RLCSD (2606.11709).
    """
    return torch.where(has_wrong[:, None], student_logps + teacher_logps - misled_logps, teacher_logps)


def negative_only(student_logps: Tensor, teacher_logps: Tensor, advantages: Tensor) -> Tensor:
    """Evidence where A < 0 alone; elsewhere Delta = 0, that is GRPO. The authors' code."""
    return torch.where((advantages < 0)[:, None], teacher_logps, student_logps)


def thought_only(student_logps: Tensor, teacher_logps: Tensor, thought: Tensor) -> Tensor:
    """Evidence inside the thought span (N,T) alone; elsewhere Delta = 0, that is GRPO. The authors' code."""
    return torch.where(thought.bool(), teacher_logps, student_logps)


def agreement(student_logps: Tensor, teacher_logps: Tensor, advantages: Tensor, threshold: float = 0.02) -> Tensor:
    """Weight 1 where the teacher agrees with the verdict, sign(A) Delta > threshold, and 0 elsewhere.

    For lam = 1 and eps_w = 1, where a Delta far on the other side is a weight of 0. A proposal of this repository.
    """
    sign = advantages.sign()[:, None]
    agrees = sign * (teacher_logps - student_logps) > threshold
    return torch.where(agrees, student_logps, student_logps - 50 * sign)
