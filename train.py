"""Train a small transformer with RLSD or GRPO: warm start, then rollout -> verify -> credit -> update, step by step.

    python train.py                        # 4-digit addition, minutes on a laptop CPU
    python train.py --method grpo          # the same protocol without the teacher
    python train.py --data my.jsonl --verifier my_rules.py:check
"""

import argparse
import copy
import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

import tasks
import verifiers
from model import ModelConfig, Samples, Transformer, sample, token_logps
from rlsd import group_advantages, lambda_at, rlsd_loss, token_advantages

# ---- config ----------------------------------------------------------------------------------------------------------


def option(default, help, choices=None):
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    method: str = option("rlsd", "rlsd, or grpo (the same loss at lambda 0, no teacher)", ("rlsd", "grpo"))
    task: str = option("addition", "built-in problems", tuple(tasks.GENERATORS))
    data: str = option("", "JSONL file of your own problems: question, answer, and optionally solution, a line each")
    verifier: str = option("", "exact, number, choice, expression or my_rules.py:check (default: the task's; exact for --data)")
    privileged: str = option("answer", "what the teacher is shown", ("answer", "solution"))
    privileged_key: str = option("", "show the teacher the text under this key of --data instead")
    out: str = option("", "folder of the run (default: a new runs/TASK-METHOD-SEED)")
    resume: bool = option(False, "go on with the run in --out from its last checkpoint")
    seed: int = option(0, "seed of weights, problems and sampling")
    device: str = option("cpu", "cpu or cuda", ("cpu", "cuda"))
    bf16: bool = option(False, "bfloat16 autocast (cuda only)")

    hidden_size: int = option(64, "width of the model")
    num_layers: int = option(2, "layers of the model")
    max_seq_len: int = option(256, "longest prompt + completion, in tokens")

    warm_steps: int = option(500, "supervised steps before RL, in both views")
    warm_batch: int = option(128, "sequences a supervised step")
    warm_lr: float = option(6e-3, "peak learning rate of the warm start")
    warm_teacher_share: float = option(0.5, "share of supervised examples in the teacher's view")
    warm_slip: float = option(0.75, "probability of a slip in the student's worked examples (addition: each carry forgotten)")
    warm_dir: str = option("runs/warm_start", "where finished warm starts are kept and found again")

    steps: int = option(120, "updates")
    prompts_per_step: int = option(16, "questions an update")
    group_size: int = option(16, "samples a question")
    max_new_tokens: int = option(64, "longest completion, in tokens")
    temperature: float = option(1.0, "sampling temperature, also of every log-probability in the loss")
    lr: float = option(5e-5, "learning rate of Adam")
    max_grad_norm: float = option(1.0, "gradient clipping")
    micro_batch: int = option(0, "samples a forward and backward pass, 0 for all at once; less memory, the same gradient")

    rlsd_lambda: float = option(0.5, "weight of the self-distilled credit")
    rlsd_reweight_clip_range: float = option(0.2, "eps_w: evidence weights are clipped to 1 +- this")
    rlsd_lambda_warmup_steps: int = option(0, "updates over which lambda rises from 0")
    rlsd_lambda_decay_steps: int = option(50, "updates over which lambda then falls to 0; 0 keeps it")
    rlsd_teacher_sync_interval: int = option(10, "updates between copies of the policy into the teacher")

    eval_every: int = option(10, "updates between evaluations on held-out problems")
    eval_problems: int = option(500, "held-out problems")
    save_every: int = option(50, "updates between checkpoints")


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (python train.py --help lists the options)")


