"""What every token of a sample earns: worked out here alone, for samples.jsonl, the terminal and the page."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import tasks
from baselines import readings
from config import Config
from model import Transformer
from rlsd import evidence_weights, token_advantages
from rollout import Rollout, score
from support import errors, processes

NAMES = ("P_S", "P_T", "Delta", "w", "A_hat", "push")  # of a token's figures


class Token(NamedTuple):
    """A sampled token: its text, its probability in either view, Delta in nats, w unclipped, A_hat."""

    text: str
    p_student: float
    p_teacher: float
    delta: float
    weight: float
    a_hat: float

    @property
    def push(self) -> float:
        """A_hat (1 - P_S): the gradient at the token's own logit over the temperature, before it is divided by tokens.

        A token of which the policy is sure gets hardly any, whatever its credit.
        """
        return self.a_hat * (1 - self.p_student)

    def columns(self) -> list[str]:
        """The figures, in the order of NAMES."""
        delta = round(self.delta, 4) + 0.0  # no -0.0000; a push keeps its sign, that of the credit
        probabilities = f"{self.p_student:.4g}", f"{self.p_teacher:.4g}"
        return [*probabilities, f"{delta:+.4f}", f"{self.weight:.4g}", f"{self.a_hat:+.4f}", f"{self.push:+.4f}"]


@dataclass
class Sample:
    """A completion with its reward, its advantage A and its tokens, the end token included."""

    reward: float
    advantage: float
    tokens: list[Token]
    text: str = ""

    @property
    def sign(self) -> int:
        return (self.advantage > 0) - (self.advantage < 0)

    def headline(self) -> str:
        verdict = {1.0: "right", 0.0: "wrong"}.get(self.reward, "partly right")
        effect = ("no token moved", "every token raised (+)", "every token lowered (-)")[self.sign]
        return f"{verdict}: reward {self.reward:.4g}, A = {self.advantage:+.4f}, {effect}"


def right_and_wrong(rewards: Tensor) -> Tensor:
    """The sample of the highest and that of the lowest of rewards (N,); dropped ones (nan) are neither."""
    return torch.stack([rewards.nan_to_num(-1.0).argmax(), rewards.nan_to_num(2.0).argmin()])


@torch.no_grad()
def credited(
    student: Transformer, teacher: Transformer | None, batch: Rollout, config: Config, lam: float
) -> list[Sample]:
    """The credit of every token at `lam` and the config's eps_w, by the functions that a training step calls.

    Delta is that of the run's --evidence, the two probabilities are what the models give; without a teacher P_T is P_S.
    Raises ValueError for log-probabilities that are not finite.
    """
    mask = batch.samples.mask
    with processes.whole(student):
        logps = score(student, batch, config, tasks.student_prompt)  # (N,T)
    shown = teacher_logps = logps
    if teacher is not None:
        with processes.whole(teacher):
            scored = lambda some: score(teacher, some, config, lambda p: tasks.teacher_view(p, config.privileged))
            shown = scored(batch)
            teacher_logps = readings.read(batch, config, logps, shown, scored)  # as `evidence`, P_T itself kept
    weights, deltas = evidence_weights(batch.advantages, teacher_logps, logps, mask)
    a_hat = token_advantages(batch.advantages, teacher_logps, logps, mask, lam, config.rlsd_reweight_clip_range)
    figures = torch.stack([logps.exp(), shown.exp(), deltas, weights, a_hat], dim=2).tolist()
    return [
        Sample(reward, advantage, [Token(token_text(t), *row) for t, row in zip(tokens, rows)], tasks.decode(tokens))
        for reward, advantage, tokens, rows in zip(
            batch.rewards.tolist(), batch.advantages.tolist(), batch.samples.completions(), figures
        )
    ]


def token_text(token: int) -> str:
    """The token's own bytes as text; a byte that is no UTF-8 by itself becomes \\xe2 or the like."""
    return tasks.FORMAT.tokenizer.decode_single_token_bytes(token).decode("utf-8", errors="backslashreplace")


def visible(text: str) -> str:
    return errors.visible(text.replace("\n", "↵"))


def quoted(text: str) -> str:
    return f"'{visible(text)}'"  # where a space has to be seen


# ---- how far from plain GRPO -----------------------------------------------------------------------------------------


def bounds(config: Config) -> tuple[float, float]:
    """The least and the greatest multiplier A_hat / A: w is above 0, so the least is never below 1 - lambda."""
    lam, eps_w = config.rlsd_lambda, config.rlsd_reweight_clip_range
    return 1 - lam * min(eps_w, 1), 1 + lam * eps_w


def depth(sample: Sample, token: Token, config: Config) -> float:
    """Where the multiplier A_hat / A lies: -1 at the least of `bounds`, 0 at 1 (plain GRPO), +1 at the greatest."""
    reach = config.rlsd_lambda * config.rlsd_reweight_clip_range
    more = token.a_hat / sample.advantage - 1 if sample.advantage else 0.0
    room = reach if more > 0 else min(reach, config.rlsd_lambda)
    return max(-1.0, min(1.0, more / room)) if room else 0.0


def push_depth(sample: Sample, token: Token, config: Config) -> float:
    """Where the size of the push lies: -1 at none, +1 at the greatest that a token of this sample can get."""
    most = abs(sample.advantage) * bounds(config)[1]
    return min(1.0, 2 * abs(token.push) / most - 1) if most else -1.0
