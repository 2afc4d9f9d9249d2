"""make llm: a published language model learns the tickets' rules; what it answers before and after, and the model.

python examples/support_rules/llm.py FOLDER [--out RUN] [options of train.py]    # FOLDER: as examples/smollm2 makes it
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).resolve().parent))  # in the commands that are printed
ROOT = HERE / ".." / ".."
sys.path[:0] = [str(ROOT.resolve())]

import sample  # noqa: E402
from harness.options import config_of, parse_config  # noqa: E402
from harness.problems import load_source  # noqa: E402
from support.errors import UserError, visible  # noqa: E402
from support.files import metrics_of, replace  # noqa: E402
from support.program import Parser, program  # noqa: E402

RECIPE = (
    "--privileged_key rule --max_new_tokens 24 --max_seq_len 192 --prompts_per_step 8 --group_size 8 "
    "--eval_problems 60 --eval_every 20 --warm_steps 40 --warm_teacher_share 0.5 --lr 7e-6"
).split()
RECIPE += ["--system", "You decide support tickets."]
RECIPE += ["--instruction", "Reply with ####, the rule and the decision."]
STEPS = 60
SHOWN = 3  # held-out tickets


def train(*options: str) -> None:
    print(f"\n$ python train.py {shlex.join(options)}\n", flush=True)
    with subprocess.Popen([sys.executable, os.path.normpath(ROOT / "train.py"), *options]) as program:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches train.py too, which ends after its step
        code = program.wait()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if code:
        raise SystemExit(code)  # train.py has said why


def answers(out: Path, verifier: str) -> list[dict[str, str]]:
    """Held-out tickets, the right decision, and what the exported model answers to the question alone, greedily."""
    asked = load_source(config_of(out, verifier=verifier)[0])[0].held_out[:SHOWN]
    model, config = sample.load_folder(out / "model")
    said = [visible(sample.answer(model, config, problem.question).strip()) for problem in asked]
    return [{"question": p.question, "right": p.answer, "answer": text} for p, text in zip(asked, said)]


@program
def main(argv: list[str]) -> int:
    parser = Parser("llm.py", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/llm"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--verifier", default=f"{HERE / 'my_rules.py'}:check")
    own, options = parser.parse_known_args(argv)
    began, before = time.perf_counter(), own.out / "before.json"
    run = ["--out", str(own.out), "--verifier", own.verifier]
    begin = ["--init", str(own.folder), "--data", str(HERE / "tickets.jsonl"), *RECIPE, *options]
    config = parse_config([*run, *begin])  # says what is wrong with the options
    if config.look or config.resume:
        raise UserError("--look and --resume are for train.py; this program goes on by itself")
    if not (own.out / "last.pt").exists():
        train(*run, *begin, "--steps", "0")
    elif not before.exists():  # killed before its first export was whole
        train(*run, "--resume", "--steps", "0")
    if not before.exists():
        said = json.dumps(answers(own.out, own.verifier))
        replace(before, lambda path: path.write_text(said))
    train(*run, "--resume", *options, "--steps", str(own.steps))
    report(own.out, json.loads(before.read_text()), answers(own.out, own.verifier))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def report(out: Path, before: list[dict[str, str]], after: list[dict[str, str]]) -> None:
    rows = [row for row in metrics_of(out) if "pass@1" in row]
    print(f"\nheld-out tickets, share right: {rows[0]['pass@1']:.3f} before RL (shown the rule: ", end="")
    print(f"{rows[0]['teacher pass@1']:.3f}), {rows[-1]['pass@1']:.3f} after {rows[-1]['step']} updates")
    best = max(rows, key=lambda row: (row["pass@1"], row["step"]))
    if best is not rows[-1]:
        print(f"the model, and its answers, are those after update {best['step']}: {best['pass@1']:.3f}")
    for first, last in zip(before, after):
        print(f"\n{first['question']}\n  right:  {first['right']}")
        print(f"  before: {first['answer']}\n  after:  {last['answer']}")
    print(f"\nthe model to serve: {out / 'model'}; python sample.py {out / 'model'} --interactive asks it")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
