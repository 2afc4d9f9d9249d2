"""Look before you train: prompts as the model will see them, completions, and what the verifier makes of them."""

import dataclasses
import random

import tasks
from config import Config
from model import Transformer, sample
from published.chat import Chat
from rollout import sampling, verify
from support.errors import visible
from verifiers import Verifier

COMPLETIONS = 4  # a problem
LONGEST = 3000  # characters of a text that are shown


def look(policy: Transformer, source: tasks.Source, verifier: Verifier, config: Config) -> None:
    """Print --look problems in both views, completions of each, and their rewards; nothing is written or trained."""
    config = dataclasses.replace(config, out="", group_size=min(COMPLETIONS, config.group_size))
    problems = source.draw(random.Random(f"{config.seed} look"), config.look)
    print(words(problems[0], config))
    if not config.init or config.warm_steps:
        weights = "the folder's" if config.init else "random"
        print(f"note: no step of the warm start is made here: the weights are {weights}")
    for i, problem in enumerate(problems, start=1):
        where = f", {problem.origin}" if problem.origin else ""
        print(f"\nproblem {i} of {config.look}{where}: reference answer {problem.answer!r}"[:LONGEST])
        print(views(problem, config))
        how = sampling(config, config.temperature, seed=i)
        samples = sample(policy, [tasks.student_prompt(problem)], group_size=config.group_size, **how)
        rewards = verify(verifier, samples, [problem] * config.group_size, config)
        for tokens, reward in zip(samples.completions(), rewards):
            ended = tokens[-1] in tasks.FORMAT.ends
            end = "" if ended else f", cut off by --max_new_tokens {config.max_new_tokens}"
            print(f"completion of {len(tokens)} tokens{end}:\n{shown(tokens)}")
            worth = f"reward {reward:g}" if reward == reward else "no reward: the verifier failed"
            print(f"  the verifier read {tasks.decode(tokens)[:LONGEST]!r}: {worth}", flush=True)


def words(problem: tasks.Problem, config: Config) -> str:
    """What a run with --init says to the model: its own words, and both prompts of one problem."""
    lines = []
    if isinstance(tasks.FORMAT, Chat):
        lines += [f"note: --init {config.init}: {tasks.FORMAT.note}"] if tasks.FORMAT.note else []
        lines += [f"system: {config.system!r}" if config.system else "system: as the chat template has it"]
        lines += [f"instruction: {config.instruction!r}" if config.instruction else "instruction: none"]
    return "\n".join([*map(visible, lines), *([] if config.look else [views(problem, config)])])


def views(problem: tasks.Problem, config: Config) -> str:
    """The student's prompt and the teacher's, special tokens as the model is shown them."""
    prompts = {"student": tasks.student_prompt(problem), "teacher": tasks.teacher_view(problem, config.privileged)}
    return "\n".join(f"the {who}'s prompt, {len(tokens)} tokens:\n{shown(tokens)}" for who, tokens in prompts.items())


def shown(tokens: list[int]) -> str:
    """The text of tokens, special ones included, line by line behind a bar; of a long one the middle left out."""
    text = tasks.FORMAT.tokenizer.decode(tokens)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}\n[{len(text) - LONGEST} characters left out]\n{text[-LONGEST // 2 :]}"
    return "\n".join(f"  | {visible(line)}" for line in text.split("\n"))
