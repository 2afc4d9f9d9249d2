"""Train a small transformer with RLSD or GRPO: warm start, then rollout -> verify -> credit -> update, step by step.

    python train.py                        # 4-digit addition, minutes on a laptop CPU
    python train.py --method grpo          # the same protocol without the teacher
    python train.py --data my.jsonl --verifier my_rules.py:check
    python train.py --init FOLDER          # a published Llama or Qwen3 model instead of random weights
"""

import argparse
import contextlib
import copy
import dataclasses
import hashlib
import json
import math
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean

import torch

import pretrained
import ranks
import reasoning
import tasks
import verifiers
import worker
from methods import METHODS, Rollout, autocast, evidence, group_hints, loss_of, rows_of, score, teacher_view
from model import ModelConfig, Samples, Transformer, sample, token_logps
from rlsd import group_advantages, lambda_at, rlsd_loss, token_advantages
from rounded_adam import RoundedAdam
from run_files import (Interrupt, Interrupted, UserError, append, finish, log, new_folder, open_folder, peak_memory,
                       progress, save, truncate)

# ---- config ----------------------------------------------------------------------------------------------------------


def option(default, help, choices=None, low=None, high=None):
    """A field of Config that is also a command-line option; low <= value <= high is checked."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


# What suits a model that already speaks: no warm start, small steps, room for words.
INIT = {"warm_steps": 0, "lr": 1e-6, "max_new_tokens": 256, "max_seq_len": 1024}


@dataclass
class Config:
    method: str = option("rlsd", "how samples become an update (methods.py)", METHODS)
    task: str = option("addition", "built-in problems: addition, countdown; or reasoning_gym:NAME, of that package")
    chain: int = option(0, "reasoning steps of a built-in problem (digits, numbers); 0: the task's own", low=0, high=20)
    filler: int = option(0, "letters of free choice before each reasoning step of a built-in problem", low=0, high=20)
    data: str = option("", "JSONL file of your own problems: question, answer, and optionally solution, a line each")
    verifier: str = option("", "exact, number, choice, expression, math_verify, my_rules.py:check; empty: the task's")
    privileged: str = option("answer", "what the teacher is shown", ("answer", "solution"))
    privileged_key: str = option("", "show the teacher the text under this key of --data instead")
    out: str = option("", "folder of the run (default: a new runs/TASK-METHOD-SEED)")
    resume: bool = option(False, "go on with the run in --out from its last checkpoint")
    seed: int = option(0, "seed of weights, problems and sampling", low=0, high=2**63 - 1)
    warm_seed: int = option(-1, "seed of the weights and the warm start; -1: as --seed", low=-1, high=2**63 - 1)
    device: str = option("cpu", "where to run", ("cpu", "cuda"))
    bf16: bool = option(False, "bfloat16 autocast (cuda only)")

    init: str = option("", "folder of a published Llama or Qwen3 model to start from; unless given, "
                           + ", ".join(f"--{name} is then {value}" for name, value in INIT.items()))
    dtype: str = option("float32", "type of the weights with --init; bfloat16: half the memory, small steps by chance",
                        ("float32", "bfloat16"))
    gradient_checkpointing: bool = option(False, "keep less for the backward pass, and compute it again")
    hidden_size: int = option(64, "width of the model, a multiple of 32", low=32)
    num_layers: int = option(2, "layers of the model", low=1)
    max_seq_len: int = option(256, "longest prompt + completion, in tokens", low=1)

    warm_steps: int = option(700, "supervised steps before RL, in both views", low=0)
    warm_batch: int = option(128, "sequences a supervised step", low=1)
    warm_lr: float = option(6e-3, "peak learning rate of the warm start", low=1e-9, high=1.0)
    warm_teacher_share: float = option(0.5, "share of supervised examples in the teacher's view", low=0.0, high=1.0)
    warm_slip: float = option(0.8, "probability of a slip in the student's worked examples",
                              low=0.0, high=1.0)
    warm_teacher_slip: float = option(0.5, "the same in the teacher's, whose reference is where the slips lead",
                                      low=0.0, high=1.0)
    warm_cite: float = option(0.0, "share of the teacher's examples that cite the reference first", low=0.0, high=1.0)
    warm_solutions: float = option(-1.0, "share of the teacher's examples shown a solution; -1: as --privileged says",
                                   low=-1.0, high=1.0)
    warm_dir: str = option("runs/warm_start", "where finished warm starts are kept and found again")

    steps: int = option(200, "updates", low=1)
    prompts_per_step: int = option(16, "questions an update", low=1)
    group_size: int = option(16, "samples a question", low=2)
    max_new_tokens: int = option(64, "longest completion, in tokens", low=1)
    temperature: float = option(1.0, "of sampling and of every log-probability", low=1e-3, high=100.0)
    lr: float = option(2e-4, "learning rate of Adam", low=1e-9, high=1.0)
    max_grad_norm: float = option(1.0, "gradient clipping", low=1e-9, high=1e9)
    micro_batch: int = option(0, "samples a forward and backward pass, 0 for all; the gradient is the same", low=0)

    rlsd_lambda: float = option(0.5, "weight of the self-distilled credit", low=0.0, high=1.0)
    rlsd_reweight_clip_range: float = option(0.2, "eps_w: evidence weights are clipped to 1 +- this", low=0.0, high=1e9)
    rlsd_lambda_warmup_steps: int = option(0, "updates over which lambda rises from 0", low=0)
    rlsd_lambda_decay_steps: int = option(50, "updates over which lambda then falls to 0; 0 keeps it", low=0)
    rlsd_teacher_sync_interval: int = option(10, "updates between copies of the policy to the teacher; 0: never", low=0)
    rlsd_negative_only: bool = option(False, "evidence for samples with A < 0 alone")
    rlsd_thought_only: bool = option(False, "evidence before the answer marker alone")
    evidence: str = option("plain", "reading of the evidence", ("plain", "contrastive", "agreement"))
    opsd_beta: float = option(0.5, "opsd, sdpo: 0 forward KL, 1 reverse KL, between: JSD", low=0.0, high=1.0)
    opsd_weight: float = option(1.0, "grpo+opsd: weight of the opsd loss", low=0.0, high=1e9)
    sdpo_ema: float = option(0.05, "sdpo: share of the policy in the teacher's moving average", low=0.0, high=1.0)
    opd_teacher: str = option("", "opd: folder of the run whose best.pt is the teacher")

    eval_every: int = option(10, "updates between evaluations on held-out problems", low=1)
    eval_problems: int = option(500, "held-out problems", low=1)
    save_every: int = option(50, "updates between checkpoints", low=1)


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
    config = resumed(given) if given.get("resume") else Config(**{**(INIT if given.get("init") else {}), **given})
    if config.method != "rlsd" and any(name.startswith("rlsd_") or name == "evidence" for name in given):
        raise UserError(f"--method {config.method} has no use for --rlsd_ options and --evidence; --method rlsd has")
    if (config.method == "opd") != bool(config.opd_teacher):
        raise UserError("--method opd and --opd_teacher RUN go together")
    if config.data and "task" in given:
        raise UserError("--data and --task are two sources of problems: give one")
    if config.task.startswith(reasoning.PREFIX) and (config.chain or config.filler):
        raise UserError("--chain and --filler are for addition and countdown; --task reasoning_gym:NAME,setting=value")
    if config.privileged_key and (not config.data or "privileged" in given):
        raise UserError("--privileged_key names a key of --data, in place of --privileged")
    if config.init and {"hidden_size", "num_layers"} & given.keys():
        raise UserError("--init brings a size of its own: leave --hidden_size and --num_layers out")
    if config.dtype != "float32" and (not config.init or config.warm_steps or config.method == "sdpo"):
        raise UserError("--dtype bfloat16 needs --init, and neither a warm start nor --method sdpo: both lose small steps")
    if config.bf16 and config.device != "cuda":
        raise UserError("--bf16 needs --device cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to run on the CPU")
    check_ranges(config)
    return config


def check_ranges(config: Config) -> None:
    for f in dataclasses.fields(config):
        value, low, high = getattr(config, f.name), f.metadata["low"], f.metadata["high"]
        if low is not None and not low <= value <= (math.inf if high is None else high):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"--{f.name} {value}: {allowed} is needed")
    if config.hidden_size % 32:
        raise UserError(f"--hidden_size {config.hidden_size}: a multiple of 32 is needed (heads of 16, in pairs)")


def resumed(given: dict) -> Config:
    """The config of the run in --out; of the options given again only --steps may differ."""
    path = Path(given.get("out", "")) / "config.json"
    if "out" not in given or not path.is_file() or not (path.parent / "last.pt").is_file():
        raise UserError("--resume needs --out with the folder of a run that has config.json and last.pt")
    try:
        saved = json.loads(path.read_text())
        fingerprint = saved.pop("fingerprint")
        config = Config(**{**saved, **given})
        check_ranges(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is no configuration of this program: {error}") from error
    for name, value in given.items():
        if name not in ("out", "resume", "steps") and saved[name] != value:
            raise UserError(f"--{name} {value} contradicts {path}, which has {saved[name]!r}; only --steps may change")
    if fingerprint != fingerprint_of(config):
        raise UserError(f"--data, --init or the file of --verifier has changed since {path} was written: start a new run")
    return config


def fingerprint_of(config: Config) -> str:
    """Hash of the user's own files that a run depends on."""
    names = [config.data, config.verifier.rpartition(":")[0]]
    names += [f"{config.init}/{name}" for name in ("config.json", "tokenizer.json") if config.init]
    parts = [Path(name).read_bytes() for name in names if Path(name).is_file()]
    parts.append(reasoning.package_version(config.task).encode())
    return hashlib.sha256(b"\0".join(filter(None, parts))).hexdigest()[:16]


