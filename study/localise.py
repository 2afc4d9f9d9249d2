"""Does a language model's evidence fall on the wrong step? Written solutions whose first wrong step people have marked.

    python -m study.localise --init FOLDER [--limit N] [--device cuda]   score solutions that have not been scored yet
    python -m study.localise --report                                    the page again, from the scores

CHAMP (champ-dataset on PyPI, MIT): 444 wrong solutions of 243 competition problems. Each is scored as the student's own
sample would be, with and without a reference in the prompt; no text of it is kept, only sums over its steps.
"""

import hashlib
import json
import random
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import tasks
from config import Config
from model import SCORE_CHUNK, Transformer
from published.chat import chat
from published.tokenizer import load_tokenizer
from published.weights import load
from study.bootstrap import FEWEST, Estimate, ratio
from support.errors import UserError, reading
from support.files import append, replace
from support.program import Parser, program

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE, DATA = ROOT / "results/localise.jsonl", ROOT / "results/localise.md", ROOT / "runs/champ"
WHEEL = "champ_dataset-1.0.0-py3-none-any.whl"
SHA256 = "aa59df5ae28e2ec76a401a46faf3d6395920be8009a01ce451f7d5c131d82201"
FULL = 444  # wrong solutions in it
VIEWS = ("answer", "solution", "hint", "wrong answer")  # what a teacher is shown
BINS = 10  # of a step's place in its solution, for the prior


class Solution(NamedTuple):
    """A wrong solution: its problem's name, its writer, the text, the marked characters, the privileged texts."""

    problem: str
    writer: str
    question: str
    text: str
    marked: tuple[int, int]
    shown: dict[str, str]


# ---- the data --------------------------------------------------------------------------------------------------------


