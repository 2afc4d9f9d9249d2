"""The run's problems and their verifier: from the user's file, a package or a generator; checked before training."""

import json
import random
from pathlib import Path

import pretrained
import reasoning
import tasks
import verifiers
from config import Config
from errors import UserError
from methods import takes_hints, teacher_view


class DataError(ValueError):
    """A data file that cannot be used: says file, line and what is wrong."""


def load_source(config: Config) -> tuple[tasks.Source, verifiers.Verifier]:
    """The source that the options name, and its verifier; every problem known in advance has to fit (`check_fit`)."""
    try:
        tasks.use(tasks.chat(pretrained.load_tokenizer(config.init)) if config.init else tasks.BYTES)
        source = (
            from_file(config.data, config.eval_problems, config.verifier or "exact", config.privileged_key)
            if config.data
            else reasoning.source(config.task, config.eval_problems)
            if config.task.startswith(reasoning.PREFIX)
            else tasks.generated(config.task, config.eval_problems, config.chain, config.filler)
        )
        verifier = verifiers.load(config.verifier or source.verifier)
        for problem in source.known:
            check_fit(problem, verifier, config)
    except ValueError as error:
        raise UserError(str(error)) from error
    return source, verifier


def check_fit(problem: tasks.Problem, verifier: verifiers.Verifier, config: Config) -> None:
    """UserError where no completion can earn the reward, or where solution or prompts are longer than there is room."""
    completion, room = tasks.target(problem), config.max_seq_len - config.max_new_tokens
    longest = max(len(teacher_view(problem, config)), len(tasks.student_prompt(problem)))
    if takes_hints(config):  # a sample may be shown as the reference
        longest = max(longest, len(tasks.prompt(problem, "x")) - 1 + config.max_new_tokens)
    if not verifiers.can_be_earned(verifier, tasks.decode(completion), problem.answer):
        raise UserError(
            f"{problem.origin}: no completion can earn a reward: the verifier does not accept the "
            f"reference answer {problem.answer[:60]!r} itself"
        )
    if len(completion) > config.max_new_tokens:
        raise UserError(
            f"the solution of {problem.question[:60]!r} has {len(completion)} tokens, more than "
            f"--max_new_tokens {config.max_new_tokens}; raise it"
        )
    if longest > room:
        raise UserError(
            f"the prompt of {problem.question[:60]!r} has {longest} tokens; with --max_new_tokens "
            f"{config.max_new_tokens} that exceeds --max_seq_len {config.max_seq_len}; raise it"
        )


# ---- the user's own problems -----------------------------------------------------------------------------------------


def from_file(path: str, held_out: int, verifier: str, privileged_key: str | None = None) -> tasks.Source:
    """The user's own problems; up to `held_out`, at most a tenth, are set aside, the same ones for every seed."""
    problems = load_problems(path, privileged_key)
    if len(problems) < 2:
        raise DataError(f"{path}: {len(problems)} problem(s); at least 2 are needed, one of them to hold out")
    shuffled = random.Random("held out").sample(problems, len(problems))
    cut = max(1, min(held_out, len(problems) // 10))
    train = shuffled[cut:]
    return tasks.Source(
        lambda rng, n: rng.sample(train, n) if n <= len(train) else rng.choices(train, k=n),
        shuffled[:cut],
        problems,
        verifier,
        careless=lambda problem, rng, slip: problem,
        train=len(train),
    )


def load_problems(path: str, privileged_key: str | None = None) -> list[tasks.Problem]:
    """Read a JSONL file of {"question", "answer", "solution"?, privileged_key?} objects; blank lines are skipped.

    Raises DataError, naming file, line and fault, for the first line that is not sound.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    problems: list[tasks.Problem] = []
    line_of: dict[str, int] = {}
    for i, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            problem = _problem(line, privileged_key, f"{path}:{i}")
            question = " ".join(problem.question.split())
            if question in line_of:
                raise ValueError(f"the question of line {line_of[question]} again; remove one of the two")
        except ValueError as error:
            raise DataError(f"{path}:{i}: {error}") from error
        line_of[question] = i
        problems.append(problem)
    return problems


def _problem(line: bytes, privileged_key: str | None, origin: str) -> tasks.Problem:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # of a number with thousands of digits Python says how to allow it
        raise ValueError(f"not JSON: {str(error).partition(';')[0]}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not {type(row).__name__}")
    required = ["question", "answer"] + ([privileged_key] if privileged_key else [])
    for key in required:
        if key not in row:
            raise ValueError(f"no key {key!r}")
    for key in (*required, "solution"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key!r} must be a string, not {type(value).__name__}")
        if (key in required or value is not None) and not (value or "").strip():
            raise ValueError(f"{key!r} is empty")
        if value is not None and len(value) > verifiers.MAX_COMPLETION:
            raise ValueError(
                f"{key!r} has {len(value)} characters; {verifiers.MAX_COMPLETION} are the most that is read"
            )
        if key != privileged_key and verifiers.MARKER in (value or ""):
            raise ValueError(
                f"{key!r} contains {verifiers.MARKER}, which is put before the answer for you; leave it out"
            )
    return tasks.Problem(
        row["question"], row["answer"], row.get("solution"), row[privileged_key] if privileged_key else None, origin
    )