# ---- data and model --------------------------------------------------------------------------------------------------

def load_source(config: Config) -> tuple[tasks.Source, verifiers.Verifier]:
    """Problems and their verifier; every prompt and worked solution is checked to fit before anything is trained."""
    try:
        tasks.use(tasks.chat(pretrained.load_tokenizer(config.init)) if config.init else tasks.BYTES)
        source = (tasks.from_file(config.data, config.eval_problems, config.verifier or "exact", config.privileged_key)
                  if config.data else reasoning.source(config.task, config.eval_problems)
                  if config.task.startswith(reasoning.PREFIX)
                  else tasks.generated(config.task, config.eval_problems, config.chain, config.filler))
        verifier = verifiers.load(config.verifier or source.verifier)
        for problem in source.known:
            longest = max(len(teacher_view(problem, config)), len(tasks.student_prompt(problem)))
            if config.method == "sdpo" or config.evidence == "contrastive":  # a sample may be shown as the reference
                longest = max(longest, len(tasks.prompt(problem, "x")) - 1 + config.max_new_tokens)
            completion = tasks.target(problem)
            solution = len(completion)
            if not verifiers.can_be_earned(verifier, tasks.decode(completion), problem.answer):
                raise UserError(f"{problem.origin}: no completion can earn a reward: the verifier does not accept the "
                                f"reference answer {problem.answer[:60]!r} itself")
            if solution > config.max_new_tokens:
                raise UserError(f"the solution of {problem.question[:60]!r} has {solution} tokens, more than "
                                f"--max_new_tokens {config.max_new_tokens}; raise it")
            if longest + config.max_new_tokens > config.max_seq_len:
                raise UserError(f"the prompt of {problem.question[:60]!r} has {longest} tokens; with --max_new_tokens "
                                f"{config.max_new_tokens} that exceeds --max_seq_len {config.max_seq_len}; raise it")
    except ValueError as error:
        raise UserError(str(error)) from error
    return source, verifier


