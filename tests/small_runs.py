"""What the tests of whole runs share: how a small one is asked for, or refused, and what it leaves."""

import json
from pathlib import Path

import torch

import train
from harness.checkpoint import State

ROOT = Path(train.__file__).parent
TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 3 --warm_batch 8 --steps 4 --prompts_per_step 2 --group_size 4 "
    "--chain 2 --max_new_tokens 32 --eval_every 2 --eval_problems 3 --save_every 2 --lr 0.01"
).split()
SOME = "float(sum(map(ord, completion)) % 2)"  # a reward that samples of an untrained model differ in


def words(more) -> list[str]:
    """Of lines of options and of paths, each of which is one word, whatever is in it."""
    return [word for part in more for word in ([str(part)] if isinstance(part, Path) else part.split())]


def rule_of(folder) -> list[str]:
    return ["--verifier", f"{folder}/rules.py:check"]


def options(folder, name, *more, tiny=TINY, rule=SOME) -> list[str]:
    """A small run in folder/name; its verifier is made here, of an expression of completion, answer, and n, the call.

    more: lines of further options, and paths.
    """
    counted = f"n = 0\ndef check(completion, answer):\n    global n\n    n += 1\n    return {rule}\n"
    (folder / "rules.py").write_text(counted)
    places = ["--out", f"{folder}/{name}", "--warm_dir", f"{folder}/warm"]
    return [*tiny, *places, *rule_of(folder), *words(more)]


def again(out, *more) -> list[str]:
    """The command that goes on with a run, as it was told: a verifier's file is run only where it is named."""
    verifier = json.loads((Path(out) / "config.json").read_text())["verifier"]
    return ["--resume", "--out", str(out), *(["--verifier", verifier] if ":" in verifier else []), *words(more)]


def refused(capsys, argv, *said) -> str:
    """train.py ends with exit code 2 and one line, which says all of this."""
    capsys.readouterr()
    assert train.main([*map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ") and error.count("\n") == 1 and all(word in error for word in said), error
    return error


def until(process, begins: str) -> None:
    """Read a program's output to the line that begins so."""
    next(line for line in process.stdout if line.startswith(begins))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def figures(out) -> list[dict]:
    """A run's rows without those of its pace."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens/s")} for row in lines(out / "metrics.jsonl")]


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b) -> bool:
    """Of checkpoints: every bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


def sharp_state(*more):
    """The configuration, and an untrained policy whose distributions are far from uniform."""
    config = train.parse_config([*TINY, *more])
    state = State(config)
    with torch.no_grad():
        for p in state.policy.parameters():
            p.mul_(3) if p.dim() == 2 else None
    return config, state
