"""Does it learn? Four seconds of RLSD from random weights, with the loss as it is or broken on purpose.

    python tests/learning.py        20 seeds of every loss -> results/learning_test.json, 5 minutes on one thread

Killed, it goes on where it was. A question is three digits. Of a completion of four characters the first has to be
even or odd as the first digit, for half of the reward, and the last as the last digit, for the other half. Nothing
stands before the first token that could be learned in its place, so a mask that leaves it out, and takes in a pad at
the other end, leaves that half to chance.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import train  # noqa: E402
from harness import console  # noqa: E402

FIGURES = ROOT / "results" / "learning_test.json"
MARGIN = 0.34  # rise of the mean reward that every right run makes, and no run of a broken loss
shifted = lambda mask: torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
RULE = """def check(completion, answer):
    if len(completion) != 4:
        return 0.0
    first, last = divmod(int(answer), 2)
    return (ord(completion[0]) % 2 == first) / 2 + (ord(completion[3]) % 2 == last) / 2
"""
OPTIONS = (
    "--warm_steps 0 --hidden_size 32 --num_layers 1 --max_seq_len 64 --max_new_tokens 4 --lr 4e-3 --steps 120 "
    "--prompts_per_step 32 --group_size 8 --rlsd_lambda_decay_steps 0 --eval_every 120 --eval_problems 1 "
    "--save_every 120"
)
ABOUT = {
    "command": "python tests/learning.py",
    "measure": "mean reward of updates 111 to 120 less that of updates 1 to 10, a figure a seed, from seed 0 on",
    "options": OPTIONS,
    "torch": torch.__version__,
    "margin": MARGIN,
}


def sign_flipped(loss, logps, old, teacher, advantages, mask, **rest):
    value, metrics = loss(logps, old, teacher, advantages, mask, **rest)
    return -value, metrics


LOSSES = {
    "as it is": lambda loss, *args, **rest: loss(*args, **rest),
    "sign flipped": sign_flipped,
    "mask shifted": lambda loss, *args, **rest: loss(*args[:4], shifted(args[4]), **rest),
    "advantages shuffled": lambda loss, *args, **rest: loss(
        *args[:3], args[3][torch.randperm(len(args[3]))], args[4], **rest
    ),
}


def gain(folder: Path, seed: int, name: str = "as it is") -> float:
    """Mean reward of the last ten updates less that of the first ten, by train.py with the loss of that name."""
    folder.mkdir(exist_ok=True)
    rows = ({"question": f"{n:03d}", "answer": str(n // 100 % 2 * 2 + n % 2)} for n in range(1000))
    (folder / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rule.py").write_text(RULE)
    files = ["--data", f"{folder}/digits.jsonl", "--verifier", f"{folder}/rule.py:check", "--out", f"{folder}/run"]
    loss = mock.patch.object(train, "rlsd_loss", partial(LOSSES[name], train.rlsd_loss))
    with loss, mock.patch.object(console, "finish"):  # curves take a second
        status = train.main([*OPTIONS.split(), *files, "--seed", str(seed)])
    assert status == 0, f"train.py ended with {status}"
    rewards = [row["reward"] for row in map(json.loads, (folder / "run" / "metrics.jsonl").open()) if row["step"]]
    return round(sum(rewards[-10:]) / 10 - sum(rewards[:10]) / 10, 4)


def main() -> None:
    """Every seed of every loss that the file of figures does not have yet."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    gains: dict[str, list[float]] = {name: [] for name in LOSSES}
    if FIGURES.exists() and (found := json.loads(FIGURES.read_text())) == {**ABOUT, "gains": found["gains"]}:
        gains = found["gains"]
    for seed in range(len(gains["as it is"]), 20):
        row = {}
        for name in LOSSES:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                row[name] = gain(Path(folder), seed, name)
        print(seed, row, flush=True)
        gains = {name: [*gains[name], row[name]] for name in LOSSES}
        FIGURES.write_text(json.dumps({**ABOUT, "gains": gains}, indent=1) + "\n")


if __name__ == "__main__":
    main()
