"""What a training run changes and a checkpoint holds: policy, teacher, optimizer; last.pt, best.pt and the export."""

import copy
import dataclasses
import math
from pathlib import Path

import torch

import published.weights
import tasks
from config import Config
from harness.models import build_model, external_teacher
from harness.options import CHANGEABLE, sense
from published.chat import served
from published.rounded_adam import RoundedAdam
from support import shards
from support.errors import reading
from support.files import check_finite, fill, load, metrics_of, save, to_disk

MAY_CHANGE = (*CHANGEABLE, "out", "resume", "warm_dir")  # between the parts of one run


class State:
    """What a step changes, and a checkpoint holds: policy, teacher, optimizer, step, best held-out score.

    Problems and noise of a step follow from (seed, step), so no generator has to be kept.
    """

    def __init__(self, config: Config):
        home = dataclasses.replace(config, device="cpu") if config.fsdp else config  # of which each device gets a share
        self.policy = build_model(home)
        self.policy.gradient_checkpointing = config.gradient_checkpointing
        self.teacher = external_teacher(home) if config.method == "opd" else None
        if config.method not in ("grpo", "opd"):
            self.teacher = copy.deepcopy(self.policy)
        for model in filter(None, (self.policy, self.teacher) if config.fsdp else ()):
            shards.shard(model, config.device)
        adam = RoundedAdam if config.dtype == "bfloat16" else torch.optim.Adam
        self.optimizer = adam(self.policy.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.step, self.best, self.best_step = 0, -1.0, -1

    def keep(self, row: dict, out: Path, config: Config, due: bool) -> None:
        """last.pt where it is due, and ahead of best.pt: the weights of the best held-out score; of equals the last."""
        score = row.get("held-out reward", row.get("pass@1"))
        score = math.nan if score is None else score  # without any reward the first weights are the best so far
        if better := self.best_step < 0 or score >= self.best:
            self.best, self.best_step = max(-1.0, score), self.step
        if better or due:
            self.save(out / "last.pt", config)
        if better:
            save(shards.weights(self.policy), out / "best.pt")

    def save(self, path: Path, config: Config) -> None:
        weights = shards.weights(self.policy)
        with reading(f"{path} stays as it was before update {self.step}; lower --lr"):
            check_finite({name: x for name, x in weights.items() if x is not None})  # process 0 alone has shards whole
        for lines in (path.parent / "metrics.jsonl", path.parent / "samples.jsonl"):
            if lines.exists():  # of the steps that the checkpoint tells of: power may fail after it
                to_disk(lines)
        kept: dict = {name: getattr(self, name) for name in ("step", "best", "best_step")}
        kept["micro_batch"] = config.micro_batch
        kept["options"] = {k: v for k, v in dataclasses.asdict(config).items() if k not in MAY_CHANGE}
        kept |= {"model": weights, "optimizer": shards.full(self.optimizer.state_dict())}
        kept["teacher"] = shards.weights(self.teacher) if self.teacher is not None else None
        save(kept, path)

    def load(self, path: Path, config: Config) -> None:
        with reading(f"{path} is no checkpoint of this run"):
            state = load(path, "cpu" if config.fsdp else config.device)
            for name, value in state.get("options", {}).items():  # older checkpoints do not tell
                if name not in MAY_CHANGE and sense(name, getattr(config, name)) != sense(name, value):
                    raise ValueError(f"it was made with --{name} {value}, and config.json says {getattr(config, name)}")
            fill(self.policy, state["model"])
            if self.teacher is not None:
                fill(self.teacher, state["teacher"])
            self.step, self.best, micro_batch = state["step"], float(state["best"]), state.get("micro_batch", 0)
            rows = metrics_of(path.parent, self.step)  # older checkpoints do not tell best_step
            self.best_step = state.get("best_step", next((r["step"] for r in rows if r.get("pass@1") == self.best), 0))
            sound = all(type(n) is int and n >= 0 for n in (self.step, self.best_step, micro_batch))
            if not sound or self.best_step > self.step or not abs(self.best) <= 1:
                raise ValueError(f"step {self.step}, best_step {self.best_step}, best {self.best}, {micro_batch=}")
            self.load_moments(state["optimizer"], any(r.get("grad_norm") and "skipped" not in r for r in rows))
            config.micro_batch = min((n for n in (config.micro_batch, micro_batch) if n), default=0)  # halved, or asked

    def load_moments(self, saved: dict, moved: bool) -> None:
        """The optimizer's moments, and nothing else that a file says of it: rates and signs are the options'."""
        own, rounded = list(self.policy.parameters()), isinstance(self.optimizer, RoundedAdam)
        if rounded:
            each = [{"step": saved["steps"], "exp_avg": x[0], "exp_avg_sq": x[1]} for x in saved["moments"]]
        else:
            each = [saved["state"][i] for i in range(len(own))] if saved["state"] or moved else []
        parts = [(x[name].contiguous(), p) for x, p in zip(each, own) for name in ("exp_avg", "exp_avg_sq")]
        n, *others = {float(x["step"]) for x in each} or {0.0}
        sound = len(each) in (0, len(own)) and not others and n in range(self.step + 1)
        sound &= all(x.shape in (p.shape, (p.numel(),)) and x.dtype == torch.float32 for x, p in parts)
        sound &= all(bool(x.isfinite().all()) for x, _ in parts) and all(bool((x >= 0).all()) for x, _ in parts[1::2])
        if not sound or len({x.data_ptr() for x, _ in parts}) < len(parts):
            raise ValueError("the optimizer's moments do not fit weights and step, are not finite, or two are one")
        shares = [shards.share_of(x, p) for x, p in parts]
        moments = [{"step": torch.tensor(n), "exp_avg": x, "exp_avg_sq": y} for x, y in zip(shares[::2], shares[1::2])]
        own_way = {"steps": int(n), "moments": saved.get("moments")} if rounded else {"state": dict(enumerate(moments))}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), **own_way})


def export(state: State, config: Config, out: Path) -> None:
    """Say whose weights best.pt holds; with --init make best.pt or last.pt a folder for transformers and --init."""
    score = f"held-out score {state.best:.3f}" if state.best >= 0 else "no reward on held-out problems"
    print(f"best.pt: the policy after update {state.best_step}, {score}")
    if state.best_step == 0 < state.step and state.best >= 0:
        last = f"--resume --out {out} --export last takes the last" if config.init else "last.pt has the last"
        print(f"warning: that is the policy before RL, no evaluation after it was as good; {last}")
    if config.init:
        model = build_model(dataclasses.replace(config, device="cpu")) if config.fsdp else state.policy
        weights = load(out / f"{config.export}.pt", "cpu" if config.fsdp else config.device)
        fill(model, weights["model"] if config.export == "last" else weights)
        published.weights.save(model, out / "model", config.init, served(tasks.FORMAT, Path(config.init)))
        print(f"{config.export}.pt as a folder for transformers and --init: {out / 'model'}")
