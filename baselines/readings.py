"""Other readings of the evidence: each returns what to hand to rlsd_loss in place of teacher_logps.

Log-probabilities (N,T) in, (N,T) out; nothing else changes.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

import tasks
from baselines.methods import with_hints
from config import Config
from verifiers import MARKER, THOUGHT


def read(batch, config: Config, student_logps: Tensor, teacher_logps: Tensor, scored: Callable) -> Tensor:
    """The evidence of a Rollout as --evidence, --rlsd_negative_only and --rlsd_thought_only say, one upon the other.

    scored(other): log P_T (N,T) of another batch's completions after the teacher's prompts.
    """
    if config.evidence == "contrastive":
        has_wrong = torch.tensor([hint is not None for hint in batch.hints], device=student_logps.device)
        teacher_logps = contrastive(student_logps, teacher_logps, scored(with_hints(batch)), has_wrong)
    if config.evidence == "agreement":
        teacher_logps = agreement(student_logps, teacher_logps, batch.advantages)
    if config.rlsd_negative_only:
        teacher_logps = negative_only(student_logps, teacher_logps, batch.advantages)
    if config.rlsd_thought_only:
        teacher_logps = thought_only(student_logps, teacher_logps, thought_mask(batch.samples.tokens))
    return teacher_logps


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


def thought_mask(tokens: Tensor) -> Tensor:
    """True on the tokens (N,T) before the first answer marker: the thought, where the answer is not yet given."""
    rows = []
    for row in tokens.tolist():  # by bytes: a tokenizer may cut the marker anywhere, or join it to its neighbours
        pieces = [tasks.FORMAT.tokenizer.decode_single_token_bytes(token) for token in row]
        text = b"".join(pieces)
        marker = text.find(MARKER.encode(), max(0, text.rfind(THOUGHT[1].encode())))
        rows.append([marker < 0 or end <= marker for end in accumulate(map(len, pieces))])
    return torch.tensor(rows, device=tokens.device)
