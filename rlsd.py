"""RLSD: verifiable rewards with self-distilled credit ("Self-Distilled RLVR", arXiv 2604.03128).

A verifier decides the *direction* of the update (the sign of a sample's advantage); the same model, shown the
reference answer, decides its *magnitude* token by token. This file is the whole method and imports torch alone,
so it can be copied into another trainer as it is.

N samples, the G of one question next to each other; T completion tokens, right-padded; mask (N,T) is 1 on
completion tokens, the end-of-sequence token included. All log-probabilities are natural logarithms of the
*sampled* token's probability at the sampling temperature.
"""

import torch
from torch import Tensor

# Log-ratios are bounded by this before exp: far outside every clip range in use, and exp(+-50) is finite and > 0.
MAX_LOG_RATIO = 50.0


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-6) -> Tensor:
    """Standardise rewards (N,) within each group of `group_size` neighbours -> A (N,), unit-free.

    Std with n - 1. A group without spread gives exactly 0, also where rounding would leave a difference to the mean.
    Raises ValueError for a length that is no multiple of `group_size`, or a reward that is not finite. Paper, Eq. 1.
    """
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"rewards: {tuple(rewards.shape)} is not (N,) with N a multiple of group_size {group_size}")
    if not torch.isfinite(rewards).all():
        raise ValueError(f"rewards: {int((~torch.isfinite(rewards)).sum())} of {len(rewards)} are not finite")
    grouped = rewards.double().view(-1, group_size)  # (N/G, G)
    no_spread = grouped.amax(dim=1, keepdim=True) == grouped.amin(dim=1, keepdim=True)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(group_size - 1, 1)).sqrt()
    advantages = torch.where(no_spread, 0.0, centred / (std + eps))
    return advantages.view(-1).to(rewards.dtype if rewards.is_floating_point() else torch.float32)


