"""Whole training steps: our GRPO beside TRL's GRPOTrainer, our RLSD beside our GRPO on the same samples."""

import copy
import random
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import torch

import tasks
import train
import verifiers
from harness.checkpoint import State
from model import ModelConfig
from speed.peers import byte_tokenizer, peers, quiet, to_transformers, wide_tokenizer
from speed.turns import compared, now, time_ratios, turns
from speed.workload import Run, config_of, new_model, published_shape
from support import processes

TRL_WARM_UP = 2


def coin(share: float) -> verifiers.Verifier:
    """A verifier that pays by a hash of the completion, for `share` of the questions.

    Untrained weights never answer right, and a group without spread is left out of the update: a step that trained on
    nothing would look fast. The task's own verifier runs as well, so that its time counts.
    """

    def verifier(completion: str, answer: str) -> float:
        right = verifiers.number(completion, answer)
        pays = zlib.crc32(answer.encode()) % 1000 < 1000 * share
        return max(right, float(pays and zlib.crc32(completion.encode()) % 2))

    return verifier


class Trainer:
    """One of our training runs, from the same untrained weights every time."""

    def __init__(self, run: Run, method: str, share: float, shape: ModelConfig | None = None, chain: int = 0):
        self.config, self.verifier = config_of(run, method), coin(share)
        self.source = tasks.generated("addition", held_out=100, chain=chain)
        self.state = State(self.config)
        if shape:
            self.state.policy = new_model(run, shape)
            self.state.optimizer = torch.optim.Adam(
                self.state.policy.parameters(), lr=self.config.lr, betas=(0.9, 0.99)
            )

    def step(self, i: int, lam: float = 0.0) -> int:
        """Sample, verify, score, update, and what the update does to the teacher -> completion tokens."""
        policy, teacher = self.state.policy, self.state.teacher
        batch = train.rollout(policy, self.source, self.verifier, self.config, i)
        train.update(policy, teacher, self.state.optimizer, batch, self.config, lam)
        train.sync(teacher, policy, i, self.config)
        return int(batch.samples.mask.sum())

    def snapshot(self) -> Callable[[], None]:
        """A function that puts the weights and the optimizer back as they are now."""
        parts = [part for part in (self.state.policy, self.state.teacher, self.state.optimizer) if part is not None]
        saved = [copy.deepcopy(part.state_dict()) for part in parts]

        def restore() -> None:
            for part, state in zip(parts, saved):
                part.load_state_dict(copy.deepcopy(state))  # an optimizer would go on to write into what it is given

        return restore


def published_beside_trl(run: Run) -> dict:
    """As `beside_trl`, of a model of SmolLM2-135M's shape, in float32 without checkpointing: TRL at its best here."""
    prompts, group, length, _, tokens = run.size.published
    shape, own = published_shape(run), tasks.FORMAT
    run = run._replace(size=run.size._replace(prompts=prompts, group=group, tokens=tokens))
    tasks.FORMAT = tasks.Format(wide_tokenizer(shape.vocab_size), *tasks.ROLES[0::2], tasks.ROLES[3], own.view)
    try:
        ours = Trainer(run, "grpo", 1.0, shape, chain=(length - 3) // 2)
        return beside_trl(run, ours, bf16=False, gradient_checkpointing=False)
    finally:
        tasks.FORMAT = own


def beside_trl(run: Run, ours: Trainer | None = None, **options) -> dict:
    """Seconds of a step of TRL's GRPOTrainer over those of ours, which goes first in every round."""
    with quiet():
        transformers, trl, datasets = peers("transformers", "trl", "datasets")
    ours = ours or Trainer(run, "grpo", share=1.0)  # every group has spread: we leave out nothing that TRL computes
    our_steps: list[tuple[float, int]] = []
    trl_steps: list[tuple[float, int]] = []
    trl_tokens: list[int] = []
    rounds = run.rounds + TRL_WARM_UP
    problems = ours.source.draw(random.Random(0), run.size.prompts * rounds)
    queue = iter(problems)
    ours.source = replace(ours.source, draw=lambda _, n: [next(queue) for _ in range(n)])
    prompts = [tasks.TOKENIZER.decode(tasks.student_prompt(p)) for p in problems]
    data = datasets.Dataset.from_dict({"prompt": prompts, "answer": [p.answer for p in problems]})

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_) -> list[float]:
        trl_tokens.append(sum(map(len, completion_ids)))
        return [ours.verifier(completion, a) for completion, a in zip(completions, answer)]

    class Turns(transformers.TrainerCallback):  # type: ignore[name-defined]
        """TRL's loop calls it at the two ends of a step: ours goes first."""

        def on_step_begin(self, *_, **__):
            processes.total(torch.zeros(1))  # nobody begins while another one still works
            start = now(run.device)
            tokens = ours.step(len(our_steps) + 1)
            our_steps.append((now(run.device) - start, tokens))
            self.start = now(run.device)

        def on_step_end(self, *_, **__):
            trl_steps.append((now(run.device) - self.start, trl_tokens[-1]))

    N = run.size.prompts * run.size.group // processes.world()
    options |= {"per_device_train_batch_size": N, "num_generations": run.size.group, "shuffle_dataset": False}
    options |= {"max_completion_length": run.size.tokens, "learning_rate": ours.config.lr, "beta": 0.0}
    options |= {"max_steps": rounds, "use_cpu": run.device == "cpu", "report_to": "none", "disable_tqdm": True}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trl.GRPOTrainer(
            to_transformers(ours.state.policy),
            reward,
            trl.GRPOConfig(folder, save_strategy="no", logging_strategy="no", **options),
            data,
            processing_class=byte_tokenizer(ours.state.policy.config.vocab_size),
            callbacks=[Turns()],
        ).train()
    a, b = our_steps[TRL_WARM_UP:], trl_steps[TRL_WARM_UP:]
    tokens = {"tokens": counted(a), "tokens_beside": counted(b)}
    return {**compared(a, b), "ratios": time_ratios(b, a), **tokens}  # steps a second, as the table has them


def counted(steps: list[tuple[float, int]]) -> list[int]:
    """Tokens of each step, of all processes."""
    return processes.total(torch.tensor([tokens for _, tokens in steps])).tolist()


def beside_grpo(run: Run, lam: float) -> dict:
    """Seconds of an RLSD step over those of a GRPO step on the same samples, three turns for each round asked for."""
    rlsd, grpo = (Trainer(run, method, share=0.6) for method in ("rlsd", "grpo"))
    rlsd.step(1)  # the optimizer now has allocated what it keeps
    train.move(rlsd.state.teacher, rlsd.state.policy, share=1.0)
    for name in ("policy", "optimizer"):
        getattr(grpo.state, name).load_state_dict(copy.deepcopy(getattr(rlsd.state, name).state_dict()))
    restore = [rlsd.snapshot(), grpo.snapshot()]
    threefold = run._replace(rounds=3 * run.rounds)
    a, b = turns(threefold, lambda i: rlsd.step(i, lam), grpo.step, before=lambda: [put_back() for put_back in restore])
    if [tokens for _, tokens in a] != [tokens for _, tokens in b]:
        raise RuntimeError("the two steps must draw the same samples, or their times say nothing")
    return {**compared(a, b), "tokens": mean(tokens for _, tokens in a)}