def download() -> Path:
    """The wheel from the package registry, once; UserError where it cannot be had, or is another one."""
    wheel = DATA / WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(DATA)]
        done = subprocess.run([*command, "champ-dataset==1.0.0"], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{wheel} cannot be downloaded, put it there yourself: {done.stderr.strip()[-300:]}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{wheel} is not the file that was published: remove it, and it is downloaded again")
    return wheel


def solutions_of(wheel: Path) -> list[Solution]:
    """The wrong solutions, in an order of which each beginning is a fair sample: first one of every problem."""
    with reading(f"{wheel} cannot be read"), zipfile.ZipFile(wheel) as archive:
        data = json.loads(archive.read("champ_dataset/dataset_files/v0.json"))
        found = [
            solution_of(problem, writer, marks, data["hints"])
            for problem in data["problems"].values()
            for writer, marks in problem["fws_annotations"].items()
            if marks["start_idx"] is not None
        ]
    random.Random(0).shuffle(found)
    seen: Counter[str] = Counter()
    turns = {}
    for one in found:
        turns[one.problem, one.writer] = seen[one.problem]
        seen[one.problem] += 1
    return sorted(found, key=lambda one: turns[one.problem, one.writer])


def solution_of(problem: dict, writer: str, marks: dict, hints: dict) -> Solution:
    """The wrong answer is the writer's own last message, which sums the solution up in a sentence; six have none."""
    shown = {
        "answer": problem["_answer"],
        "solution": "\n".join(step["_text"] for step in problem["solution"]["steps"]),
        "hint": "\n".join(hints[name]["_text"] for name in problem["ch_list"] if name in hints),
        "wrong answer": problem["conversations"][writer]["messages"][-1]["text"],
    }
    at = marks["start_idx"], marks["end_idx"]
    return Solution(
        problem["identifier"], writer, problem["_text"], marks["text"], at, {k: v for k, v in shown.items() if v}
    )


# ---- steps -----------------------------------------------------------------------------------------------------------


def steps_of(text: str) -> list[int]:
    """Where each step begins: after a line break or the end of a sentence. What holds fewer than three letters or
    digits, as a number before a sentence does, is joined to what follows. The last place is the text's length."""
    begins = [0]
    for cut in re.finditer(r"\s*\n\s*|(?<=[.!?])\s+", text):
        if cut.end() < len(text) and sum(map(str.isalnum, text[begins[-1] : cut.start()])) > 2:
            begins.append(cut.end())
    return [*begins, len(text)]


def marked_steps(begins: list[int], text: str, marked: tuple[int, int]) -> list[int]:
    """The steps of which at least half of the characters are marked; if there is none, the one with most."""
    filled = lambda a, b: sum(not c.isspace() for c in text[a:b])
    inside = [
        filled(max(a, marked[0]), min(b, marked[1])) if max(a, marked[0]) < min(b, marked[1]) else 0
        for a, b in zip(begins, begins[1:])
    ]
    sizes = [max(1, filled(a, b)) for a, b in zip(begins, begins[1:])]
    half = [i for i, (n, size) in enumerate(zip(inside, sizes)) if 2 * n >= size]
    return half or [int(np.argmax(inside))]


def step_of_tokens(completion: list[int], text: str, begins: list[int]) -> Tensor:
    """The step (T,) of each token: the one in which its last byte lies, as a token may begin with the space before."""
    pieces = [tasks.FORMAT.tokenizer.decode_single_token_bytes(token) for token in completion]
    if b"".join(pieces) != text.encode():
        raise UserError("--init: its tokenizer changes the text of a solution, so its steps cannot be told apart")
    starts = torch.tensor([len(text[:at].encode()) for at in begins[1:-1]], dtype=torch.long)
    lasts = torch.tensor([end - 1 for end in accumulate(map(len, pieces))])
    return torch.searchsorted(starts, lasts, right=True)


# ---- scores ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def scored(model: Transformer, prompt: list[int], completion: list[int], entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T,) of the completion's tokens; if asked for, entropies (T,) of what was predicted; in nats.

    One solution at a time: its hundreds of tokens fill a processor, and nothing is padded. In float32: the evidence of
    a small model is hundredths of a nat a token, which is what bfloat16 rounds away.
    """
    device = model.embed.weight.device
    states = model.hidden(torch.tensor([prompt + completion], device=device))[0, len(prompt) - 1 : -1]
    logps, entropies = [], []
    size = max(1, SCORE_CHUNK // model.config.vocab_size)
    for state, tokens in zip(states.split(size), torch.tensor(completion, device=device).split(size)):
        logits = model.head(state).float()  # (size, V)
        logps.append(logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=-1))
        if entropy:
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    return torch.cat(logps).cpu(), torch.cat(entropies or logps).cpu()


def row_of(model: Transformer, name: str, one: Solution) -> dict | None:
    """Sums over the steps of a solution, in nats: log-probabilities by view, entropy. None where it is too long."""
    problem, completion, begins = tasks.Problem(one.question, ""), tasks.encode(one.text), steps_of(one.text)
    steps = step_of_tokens(completion, one.text, begins)
    summed = lambda x: torch.zeros(len(begins) - 1, dtype=torch.double).index_add_(0, steps, x.double())
    prompts = {"student": tasks.prompt(problem, "")} | {v: tasks.prompt(problem, one.shown[v]) for v in one.shown}
    if max(map(len, prompts.values())) + len(completion) > model.config.max_seq_len:
        return None
    row: dict = {"model": name, "problem": one.problem, "writer": one.writer}
    row["marked"] = marked_steps(begins, one.text, one.marked)
    row["tokens"] = torch.bincount(steps, minlength=len(begins) - 1).tolist()
    for view, prompt in prompts.items():
        logps, entropies = scored(model, prompt, completion, entropy=view == "student")
        row[view] = [round(x, 3) for x in summed(logps).tolist()]
        if view == "student":
            row["entropy"] = [round(x, 3) for x in summed(entropies).tolist()]
    return row


def score(folder: Path, name: str, limit: int, device: str) -> None:
    """Append a row to ROWS for each of the first `limit` solutions that has none of this model yet."""
    rows = read()
    if rows:  # without the torn end that a kill may leave: what is appended begins a line
        replace(ROWS, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows)))
    done = {(row["model"], row["problem"], row["writer"]) for row in rows}
    chosen = solutions_of(download())[: limit or None]
    todo = [one for one in chosen if (name, one.problem, one.writer) not in done]
    print(f"{len(chosen)} solutions, {len(chosen) - len(todo)} scored before", flush=True)
    if not todo:
        return
    with reading(f"--init {folder}"):
        tasks.FORMAT = chat(load_tokenizer(folder), Config(instruction=""))
        model = load(folder).to(device).eval()
    begun, tokens = time.perf_counter(), 0
    for i, one in enumerate(todo, start=1):
        row = row_of(model, name, one)
        if row is None:
            print(f"{one.problem} {one.writer}: longer than the model's context, left out", flush=True)
            continue
        append(ROWS, row)
        tokens += sum(row["tokens"]) * sum(view in row for view in ("student", *VIEWS))
        seconds = time.perf_counter() - begun
        left = f"{tokens / seconds:.0f} tokens/s, {seconds / i * (len(todo) - i) / 60:.0f} min left"
        print(f"{i}/{len(todo)} {one.problem} {one.writer}: {left}", flush=True)


def read() -> list[dict]:
    """The rows that are whole; a kill may leave a torn last one, which is scored again."""
    rows = []
    for line in ROWS.read_text().splitlines() if ROWS.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


# ---- how well a score finds the marked step --------------------------------------------------------------------------


def scores_of(row: dict) -> dict[str, np.ndarray]:
    """Each measure's score of every step, the more suspect the higher: its sum, and its mean over the step's tokens."""
    tokens = np.maximum(1, row["tokens"])
    of = {view: np.array(row[view]) for view in ("student", *VIEWS) if view in row}
    sums = {f"-Delta, r = {view}": of["student"] - of[view] for view in VIEWS[:3] if view in of}
    if "wrong answer" in of:
        sums["-Delta, contrastive"] = of["wrong answer"] - of["answer"]
    sums |= {"the student's surprisal": -of["student"], "the student's entropy": np.array(row["entropy"])}
    found = {"chance": np.zeros(len(tokens)), "tokens of the step": tokens.astype(float)}
    for name, x in sums.items():
        found |= {f"{name}, summed": x, f"{name}, averaged": x / tokens}
    return found


def position_priors(rows: list[dict]) -> list[np.ndarray]:
    """Of each row: how often a step in the same tenth of a solution is the marked one, by the other problems' rows."""
    tenths = [(np.arange(n := len(row["tokens"])) * BINS // n) for row in rows]
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, BINS)))
    for row, tenth in zip(rows, tenths):
        counts[row["problem"]] += [np.bincount(at, minlength=BINS) for at in (tenth[row["marked"]], tenth)]
    total = sum(counts.values(), np.zeros((2, BINS)))
    rates = {problem: (total - own)[0] / np.maximum(1, (total - own)[1]) for problem, own in counts.items()}
    return [rates[row["problem"]][tenth] for row, tenth in zip(rows, tenths)]


