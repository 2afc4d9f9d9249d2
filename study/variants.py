"""What others propose to do with the same evidence, each as a short function for the probe; one idea is our own.

Readings return what to hand to rlsd_loss in place of teacher_logps; credits return A_hat itself; all (N,T), detached.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.losses import generalised_jsd


def centred(student_logps: Tensor, teacher_logps: Tensor, mask: Tensor) -> Tensor:
    """Delta less its mean over the sample's tokens: E[Delta] is -KL <= 0, a drift that is no evidence. AgentOPSD."""
    delta = torch.where(mask, teacher_logps - student_logps, 0.0)
    return teacher_logps - (delta.sum(dim=1) / mask.sum(dim=1).clamp(min=1))[:, None]


def inverse_on_right(student_logps: Tensor, teacher_logps: Tensor, advantages: Tensor) -> Tensor:
    """-Delta where A > 0: a right sample earns most where the teacher did not expect it. RLRT (arXiv 2605.10781)."""
    return torch.where((advantages > 0)[:, None], 2 * student_logps - teacher_logps, teacher_logps)


def bounded_credit(
    advantages: Tensor, teacher_logps: Tensor, student_logps: Tensor, mask: Tensor, most: float = 0.05
) -> Tensor:
    """RLSD's weights in [0.8, 1.05] on right samples and up to 1.2 on wrong ones, where tokens that the teacher
    approves (Delta > 0.02) earn +most |A| (1 - P_S / P_T) in place of blame. After CAST (arXiv 2606.00172), whose
    teacher sees no reference; the size of the credit is our choice.
    """
    delta = torch.where(mask, teacher_logps - student_logps, 0.0)
    A = advantages[:, None]
    weights = (A.sign() * delta).clamp(-50, 50).exp()
    credit = A * torch.where(A > 0, weights.clamp(0.8, 1.05), weights.clamp(max=1.2))
    approved = (A < 0) & (delta > 0.02)
    return torch.where(mask, torch.where(approved, -most * A * (1 - weights), credit), 0.0)


def residual_credit(
    advantages: Tensor,
    right_logps: Tensor,
    wrong_logps: Tensor,
    mask: Tensor,
    lam: float = 0.5,
    tau: float = 0.02,
    delta: float = 0.02,
) -> Tensor:
    """A + lam tanh(e / tau) where that residual exceeds delta, never turning A's sign; A elsewhere, 0 where A is 0.

    e = log P_T(y | right answer) - log P_T(y | wrong answer). RLCSD (arXiv 2606.11709), with one wrong answer.
    """
    e = torch.where(mask, right_logps - wrong_logps, 0.0)
    residual = lam * (e / tau).tanh()
    A = torch.where(mask, advantages[:, None], 0.0)
    sign = A.sign()
    return sign * (sign * (A + torch.where(residual.abs() > delta, residual, 0.0))).clamp(min=0)


def without_style_loss(
    student_logits: Tensor, right_logits: Tensor, wrong_logits: Tensor, denominator: float | Tensor, bound: float = 2.0
) -> Tensor:
    """Forward KL, (M,V) logits -> scalar, from P_S (P_T+ / P_T-), renormalised: the log-ratio bounded by +-bound.

    T+ is shown the reference, T- a wrong answer of the group: what any reference makes the teacher write cancels. Ours.
    """
    ratio = F.log_softmax(right_logits, dim=-1) - F.log_softmax(wrong_logits, dim=-1)
    target = student_logits.detach() + ratio.clamp(-bound, bound)
    return generalised_jsd(student_logits, target, beta=0.0).sum() / denominator
