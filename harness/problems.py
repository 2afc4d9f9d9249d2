"""The run's problems and their verifier: from the user's file, a package or a generator; checked before training."""

import contextlib
from collections.abc import Iterator
from datetime import date

import tasks
import verifiers
from config import Config
from harness.options import verifier_file
from published.chat import chat
from published.tokenizer import load_tokenizer
from rollout import takes_hints
from sources import gym
from sources.jsonl import from_file
from sources.scorers import math_verify, scorer
from sources.verifier_process import Rule
from support import processes
from support.errors import UserError, visible
from verifiers import BUILT_IN, MARKER, Verifier


def load_source(config: Config) -> tuple[tasks.Source, Verifier]:
    """The source that the options name, and its verifier; every problem known in advance has to fit."""
    try:
        tasks.FORMAT = published_format(config) if config.init else tasks.BYTES
        tasks.FORMAT.marker = config.marker and f"{config.marker} "
        if config.data:
            source = from_file(config.data, config.eval_problems, "exact", config.privileged_key, config.eval_data)
        elif config.task.startswith(gym.PREFIX):
            source = gym.source(config.task, config.eval_problems)
        else:
            source = tasks.generated(config.task, config.eval_problems, config.chain, config.filler)
        verifier = verifier_of(config.verifier or source.verifier, config.verifier_timeout)
    except ValueError as error:
        raise UserError(str(error)) from error
    rooms = []
    for problem in source.known:
        with of_problem(problem):
            rooms.append(room_of(problem, verifier, config))
    for i, name in enumerate(("max_new_tokens", "max_seq_len")):
        most = max(range(len(rooms)), key=lambda n: rooms[n][i])
        with of_problem(source.known[most]):
            check_room(name, *rooms[most], config)
    long = sum("\n" in p.answer.strip() or len(p.answer) > 100 for p in source.known)
    if 2 * long > len(source.known) and config.data and not verifier_file(config.verifier) and processes.rank() == 0:
        whole = f"{long} of {len(source.known)} answers are whole texts, which a completion has to repeat"
        advice = "'answer' is for the final answer alone, 'solution' for the way to it"
        print(visible(f"note: {config.data}: {whole} behind {MARKER}: {advice}"))
    return source, verifier


def published_format(config: Config) -> tasks.Format:
    """The format of --init's model; a day that its template may tell is kept in the options, for when it is resumed."""
    config.date = config.date or date.today().isoformat()
    tokenizer = load_tokenizer(config.init)
    try:
        return chat(tokenizer, config)
    except ValueError as error:
        raise UserError(f"--init {config.init}: {error}") from error


def verifier_of(name: str, seconds: float = 0.0) -> Verifier:
    """As `verifiers.load`, but a file of the user's in a process of its own, `seconds` an answer; packages' as well."""
    if name == "math_verify":
        scorer("math_verify")  # says if the package is missing
    if name.startswith(gym.PREFIX):
        return gym.verifier(name)
    verifier = verifiers.load(name, Rule, math_verify=math_verify)
    if isinstance(verifier, Rule):
        verifier.seconds = seconds
    return verifier


@contextlib.contextmanager
def of_problem(problem: tasks.Problem) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # a tokenizer's, too
        raise UserError(f"{problem.origin or repr(problem.question[:60])}: {error}") from error


def room_of(problem: tasks.Problem, verifier: Verifier, config: Config) -> tuple[int, int]:
    """Tokens of its answer and solution, of its longest prompt; ValueError where no completion can earn the reward."""
    completion = tasks.target(problem)
    longest = max(len(tasks.teacher_view(problem, config.privileged)), len(tasks.student_prompt(problem)))
    if config.warm_solutions > 0 and config.warm_steps:  # of the teacher's examples, a share shows the solution
        longest = max(longest, len(tasks.teacher_view(problem, "solution")))
    if takes_hints(config):  # a sample may be shown as the reference
        longest = max(longest, len(tasks.prompt(problem, "x")) - 1 + config.max_new_tokens)
    if not can_be_earned(verifier, tasks.decode(completion), problem.answer):
        raise ValueError(f"no completion can earn a reward: the verifier does not accept {problem.answer[:60]!r}")
    return len(completion), longest


def check_room(name: str, completion: int, longest: int, config: Config) -> None:
    """ValueError where the longest answer or prompt of all does not fit."""
    after = f"--max_new_tokens {config.max_new_tokens}"
    if name == "max_new_tokens" and completion > config.max_new_tokens:
        raise ValueError(f"the answer, with its solution, has {completion} tokens, more than {after}; raise it")
    if name == "max_seq_len" and (needed := longest + config.max_new_tokens) > config.max_seq_len:
        room = f"--max_seq_len {config.max_seq_len}"
        raise ValueError(f"the prompt has {longest} tokens; with {after} that exceeds {room}; raise it to {needed}")


def can_be_earned(verifier: Verifier, completion: str, answer: str) -> bool:
    """False where a verifier of ours cannot read the reference, or refuses the worked solution that ends with it."""
    if verifier is verifiers.expression:
        return verifiers.parse_given(answer)[1] is not None
    ours = verifier in BUILT_IN.values() or hasattr(verifier, "reads_reference")
    return not ours or verifier(completion, answer) == 1.0
