"""Train a small transformer with RLSD or GRPO: warm start, then rollout -> verify -> credit -> update, step by step.

python train.py                        # 4-digit addition, minutes on a laptop CPU
python train.py --method grpo          # the same protocol without the teacher
python train.py --data my.jsonl --verifier my_rules.py:check
python train.py --init FOLDER          # a published Llama or Qwen3 model instead of random weights
"""

import contextlib
import dataclasses
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import tasks
import verifiers
from config import Config
from harness import console, guards
from harness.checkpoint import State, export
from harness.evaluation import credited_samples, evaluate, evaluate_teacher
from harness.guards import (
    Optimizer,
    Watch,
    check_weights,
    is_finite,
    keep_skipped,
    out_of_memory,
    take_step,
    update_in_memory,
)
from harness.options import FILES, config_of, fingerprint_of, parse_config
from harness.problems import load_source
from harness.warm_start import steps_for, try_targets, warm_start
from model import Transformer, sample
from rlsd import lambda_at
from rollout import Rollout, autocast, group_hints, loss_of, loss_or_nan, parts_of, rows_of, sampling, takes_hints
from support import files, processes
from support.errors import UserError, one_line, visible
from support.judge import advantages_of, settle, verify
from support.program import program


@out_of_memory("the run", "--hidden_size, --num_layers, --prompts_per_step or --group_size, or take a smaller --init")
def train(config: Config, stack: contextlib.ExitStack) -> int:
    """Warm start, then step by step: rollout, verify, credit, update; evaluate and save now and then."""
    source, verifier = load_source(config)
    config.warm_steps = steps_for(config, source)
    processes.apart = True
    processes.join(config.device)
    guards.check_memory(config, source)
    state = State(config)
    out = begin(config, state, stack)
    interrupt = console.Interrupt()
    print(f"problems: {source.train or 'no end of them'} to train on, {len(source.held_out)} held out", flush=True)
    refused = try_targets(source, verifier, config)
    if not config.resume:
        warm_start(state.model, source, config, interrupt)
        check_weights(state.model)
        if config.method not in ("grpo", "opd"):
            state.sync_teacher()
        row = {"step": 0} | processes.together(lambda: evaluate(state.model, source, verifier, config))
        row |= evaluate_teacher(state.model, source, verifier, config)
        console.log(out, row)
        state.keep(row, out, config, due=True)
    processes.same_weights(state.model, state.teacher)
    parameters = sum(p.numel() for p in state.model.parameters())
    print(visible(f"{config.method}: {parameters:,} parameters, run folder {out}"), flush=True)
    interrupt.end_after(state.step, config, processes.most(interrupt.signal))

    watch = Watch(config, state.step, source.train, refused)
    for step in console.progress(range(state.step + 1, config.steps + 1)):
        row = one_step(state, source, verifier, config, step, out)
        if step % config.eval_every == 0:
            row |= processes.together(lambda: evaluate(state.model, source, verifier, config, watch.graded))
        console.log(out, row | watch.look(row))
        watch.stop_if_hopeless()
        asked = processes.most(
            interrupt.signal
        )  # read once: a signal may come between two lines, or in one process alone
        state.keep(row, out, config, due=step % config.save_every == 0 or step == config.steps or asked > 0)
        interrupt.end_after(step, config, asked)
    if processes.rank() == 0:
        export(state, config, out)
        console.finish(out)
    processes.stop()
    return 0


# ---- before the first step -------------------------------------------------------------------------------------------


def begin(config: Config, state: State, stack: contextlib.ExitStack) -> Path:
    """The run's folder, made or taken up again where its last checkpoint left it; the checkpoint's state in `state`."""
    config.out, state.best, state.best_step = processes.together(lambda: taken(config, state, stack))
    out = Path(config.out)
    if processes.rank() > 0:  # does all that process 0 does, and writes it where nobody looks
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", errors="replace"))))
    if config.resume and state.best_step == state.step:  # a kill may have come between the two files
        files.save(processes.weights(state.model), out / "best.pt")
    return out


def taken(config: Config, state: State, stack: contextlib.ExitStack) -> tuple[str, float, int]:
    """Each process reads the checkpoint, process 0 chooses, locks and changes the folder -> --out, best, best_step."""
    first, out, options = processes.rank() == 0, Path(config.out), dataclasses.asdict(config)
    options["fingerprint"] = fingerprint_of(config)
    if config.resume:
        if first:
            stack.enter_context(files.locked(out))
        state.load(out / "last.pt", config)
        if state.step > config.steps:
            raise UserError(f"--steps {config.steps}: {out} has already made {state.step}")
        before = config_of(out)[0]
        options |= {name: getattr(before, name) for name in FILES}  # as they are found from where the run began
        changed = config.lr != before.lr
        note = f"--lr {config.lr:g} after update {state.step}, {before.lr:g} before" if changed else ""
        if first:
            files.truncate(out, state.step, note)
            print(f"note: {note}\n" if note else "", end="", flush=True)
        if not (out / "best.pt").exists():  # somebody took it away
            state.best, state.best_step = -1.0, state.step
    elif first:
        reads = {"out": config.out, "init": config.init, "opd_teacher": config.opd_teacher}
        kept = {"warm_dir": config.warm_dir if config.warm_steps else ""}
        files.check_apart({"out": config.out, **kept}, reads)
        name = f"{Path(config.data).stem or config.task.replace(':', '-')}-{config.method}-{config.seed}"
        options["out"] = files.claim(stack, options, name)
        files.check_apart(kept, {"out": options["out"]})
    if first:
        files.open_folder(Path(options["out"]), options, config.resume)
    return options["out"], state.best, state.best_step


# ---- one RL step -----------------------------------------------------------------------------------------------------