def warm_seed(config: Config) -> int:
    return config.seed if config.warm_seed < 0 else config.warm_seed


def build_model(config: Config) -> Transformer:
    if config.init:
        return published_model(config)
    torch.manual_seed(warm_seed(config))
    heads = config.hidden_size // 16
    return Transformer(ModelConfig(
        vocab_size=tasks.TOKENIZER.n_vocab, hidden_size=config.hidden_size, intermediate_size=3 * config.hidden_size,
        num_layers=config.num_layers, num_heads=heads, num_kv_heads=heads // 2, head_dim=16,
        max_seq_len=config.max_seq_len)).to(config.device)


def published_model(config: Config) -> Transformer:
    model = pretrained.load(config.init, getattr(torch, config.dtype))
    if tasks.FORMAT.tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(f"--init {config.init}: the tokenizer has {tasks.FORMAT.tokenizer.n_vocab} tokens, the model "
                        f"{model.config.vocab_size}")
    if config.max_seq_len > model.config.max_seq_len:
        raise UserError(f"--max_seq_len {config.max_seq_len}: the model of --init ends at {model.config.max_seq_len}")
    return model.to(config.device)


def external_teacher(config: Config) -> Transformer:
    """The best policy of another run of this program, of its own size: OPD's teacher."""
    folder = Path(config.opd_teacher)
    try:
        saved = json.loads((folder / "config.json").read_text())
        size = {name: saved[name] for name in ("hidden_size", "num_layers", "max_seq_len")}
        size["init"] = saved.get("init", "")
        teacher = build_model(dataclasses.replace(config, **size))
        teacher.load_state_dict(torch.load(folder / "best.pt", map_location=config.device, weights_only=True))
    except Exception as error:  # missing, torn or foreign files: torch raises many kinds
        raise UserError(f"--opd_teacher {folder}: no run with config.json and best.pt: {error}") from error
    return teacher


