"""What a training run changes and a checkpoint holds: policy, teacher, optimizer; and how they are built."""

import copy
import dataclasses
from pathlib import Path

import torch

import pretrained
import ranks
import tasks
from config import CHANGEABLE, Config, config_of, sense
from errors import UserError, reading
from model import ModelConfig, Transformer
from rounded_adam import RoundedAdam
from run_files import fill, load, save, to_disk

MAY_CHANGE = (*CHANGEABLE, "out", "resume", "warm_dir")  # between the parts of one run


def warm_seed(config: Config) -> int:
    return config.seed if config.warm_seed < 0 else config.warm_seed


def build_model(config: Config) -> Transformer:
    if config.init:
        return published_model(config)
    torch.manual_seed(warm_seed(config))
    heads = config.hidden_size // 16
    return Transformer(
        ModelConfig(
            vocab_size=tasks.TOKENIZER.n_vocab,
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_layers=config.num_layers,
            num_heads=heads,
            num_kv_heads=heads // 2,
            head_dim=16,
            max_seq_len=config.max_seq_len,
        )
    ).to(config.device)


def published_model(config: Config) -> Transformer:
    model = pretrained.load(config.init, getattr(torch, config.dtype))
    if tasks.FORMAT.tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(
            f"--init {config.init}: the tokenizer has {tasks.FORMAT.tokenizer.n_vocab} tokens, the model "
            f"{model.config.vocab_size}"
        )
    if config.max_seq_len > model.config.max_seq_len:
        raise UserError(f"--max_seq_len {config.max_seq_len}: the model of --init ends at {model.config.max_seq_len}")
    return model.to(config.device)


def external_teacher(config: Config) -> Transformer:
    """The best policy of another run of this program, of its own size: OPD's teacher."""
    folder = Path(config.opd_teacher)
    try:
        run, _ = config_of(folder)
    except UserError as error:
        raise UserError(f"--opd_teacher {folder}: {error}") from error
    if run.max_seq_len < config.max_seq_len:
        raise UserError(
            f"--opd_teacher {folder}: it was made with --max_seq_len {run.max_seq_len}, {config.max_seq_len} is needed"
        )
    with reading(f"--opd_teacher {folder}: no run with best.pt"):
        teacher = build_model(dataclasses.replace(run, device=config.device, dtype=config.dtype))
        fill(teacher, load(folder / "best.pt", config.device))
    return teacher


class State:
    """What a step changes, and a checkpoint holds: policy, teacher, optimizer, step, best pass@1, micro-batch.

    Problems and noise of a step follow from (seed, step), so no generator has to be kept.
    """

    def __init__(self, config: Config):
        home = dataclasses.replace(config, device="cpu") if config.fsdp else config  # of which each device gets a share
        self.model = build_model(home)
        self.model.gradient_checkpointing = config.gradient_checkpointing
        self.teacher = (
            external_teacher(home)
            if config.method == "opd"
            else (copy.deepcopy(self.model) if config.method != "grpo" else None)
        )
        for model in (self.model, self.teacher) if config.fsdp else ():
            if model is not None:
                ranks.shard(model, config.device)
        adam = RoundedAdam if config.dtype == "bfloat16" else torch.optim.Adam
        self.optimizer = adam(self.model.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.step, self.best, self.micro_batch = 0, -1.0, config.micro_batch

    def sync_teacher(self, share: float = 1.0) -> None:
        """Move the teacher's weights towards the policy's; share 1 copies them."""
        assert self.teacher is not None  # every method but grpo has one
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
            save(ranks.weights(self.model), out / "best.pt")

    def save(self, path: Path, config: Config) -> None:
        for lines in path.parent.glob("*.jsonl"):  # of the steps that the checkpoint tells of: power may fail after it
            to_disk(lines)
        save(
            {
                "step": self.step,
                "best": self.best,
                "micro_batch": self.micro_batch,
                "options": {k: v for k, v in dataclasses.asdict(config).items() if k not in MAY_CHANGE},
                "model": ranks.weights(self.model),
                "optimizer": ranks.full(self.optimizer.state_dict()),
                "teacher": ranks.weights(self.teacher) if self.teacher is not None else None,
            },
            path,
        )

    def load(self, path: Path, config: Config) -> None:
        with reading(f"{path} is no checkpoint of this run"):
            state = load(path, "cpu" if config.fsdp else config.device)
            for name, value in state.get("options", {}).items():  # older checkpoints do not tell
                if sense(name, getattr(config, name)) != sense(name, value):
                    raise ValueError(f"it was made with --{name} {value}, and config.json says {getattr(config, name)}")
            fill(self.model, state["model"])
            if config.fsdp:
                for p, moments in zip(self.model.parameters(), state["optimizer"]["state"].values()):
                    moments.update({name: ranks.share_of(x, p) for name, x in moments.items()})
            self.optimizer.load_state_dict(state["optimizer"])
            for p, moments in getattr(self.optimizer, "state", {}).items():  # RoundedAdam looks for itself
                for name in ("step", "exp_avg", "exp_avg_sq"):
                    if moments[name].shape != (() if name == "step" else p.shape) or not moments[name].isfinite().all():
                        raise ValueError(f"the optimizer's {name} does not fit the weights, or is not finite")
            if self.teacher is not None:
                fill(self.teacher, state["teacher"])
            self.step, self.best = int(state["step"]), float(state["best"])
            sizes = [size for size in (self.micro_batch, int(state.get("micro_batch", 0))) if size]
            self.micro_batch = min(sizes, default=0)  # halved before, or asked to be smaller now
            if self.step < 0:
                raise ValueError(f"step {self.step}")


def export(state: State, config: Config, out: Path) -> None:
    """best.pt as a folder that transformers and --init read."""
    model = build_model(dataclasses.replace(config, device="cpu")) if config.fsdp else state.model
    fill(model, load(out / "best.pt", "cpu" if config.fsdp else config.device))
    pretrained.save(model, out / "model", config.init)
    print(f"best.pt as a folder for transformers and --init: {out / 'model'}")
