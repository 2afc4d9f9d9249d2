"""Supervised steps before RL, in both views: what pretraining is to a language model. Kept on disk and found again."""

import dataclasses
import hashlib
import random
import time
from pathlib import Path
from statistics import fmean

import torch

import tasks
from config import Config
from harness.console import Interrupt, Interrupted
from harness.models import warm_seed
from harness.options import INIT_FILES
from model import Samples, Transformer, token_logps
from rollout import verify
from sources import gym
from sources.careless import careless
from support import processes
from support.errors import UserError, one_line, reading, visible
from support.files import fill, load, save
from verifiers import Verifier

SECONDS = 3  # between two lines, and at least between two checkpoints, of a warm start
STEPS, FEWEST, PASSES = 700, 100, 100
MOMENTS = ("exp_avg", "exp_avg_sq")
ROOT = Path(tasks.__file__).parent
RUN_THROUGH = "model.py tasks.py rollout.py verifiers.py sources/*.py published/*.py".split()
RUN_THROUGH += [f"harness/{name}.py" for name in ("models", "problems", "warm_start")]


def steps_for(config: Config, source: tasks.Source) -> int:
    """--warm_steps; for -1 no more than show a problem of --data PASSES times, and as few as can teach anything."""
    if config.warm_steps >= 0:
        return config.warm_steps
    return min(STEPS, max(FEWEST, PASSES * source.train // config.warm_batch)) if source.train else STEPS


def try_targets(source: tasks.Source, verifier: Verifier, config: Config) -> str:
    """Say what the verifier gives to targets that the warm start imitates; one of them, if it is nothing for all."""
    if config.warm_steps == 0:
        return ""
    some = source.known[:: max(1, len(source.known) // 20)][:20]
    targets = [tasks.target(problem) for problem in some]
    rewards = verify(verifier, Samples.of(targets), some, config)
    graded = (
        f", {fmean(r for r in rewards if r == r):.3g} in the mean" if any(0 < reward < 1 for reward in rewards) else ""
    )
    print(f"verifier: {rewards.count(1.0)} of {len(some)} targets of the warm start earn 1{graded}", flush=True)
    refused = "" if any(reward != 0 for reward in rewards) else visible(repr(tasks.decode(targets[0])[:60]))
    if refused:
        mend = "mend the verifier, the answers, or --marker, which stands before them"
        print(f"note: the verifier gives 0 to what the warm start teaches, such as {refused}: {mend}")
    return refused


def warm_start(model: Transformer, source: tasks.Source, config: Config, interrupt: Interrupt) -> None:
    """Imitate worked solutions in both views; kept on disk under all it depends on, half-way too, to go on from."""
    config = dataclasses.replace(config, warm_steps=steps_for(config, source))
    if config.warm_steps == 0:
        return
    path = Path(config.warm_dir) / f"{warm_start_key(config)}.pt"
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    done = take_up(path, model, optimizer, config)
    print(f"warm start: {f'found {path}, ' if done else ''}step={done}/{config.warm_steps}", flush=True)
    start = told = time.perf_counter()
    due = start + SECONDS
    for step in range(done + 1, config.warm_steps + 1):
        rise, fall = min(1, step / 20), 1 - 0.9 * step / config.warm_steps
        optimizer.param_groups[0]["lr"] = config.warm_lr * rise * fall
        loss = imitation_loss(model, source, config, random.Random(f"{warm_seed(config)} warm {step}"))
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        figures = processes.add_up(model, None, {"loss": loss.item()})
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now, last, asked = time.perf_counter(), step == config.warm_steps, processes.most(interrupt.signal)
        if processes.rank() == 0 and (last or asked or now > due):
            moments = [] if last else list(optimizer.state_dict()["state"].values())
            save({"step": step, "model": model.state_dict(), "moments": moments}, path)
            due = time.perf_counter() + max(SECONDS, 20 * (time.perf_counter() - now))  # where writing is slow: rarely
        if last or now - told > SECONDS:
            told, at = now, f"step={step}/{config.warm_steps}"
            print(f"warm start: {at} loss={figures['loss']:.3f} seconds={now - start:.0f}", flush=True)
        if asked:
            raise Interrupted(asked, f"in the warm start after its step {step}: the same command goes on")


def take_up(path: Path, model: Transformer, optimizer: torch.optim.Optimizer, config: Config) -> int:
    """Put a kept warm start's weights and moments in place -> its step; 0 where there is none, or none that fits.

    Process 0 reads it, and hands it to the others: between two readings another run may have gone on with it.
    """
    first = processes.rank() == 0
    step = processes.together(lambda: read(path, model, optimizer, config) if first else 0)[0]
    if step:
        processes.same_weights(model)
    if 0 < step < config.warm_steps:
        for p in model.parameters():
            if not first:
                optimizer.state[p] = {name: torch.zeros_like(p) for name in MOMENTS}
                optimizer.state[p]["step"] = torch.tensor(float(step))
            processes.same(optimizer.state[p][name] for name in MOMENTS)
    return step


def read(path: Path, model: Transformer, optimizer: torch.optim.Optimizer, config: Config) -> int:
    """`take_up` in process 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        return 0
    try:
        with reading("warm start"):
            kept, kind = load(path, config.device), lambda x: (x.shape, x.dtype)
            step, moments = int(kept["step"]), kept["moments"]
            own = [kind(p) for p in model.parameters() for _ in MOMENTS] if step < config.warm_steps else []
            fits = own == [kind(x[name]) for x in moments for name in MOMENTS]
            if not (fits and 0 < step <= config.warm_steps):
                raise ValueError("its step or its moments do not fit")
            fill(model, kept["model"])
    except UserError as error:  # torn by a full disk or the like
        print(f"{one_line(error)}; it is made anew")
        return 0
    optimizer.state.update((p, {**x, "step": torch.tensor(float(step))}) for p, x in zip(model.parameters(), moments))
    return step


def imitation_loss(model: Transformer, source: tasks.Source, config: Config, rng: random.Random) -> torch.Tensor:
    """Mean -log p, in nats a token, of worked solutions with slips; the teacher is shown the answer that each leads to.

    Of the examples, which all processes draw, this one scores its share: over processes, loss and gradient add up.
    Were the teacher's examples all right, it would learn to be careful wherever a reference stands, and not to read it.
    """
    prompts, targets, work = [], [], careless(config)
    for problem in source.draw(rng, config.warm_batch):
        if rng.random() < config.warm_teacher_share:
            problem = work(problem, rng, config.warm_teacher_slip)
            shown = "solution" if rng.random() < solution_share(config) else "answer"
            prompts.append(tasks.teacher_view(problem, shown))
            targets.append(tasks.target(problem, cite=rng.random() < config.warm_cite))
        else:
            prompts.append(tasks.student_prompt(problem))
            targets.append(tasks.target(work(problem, rng, config.warm_slip)))
    tokens, mine = sum(map(len, targets)), slice(processes.rank(), None, processes.world())
    if not targets[mine]:
        return torch.zeros((), device=config.device)
    demonstrations = Samples.of(targets[mine], config.device)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=config.bf16):
        return -token_logps(model, prompts[mine], demonstrations, 1.0)[demonstrations.mask].sum() / tokens


def solution_share(config: Config) -> float:
    """Of the teacher's examples, those whose prompt holds the worked solution instead of the answer."""
    return float(config.privileged == "solution") if config.warm_solutions < 0 else config.warm_solutions


def warm_start_key(config: Config) -> str:
    names = (
        "task chain filler privileged_key device bf16 hidden_size num_layers max_seq_len eval_problems "
        "warm_steps warm_batch warm_lr warm_teacher_share warm_slip warm_teacher_slip warm_cite marker"
    ).split()
    files = [path for run_through in RUN_THROUGH for path in sorted(ROOT.glob(run_through))]
    files += [Path(config.data)] if config.data else []
    if config.init:
        files += [path for name in ("*.safetensors", *INIT_FILES) for path in sorted(Path(config.init).glob(name))]
    values = [getattr(config, name) for name in names]
    values += [warm_seed(config), solution_share(config), torch.__version__]
    values += [processes.world(), torch.get_num_threads()]
    values += [gym.package_version(config.task), bool(config.eval_data)]
    values += [tasks.prompt(tasks.Problem("?", "!"), "!")]  # --instruction, --system and the template in one
    parts = [str(value).encode(errors="surrogatepass") for value in values] + [f.read_bytes() for f in files]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