def found_by(scores: np.ndarray, marked: list[int]) -> tuple[float, float, float]:
    """AUROC over the steps, top-1, expected rank of the first marked one; ties are broken by chance, on average."""
    is_marked = np.isin(np.arange(len(scores)), marked)
    right, wrong = scores[is_marked], scores[~is_marked]
    auroc = float(((right[:, None] > wrong).mean() + (right[:, None] >= wrong).mean()) / 2)
    best = right.max()
    rank = 1 + (wrong > best).sum() + (wrong == best).sum() / ((right == best).sum() + 1)
    return auroc, float(is_marked[scores == scores.max()].mean()), float(rank)


def figures(rows: list[dict]) -> dict[str, list[Estimate]]:
    """By measure: AUROC, top-1, rank, and AUROC above the position prior's, with intervals over problems."""
    table: dict[str, dict[str, list[tuple]]] = defaultdict(lambda: defaultdict(list))  # measure -> problem -> figures
    for row, prior in zip(rows, position_priors(rows)):
        measures = scores_of(row)
        base = found_by(prior, row["marked"])
        for name, scores in {**measures, "position prior": prior}.items():
            of = found_by(scores, row["marked"])
            table[name][row["problem"]].append((*of, of[0] - base[0]))
    names = ["chance", "position prior", *max(map(scores_of, rows), key=len)]  # in one order, whatever comes first
    return {
        name: [over_problems([[f[i] for f in of] for of in table[name].values()]) for i in range(4)]
        for name in dict.fromkeys(names)
    }