def evidence_weights(
    advantages: Tensor, teacher_logps: Tensor, student_logps: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Unclipped w_t = (P_T / P_S)^sign(A) and Delta_t = log P_T - log P_S in nats, both (N,T) and detached.

    sign(0) = 0, so a sample without advantage has w = 1; padding has w = 1 and Delta = 0. Paper, Eq. 13 and 14.
    """
    delta = torch.where(mask.bool(), teacher_logps - student_logps, 0.0).detach()
    log_weights = advantages.detach().sign()[:, None] * delta
    return log_weights.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), delta


def token_advantages(
    advantages: Tensor, teacher_logps: Tensor, student_logps: Tensor, mask: Tensor, lam: float = 0.5, eps_w: float = 0.2
) -> Tensor:
    """Spread each sample's advantage (N,) over its tokens by the teacher's evidence -> A_hat (N,T), detached.

    A_hat_t = A [(1 - lam) + lam clip(w_t, 1 - eps_w, 1 + eps_w)] with w_t of `evidence_weights`; 0 where mask is 0.
    Raises ValueError as `rlsd_loss` does. Paper, Eq. 13 to 15 and Algorithm 1.
    """
    _check(mask, advantages, lam, eps_w, teacher_logps=teacher_logps, student_logps=student_logps)
    weights, _ = evidence_weights(advantages, teacher_logps, student_logps, mask)
    clipped = weights.clamp(1 - eps_w, 1 + eps_w)
    multiplier = torch.lerp(torch.ones_like(clipped), clipped, lam)  # (1 - lam) + lam * clipped, exact at 0 and 1
    return torch.where(mask.bool(), advantages.detach()[:, None] * multiplier, 0.0)


def rlsd_loss(
    logps: Tensor,
    old_logps: Tensor,
    teacher_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    lam: float = 0.5,
    eps_w: float = 0.2,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The one loss: clipped policy gradient on per-token advantages -> (scalar loss, metrics). lam = 0 *is* GRPO.

    logps (N,T): current policy, the only argument that gets a gradient. old_logps: the policy that sampled.
    teacher_logps: the model shown the reference; None where lam is 0. advantages (N,): of `group_advantages`.
    denominator: completion tokens to divide by, default mask.sum(); hand in the whole batch's count and
    micro-batches add up to its token mean. metrics: floats, means over this call's own completion tokens.
    Raises ValueError for wrong shapes, lam outside [0, 1], eps_w < 0 or values on completion tokens that are not
    finite; what stands under mask 0 is never read. Paper, Algorithm 1 (Eq. 16 as printed lacks the policy ratio).
    """
    if teacher_logps is None:
        if lam != 0:
            raise ValueError("teacher_logps: None is allowed at lam = 0 only")
        teacher_logps = logps.detach()
    _check(mask, advantages, lam, eps_w, logps=logps, old_logps=old_logps, teacher_logps=teacher_logps)
    valid = mask.bool()
    student_logps = logps.detach()
    a_hat = token_advantages(advantages, teacher_logps, student_logps, mask, lam, eps_w)  # (N,T)

    log_ratio = torch.where(valid, logps - old_logps.detach(), 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()  # rho_t = pi_theta / pi_old
    surrogate = torch.minimum(ratio * a_hat, ratio.clamp(1 - clip_low, 1 + clip_high) * a_hat)
    tokens = valid.sum()
    loss = -surrogate.sum() / (tokens.clamp(min=1) if denominator is None else denominator)

    with torch.no_grad():
        weights, delta = evidence_weights(advantages, teacher_logps, student_logps, mask)
        a = advantages.abs()[:, None].expand_as(a_hat)
        policy_clipped = torch.where(a_hat > 0, ratio > 1 + clip_high, (a_hat < 0) & (ratio < 1 - clip_low))
        per_token = {
            "delta": delta,
            "weight": weights.clamp(1 - eps_w, 1 + eps_w),
            "clipped_low": weights < 1 - eps_w,
            "clipped_high": weights > 1 + eps_w,
            "policy_clipped": policy_clipped,
            "abs_advantage": a,
            "abs_token_advantage": a_hat.abs(),
        }
        sums = torch.stack([torch.where(valid, value.to(loss.dtype), 0.0).sum() for value in per_token.values()])
        means = (sums / tokens.clamp(min=1)).tolist()
    return loss, dict(zip(per_token, means))


def lambda_at(step: int, lam: float, warmup_steps: int = 0, decay_steps: int = 0) -> float:
    """Mixing weight of update `step` (the first is 1): linear rise over warmup_steps, then linear fall to 0.

    decay_steps = 0 keeps lam. As in the authors' code, update 1 of a decay over 50 has 49/50 of lam, update 50 has 0.
    """
    if step < warmup_steps:
        return lam * step / warmup_steps
    if decay_steps > 0:
        return lam * max(1 - (step - warmup_steps) / decay_steps, 0.0)
    return lam


def _check(mask: Tensor, advantages: Tensor, lam: float, eps_w: float, **logps: Tensor | None) -> None:
    if not 0 <= lam <= 1:
        raise ValueError(f"lam: {lam} is outside [0, 1]")
    if not 0 <= eps_w < float("inf"):
        raise ValueError(f"eps_w: {eps_w} is not a finite number >= 0")
    if mask.dim() != 2 or advantages.shape != mask.shape[:1]:
        raise ValueError(f"advantages: {tuple(advantages.shape)} does not fit a mask (N,T) of {tuple(mask.shape)}")
    if not torch.isfinite(advantages).all():
        raise ValueError(f"advantages: {int((~torch.isfinite(advantages)).sum())} of {len(advantages)} are not finite")
    for name, value in logps.items():
        if value is None:
            raise ValueError(f"{name}: None is no tensor")
        if value.shape != mask.shape:
            raise ValueError(f"{name}: {tuple(value.shape)} is not the mask's {tuple(mask.shape)}")
        if bad := int((mask.bool() & ~torch.isfinite(value)).sum()):
            raise ValueError(f"{name}: {bad} of {int(mask.sum())} completion tokens are not finite")
