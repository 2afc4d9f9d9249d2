"""Options of a run: read from a command line or from a run's config.json, and checked before anything is done."""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shlex
from datetime import date
from pathlib import Path

import torch

from config import GROUPS, INIT, INSTRUCTION, Config
from sources import gym
from support import processes
from support.errors import UserError, one_line, read_file, reading
from support.program import Parser
from verifiers import MARKER

# What a run may be resumed with: what stopped it can be mended, what it learns from stays.
CHANGEABLE = "steps lr verifier_timeout on_verifier_error micro_batch halve_micro_batch fsdp threads export".split()

USED_BY = {"opsd_beta": ("opsd", "sdpo", "grpo+opsd"), "opsd_weight": ("grpo+opsd",), "sdpo_ema": ("sdpo",)}


def parse_config(argv: list[str], about: str | None = None) -> Config:
    """Options as a program was given them, checked; `about` heads its --help."""
    parser = Parser("train.py", about, argument_default=argparse.SUPPRESS)
    for f in dataclasses.fields(Config):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        how = {"action": "store_true"} if f.type is bool else {"type": f.type, "choices": f.metadata["choices"]}
        group.add_argument(f"--{f.name}", help=f"{f.metadata['help']} (default: {f.default!r})", **how)
    given = vars(parser.parse_args(argv))
    config = resumed(given) if given.get("resume") else Config(**{**(INIT if given.get("init") else {}), **given})
    check_together(config, given)
    check_values(config)
    check_words(config, given)
    if processes.world() > config.prompts_per_step:
        few = f"fewer questions than the {processes.world()} processes"
        raise UserError(f"--prompts_per_step {config.prompts_per_step}: {few}; raise it, or start fewer of them")
    return config


def check_together(config: Config, given: dict) -> None:
    """Options that contradict each other, and given ones that would change nothing."""
    if config.method != "rlsd" and any(name.startswith("rlsd_") or name == "evidence" for name in given):
        raise UserError(f"--method {config.method} has no use for --rlsd_ options and --evidence; --method rlsd has")
    if (config.method == "opd") != bool(config.opd_teacher):
        raise UserError("--method opd and --opd_teacher RUN go together")
    for name, methods in USED_BY.items():
        if name in given and config.method not in methods:
            raise UserError(f"--method {config.method} has no use for --{name}; {', '.join(methods)} has")
    for name in "warm_slip warm_teacher_slip warm_cite warm_solutions warm_teacher_share warm_lr marker".split():
        if name in given and config.warm_steps == 0:
            raise UserError(f"--{name} has no use without a warm start: leave it out, or raise --warm_steps")
        if name in given and config.data and name.endswith("slip"):
            raise UserError(f"--{name} is for built-in tasks: nobody knows the slips of your own problems")
    if config.data and {"task", "chain", "filler"} & given.keys():
        raise UserError("--data and --task are two sources of problems: give one (--chain and --filler are of --task)")
    if config.eval_data and not config.data:
        raise UserError("--eval_data holds problems out that --data does not train on: give both")
    if config.task.startswith(gym.PREFIX) and (config.chain or config.filler):
        raise UserError("--chain and --filler are for addition and countdown; --task reasoning_gym:NAME,setting=value")
    if config.privileged_key and (not config.data or "privileged" in given):
        raise UserError("--privileged_key names a key of --data, in place of --privileged")
    if config.init and {"hidden_size", "num_layers"} & given.keys():
        raise UserError("--init brings a size of its own: leave --hidden_size and --num_layers out")
    if config.dtype != "float32" and (not config.init or config.warm_steps or config.method == "sdpo"):
        needs = "--init, no warm start, and another method than sdpo: small steps get lost"
        raise UserError(f"--dtype bfloat16 needs {needs}")
    if config.fsdp and (
        processes.world() == 1 or (config.warm_steps and not config.resume) or config.dtype != "float32"
    ):
        raise UserError("--fsdp needs torchrun with 2 processes or more, --warm_steps 0 (as --init has) and float32")
    if "export" in given and not config.init:
        raise UserError("--export is for models of --init: of others last.pt and best.pt are all there is")
    if config.halve_micro_batch and processes.world() > 1:
        raise UserError("--halve_micro_batch is for one process: under torchrun set --micro_batch")
    if config.bf16 and config.device != "cuda":
        raise UserError("--bf16 needs --device cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to run on the CPU")


def check_words(config: Config, given: dict) -> None:
    """What is said to the model, and looked at before it is trained."""
    for name in ("instruction", "system", "thinking", "date"):
        if name in given and not config.init:
            raise UserError(f"--{name} is for models of --init: one made here knows no words")
    if config.marker != MARKER and config.init and config.instruction == INSTRUCTION:
        asks = f"the prompt still asks for {MARKER}: say with --instruction what it is to ask for, '' for nothing"
        raise UserError(f"--marker {config.marker!r}: {asks}")
    if config.marker != MARKER and (config.rlsd_thought_only or config.evidence == "contrastive"):
        raise UserError(f"--rlsd_thought_only and --evidence contrastive look for {MARKER}: leave --marker out")
    if config.look and (config.resume or processes.world() > 1):
        raise UserError("--look is for one process and a run that has not begun: leave --resume and torchrun out")
    with reading(f"--date {config.date!r}: a day like 2026-01-31 is needed"):
        date.fromisoformat(config.date or "2026-01-31")


