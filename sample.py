"""Ask a trained run a question, and see which tokens of its answers the credit falls on.

python sample.py runs/addition-rlsd-0 "4785+3626"                         # in colour, or as figures
python sample.py runs/addition-rlsd-0 "4785+3626" --html runs/page.html   # a page that needs nothing else
python sample.py runs/addition-rlsd-0 --interactive
python sample.py runs/mails/model "Where is my order?"                    # a published folder: one greedy answer

best.pt samples groups in the student's view, as a training step does, until one has both right and wrong samples, and
scores two of them in both views. Without a question, a held-out problem: another for every --seed.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import published.weights as published
import tasks
from config import Config
from credit.answers import Trained, ask
from credit.page import page
from credit.questions import completed, find_problem
from credit.terminal import report
from credit.tokens import visible
from harness.memory import check_memory, explained
from harness.models import build_model
from harness.options import FILES, check_files, config_of
from harness.problems import can_be_earned, load_source
from model import Transformer, sample
from published.chat import as_served
from published.tokenizer import load_tokenizer
from rollout import sampling
from support.errors import UserError, one_line, reading
from support.files import fill, load, replace
from support.program import Parser, program

ANSWER = 256  # tokens at most, of a published model


@explained()
def load_run(folder: Path, given: dict) -> Trained:
    """The run's options, those given here in their place, its problems and the weights of best.pt, on what is there."""
    config, _ = config_of(folder, out="", opd_teacher="", **given)  # nothing is written: a copy names the original
    check_files(config, given, folder)  # what is in a folder makes no code run
    weights = folder / "best.pt"
    if not weights.is_file():
        raise UserError(f"{folder} holds no best.pt: a run writes it at its first evaluation")
    if not torch.cuda.is_available():
        config = dataclasses.replace(config, device="cpu", bf16=False)
    source, verifier = load_source(config)
    check_memory(dataclasses.replace(config, method="grpo", steps=0, warm_steps=0, prompts_per_step=1), source)
    model = build_model(config)
    with reading(f"{weights} is no checkpoint of this run"):
        fill(model, load(weights, config.device))
    return Trained(weights, config, model, source, verifier)


@explained()
def answer_question(run: Trained, question: str, args: argparse.Namespace) -> None:
    """Ask one question; print what came, and write the page if there is to be one."""
    found = find_problem(run.source, run.config, question)
    answer = input("reference answer> ") if args.interactive and found is None else args.answer
    problem = completed(run.config, question, found, answer, args.reference)
    if not can_be_earned(run.verifier, tasks.decode(tasks.target(problem)), problem.answer):
        raise UserError(f"the run's verifier does not accept the reference answer {problem.answer[:60]!r} itself")
    lines, samples = ask(run, problem, args.tries)
    if args.html:
        text = page(problem.question, lines, samples, run.config)
        replace(args.html, lambda path: path.write_text(text, "utf-8", errors="replace"))
    print(report([f"question: {problem.question}", *lines], samples, run.config))
    if args.html:
        print(f"\npage: {visible(str(args.html))}")


@explained()
def load_folder(folder: Path) -> tuple[Transformer, Config]:
    """A published model; its chat template, as it stands there, becomes the format."""
    with reading(str(folder)):
        tasks.FORMAT = as_served(load_tokenizer(folder))
    return published.load(folder), Config(init=str(folder), max_new_tokens=ANSWER)


@explained()
def answer(model: Transformer, config: Config, question: str) -> str:
    """The greedy answer to a question; UserError where it leaves no room for one."""
    prompts = [tasks.student_prompt(tasks.Problem(question, ""))]
    try:
        samples = sample(model, prompts, group_size=1, **sampling(config, temperature=0.0, seed=0))
    except ValueError as error:
        raise UserError(str(error)) from error
    return tasks.decode(samples.completions()[0])


def interact(ask_one: Callable[[str], None]) -> None:
    """Questions until an empty line or the end of input; one that cannot be asked costs one line."""
    with contextlib.suppress(EOFError):
        while question := input("question> ").strip():
            try:
                ask_one(question)
            except UserError as error:
                print(f"sample.py: {one_line(error)}", file=sys.stderr)


def serve(args: argparse.Namespace, given: dict) -> None:
    """Answer as a server of the folder would: the question alone, in the folder's own words, greedily."""
    if args.html or args.answer or args.reference or args.seed or given.keys() - {"seed"}:
        raise UserError(f"{args.run} is a model without teacher and verifier: it takes QUESTION or --interactive alone")
    model, config = load_folder(args.run)

    def ask_one(question: str) -> None:
        print(visible(answer(model, config, question)))

    if args.interactive:
        interact(ask_one)
    elif args.question is None:
        raise UserError(f"{args.run} is a model without problems: ask it a QUESTION, or --interactive")
    else:
        ask_one(args.question)


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict]:
    """Our own options, and those that take the place of the run's: the ones given."""
    parser = Parser("sample.py", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that train.py has left; or a published model's")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="default: a held-out one, by --seed")
    parser.add_argument("--answer", default="", help="reference answer of a question that --data does not hold")
    parser.add_argument("--reference", default="", help="what the teacher is shown instead of what the run shows it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page: figures of every token, plain GRPO")
    for name in FILES:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help="the run's own, a file that is named anew")
    parser.add_argument("--interactive", action="store_true", help="ask for questions until an empty line")
    parser.add_argument("--tries", type=int, default=32, help="groups to draw until one has both (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    for name in ("rlsd_lambda", "rlsd_reweight_clip_range"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS, help="in place of the run's")
    args = parser.parse_intermixed_args(argv)  # the question may stand behind the options
    if args.interactive and (args.question is not None or args.answer):
        raise UserError("--interactive asks for questions and answers: leave QUESTION and --answer out")
    if args.tries < 1:
        raise UserError(f"--tries {args.tries}: at least 1 is needed")
    if args.html and args.html.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {args.html}: the name of a .html file is needed")
    given = {name: x for name, x in vars(args).items() if name in ("seed", *FILES) or name.startswith("rlsd_")}
    return args, given


@program
def main(argv: list[str]) -> int:
    args, given = parse(argv)
    if any(args.run.glob("*.safetensors")):
        serve(args, given)
        return 0
    run = load_run(args.run, given)
    if args.interactive:
        interact(lambda question: answer_question(run, question, args))
    else:
        held_out = run.source.held_out
        question = held_out[args.seed % len(held_out)].question if args.question is None else args.question
        answer_question(run, question, args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
