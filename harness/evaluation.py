"""How good the policy is on held-out problems, in either view, and where its credit falls."""

import contextlib
import itertools
import math
from statistics import fmean as mean

import torch

import tasks
from config import Config
from credit.tokens import Sample, credited, right_and_wrong
from model import Samples, Transformer, sample
from rollout import Rollout, sampling, verify
from support import processes
from verifiers import Verifier


def held_out_samples(model: Transformer, prompts: list[list[int]], config: Config, temperature: float) -> Samples:
    """One completion a prompt, if any; the same noise at every call: evaluations differ by the policy alone."""
    rows_of_a_rollout = max(1, config.prompts_per_step * config.group_size // processes.world())
    with processes.whole(model), torch.autocast("cuda", dtype=torch.bfloat16, enabled=config.bf16):
        if not prompts:  # fewer problems than processes
            return Samples(*torch.zeros(3, 0, 0))
        at_once = rows_of_a_rollout if config.micro_tokens else 0
        return sample(model, prompts, group_size=1, at_once=at_once, **sampling(config, temperature, seed=0))


def evaluate(
    model: Transformer, source: tasks.Source, verifier: Verifier, config: Config, graded: bool = False
) -> dict[str, float]:
    """Held-out pass@1 (share of rewards of 1) in the student's view, at temperature 1 and greedy; nan without rewards.

    held-out reward: the mean at temperature 1, where the verifier gives rewards between 0 and 1, or is known to.
    leakage: share of the completions at temperature 1 that cite a reference they were never shown.
    Each process tries its part of the problems; all of them learn every figure, or the failure of one.
    """

    def tried() -> list[tuple[float, float, bool]]:
        mine = processes.part(source.held_out)
        prompts = [tasks.student_prompt(p) for p in mine]
        samples = held_out_samples(model, prompts, config, 1.0)
        cited = [tasks.CITATION in tasks.decode(c) for c in samples.completions()]
        greedy = held_out_samples(model, prompts, config, 0.0)
        rewards, of_greedy = (verify(verifier, drawn, mine, config) for drawn in (samples, greedy))
        return list(zip(rewards, of_greedy, cited))

    rewards, of_greedy, cited = map(list, zip(*itertools.chain(*processes.together(tried))))
    scores = {"pass@1": share_right(rewards, config), "greedy": share_right(of_greedy, config), "leakage": mean(cited)}
    if graded or any(0 < reward < 1 for reward in rewards):
        scores["held-out reward"] = mean_reward(rewards, config)
    return scores | error_count("held-out verifier errors", rewards + of_greedy, config)


def evaluate_teacher(model: Transformer, source: tasks.Source, verifier: Verifier, config: Config) -> dict[str, float]:
    """Held-out pass@1 at temperature 1 of the same model when it is shown the reference."""

    def tried() -> list[float]:
        mine = processes.part(source.held_out)
        samples = held_out_samples(model, [tasks.teacher_view(p, config.privileged) for p in mine], config, 1.0)
        return verify(verifier, samples, mine, config)

    rewards = list(itertools.chain(*processes.together(tried)))
    return {"teacher pass@1": share_right(rewards, config)} | error_count("teacher verifier errors", rewards, config)


def share_right(rewards: list[float], config: Config) -> float:
    return mean_reward([reward if reward != reward else float(reward == 1) for reward in rewards], config)


def mean_reward(rewards: list[float], config: Config) -> float:
    """Over held-out problems; a failed one counts 0 (zero) or not at all (drop; nan if that leaves none)."""
    zero = config.on_verifier_error == "zero"
    kept = [0.0 if math.isnan(reward) else reward for reward in rewards if zero or not math.isnan(reward)]
    return mean(kept) if kept else math.nan


def error_count(name: str, rewards: list[float], config: Config) -> dict[str, float]:
    return {} if config.on_verifier_error == "stop" else {name: sum(reward != reward for reward in rewards)}


def credited_samples(
    policy: Transformer, teacher: Transformer | None, batch: Rollout, config: Config, lam: float
) -> list[dict]:
    """One right and one wrong sample of the first group with spread, with the credit of each token; else any two."""
    spread = batch.advantages.nonzero().squeeze(1)
    picked = batch.rewards.isnan().sort(stable=True).indices[:2]
    if len(spread):
        first = int(spread[0]) // config.group_size * config.group_size
        picked = first + right_and_wrong(batch.rewards[first : first + config.group_size])
    pair = batch.rows(picked)
    texts = [tasks.FORMAT.ended(tokens) for tokens in batch.samples.tokens[picked].tolist()]  # a dropped one's too
    pair.samples = Samples.of(texts, pair.rewards.device)
    rows: list[dict] = [
        {"question": problem.question, "completion": tasks.decode(tokens), "reward": reward}
        for problem, tokens, reward in zip(pair.problems, texts, pair.rewards.tolist())
    ]
    samples: list[Sample] = []
    with contextlib.suppress(ValueError):  # log-probabilities that are not finite
        samples = credited(policy, teacher if lam > 0 else None, pair, config, lam)  # all processes do, or none
    for row, tokens, shown in zip(rows, texts, samples if len(spread) else ()):
        row["tokens"] = [tasks.FORMAT.tokenizer.decode([t]) for t in tokens]
        row["credit"] = [round(token.a_hat, 4) for token in shown.tokens]
    return rows
