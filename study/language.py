"""The study's question asked of a language model: RLSD beside GRPO and others on support tickets.

python study/language.py FOLDER                        # --init's folder (examples/smollm2); hours on a CPU
python study/language.py FOLDER --device cuda --jobs 6 # minutes
python study/language.py --report                      # the page again, from the committed runs

A run that results/language.jsonl has is not made again. Learning rates are chosen on tickets and seeds of their own.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from study.bootstrap import Estimate, mean  # noqa: E402
from study.scores import clip_share, evaluations, final, mean_entropy, seconds, start, updates_to  # noqa: E402
from support.errors import UserError  # noqa: E402
from support.files import append, metrics_of, replace  # noqa: E402
from support.program import Parser, program  # noqa: E402

RESULTS, RUNS = ROOT / "results", ROOT / "runs" / "language"
METHODS = {
    "grpo": "--method grpo",
    "rlsd": "--method rlsd --rlsd_lambda_decay_steps 15",  # the paper's: over the first quarter
    "rlsd-wide": "--method rlsd --rlsd_lambda 1 --rlsd_lambda_decay_steps 0 --rlsd_reweight_clip_range 0.9",
    "rlsd-contrastive": "--method rlsd --rlsd_lambda_decay_steps 15 --evidence contrastive",
    "opsd": "--method opsd",
}
RATES = ("1e-5", "2e-5", "4e-5")
TUNING, SEEDS, FEWER = (100, 101), tuple(range(5)), tuple(range(3))  # seeds
SHARED = (
    "--privileged_key rule --max_new_tokens 24 --max_seq_len 192 --prompts_per_step 16 --group_size 8 --steps 60 "
    "--eval_every 10 --eval_problems 256 --save_every 60 --warm_steps 30 --warm_batch 8 --warm_lr 1e-4 "
    "--warm_teacher_share 0.7 --warm_seed 0"
)
CURVE = "step reward length entropy no_spread lambda clipped_low clipped_high grad_norm seconds".split()
CURVE += ["pass@1", "greedy", "teacher pass@1"]


@dataclass(frozen=True)
class Run:
    """One training run; tickets: the seed of its problems, 7 those that are reported, 100 those for tuning."""

    method: str
    seed: int
    lr: str
    tickets: int = 7

    @property
    def name(self) -> str:
        return f"{self.method}-{self.lr}-{self.tickets}-{self.seed}"

    @property
    def options(self) -> str:
        return f"{SHARED} {METHODS[self.method]} --lr {self.lr} --seed {self.seed}"


def execute(runs: list[Run], init: Path, device: str, jobs: int) -> None:
    """Make the runs that are not finished, `jobs` at a time; the first alone, as it makes the warm start."""
    done = {(row["name"], row["options"]) for row in read()}
    todo = [run for run in runs if (run.name, run.options) not in done]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} finished before", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for part in (todo[:1], todo[1:]):
            for row in pool.map(lambda run: trained(run, init, device), part):
                append(RESULTS / "language.jsonl", row)
                drop_checkpoints(RUNS / row["name"])
                first, last = row["curve"][0], row["curve"][-1]
                print(f"{row['name']}: pass@1 {first['pass@1']:.3f} -> {last['pass@1']:.3f}", flush=True)


def trained(run: Run, init: Path, device: str) -> dict:
    """Train, and take the log and what the last policy quotes of the rules."""
    data, out = RUNS / f"tickets-{run.tickets}.jsonl", RUNS / run.name
    if not data.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        make = [ROOT / "examples/support_rules/make_tickets.py", "--n", "2600", "--worded"]
        python(*make, "--seed", run.tickets, "--out", data)
    rule = f"{ROOT}/examples/support_rules/my_rules.py:check"
    what = ["--init", init, "--data", data, "--verifier", rule, "--warm_dir", RUNS / "warm_start", "--device", device]
    if not (out / "last.pt").exists():
        python(ROOT / "train.py", *what, *run.options.split(), "--out", out)
    elif metrics_of(out)[-1]["step"] < 60:  # a study that was killed
        python(ROOT / "train.py", "--resume", "--out", out, "--verifier", rule)
    quoted = python(Path(__file__), "--quotes", out, "--verifier", rule)
    curve = [{k: round(row[k], 5) for k in CURVE if k in row} for row in metrics_of(out)]
    kind = {"method": run.method, "seed": run.seed, "lr": run.lr, "tickets": run.tickets, "device": device}
    return {"name": run.name, "options": run.options, **kind, "quotes": float(quoted), "curve": curve}


def drop_checkpoints(out: Path) -> None:
    """Once the run's row is kept: 2.7 GB each."""
    for path in [*out.glob("*.pt"), *out.glob("model/*.safetensors")]:
        path.unlink()