class State:
    """What a step changes, and a checkpoint holds: policy, teacher, optimizer, step, best held-out pass@1.

    Problems and noise of a step follow from (seed, step), so no generator has to be kept.
    """

    def __init__(self, config: Config):
        self.model = build_model(config)
        self.model.gradient_checkpointing = config.gradient_checkpointing
        self.teacher = external_teacher(config) if config.method == "opd" else (
            copy.deepcopy(self.model) if config.method != "grpo" else None)
        adam = RoundedAdam if config.dtype == "bfloat16" else torch.optim.Adam
        self.optimizer = adam(self.model.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.step, self.best = 0, -1.0

    def sync_teacher(self, share: float = 1.0) -> None:
        """Move the teacher's weights towards the policy's; share 1 copies them."""
        with torch.no_grad():
            for mine, policys in zip(self.teacher.parameters(), self.model.parameters()):
                mine.lerp_(policys, share)

    def teach(self, config: Config) -> None:
        """What the update of `self.step` does to the teacher, after it: sync (rlsd), moving average (sdpo), nothing."""
        interval = config.rlsd_teacher_sync_interval
        if config.method == "rlsd" and interval and self.step % interval == 0:
            self.sync_teacher()
        if config.method == "sdpo":
            self.sync_teacher(config.sdpo_ema)

    def keep_if_best(self, row: dict, out: Path) -> None:
        """best.pt: the weights of the highest held-out pass@1 so far, those before the first update included."""
        if row.get("pass@1", -1.0) > self.best:
            self.best = row["pass@1"]
            save(self.model.state_dict(), out / "best.pt")

    def save(self, path: Path) -> None:
        save({"step": self.step, "best": self.best,
              "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
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


# ---- warm start ------------------------------------------------------------------------------------------------------

def warm_start(model: Transformer, source: tasks.Source, config: Config, interrupt: Interrupt) -> None:
    """Imitate worked solutions in both views; the result is kept on disk under everything it depends on."""
    if config.warm_steps == 0:
        return
    path = Path(config.warm_dir) / f"{warm_start_key(config)}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        try:
            model.load_state_dict(torch.load(path, map_location=config.device, weights_only=True))
            print(f"warm start: found {path}")
            return
        except Exception:  # torn by a full disk or the like: torch raises many kinds
            print(f"warm start: {path} cannot be read and is made anew")
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    start = time.perf_counter()
    for step in range(1, config.warm_steps + 1):
        rise, fall = min(1, step / 20), 1 - 0.9 * step / config.warm_steps
        optimizer.param_groups[0]["lr"] = config.warm_lr * rise * fall
        loss = imitation_loss(model, source, config, random.Random(f"{warm_seed(config)} warm {step}"))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if interrupt.signal:
            raise Interrupted(interrupt.signal, "in the warm start, which will begin anew")
        if step % 50 == 0 or step == config.warm_steps:
            print(f"warm start: step={step}/{config.warm_steps} loss={loss.item():.3f} "
                  f"seconds={time.perf_counter() - start:.0f}", flush=True)
    save(model.state_dict(), path)


def imitation_loss(model: Transformer, source: tasks.Source, config: Config, rng: random.Random) -> torch.Tensor:
    """Mean -log p, in nats a token, of worked solutions with slips; the teacher is shown the answer that each leads to.

    Were the teacher's examples all right, it would learn to be careful wherever a reference stands, and not to read it.
    """
    prompts, targets = [], []
    for problem in source.draw(rng, config.warm_batch):
        if rng.random() < config.warm_teacher_share:
            problem = source.careless(problem, rng, config.warm_teacher_slip)
            shown = "solution" if rng.random() < solution_share(config) else "answer"
            prompts.append(teacher_view(problem, dataclasses.replace(config, privileged=shown)))
            targets.append(tasks.target(problem, cite=rng.random() < config.warm_cite))
        else:
            prompts.append(tasks.student_prompt(problem))
            targets.append(tasks.target(source.careless(problem, rng, config.warm_slip)))
    demonstrations = Samples.of(targets, config.device)
    with autocast(config):
        return -token_logps(model, prompts, demonstrations, 1.0)[demonstrations.mask].mean()


def solution_share(config: Config) -> float:
    """Of the teacher's examples, those whose prompt holds the worked solution instead of the answer."""
    return float(config.privileged == "solution") if config.warm_solutions < 0 else config.warm_solutions


def warm_start_key(config: Config) -> str:
    names = ("task", "chain", "filler", "data", "privileged_key", "device", "bf16", "init", "hidden_size", "num_layers",
             "max_seq_len", "eval_problems", "warm_steps", "warm_batch", "warm_lr", "warm_teacher_share",
             "warm_slip", "warm_teacher_slip", "warm_cite")
    files = [Path(__file__).with_name(name) for name in ("model.py", "tasks.py", "verifiers.py", "train.py")]
    files += [Path(reasoning.__file__), Path(worker.__file__)] if config.task.startswith(reasoning.PREFIX) else []
    files += [Path(config.data)] if config.data else []
    files += sorted(Path(config.init).glob("*.safetensors")) if config.init else []
    values = [getattr(config, name) for name in names]
    values += [warm_seed(config), solution_share(config), torch.__version__, torch.get_num_threads()]
    values += [reasoning.package_version(config.task)]
    parts = [str(value) for value in values]
    return hashlib.sha256(b"\0".join([p.encode() for p in parts] + [f.read_bytes() for f in files])).hexdigest()[:16]


# ---- one RL step -----------------------------------------------------------------------------------------------------

def rollout(model: Transformer, source: tasks.Source, verifier: verifiers.Verifier, config: Config,
            step: int) -> Rollout:
    """Sample every question's group, verify each completion, standardise the rewards within the group."""
    rng = random.Random(f"{config.seed} rollout {step}")
    questions = ranks.share(source.draw(rng, config.prompts_per_step))
    if not questions:
        raise UserError(f"fewer different questions in a batch than the {ranks.world()} processes: raise "
                        "--prompts_per_step, or start fewer of them")
    with autocast(config):
        samples = sample(model, [tasks.student_prompt(p) for p in questions], group_size=config.group_size,
                         max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                         stop_token=tasks.FORMAT.end, generator=torch.Generator().manual_seed(rng.getrandbits(62)))
    problems = [p for p in questions for _ in range(config.group_size)]
    rewards = torch.tensor(verify(verifier, samples, problems), device=config.device)
    return Rollout(problems, samples, rewards, group_advantages(rewards, config.group_size))


def verify(verifier: verifiers.Verifier, samples: Samples, problems: list[tasks.Problem]) -> list[float]:
    """A reward in [0, 1] for each sample; a verifier that fails or returns anything else stops the run."""
    rewards = []
    for tokens, problem in zip(samples.completions(), problems):
        completion = tasks.decode(tokens)
        where = f"verifier, on {problem.origin} {problem.question[:60]!r} with the completion {completion[:60]!r}"
        try:
            reward = verifier(completion, problem.answer)
        except Exception as error:
            raise UserError(f"{where}: {' '.join(f'{type(error).__name__}: {error}'.split())}") from error
        if isinstance(reward, (bool, str, bytes)) or not hasattr(reward, "__float__") or not 0 <= float(reward) <= 1:
            raise UserError(f"{where}: it returned {reward!r}; a float from 0 to 1 is needed")
        rewards.append(float(reward))
    return rewards


def update(model: Transformer, teacher: Transformer | None, optimizer: torch.optim.Optimizer, batch: Rollout,
           config: Config, lam: float) -> dict[str, float]:
    """One optimizer step on the global token mean -> loss, gradient norm, and rlsd_loss's metrics where it is used."""
    samples = batch.samples
    tokens = ranks.total(samples.mask.sum())  # of the whole batch: samples without advantage count, though they move nothing
    rows = rows_of(batch, config)
    scored = ranks.total(samples.mask[rows].sum())
    if scored == 0:
        _, metrics = rlsd_loss(samples.logps, samples.logps, None, batch.advantages, samples.mask, lam=0.0)
        return metrics | {"loss": 0.0, "grad_norm": 0.0}
    metrics = {"loss": 0.0}
    optimizer.zero_grad()
    for index in rows.split(config.micro_batch or max(1, len(rows))) if len(rows) else ():
        part = batch.rows(index)
        loss, means = loss_of(model, teacher, part, config, lam, tokens)
        loss.backward()
        metrics["loss"] += loss.item()
        share = float(part.samples.mask.sum() / scored)
        for name, value in means.items():
            metrics[name] = metrics.get(name, 0.0) + share * value
    ranks.sum_gradients(list(model.parameters()))
    metrics = ranks.summed(metrics)
    metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
    optimizer.step()
    return metrics


def describe(batch: Rollout, config: Config) -> dict[str, float]:
    """Reward, length in tokens, entropy in nats a token (mean -log p of the samples), groups without spread (share)."""
    mask = batch.samples.mask
    spread = (batch.advantages.view(-1, config.group_size) != 0).any(dim=1).repeat_interleave(config.group_size)
    rows = torch.stack([batch.rewards, mask.sum(1), batch.samples.logps.where(mask, 0).sum(1), ~spread], dim=1)
    reward, length, logp, no_spread = ranks.gather(rows).double().mean(dim=0).tolist()
    return {"reward": reward, "length": length, "entropy": -logp / length, "no_spread": no_spread}


# ---- evaluation ------------------------------------------------------------------------------------------------------

def held_out_samples(model: Transformer, prompts: list[list[int]], config: Config, temperature: float) -> Samples:
    """One completion a prompt; the same noise at every call, so that evaluations differ by the policy alone."""
    with autocast(config):
        return sample(model, prompts, group_size=1, max_new_tokens=config.max_new_tokens, temperature=temperature,
                      stop_token=tasks.FORMAT.end, generator=torch.Generator().manual_seed(0))


def evaluate(model: Transformer, source: tasks.Source, verifier: verifiers.Verifier,
             config: Config) -> dict[str, float]:
    """Held-out pass@1 in the student's view, at temperature 1 and greedy.

    leakage: share of the completions at temperature 1 that cite a reference they were never shown.
    """
    prompts = [tasks.student_prompt(p) for p in source.held_out]
    samples = held_out_samples(model, prompts, config, 1.0)
    cited = [tasks.CITATION in tasks.decode(c) for c in samples.completions()]
    greedy = held_out_samples(model, prompts, config, 0.0)
    return {"pass@1": mean(verify(verifier, samples, source.held_out)),
            "greedy": mean(verify(verifier, greedy, source.held_out)), "leakage": mean(cited)}


def evaluate_teacher(model: Transformer, source: tasks.Source, verifier: verifiers.Verifier,
                     config: Config) -> dict[str, float]:
    """Held-out pass@1 at temperature 1 of the same model when it is shown the reference."""
    samples = held_out_samples(model, [teacher_view(p, config) for p in source.held_out], config, 1.0)
    return {"teacher pass@1": mean(verify(verifier, samples, source.held_out))}


def credited_samples(model: Transformer, teacher: Transformer | None, batch: Rollout, config: Config,
                     lam: float) -> list[dict]:
    """One right and one wrong sample of the first group with spread, with the credit of each token."""
    spread = batch.advantages.nonzero().squeeze(1)
    if len(spread) == 0:
        return []
    first = spread[0] // config.group_size * config.group_size
    rewards = batch.rewards[first:first + config.group_size]
    pair = batch.rows(first + torch.stack([rewards.argmax(), rewards.argmin()]))
    with torch.no_grad():
        logps = score(model, pair, config, tasks.student_prompt)
        teacher_logps = evidence(teacher, pair, config, logps) if lam > 0 else logps
        credit = token_advantages(pair.advantages, teacher_logps, logps, pair.samples.mask, lam,
                                  config.rlsd_reweight_clip_range)
    rows = zip(pair.problems, pair.samples.completions(), pair.rewards.tolist(), credit.tolist())
    return [{"question": problem.question, "completion": tasks.decode(tokens), "reward": reward,
             "tokens": [tasks.FORMAT.tokenizer.decode([t]) for t in tokens],
             "credit": [round(c, 4) for c in values[:len(tokens)]]}
            for problem, tokens, reward, values in rows]


# ---- main ------------------------------------------------------------------------------------------------------------

def train(config: Config, stack: contextlib.ExitStack) -> int:
    ranks.take_device(config.device)
    source, verifier = load_source(config)
    ranks.apart = True
    name = Path(config.data).stem or config.task.replace(":", "-")
    config.out = config.out or new_folder(f"{name}-{config.method}-{config.seed}")
    out = Path(config.out)
    interrupt, state = Interrupt(), State(config)
    if config.resume:
        state.load(out / "last.pt", config)
    if ranks.rank() > 0:  # does all that process 0 does, and writes it where nobody looks
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
    if config.resume:
        if state.step > config.steps:
            raise UserError(f"--steps {config.steps}: {out} has already made {state.step}")
        truncate(out / "metrics.jsonl", state.step)
        truncate(out / "samples.jsonl", state.step)
    open_folder(out, {**dataclasses.asdict(config), "fingerprint": fingerprint_of(config)}, config.resume)
    if not config.resume:
        warm_start(state.model, source, config, interrupt)
        if config.method not in ("grpo", "opd"):
            state.sync_teacher()
        row = {"step": 0, **evaluate(state.model, source, verifier, config),
               **evaluate_teacher(state.model, source, verifier, config)}
        log(out, row)
        state.keep_if_best(row, out)
        state.save(out / "last.pt")
    ranks.start(config.device, state.model, state.teacher)
    parameters = sum(p.numel() for p in state.model.parameters())
    print(f"{config.method}: {parameters:,} parameters, run folder {out}", flush=True)

    for step in progress(range(state.step + 1, config.steps + 1)):
        began = time.perf_counter()
        lam = lambda_at(step, config.rlsd_lambda, config.rlsd_lambda_warmup_steps,
                        config.rlsd_lambda_decay_steps) if config.method == "rlsd" else 0.0
        batch = rollout(state.model, source, verifier, config, step)
        if config.method == "sdpo" or config.evidence == "contrastive":
            batch.hints = group_hints(batch, config)
        evaluation_due = step % config.eval_every == 0
        if evaluation_due:
            for row in credited_samples(state.model, state.teacher, batch, config, lam):
                append(out / "samples.jsonl", {"step": step, **row})
        metrics = update(state.model, state.teacher, state.optimizer, batch, config, lam)
        state.step = step
        state.teach(config)
        seconds = time.perf_counter() - began
        row = {"step": step, **describe(batch, config), "lambda": lam, **metrics, "seconds": seconds,
               "tokens/s": ranks.total(batch.samples.mask.sum()).item() / seconds}
        if config.init:
            row["peak GiB"] = peak_memory(config.device)
        if evaluation_due:
            row |= evaluate(state.model, source, verifier, config)
        log(out, row)
        state.keep_if_best(row, out)
        interrupt.signal = ranks.latest_signal(interrupt.signal)
        if step % config.save_every == 0 or step == config.steps or interrupt.signal:
            state.save(out / "last.pt")
        if interrupt.signal:
            raise Interrupted(interrupt.signal, f"after step {step}; python train.py --resume --out {out} goes on")
    finish(out)
    if config.init:
        state.model.load_state_dict(torch.load(out / "best.pt", map_location=config.device, weights_only=True))
        pretrained.save(state.model, out / "model", config.init)
        print(f"best.pt as a folder for transformers and --init: {out / 'model'}")
    ranks.stop()
    return 0


def main(argv: list[str]) -> int:
    try:
        with contextlib.ExitStack() as stack:
            return train(parse_config(argv), stack)
    except UserError as error:
        if ranks.speaks():
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"train.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        number, where = interrupted.args
        print(f"interrupted {where}", flush=True)
        return 128 + number
    except KeyboardInterrupt:
        print("train.py: interrupted at once; --resume goes on from the last checkpoint, if any", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