def one_step(
    state: State, source: tasks.Source, verifier: verifiers.Verifier, config: Config, step: int, out: Path
) -> dict[str, Any]:
    """Rollout, credit, update, teacher -> the step's line in the log."""
    began = time.perf_counter()
    schedule = config.rlsd_lambda, config.rlsd_lambda_warmup_steps, config.rlsd_lambda_decay_steps
    lam = lambda_at(step, *schedule) if config.method == "rlsd" else 0.0
    batch = rollout(state.model, source, verifier, config, step)
    if step % config.eval_every == 0:
        for row in credited_samples(state.model, state.teacher, batch, config, lam):
            files.append(out / "samples.jsonl", {"step": step, **row})
    metrics = update_in_memory(update, state, batch, config, lam)
    if not is_finite(metrics):
        keep_skipped(batch, metrics, step, config)
        metrics["skipped"] = 1
    state.step = step
    state.teach(config)
    seconds = time.perf_counter() - began
    row = {"step": step, **describe(batch, config), "lambda": lam, **metrics, "seconds": seconds}
    row["tokens/s"] = processes.total(batch.samples.mask.sum()).item() / seconds
    if config.on_verifier_error != "stop":
        row["verifier errors"] = processes.total(torch.tensor(batch.verifier_errors, device=config.device)).item()
    if config.init:
        row["peak GiB"] = console.peak_memory(config.device)
    return row


@out_of_memory("the rollout", "--prompts_per_step, --group_size or --max_new_tokens")
def rollout(
    model: Transformer, source: tasks.Source, verifier: verifiers.Verifier, config: Config, step: int
) -> Rollout:
    """Sample every question's group, verify each completion, standardise the rewards within the group."""
    rng = random.Random(f"{config.seed} rollout {step}")
    questions = processes.share(source.draw(rng, config.prompts_per_step))
    if not questions:
        few = f"fewer different questions in a batch than the {processes.world()} processes"
        raise UserError(f"{few}: raise --prompts_per_step, or start fewer of them")
    prompts = [tasks.student_prompt(p) for p in questions]
    how = sampling(config, config.temperature, seed=rng.getrandbits(62))
    with processes.whole(model), autocast(config):
        samples = sample(model, prompts, group_size=config.group_size, **how)
    problems = [p for p in questions for _ in range(config.group_size)]
    rewards = torch.tensor(verify(verifier, samples, problems, config), device=config.device)
    errors = int(rewards.isnan().sum())
    rewards, samples = settle(rewards, samples, config)
    batch = Rollout(problems, samples, rewards, advantages_of(rewards, config.group_size), verifier_errors=errors)
    if takes_hints(config):
        batch.hints = group_hints(batch, config)
    return batch


def update(
    model: Transformer, teacher: Transformer | None, optimizer: Optimizer, batch: Rollout, config: Config, lam: float
) -> dict[str, float]:
    """One optimizer step on the global token mean -> loss, gradient norm, and rlsd_loss's metrics where it is used."""
    samples = batch.samples
    tokens = processes.total(samples.mask.sum())  # samples without advantage count, though they move nothing
    rows = rows_of(batch, config)
    scored = processes.total(samples.mask[rows].sum())
    if scored == 0:  # nothing moves; log-probabilities that are nan must still show
        loss, metrics = loss_or_nan(samples.logps, samples.logps, None, batch.advantages, samples.mask, lam=0.0)
        return (metrics if tokens else {}) | {"loss": processes.total((0 * loss).abs()).item(), "grad_norm": 0.0}
    metrics = {"loss": 0.0}
    optimizer.zero_grad()
    for part in parts_of(batch, rows, config):
        loss, means = loss_of(model, teacher, part, config, lam, tokens)
        loss.backward()
        metrics["loss"] += loss.item()
        share = float(part.samples.mask.sum() / scored)
        for name, value in means.items():
            metrics[name] = metrics.get(name, 0.0) + share * value
    processes.apart_again(teacher)
    processes.sum_gradients(list(model.parameters()))
    metrics = processes.summed(metrics)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    metrics["grad_norm"] = processes.total_norm(norm).item()
    take_step(optimizer, metrics)
    return metrics


def describe(batch: Rollout, config: Config) -> dict[str, float]:
    """Reward, length in tokens, entropy in nats a token (mean -log p of the samples), groups without spread (share)."""
    mask = batch.samples.mask
    spread = (batch.advantages.view(-1, config.group_size) != 0).any(dim=1).repeat_interleave(config.group_size)
    rows = torch.stack([batch.rewards, mask.sum(1), batch.samples.logps.where(mask, 0).sum(1), ~spread], dim=1)
    rows = rows[~batch.rewards.isnan()]  # dropped ones count nowhere
    reward, length, logp, no_spread = processes.gather(rows).double().mean(dim=0).tolist()
    return {"reward": reward, "length": length, "entropy": -logp / length, "no_spread": no_spread}


@program
def main(argv: list[str]) -> int:
    try:
        with contextlib.ExitStack() as stack:
            return train(parse_config(argv, __doc__), stack)
    except (UserError, OSError) as error:
        if processes.speaks():
            sys.stderr.write(f"train.py: {one_line(error)}\n")
        return 2
    except RuntimeError as error:
        if not processes.has_lost_another(error):
            raise
        # at one go: the others write theirs at the same moment
        sys.stderr.write(f"train.py: process {processes.rank()} ends, as another one has ended\n")
        return 2
    except console.Interrupted as interrupted:
        number, where = interrupted.args
        if processes.rank() == 0:
            print(visible(f"interrupted {where}"), flush=True)
        return 128 + number
    except KeyboardInterrupt:
        if processes.rank() == 0:
            print("train.py: interrupted at once; --resume goes on from the last checkpoint, if any", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
