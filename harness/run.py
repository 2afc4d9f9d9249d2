"""What surrounds a step of training: the run's folder, processes, first evaluation, log, checkpoints, and its end."""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from config import Config
from harness import console, look, memory
from harness.checkpoint import State, export
from harness.evaluation import credited_samples, evaluate, evaluate_teacher
from harness.models import check_weights
from harness.options import FILES, config_of, fingerprint_of
from harness.problems import load_source
from harness.threads import settle
from harness.warm_start import steps_for, try_targets, warm_start
from harness.watch import Watch, is_finite, keep_skipped
from rollout import Rollout
from support import files, processes, shards
from support.errors import UserError, visible

LEFT = "--resume goes on from the last checkpoint, if any"  # what a run leaves that is broken off


class Run:
    """One training run, opened by `with`: new, or taken up again where its last checkpoint left it.

    Inside: policy, teacher, optimizer, source, verifier. Its end writes the export and the curves; a failure, Ctrl-C
    included, closes the folder and becomes one line.
    """

    def __init__(self, config: Config):
        self.config, self.samples = config, 1

    def __enter__(self) -> "Run":
        config = self.config
        with contextlib.ExitStack() as stack:
            stack.enter_context(console.interruptible())
            stack.enter_context(memory.explained(lambda: memory.samples_a_pass(self.samples, config)))
            threads = settle(config)
            self.source, self.verifier = load_source(config)
            config.warm_steps = steps_for(config, self.source)
            processes.apart = True
            processes.join(config.device)
            memory.check_memory(config, self.source)
            self.state = State(config)
            self.policy, self.teacher, self.optimizer = self.state.policy, self.state.teacher, self.state.optimizer
            if not config.look:
                self.out = self.open_folder(stack)
            self.interrupt = console.Interrupt()
            print(f"processes: {processes.world()}, threads in each: {threads}", flush=True)
            problems = self.source.train or "no end of them"
            print(f"problems: {problems} to train on, {len(self.source.held_out)} held out", flush=True)
            self.refused = try_targets(self.source, self.verifier, config)
            if config.look:
                look.look(self.policy, self.source, self.verifier, config)
                raise SystemExit(0)  # nothing is trained
            if config.init:
                print(look.words(self.source.known[0], config), flush=True)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure) -> bool | None:
        if failure[0] is not None:
            return self.stack.__exit__(*failure)
        with self.stack:
            if processes.rank() == 0:
                export(self.state, self.config, self.out)
                console.finish(self.out)
            processes.stop()
        return None

    def warm_start(self) -> None:
        """Imitate worked examples, in both views: what pretraining is to a language model."""
        warm_start(self.policy, self.source, self.config, self.interrupt)

    def start(self) -> None:
        """Evaluate the policy before its first update, in both views, and keep it."""
        config = self.config
        check_weights(self.policy)
        row = {"step": 0} | evaluate(self.policy, self.source, self.verifier, config)
        row |= evaluate_teacher(self.policy, self.source, self.verifier, config)
        console.log(self.out, row)
        self.state.keep(row, self.out, config, due=True)

    def steps(self) -> Iterator[int]:
        """The numbers of the updates still to make."""
        config, done = self.config, self.state.step
        processes.same_weights(self.policy, self.teacher)
        parameters = sum(p.numel() for p in self.policy.parameters())
        print(visible(f"{config.method}: {parameters:,} parameters, run folder {self.out}"), flush=True)
        self.interrupt.end_after(done, config, processes.most(self.interrupt.signal))
        self.watch = Watch(config, done, self.source.train, self.refused)
        for step in console.progress(range(done + 1, config.steps + 1)):
            self.began = time.perf_counter()
            yield step

    def fitted(self, update: Callable) -> Callable:
        """`update`; with --halve_micro_batch in smaller parts where memory does not suffice."""
        return memory.halving(update, self.config)

    def show(self, step: int, batch: Rollout, lam: float) -> None:
        """Where an evaluation is due: two samples of the batch with their credit, to samples.jsonl."""
        self.samples = len(batch.problems)
        if step % self.config.eval_every == 0:
            for row in credited_samples(self.policy, self.teacher, batch, self.config, lam):
                files.append(self.out / "samples.jsonl", {"step": step, **row})

    def log(self, step: int, batch: Rollout, lam: float, metrics: dict[str, float]) -> None:
        """The update's line; evaluation and checkpoint where they are due; the end after Ctrl-C, or if hopeless."""
        config = self.config
        if not is_finite(metrics):
            keep_skipped(batch, metrics, step, config)
            metrics["skipped"] = 1
        self.state.step, seconds = step, time.perf_counter() - self.began
        row = {"step": step, **describe(batch, config), "lambda": lam, **metrics, "seconds": seconds}
        row["tokens/s"] = processes.total(batch.samples.mask.sum()).item() / seconds
        if config.on_verifier_error != "stop":
            errors = torch.tensor(batch.verifier_errors, device=config.device)
            row["verifier errors"] = processes.total(errors).item()
        if config.init:
            row["peak GiB"] = console.peak_memory(config.device)
        if step % config.eval_every == 0:
            row |= evaluate(self.policy, self.source, self.verifier, config, self.watch.graded)
        console.log(self.out, row | self.watch.look(row))
        self.watch.stop_if_hopeless()
        asked = processes.most(self.interrupt.signal)  # read once: it may come between two lines, or in one alone
        self.state.keep(row, self.out, config, step % config.save_every == 0 or step == config.steps or asked > 0)
        self.interrupt.end_after(step, config, asked)

    # ---- the folder --------------------------------------------------------------------------------------------------

    def open_folder(self, stack: contextlib.ExitStack) -> Path:
        """The run's folder, made or taken up again where its last checkpoint left it."""
        config, state = self.config, self.state
        config.out, state.best, state.best_step = processes.together(lambda: self.taken(stack))[0]
        out = Path(config.out)
        if processes.rank() > 0:  # does all that process 0 does, and writes it where nobody looks
            out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", errors="replace")))
            )
        if config.resume and state.best_step == state.step:  # a kill may have come between the two files
            files.save(shards.weights(state.policy), out / "best.pt")
        return out

    def taken(self, stack: contextlib.ExitStack) -> tuple[str, float, int]:
        """Each process reads the checkpoint, process 0 locks and changes the folder -> --out, best, best_step."""
        config, state = self.config, self.state
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


def describe(batch: Rollout, config: Config) -> dict[str, float]:
    """Reward, length in tokens, entropy in nats a token (mean -log p of the samples), groups without spread (share)."""
    mask = batch.samples.mask
    spread = (batch.advantages.view(-1, config.group_size) != 0).any(dim=1).repeat_interleave(config.group_size)
    rows = torch.stack([batch.rewards, mask.sum(1), batch.samples.logps.where(mask, 0).sum(1), ~spread], dim=1)
    rows = rows[~batch.rewards.isnan()]  # dropped ones count nowhere
    reward, length, logp, no_spread = processes.gather(rows).double().mean(dim=0).tolist()
    return {"reward": reward, "length": length, "entropy": -logp / length, "no_spread": no_spread}
