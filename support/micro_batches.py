"""Parts of a batch, one forward and backward pass each: --micro_batch, --micro_tokens, and what --fsdp asks for."""

import torch

import tasks
from config import Config
from model import Samples
from support import processes


def parts_of(batch, rows: torch.Tensor, config: Config) -> list:
    """The rows of a batch (rollout.Rollout), in order, in parts of one forward and backward pass each.

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


def micro_batches(batch, rows: torch.Tensor, config: Config) -> list[torch.Tensor]:
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


def longest_view(batch, i: int, config: Config) -> int:
    """Tokens of the longest prompt that sample i is scored after, by the policy or by the teacher."""
    problem, hint = batch.problems[i], batch.hints[i] if batch.hints else None
    prompts = [tasks.student_prompt(problem)]
    prompts += (
        [tasks.teacher_view(problem, config.privileged)] if config.method in ("rlsd", "opsd", "grpo+opsd") else []
    )
    prompts += [tasks.prompt(problem, hint)] if hint else []
    return max(map(len, prompts))