def parse_config(argv: list[str]) -> Config:
    parser = Parser("train.py", description=__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in dataclasses.fields(Config):
        how = {"action": "store_true"} if f.type is bool else {"type": f.type, "choices": f.metadata["choices"]}
        parser.add_argument(f"--{f.name}", help=f"{f.metadata['help']} (default: {f.default!r})", **how)
    given = vars(parser.parse_args(argv))
    config = resumed(given) if given.get("resume") else Config(**given)
    if config.method == "grpo" and any(name.startswith("rlsd_") for name in given):
        raise UserError("--method grpo has no teacher: leave the --rlsd_ options out, or use --method rlsd")
    if config.data and "task" in given:
        raise UserError("--data and --task are two sources of problems: give one")
    if config.privileged_key and (not config.data or "privileged" in given):
        raise UserError("--privileged_key names a key of --data, in place of --privileged")
    if config.bf16 and config.device != "cuda":
        raise UserError("--bf16 needs --device cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to run on the CPU")
    check_ranges(config)
    return config


def check_ranges(config: Config) -> None:
    at_least = {"group_size": 2, "warm_steps": 0, "micro_batch": 0, "rlsd_lambda_warmup_steps": 0,
                "rlsd_lambda_decay_steps": 0, "seed": 0, "rlsd_reweight_clip_range": 0.0}
    in_unit = ("rlsd_lambda", "warm_teacher_share", "warm_slip")
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if name in in_unit and not 0 <= value <= 1:
            raise UserError(f"--{name} {value}: a number from 0 to 1 is needed")
        if isinstance(value, float) and name not in in_unit and name not in at_least and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: a finite number above 0 is needed")
        if (isinstance(value, int) or name in at_least) and not at_least.get(name, 1) <= value < float("inf"):
            raise UserError(f"--{name} {value}: at least {at_least.get(name, 1)} is needed")
    if config.hidden_size % 32:
        raise UserError(f"--hidden_size {config.hidden_size}: a multiple of 32 is needed (heads of 16, in pairs)")


def resumed(given: dict) -> Config:
    """The config of the run in --out; of the options given again only --steps may differ."""
    path = Path(given.get("out", "")) / "config.json"
    if "out" not in given or not path.is_file() or not (path.parent / "last.pt").is_file():
        raise UserError("--resume needs --out with the folder of a run that has a checkpoint (config.json and last.pt)")
    saved = json.loads(path.read_text())
    for name, value in given.items():
        if name not in ("out", "resume", "steps") and saved[name] != value:
            raise UserError(f"--{name} {value} contradicts {path}, which has {saved[name]!r}; only --steps may change")
    return Config(**{**saved, **given})


# ---- data and model --------------------------------------------------------------------------------------------------

def load_source(config: Config) -> tuple[tasks.Source, verifiers.Verifier]:
    """Problems and their verifier; every prompt and worked solution is checked to fit before anything is trained."""
    try:
        source = (tasks.from_file(config.data, config.eval_problems, config.verifier or "exact", config.privileged_key)
                  if config.data else tasks.generated(config.task, config.eval_problems))
        verifier = verifiers.load(config.verifier or source.verifier)
        for problem in source.known:
            longest = max(len(teacher_view(problem, config)), len(tasks.student_prompt(problem)))
            solution = len(tasks.target(problem))
            if solution > config.max_new_tokens:
                raise UserError(f"the solution of {problem.question[:60]!r} has {solution} tokens, more than "
                                f"--max_new_tokens {config.max_new_tokens}; raise it")
            if longest + config.max_new_tokens > config.max_seq_len:
                raise UserError(f"the prompt of {problem.question[:60]!r} has {longest} tokens; with --max_new_tokens "
                                f"{config.max_new_tokens} that exceeds --max_seq_len {config.max_seq_len}; raise it")
    except ValueError as error:
        raise UserError(str(error)) from error
    return source, verifier


def teacher_view(problem: tasks.Problem, config: Config) -> list[int]:
    return tasks.teacher_prompt(problem, problem.privileged if config.privileged_key else config.privileged)


def build_model(config: Config) -> Transformer:
    torch.manual_seed(config.seed)
    heads = config.hidden_size // 16
    return Transformer(ModelConfig(tasks.TOKENIZER.n_vocab, config.hidden_size, 3 * config.hidden_size, config.num_layers,
                                   heads, heads // 2, 16, config.max_seq_len)).to(config.device)


# ---- warm start ------------------------------------------------------------------------------------------------------

def warm_start(model: Transformer, source: tasks.Source, config: Config) -> None:
    """Imitate worked solutions in both views; the result is kept on disk under everything it depends on."""
    if config.warm_steps == 0:
        return
    path = Path(config.warm_dir) / f"{warm_start_key(config)}.pt"
    if path.is_file():
        print(f"warm start: found {path}")
        model.load_state_dict(torch.load(path, map_location=config.device, weights_only=True))
        return
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    start = time.perf_counter()
    for step in range(1, config.warm_steps + 1):
        rise, fall = min(1, step / 20), 1 - 0.9 * step / config.warm_steps
        optimizer.param_groups[0]["lr"] = config.warm_lr * rise * fall
        loss = imitation_loss(model, source, config, random.Random(f"{config.seed} warm {step}"))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == config.warm_steps:
            print(f"warm start: step={step}/{config.warm_steps} loss={loss.item():.3f} "
                  f"seconds={time.perf_counter() - start:.0f}", flush=True)
    save(model.state_dict(), path)


def imitation_loss(model: Transformer, source: tasks.Source, config: Config, rng: random.Random) -> torch.Tensor:
    """Mean negative log-likelihood, in nats a token, of worked solutions: right ones in the teacher's view, careless ones in the student's."""
    prompts, targets = [], []
    for problem in source.draw(rng, config.warm_batch):
        if rng.random() < config.warm_teacher_share:
            prompts.append(teacher_view(problem, config))
            targets.append(tasks.target(problem))
        else:
            prompts.append(tasks.student_prompt(problem))
            targets.append(tasks.target(source.careless(problem, rng, config.warm_slip)))
    demonstrations = Samples.of(targets, config.device)
    with autocast(config):
        return -token_logps(model, prompts, demonstrations, 1.0)[demonstrations.mask].mean()


def warm_start_key(config: Config) -> str:
    names = ("task", "data", "privileged", "privileged_key", "seed", "device", "bf16", "hidden_size", "num_layers",
             "max_seq_len", "eval_problems", "warm_steps", "warm_batch", "warm_lr", "warm_teacher_share", "warm_slip")
    files = [Path(__file__).with_name(name) for name in ("model.py", "tasks.py", "train.py")]
    files += [Path(config.data)] if config.data else []
    parts = [str(getattr(config, name)) for name in names] + [torch.__version__, str(torch.get_num_threads())]
    return hashlib.sha256(b"\0".join([p.encode() for p in parts] + [f.read_bytes() for f in files])).hexdigest()[:16]


# ---- one RL step -----------------------------------------------------------------------------------------------------

@dataclass
class Rollout:
    """N samples, the group_size of one question next to each other; problems has one entry a sample."""

    problems: list[tasks.Problem]
    samples: Samples
    rewards: torch.Tensor
    advantages: torch.Tensor

    def rows(self, index: torch.Tensor) -> "Rollout":
        return Rollout([self.problems[i] for i in index.tolist()], self.samples.rows(index), self.rewards[index],
                       self.advantages[index])


def rollout(model: Transformer, source: tasks.Source, verifier: verifiers.Verifier, config: Config, step: int) -> Rollout:
    """Sample every question's group, verify each completion, standardise the rewards within the group."""
    rng = random.Random(f"{config.seed} rollout {step}")
    questions = source.draw(rng, config.prompts_per_step)
    with autocast(config):
        samples = sample(model, [tasks.student_prompt(p) for p in questions], group_size=config.group_size,
                         max_new_tokens=config.max_new_tokens, temperature=config.temperature, stop_token=tasks.END,
                         generator=torch.Generator().manual_seed(rng.getrandbits(62)))
    problems = [p for p in questions for _ in range(config.group_size)]
    rewards = torch.tensor(verify(verifier, samples, problems), device=config.device)
    return Rollout(problems, samples, rewards, group_advantages(rewards, config.group_size))


def verify(verifier: verifiers.Verifier, samples: Samples, problems: list[tasks.Problem]) -> list[float]:
    """A reward in [0, 1] for each sample; a verifier that fails or returns anything else stops the run."""
    rewards = []
    for tokens, problem in zip(samples.completions(), problems):
        where = f"verifier, on {problem.question[:60]!r} with the completion {tasks.decode(tokens)[:60]!r}"
        try:
            reward = verifier(tasks.decode(tokens), problem.answer)
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        if not isinstance(reward, (int, float)) or not 0 <= reward <= 1:
            raise UserError(f"{where}: it returned {reward!r}; a number from 0 to 1 is needed")
        rewards.append(float(reward))
    return rewards


def score(model: Transformer, batch: Rollout, config: Config, view) -> torch.Tensor:
    """Log-probabilities (N,T) of the batch's completions after the prompts that `view` makes of its problems."""
    with autocast(config):
        return token_logps(model, [view(p) for p in batch.problems], batch.samples, config.temperature)


def score_by_teacher(teacher: Transformer | None, batch: Rollout, config: Config) -> torch.Tensor | None:
    """The one extra forward pass: the same completions, after the prompt that shows the reference; no gradient."""
    if teacher is None:
        return None
    with torch.no_grad():
        return score(teacher, batch, config, lambda p: teacher_view(p, config))


def update(model: Transformer, teacher: Transformer | None, optimizer: torch.optim.Optimizer, batch: Rollout,
           config: Config, lam: float) -> dict[str, float]:
    """One optimizer step on the global token mean -> metrics over the tokens that carry an advantage."""
    tokens = batch.samples.mask.sum()  # of the whole batch: samples without advantage count, though they move nothing
    rows = batch.advantages.nonzero().squeeze(1)
    metrics: dict[str, float] = {}
    optimizer.zero_grad()
    for index in rows.split(config.micro_batch or len(rows)) if len(rows) else []:
        part = batch.rows(index)
        teacher_logps = score_by_teacher(teacher if lam > 0 else None, part, config)
        logps = score(model, part, config, tasks.student_prompt)
        loss, means = rlsd_loss(logps, part.samples.logps, teacher_logps, part.advantages, part.samples.mask, lam=lam,
                                eps_w=config.rlsd_reweight_clip_range, denominator=tokens)
        loss.backward()
        share = float(part.samples.mask.sum() / batch.samples.mask[rows].sum())
        for name, value in {**means, "loss": loss.item() / share}.items():
            metrics[name] = metrics.get(name, 0.0) + share * value
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item() if len(rows) else 0.0
    if len(rows):
        optimizer.step()
    return metrics | {"grad_norm": grad_norm}


def describe(batch: Rollout, config: Config) -> dict[str, float]:
    """Reward, mean length in tokens, entropy in nats a token (mean of -log p of the sampled tokens), groups without spread."""
    mask = batch.samples.mask
    groups = batch.advantages.view(-1, config.group_size)
    return {"reward": batch.rewards.mean().item(), "length": mask.sum(1).float().mean().item(),
            "entropy": -batch.samples.logps[mask].mean().item(),
            "no_spread": (groups == 0).all(dim=1).float().mean().item()}


# ---- evaluation ------------------------------------------------------------------------------------------------------

def evaluate(model: Transformer, source: tasks.Source, verifier: verifiers.Verifier, config: Config) -> dict[str, float]:
    """Held-out pass@1 in the student's view, at temperature 1 and greedy; the same noise at every call."""
    scores = {}
    for name, temperature in (("pass@1", 1.0), ("greedy", 0.0)):
        with autocast(config):
            samples = sample(model, [tasks.student_prompt(p) for p in source.held_out], group_size=1,
                             max_new_tokens=config.max_new_tokens, temperature=temperature, stop_token=tasks.END,
                             generator=torch.Generator().manual_seed(0))
        rewards = verify(verifier, samples, source.held_out)
        scores[name] = sum(rewards) / len(rewards)
    return scores


# ---- files of a run --------------------------------------------------------------------------------------------------

def save(state: dict, path: Path) -> None:
    """Write under a temporary name, then rename: a reader finds the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


class State:
    """What a step changes, and a checkpoint holds: policy, teacher, optimizer, step, best held-out pass@1.

    Problems and noise of a step follow from (seed, step), so no generator has to be kept.
    """

    def __init__(self, config: Config):
        self.model = build_model(config)
        self.teacher = copy.deepcopy(self.model) if config.method == "rlsd" else None
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.step, self.best = 0, -1.0

    def sync_teacher(self) -> None:
        if self.teacher is not None:
            self.teacher.load_state_dict(self.model.state_dict())

    def save(self, path: Path) -> None:
        save({"step": self.step, "best": self.best, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
              "teacher": self.teacher.state_dict() if self.teacher is not None else None}, path)

    def load(self, path: Path, config: Config) -> None:
        try:
            state = torch.load(path, map_location=config.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.teacher is not None:
                self.teacher.load_state_dict(state["teacher"])
            self.step, self.best = state["step"], state["best"]
        except Exception as error:  # torn, foreign or of another shape: torch raises many kinds
            raise UserError(f"{path} is no checkpoint of this run: {str(error).splitlines()[0]}") from error


def open_run(config: Config) -> Path:
    """Make the run's folder; a folder that already holds a run is refused, unless it is to be resumed."""
    if not config.out:
        name = f"{Path(config.data).stem or config.task}-{config.method}-{config.seed}"
        taken = [n for n in range(1, 10_000) if Path(f"runs/{name}" if n == 1 else f"runs/{name}.{n}").exists()]
        n = max(taken, default=0) + 1
        config.out = f"runs/{name}" if n == 1 else f"runs/{name}.{n}"
    out = Path(config.out)
    if (out / "last.pt").exists() and not config.resume:
        raise UserError(f"--out {out} already holds a run: add --resume to go on with it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps({**dataclasses.asdict(config), "resume": False}, indent=1) + "\n")
    return out


def truncate(path: Path, last_step: int) -> None:
    """Drop the lines of steps after the checkpoint that the run goes on from, a half-written last one included."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] > last_step:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    path.write_text("".join(kept))


def append(path: Path, row: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


PRINTED = ("step", "reward", "length", "entropy", "no_spread", "grad_norm", "lambda", "weight", "clipped_low",
           "clipped_high", "tokens/s", "pass@1", "greedy")


def log(out: Path, row: dict) -> None:
    """One line for people and grep, the whole row to metrics.jsonl."""
    append(out / "metrics.jsonl", row)
    shown = {name: row[name] for name in PRINTED if name in row}
    print(" ".join(f"{name}={value:.4g}" for name, value in shown.items()), flush=True)


def draw_curves(out: Path) -> None:
    try:
        import plot
    except ImportError:
        print("curves.png left out: matplotlib is not installed")
        return
    print(f"curves: {plot.curves([out], out / 'curves.png')}")


def credited_samples(model: Transformer, teacher: Transformer | None, batch: Rollout, config: Config, lam: float) -> list[dict]:
    """One right and one wrong sample of the first group with spread, with the credit of each token."""
    spread = batch.advantages.nonzero().squeeze(1)
    if len(spread) == 0:
        return []
    first = spread[0] // config.group_size * config.group_size
    rewards = batch.rewards[first:first + config.group_size]
    pair = batch.rows(first + torch.stack([rewards.argmax(), rewards.argmin()]))
    with torch.no_grad():
        logps = score(model, pair, config, tasks.student_prompt)
        teacher_logps = score_by_teacher(teacher, pair, config)
        credit = token_advantages(pair.advantages, logps if teacher_logps is None else teacher_logps, logps,
                                  pair.samples.mask, lam, config.rlsd_reweight_clip_range)
    rows = zip(pair.problems, pair.samples.completions(), pair.rewards.tolist(), credit.tolist())
    return [{"question": problem.question, "completion": tasks.decode(tokens), "reward": reward,
             "tokens": [tasks.TOKENIZER.decode([t]) for t in tokens], "credit": [round(c, 4) for c in values[:len(tokens)]]}
            for problem, tokens, reward, values in rows]


# ---- main ------------------------------------------------------------------------------------------------------------

def autocast(config: Config):
    return torch.autocast("cuda", dtype=torch.bfloat16) if config.bf16 else nullcontext()


class Interrupt:
    """Ctrl-C and SIGTERM ask for a clean end after the current step; a second Ctrl-C ends at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def progress(steps: range):
    """The steps, with a bar on standard error where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, disable=not sys.stderr.isatty())


def train(config: Config) -> int:
    source, verifier = load_source(config)
    out = open_run(config)
    state = State(config)
    if config.resume:
        state.load(out / "last.pt", config)
        truncate(out / "metrics.jsonl", state.step)
        truncate(out / "samples.jsonl", state.step)
    else:
        warm_start(state.model, source, config)
        state.sync_teacher()
        log(out, {"step": 0, **evaluate(state.model, source, verifier, config)})
        state.save(out / "last.pt")
    print(f"{config.method}: {sum(p.numel() for p in state.model.parameters()):,} parameters, run folder {out}", flush=True)

    interrupt = Interrupt()
    for step in progress(range(state.step + 1, config.steps + 1)):
        began = time.perf_counter()
        lam = lambda_at(step, config.rlsd_lambda, config.rlsd_lambda_warmup_steps,
                        config.rlsd_lambda_decay_steps) if config.method == "rlsd" else 0.0
        batch = rollout(state.model, source, verifier, config, step)
        evaluation_due = step % config.eval_every == 0 or step == config.steps
        if evaluation_due:
            for row in credited_samples(state.model, state.teacher, batch, config, lam):
                append(out / "samples.jsonl", {"step": step, **row})
        metrics = update(state.model, state.teacher, state.optimizer, batch, config, lam)
        state.step = step
        if step % config.rlsd_teacher_sync_interval == 0:
            state.sync_teacher()
        seconds = time.perf_counter() - began
        row = {"step": step, **describe(batch, config), "lambda": lam, **metrics, "seconds": seconds,
               "tokens/s": batch.samples.mask.sum().item() / seconds}
        if evaluation_due:
            row |= evaluate(state.model, source, verifier, config)
        log(out, row)
        if row.get("pass@1", -1.0) > state.best:
            state.best = row["pass@1"]
            save(state.model.state_dict(), out / "best.pt")
        if step % config.save_every == 0 or step == config.steps or interrupt.signal:
            state.save(out / "last.pt")
        if interrupt.signal:
            print(f"interrupted after step {step}; python train.py --resume --out {out} goes on", flush=True)
            return 128 + interrupt.signal
    draw_curves(out)
    return 0


def main(argv: list[str]) -> int:
    try:
        return train(parse_config(argv))
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; --resume goes on from the last checkpoint, where there is one", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
