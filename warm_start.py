"""Supervised steps before RL, in both views: what pretraining is to a language model. Kept on disk and found again."""

import dataclasses
import hashlib
import random
import time
from pathlib import Path

import torch

import reasoning
import tasks
import worker
from config import Config
from console import Interrupt, Interrupted
from errors import UserError, one_line, reading
from guards import out_of_memory
from methods import autocast, teacher_view
from model import Samples, Transformer, token_logps
from run_files import fill, load, save
from state import warm_seed


@out_of_memory("the warm start", "--warm_batch")
def warm_start(model: Transformer, source: tasks.Source, config: Config, interrupt: Interrupt) -> None:
    """Imitate worked solutions in both views; the result is kept on disk under everything it depends on."""
    if config.warm_steps == 0:
        return
    path = Path(config.warm_dir) / f"{warm_start_key(config)}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        try:
            with reading("warm start"):
                fill(model, load(path, config.device))
            print(f"warm start: found {path}")
            return
        except UserError as error:  # torn by a full disk or the like
            print(f"{one_line(error)}; it is made anew")
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
            print(
                f"warm start: step={step}/{config.warm_steps} loss={loss.item():.3f} "
                f"seconds={time.perf_counter() - start:.0f}",
                flush=True,
            )
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
    names = (
        "task",
        "chain",
        "filler",
        "data",
        "privileged_key",
        "device",
        "bf16",
        "init",
        "hidden_size",
        "num_layers",
        "max_seq_len",
        "eval_problems",
        "warm_steps",
        "warm_batch",
        "warm_lr",
        "warm_teacher_share",
        "warm_slip",
        "warm_teacher_slip",
        "warm_cite",
    )
    rooms = ("model.py", "tasks.py", "data.py", "methods.py", "verifiers.py", "state.py", "warm_start.py")
    files = [Path(__file__).with_name(name) for name in rooms]
    files += [Path(reasoning.__file__), Path(worker.__file__)] if config.task.startswith(reasoning.PREFIX) else []
    files += [Path(config.data)] if config.data else []
    files += sorted(Path(config.init).glob("*.safetensors")) if config.init else []
    values = [getattr(config, name) for name in names]
    values += [warm_seed(config), solution_share(config), torch.__version__, torch.get_num_threads()]
    values += [reasoning.package_version(config.task)]
    parts = [str(value) for value in values]
    return hashlib.sha256(
        b"\0".join([p.encode(errors="surrogatepass") for p in parts] + [f.read_bytes() for f in files])
    ).hexdigest()[:16]