def over_problems(groups: list[list[float]]) -> Estimate:
    """Mean over all solutions, of which those of one problem are drawn together."""
    return ratio([sum(group) for group in groups], [len(group) for group in groups])


def usable(row: dict) -> bool:
    """Has it a step that is not marked?"""
    return len(row["marked"]) < len(row["tokens"])


ABOUT = """\
# Does the evidence fall on the wrong step?

`python -m study.localise --init FOLDER`: wrong solutions to competition problems by four language models, the first
wrong step marked by people (CHAMP, `champ-dataset` on PyPI). The student scores a solution's tokens with the problem
alone, a teacher with the answer, the worked solution or the hints as r; contrastive: log P_T after the solution's own
wrong answer, in its writer's words, minus log P_T after the right one. A step ends with a line or a sentence. Steps of
high -Delta are those that RLSD blames most, before its clip.

AUROC: how often a marked step scores above another one of its solution. Top-1: how often the highest score is a marked
step's. Rank: of the first marked one. Ties count as chance has them. Position prior: how often a step in that tenth of
a solution is the marked one, by the other problems. Intervals of 95 %, bootstrap over problems. *Finds it*: the AUROC's
interval lies above 0.5; *beyond its place*: it also lies above the position prior's, on the same solutions; *few*:
under five problems."""


def page(rows: list[dict]) -> str:
    """A table a model."""
    lines = [ABOUT]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and usable(row)]
        left_out = sum(row["model"] == model for row in rows) - len(mine)
        steps, marked = (np.mean([len(row[name]) for row in mine]) for name in ("tokens", "marked"))
        lines += ["", f"## {model}", ""]
        lines.append(
            f"{len(mine)} of {FULL} solutions, {len({row['problem'] for row in mine})} problems; {steps:.1f} steps "
            f"each, {marked:.1f} of them marked ({left_out} more have no other step)."
        )
        lines += [
            "",
            "| score of a step | problems | AUROC | top-1 | rank | AUROC above the position prior's | verdict |",
        ]
        lines.append("|---" * 7 + "|")
        for name, (auroc, top, rank, above) in figures(mine).items():
            cells = [auroc.text(), top.text(), rank.text(1), above.text()]
            lines.append("| " + " | ".join([name, str(auroc.n), *cells, verdict(auroc, above)]) + " |")
    return "\n".join(lines) + "\n"


def verdict(auroc: Estimate, above: Estimate) -> str:
    if auroc.n < FEWEST:
        return "few"
    if auroc.low > 0.5:
        return "finds it, beyond its place" if above.low > 0 else "finds it"
    return "points elsewhere" if auroc.high < 0.5 else "level with chance"


@program(left="what was scored is kept; the same command goes on")
def main(argv: list[str]) -> int:
    parser = Parser("study/localise.py", __doc__)
    parser.add_argument("--init", type=Path, metavar="FOLDER", help="folder of a published model (examples/smollm2)")
    parser.add_argument("--name", default="", help="what the page calls the model (default: the folder's name)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help=f"the first N of {FULL} solutions; 0: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--report", action="store_true", help="the page from the scores that are there")
    args = parser.parse_args(argv)
    if not args.report:
        if args.init is None or args.limit < 0:
            parser.error("--init FOLDER or --report is needed, and --limit N of 0 or more")
        score(args.init, args.name or args.init.name, args.limit, args.device)
    rows = read()
    if not any(map(usable, rows)):
        raise UserError(f"{ROWS} holds no scores: run it with --init FOLDER first")
    replace(PAGE, lambda path: path.write_text(page(rows)))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
