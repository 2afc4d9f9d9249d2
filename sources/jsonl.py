"""The user's own problems, read from JSON Lines."""

import json
import random
import re

import tasks
from support.errors import UserError, read_file
from verifiers import MARKER, MAX_COMPLETION

OTHERS = {  # what others call our keys; no solution for an answer, as the way is in it too
    "question": "question prompt problem input instruction query",
    "answer": "answer response completion output target label final_answer ground_truth",
}
FORMS = {  # what a line that is no JSON object begins with, and what to do
    rb"PAR1|PK\x03\x04|\x1f\x8b": "the file is packed (Parquet, zip, gzip): save it as JSON Lines",
    rb"\xff\xfe|\xfe\xff|\0?\{\0": "the file is UTF-16: save it as UTF-8",
    rb"\[": "write each object of an array on a line of its own, without brackets and commas between",
    rb"": 'each line is an object like {"question": "1+1", "answer": "2"}, in UTF-8',
}


def from_file(path: str, held_out: int, verifier: str, privileged_key: str = "", eval_path: str = "") -> tasks.Source:
    """The user's own problems; held out are, for every seed, the same `held_out` of eval_path, or at most a tenth."""
    seen: dict[str, str] = {}
    problems = load_problems(path, privileged_key, seen)
    aside = load_problems(eval_path, privileged_key, seen) if eval_path else problems
    if len(aside) < (least := 1 if eval_path else 2) or not problems:
        short = eval_path if problems and eval_path else path
        raise UserError(f"{short}: {len(aside and problems)} problem(s); at least {least} are needed, one to hold out")
    shuffled = random.Random("held out").sample(aside, len(aside))
    cut = max(1, min(held_out, len(aside) if eval_path else len(aside) // 10))
    train, problems = (problems, problems + aside) if eval_path else (shuffled[cut:], problems)
    draw = lambda rng, n: rng.sample(train, n) if n <= len(train) else rng.choices(train, k=n)
    return tasks.Source(draw, shuffled[:cut], problems, verifier, train=len(train))


def load_problems(path: str, privileged_key: str = "", seen: dict[str, str] | None = None) -> list[tasks.Problem]:
    """Read a JSONL file of {"question", "answer", "solution"?, privileged_key?} objects; blank lines are skipped.

    seen: file and line of the questions so far. UserError names those of the first line that is not sound.
    """
    seen = {} if seen is None else seen
    problems: list[tasks.Problem] = []
    for i, line in enumerate(read_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            problem = _problem(line, privileged_key, f"{path}:{i}")
            question = " ".join(problem.question.split())
            if question in seen:
                raise ValueError(f"the question of {seen[question].replace(f'{path}:', 'line ')} again; remove one")
        except ValueError as error:
            raise UserError(f"{path}:{i}: {error}") from error
        seen[question] = problem.origin
        problems.append(problem)
    return problems


def _problem(line: bytes, privileged_key: str, origin: str) -> tasks.Problem:
    form = next(advice for start, advice in FORMS.items() if re.match(start, line.strip()))
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; {form}") from error
    except (ValueError, RecursionError) as error:  # of a number with thousands of digits Python says how to allow it
        raise ValueError(f"not JSON: {str(error).partition(';')[0]}; {form}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not {type(row).__name__}; {form}")
    required = ["question", "answer", *filter(None, [privileged_key])]
    texts = [name for name, value in row.items() if isinstance(value, str)]
    alike = {key: [name for name in texts if name.strip().lower() in OTHERS.get(key, key).split()] for key in required}
    if missing := [key for key in required if key not in row]:
        advice = [f"rename {alike[key][0]!r} to {key!r}" for key in missing if len(alike[key]) == 1]
        if privileged_key in missing and not advice:
            advice = [f"the line has {', '.join(map(repr, row))}"[:200]]
        raise ValueError("; ".join([", ".join(f"no key {key!r}" for key in missing), *advice, form]))
    for key in (*required, "solution"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            how = "what json.dumps makes of it" if isinstance(value, (dict, list)) else f'"{json.dumps(value)[:40]}"'
            raise ValueError(f"{key!r} must be a string, not {type(value).__name__}; write {how}")
        if (key in required or value is not None) and not (value or "").strip():
            raise ValueError(f"{key!r} is empty" + ", null is no text" * (value is None))
        if value and len(value) > MAX_COMPLETION:
            raise ValueError(f"{key!r} has {len(value)} characters, more than the {MAX_COMPLETION} allowed")
    question, answer, solution = row["question"], row["answer"], row.get("solution")
    way, marker, final = answer.partition(MARKER)
    if solution is None and way.strip() and final.strip() and final[0] != "#" and MARKER not in final:
        solution, answer = way.strip(), final.strip()  # the form of GSM8K
    for key, text in (("question", question), ("answer", answer), ("solution", solution or "")):
        if MARKER in text:
            rest = " and what stands before it" if key == "answer" else " and the answer behind it"
            raise ValueError(f"{key!r} contains {MARKER}, which is put before the answer for you; leave it out{rest}")
    return tasks.Problem(question, answer, solution, row[privileged_key] if privileged_key else None, origin)