def check_values(config: Config) -> None:
    """Type, choice and range of every option: those of the command line, and those of a config.json."""
    for f in dataclasses.fields(config):
        value, choices, low, high = (getattr(config, f.name), *(f.metadata[k] for k in ("choices", "low", "high")))
        kind = type(f.default)
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise UserError(f"--{f.name} {value!r:.60}: {kind.__name__} is needed, not {type(value).__name__}")
        if choices and value not in choices:
            raise UserError(f"--{f.name} {value!r}: one of {', '.join(choices)} is needed")
        if low is not None and not low <= value <= (math.inf if high is None else high):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"--{f.name} {value}: {allowed} is needed")
    if config.hidden_size % 32:
        raise UserError(f"--hidden_size {config.hidden_size}: a multiple of 32 is needed (heads of 16, in pairs)")


def resumed(given: dict) -> Config:
    """The config of the run in --out; of the options given again only CHANGEABLE ones may differ."""
    out = Path(given.get("out", ""))
    if "out" not in given or not (out / "config.json").is_file() or not (out / "last.pt").is_file():
        early = "a run that ended before its first checkpoint is started again by the same command without --resume"
        raise UserError(f"--resume needs --out with the folder of a run that has config.json and last.pt; {early}")
    config, fingerprint = config_of(out)
    for name, value in given.items():
        if name not in ("out", "resume", *CHANGEABLE) and sense(name, getattr(config, name)) != sense(name, value):
            others = f"only {', '.join(f'--{name}' for name in CHANGEABLE)} may change"
            has = f"{out / 'config.json'}, which has {getattr(config, name)!r}"
            raise UserError(f"--{name} {value} contradicts {has}; {others}")
    config = dataclasses.replace(config, **{"fsdp": False, **given})  # a checkpoint fits any number of processes
    check_files(config, given, out)
    if fingerprint not in (fingerprint_of(config), fingerprint_of(config, INIT_FILES[:2])):  # as older runs had it
        changed = f"has changed since {out / 'config.json'} was written, or is another one: start a new run"
        raise UserError(f"--data, --eval_data, --init or the file of --verifier {changed}")
    return config


def verifier_file(verifier: str) -> str:
    """The path in `file.py:function`; empty for a verifier that is no file of the user's."""
    path = verifier.rpartition(":")[0]
    return path if path.endswith(".py") and not path.startswith(gym.PREFIX) else ""


INIT_FILES = "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
FILES = ("data", "eval_data", "init", "verifier")  # whose content is fingerprinted, wherever they lie


def sense(name: str, value):
    """What two values of an option have to share to be one: of files, whose content is fingerprinted, not the path."""
    if name == "verifier" and verifier_file(value):
        return ":" + value.rpartition(":")[2]
    return value != "" if name in FILES[:3] else value


def check_files(config: Config, given: dict, run: Path) -> None:
    """UserError where a run's verifier is a file, thus code, and not named anew, or a file is not found from here."""
    rule = verifier_file(config.verifier)
    if rule and "verifier" not in given:
        add = f"--verifier {shlex.quote(config.verifier)}"
        raise UserError(f"the verifier of {run} is a file, which is run as code, so name it here as well: add {add}")
    files = {name: getattr(config, name) for name in ("data", "eval_data", "init", "opd_teacher")}
    for name, path in {**files, "verifier": rule}.items():
        if path and not os.path.exists(path):
            anew = f", or give --{name} anew" if name in FILES else ""
            raise UserError(f"--{name} {path} is not found from here: go where the run began{anew}")


def config_of(run: Path, **given) -> tuple[Config, str]:
    """Options of the run in a folder, those given in place of its own, and its fingerprint; UserError if none."""
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} holds no config.json: give the folder of a run, as python train.py prints")
    try:
        saved = json.loads(read_file(path).decode("utf-8"))
        fingerprint = saved.pop("fingerprint")
        config = Config(**{**saved, **given})  # an older run's: options that came later have their defaults
        check_values(config)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, UserError) as error:
        raise UserError(f"{path} is no configuration of this program: {one_line(error)}") from error
    return config, fingerprint


def fingerprint_of(config: Config, of_init: tuple[str, ...] = INIT_FILES) -> str:
    """Hash of the user's own files that a run depends on."""
    names = [config.data, verifier_file(config.verifier), config.eval_data]
    names += [f"{config.init}/{name}" for name in of_init if config.init]
    parts = [read_file(name) for name in names if Path(name).is_file()]
    parts.append(gym.package_version(config.task).encode())
    return hashlib.sha256(b"\0".join(filter(None, parts))).hexdigest()[:16]