def quotes(out: Path, verifier: str) -> float:
    """Share of the last policy's held-out completions that hold words of a rule, which it was never shown."""
    import tasks
    from harness.evaluation import held_out_samples
    from harness.models import build_model
    from harness.options import config_of
    from harness.problems import load_source
    from support.files import fill, load

    config, _ = config_of(out, verifier=verifier)
    source, _ = load_source(config)
    model = build_model(config)
    fill(model, load(out / "last.pt", config.device)["model"])
    samples = held_out_samples(model, [tasks.student_prompt(p) for p in source.held_out], config, 1.0)
    rules = {str(problem.privileged).partition(": ")[2] for problem in source.known}
    return float(np.mean([any(rule in tasks.decode(c) for rule in rules) for c in samples.completions()]))


def python(*command) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-600:]}")
    return done.stdout


def read() -> list[dict]:
    path = RESULTS / "language.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best_rates(rows: list[dict]) -> dict[str, str]:
    """Each method's rate of the highest final pass@1 on the tuning seeds; of equals the lower."""
    rates = {}
    for method in METHODS:
        finals = {
            lr: np.mean([final(r) for r in rows if (r["method"], r["lr"], r["tickets"]) == (method, lr, 100)] or [-1.0])
            for lr in RATES
        }
        rates[method] = max(RATES, key=lambda lr: finals[lr])
    return rates


# ---- the page --------------------------------------------------------------------------------------------------------


