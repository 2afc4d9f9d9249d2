"""A batch for one update: sample every question's group, verify each completion, standardise the rewards.

And what an update asks of a batch: log-probabilities of its completions after either prompt, and the evidence, which is
the one extra forward pass of RLSD.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tasks
from baselines import methods, readings
from config import Config
from model import Samples, Transformer, sample, token_logps
from rlsd import group_advantages
from support import judge, micro_batches, processes
from tasks import Problem, Source
from verifiers import Verifier, reward_of


@dataclass
class Rollout:
    """N samples, the group_size of one question next to each other; problems has one entry a sample.

    A sample whose verifier failed may be dropped: its reward is nan, its advantage 0, its mask empty.
    hints: privileged text that the group itself supplies, a sample's each; None where there is none.
    """

    problems: list[Problem]  # N
    samples: Samples  # tokens, mask, logps (N, T)
    rewards: Tensor  # (N,)
    advantages: Tensor  # (N,)
    hints: list[str | None] = field(default_factory=list)
    verifier_errors: int = 0

    def rows(self, index: Tensor) -> "Rollout":
        """The given samples (M,), their completions cut to the longest of them."""
        picked = index.tolist()
        problems, hints = ([of_all[i] for i in picked if of_all] for of_all in (self.problems, self.hints))
        return Rollout(problems, self.samples.rows(index), self.rewards[index], self.advantages[index], hints)


def rollout(policy: Transformer, source: Source, verifier: Verifier, config: Config, step: int) -> Rollout:
    """prompts_per_step questions, group_size samples of each, their rewards in [0, 1] and advantages (Eq. 1).

    Questions and noise follow from (seed, step): a resumed run draws the same ones.
    """
    rng = random.Random(f"{config.seed} rollout {step}")
    questions = processes.share(source.draw(rng, config.prompts_per_step))
    prompts = [tasks.student_prompt(problem) for problem in questions]
    how = sampling(config, config.temperature, seed=rng.getrandbits(62))
    with processes.whole(policy), torch.autocast("cuda", dtype=torch.bfloat16, enabled=config.bf16):
        samples = sample(policy, prompts, group_size=config.group_size, **how)  # (N, T)
    problems = [problem for problem in questions for _ in range(config.group_size)]  # N
    rewards = torch.tensor(verify(verifier, samples, problems, config), device=config.device)  # (N,)
    if errors := int(rewards.isnan().sum()):
        rewards, samples, advantages = judge.without_failed(rewards, samples, config)
    else:
        advantages = group_advantages(rewards, config.group_size)  # (N,)
    batch = Rollout(problems, samples, rewards, advantages, verifier_errors=errors)
    if takes_hints(config):
        batch.hints = methods.group_hints(batch, config)
    return batch


def sampling(config: Config, temperature: float, seed: int) -> dict[str, Any]:
    """What every call of `sample` is handed: where a completion ends, and how it is drawn, with the noise of a seed."""
    ends = {"max_new_tokens": config.max_new_tokens, "stop_token": tasks.FORMAT.ends}
    return {**ends, "temperature": temperature, "generator": torch.Generator().manual_seed(seed)}


def verify(verifier: Verifier, samples: Samples, problems: list[Problem], config: Config) -> list[float]:
    """A reward in [0, 1] for each sample; nan where the verifier failed and --on_verifier_error lets the run go on."""
    rewards = []
    for tokens, problem in zip(samples.completions(), problems):
        completion = tasks.decode(tokens)
        try:
            rewards.append(reward_of(verifier(completion, problem.answer)))
        except KeyboardInterrupt:  # a second Ctrl-C
            raise
        except BaseException as error:  # not all that other packages raise is an Exception
            rewards.append(judge.failed(error, completion, problem, config))
    return rewards


def score(model: Transformer, batch: Rollout, config: Config, view: Callable[[Problem], list[int]]) -> Tensor:
    """Log-probabilities (N,T), in nats, of the batch's completions after the prompts that `view` makes."""
    prompts = [view(problem) for problem in batch.problems]
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=config.bf16):
        return token_logps(model, prompts, batch.samples, config.temperature)


@torch.no_grad()
def evidence(teacher: Transformer, batch: Rollout, config: Config, student_logps: Tensor) -> Tensor:
    """log P_T (N,T): the same completions after the prompt that shows the reference (Eq. 13), as options read it."""
    view = lambda problem: tasks.teacher_view(problem, config.privileged)
    teacher_logps = score(teacher, batch, config, view)  # (N, T)
    if config.evidence == "plain" and not (config.rlsd_negative_only or config.rlsd_thought_only):
        return teacher_logps
    return readings.read(batch, config, student_logps, teacher_logps, lambda other: score(teacher, other, config, view))


def parts_of(batch: Rollout, rows: Tensor, config: Config) -> list[Rollout]:
    """The given samples (M,), in parts of one forward and backward pass each: all at once, unless an option says so."""
    if config.micro_batch or config.micro_tokens or config.fsdp:
        return micro_batches.parts_of(batch, rows, config)
    return [batch.rows(rows)] if len(rows) else []  # another process may have some


def takes_hints(config: Config) -> bool:
    """Does a sample of the group serve as privileged text?"""
    return config.method == "sdpo" or config.evidence == "contrastive"
