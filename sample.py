"""Ask a trained run a question, and see which tokens of its answers the credit falls on.

python sample.py runs/addition-rlsd-0 "4785+3626"                         # in colour, or as figures
python sample.py runs/addition-rlsd-0 "4785+3626" --html runs/page.html   # a page that needs nothing else
python sample.py runs/addition-rlsd-0 --interactive

best.pt samples groups in the student's view, as a training step does, until one has both right and wrong samples, and
scores two of them in both views. Without a question, a held-out problem: another for every --seed.
"""

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from harness.guards import check_memory, out_of_memory

import tasks
from config import FILES, Config, Parser, check_files, config_of
from credit import page
from credit.questions import find_problem
from harness.checkpoint import build_model
from harness.problems import can_be_earned, load_source
from model import Transformer
from rollout import teacher_view
from support.errors import UserError, one_line, program, reading
from support.files import fill, load, replace
from train import rollout
from verifiers import Verifier


@dataclass
class Run:
    folder: Path
    config: Config
    model: Transformer
    source: tasks.Source
    verifier: Verifier


@out_of_memory("the run", "its sizes, in a run of your own")
def load_run(folder: Path, given: dict) -> Run:
    """The run's options, those given here in their place, its problems and the weights of best.pt, on what is there."""
    config, _ = config_of(folder, out="", opd_teacher="", **given)  # nothing is written: a copy names the original
    check_files(config, given, folder)  # what is in a folder makes no code run
    if not (folder / "best.pt").is_file():
        raise UserError(f"{folder} holds no best.pt: a run writes it at its first evaluation")
    if not torch.cuda.is_available():
        config = dataclasses.replace(config, device="cpu", bf16=False)
    source, verifier = load_source(config)
    check_memory(dataclasses.replace(config, method="grpo", steps=0, warm_steps=0, prompts_per_step=1), source)
    model = build_model(config)
    with reading(f"{folder / 'best.pt'} is no checkpoint of this run"):
        fill(model, load(folder / "best.pt", config.device))
    return Run(folder, config, model, source, verifier)


# ---- the question ----------------------------------------------------------------------------------------------------


def completed(run: Run, question: str, found: tasks.Problem | None, answer: str, reference: str) -> tasks.Problem:
    """The problem to ask, the answer and the teacher's text given put in; checked as train.py checks its own."""
    asked = repr(question[:60])
    if found is None and not answer:
        raise UserError(f"{asked} is none of the run's problems: give its reference answer with --answer")
    problem = tasks.Problem(found.question if found else question, answer) if answer or not found else found
    problem = dataclasses.replace(problem, privileged=reference) if reference else problem
    shows_the_answer = run.config.privileged == "answer" and not run.config.privileged_key
    if not (problem.privileged or shows_the_answer or (problem.solution and not run.config.privileged_key)):
        raise UserError(f"{asked} has nothing to show the run's teacher: give it with --reference")
    longest = max(len(teacher_view(problem, run.config)), len(tasks.student_prompt(problem)))
    room = run.config.max_seq_len - run.config.max_new_tokens
    if longest > room:
        raise UserError(f"{asked} makes a prompt of {longest} tokens, and the run has room for {room}: ask less")
    if not can_be_earned(run.verifier, tasks.decode(tasks.target(problem)), problem.answer):
        raise UserError(f"the run's verifier does not accept the reference answer {problem.answer[:60]!r} itself")
    return problem


# ---- the answer ------------------------------------------------------------------------------------------------------


def ask(run: Run, problem: tasks.Problem, tries: int) -> tuple[list[str], list[page.Sample]]:
    """What was drawn, line by line, and a right and a wrong sample of one group; a single one where none has both."""
    source, shown = dataclasses.replace(run.source, draw=lambda rng, n: [problem]), None
    for group in range(1, tries + 1):
        batch = rollout(run.model, source, run.verifier, run.config, step=group)
        rewarded = (~batch.rewards.isnan()).nonzero().squeeze(1)  # the others are dropped
        if len(rewarded):
            shown = batch.rows(rewarded)
            if shown.advantages.any():
                break
    if shown is None:
        return [f"{tries} groups, and the verifier has failed on every sample: no reward, no credit"], []
    spread = bool(shown.advantages.any())
    picked = shown.right_and_wrong() if spread else torch.tensor([0])
    with reading(f"{run.folder / 'best.pt'} gives no probabilities"):  # weights that are finite, and too large
        samples = page.credited(run.model, shown.rows(picked), run.config)
    right = f"{int((shown.rewards == 1).sum())} of {len(shown.rewards)} samples right"
    if not spread:
        drawn = f"{tries} groups, each of equal rewards (the last: {right}): A = 0, no credit. Try more --tries"
    else:
        drawn = f"group {group}: {right}" + ("; those before it had equal rewards: A = 0" if group > 1 else "")
    lam, eps_w = run.config.rlsd_lambda, run.config.rlsd_reweight_clip_range
    return [
        f"reference answer: {problem.answer}",
        f"{run.folder / 'best.pt'}, seed {run.config.seed}, {drawn}",
        f"lambda {lam:g}, eps_w {eps_w:g}",
    ], samples


def answer_question(run: Run, question: str, args: argparse.Namespace) -> None:
    """Ask one question; print what came, and write the page if there is to be one."""
    found = find_problem(run.source, run.config, question)
    answer = input("reference answer> ") if args.interactive and found is None else args.answer
    problem = completed(run, question, found, answer, args.reference)
    lines, samples = ask(run, problem, args.tries)
    if args.html:
        html = page.page(problem.question, lines, samples, run.config)
        replace(args.html, lambda path: path.write_text(html, "utf-8", errors="replace"))
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print(*(page.visible(line) for line in (f"question: {problem.question}", *lines)), sep="\n")
    if colour:
        print(page.colour_key(run.config))
    for sample in samples:
        print(f"\n{page.headline(sample)}")
        print(page.in_colour(sample, run.config) if colour else page.as_figures(sample))
    if args.html:
        print(f"\npage: {page.visible(str(args.html))}")


def interact(run: Run, args: argparse.Namespace) -> None:
    """Questions until an empty line or the end of input; one that cannot be asked costs one line."""
    try:
        while question := input("question> ").strip():
            try:
                answer_question(run, question, args)
            except UserError as error:
                print(f"sample.py: {one_line(error)}", file=sys.stderr)
    except EOFError:
        pass


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict]:
    """Our own options, and those that take the place of the run's: the ones given."""
    parser = Parser("sample.py", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that train.py has left")
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
    run = load_run(args.run, given)
    if args.interactive:
        interact(run, args)
    else:
        held_out = run.source.held_out
        question = held_out[args.seed % len(held_out)].question if args.question is None else args.question
        answer_question(run, question, args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