def page(rows: list[dict]) -> str:
    """Tables of the runs on the reported tickets, paired with GRPO by seed, with 95 % intervals."""
    cells = {
        m: {r["seed"]: r for r in rows if r["method"] == m and r["tickets"] == 7 and r["lr"] == best_rates(rows)[m]}
        for m in METHODS
    }
    grpo = cells["grpo"]
    target = float(np.mean([final(run) for run in grpo.values()]))
    last = evaluations(next(iter(grpo.values())))[0][-1]
    lines = [
        "# A language model's credit: SmolLM2-135M on support tickets",
        "",
        f"`python study/language.py FOLDER`, {len(rows)} runs of 60 updates on {rows[0]['device']}; 256 held-out "
        "tickets in four wordings, one warm start of 30 supervised steps. The teacher is shown the rule that decides "
        f"the ticket: alone it is right in {grpo[0]['curve'][0]['teacher pass@1']:.3f} of the held-out tickets, the "
        f"student in {start(grpo[0]):.3f}. Learning rates are each method's best of {', '.join(RATES)} on other "
        "tickets and two other seeds.",
        "",
        "| method | rate | seeds | final pass@1 | above GRPO | updates to GRPO's end | seconds an update | entropy, "
        "nats a token | tokens at the evidence clip | quotes a rule |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in cells.items():
        seeds = sorted(runs.keys() & grpo.keys())
        gain = mean(np.array([final(runs[s]) - final(grpo[s]) for s in seeds]))
        reach = [updates_to(run, target) for run in runs.values()]
        never = int(np.isnan(reach).sum())
        to = mean(last if np.isnan(x) else x for x in reach).text(1) + f" ({never} never)" * (never > 0)
        clip = f"{np.mean([clip_share(run, False) for run in runs.values()]):.3f}" if method.startswith("rlsd") else "-"
        figures = [
            of(runs.values(), figure, digits) for figure, digits in ((final, 3), (seconds, 3), (mean_entropy, 3))
        ]
        leak = f"{np.mean([run['quotes'] for run in runs.values()]):.3f}"
        above = "-" if method == "grpo" else f"{gain.text()}, {gain.verdict(0.0, 0.02)}"
        cells_of = [
            method,
            best_rates(rows)[method],
            len(runs),
            figures[0],
            above,
            to,
            figures[1],
            figures[2],
            clip,
            leak,
        ]
        lines.append("| " + " | ".join(map(str, cells_of)) + " |")
    lines += [
        "",
        "*Holds*: the whole interval lies above 0; *does not hold*: at or below 0.02 (under two points count as none); "
        "else, or under five seeds, undecided.",
        "",
        "Each seed's final pass@1, and the share of groups of one reward in the second half of its run:",
        "",
        "| method | seed by seed |",
        "|---|---|",
    ]
    for method, runs in cells.items():
        lines.append(f"| {method} | " + ", ".join(f"{final(r):.3f} ({alike(r):.2f})" for r in runs.values()) + " |")
    return "\n".join([*lines, *tuning(rows)])


def tuning(rows: list[dict]) -> list[str]:
    lines = ["", "The tuning, mean final pass@1 of two seeds:", ""]
    lines += ["| method | " + " | ".join(RATES) + " |", "|---" * (len(RATES) + 1) + "|"]
    for method in METHODS:
        tuned = [[final(r) for r in rows if (r["method"], r["lr"], r["tickets"]) == (method, x, 100)] for x in RATES]
        lines.append(f"| {method} | " + " | ".join(f"{np.mean(t):.3f}" if t else "-" for t in tuned) + " |")
    return [*lines, ""]


def alike(run: dict) -> float:
    """Share of the groups of one reward, which hold no lesson, in the second half of a run."""
    rows = run["curve"][1:]
    return float(np.mean([row["no_spread"] for row in rows[len(rows) // 2 :]]))


def of(runs, figure, digits: int) -> str:
    estimate: Estimate = mean(figure(run) for run in runs)
    return estimate.text(digits)


def draw(rows: list[dict], path: Path) -> None:
    """Mean held-out pass@1 over updates, a line a method, in a band from the lowest to the highest seed."""
    from matplotlib.figure import Figure

    from harness.curves import COLOURS, STYLES

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for i, (method, rate) in enumerate(best_rates(rows).items()):
        curves = [evaluations(r) for r in rows if (r["method"], r["lr"], r["tickets"]) == (method, rate, 7)]
        if curves:
            values = np.array([pass_at_1 for _, pass_at_1 in curves])
            axis.plot(curves[0][0], values.mean(0), color=COLOURS[i], linestyle=STYLES[i % len(STYLES)], label=method)
            axis.fill_between(curves[0][0], values.min(0), values.max(0), color=COLOURS[i], alpha=0.12, linewidth=0)
    axis.set(xlabel="update", ylabel="held-out pass@1", title="SmolLM2-135M on support tickets")
    axis.grid(alpha=0.3)
    axis.legend()
    replace(path, lambda to: figure.savefig(to, dpi=110, format="png"))


@program
def main(argv: list[str]) -> int:
    parser = Parser("study/language.py", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="a published model's folder, as for --init")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--report", action="store_true", help="results/language.md and .png again, from the runs")
    parser.add_argument("--quotes", type=Path, metavar="RUN", help="print the share of completions that quote a rule")
    parser.add_argument("--verifier", default="")
    args = parser.parse_args(argv)
    if args.quotes:
        print(quotes(args.quotes, args.verifier))
        return 0
    if not args.report:
        if args.folder is None:
            parser.error("FOLDER or --report is needed")
        execute(
            [Run(m, s, lr, 100) for s in TUNING for m in METHODS for lr in RATES], args.folder, args.device, args.jobs
        )
        rates = best_rates(read())
        wanted = [Run(m, s, rates[m]) for m in METHODS for s in (SEEDS if m in ("grpo", "rlsd") else FEWER)]
        execute(wanted, args.folder, args.device, args.jobs)
    rows = read()
    replace(RESULTS / "language.md", lambda path: path.write_text(page(rows)))
    draw(rows, RESULTS / "language.png")
    print(RESULTS / "language.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
