"""Speed and memory, beside what a user would take instead and beside this machine's own matrix products.

    pip install -r requirements-bench.txt    # transformers and trl; without them their rows are left out
    python bench.py                          # five to ten minutes on two CPU cores; also writes results/bench.json, .md
    python bench.py --only sampling          # one row; written to --out alone, and so is --smoke
    python bench.py --device cuda            # the same table; writes results/bench-cuda.json

Both sides of a row hold the same weights and take turns in one process, A B A B ...: a ratio belongs to one pair of
turns, so a slow spell of the whole machine cancels. Other programs do not: where they hold a core, two threads wait for
each other at every small product, and the side with more of them looks slower than it is. The table shows the median of
the rounds [least..greatest].
"""

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
import io
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import model as model_file
import rollout
import tasks
import train
import verifiers
from model import ModelConfig, Samples, Transformer, sample, token_logps
from published import weights
from rlsd import group_advantages
from rollout import Rollout
from support.program import Parser, program

ROOT = Path(__file__).resolve().parent
DEFAULT = ModelConfig(tasks.TOKENIZER.n_vocab)
NEVER = -1  # a stop token that no sampler draws
TRL_WARM_UP = 2


class Skipped(Exception):
    """A row that cannot be measured here, and why."""


class Size(NamedTuple):
    """How much work a turn is."""

    prompts: int = 16
    group: int = 16
    tokens: int = 64
    wide: tuple[int, ...] = (512, 8, 4, 128)  # hidden size, layers, prompts, tokens
    floor_tokens: int = 34  # what a worked addition has
    memory: tuple[int, ...] = (256, 64, 50_000)  # N, T, V
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)


SMOKE = Size(2, 4, 6, (128, 1, 1, 8), 8, (64, 32, 20_000), (2, 4, 8, 16, 32))


class Run(NamedTuple):
    """What the options choose, the same for every row."""

    size: Size
    device: str
    rounds: int


# ---- taking turns ----------------------------------------------------------------------------------------------------


def now(device: str) -> float:
    """Seconds on a clock that is read when the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(run: Run, *works: Callable, before: Callable[[], None] = lambda: None) -> list[list[tuple[float, object]]]:
    """A B A B ...: (seconds, result) of each work in each round; a first round warms up, and before() is not timed."""
    measured = [[] for _ in works]
    for i in range(run.rounds + 1):
        for work, results in zip(works, measured):
            before()
            start = now(run.device)
            result = work(i)
            results.append((now(run.device) - start, result))
    return [results[1:] for results in measured]


def time_ratios(above: list[tuple[float, object]], below: list[tuple[float, object]]) -> list[float]:
    return [a / b for (a, _), (b, _) in zip(above, below)]


def median_seconds(results: list[tuple[float, object]]) -> float:
    return median(seconds for seconds, _ in results)


def compared(ours: list[tuple[float, object]], theirs: list[tuple[float, object]]) -> dict:
    """The figures of a row whose ratios are times, ours above."""
    seconds = {"seconds": median_seconds(ours), "seconds_beside": median_seconds(theirs)}
    return {"ratios": time_ratios(ours, theirs), **seconds}


def random_prompts(n: int, shortest: int, longest: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(256) for _ in range(rng.randint(shortest, longest))] for _ in range(n)]


def new_model(run: Run, config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config).to(run.device)


def draw(model: Transformer, prompts: list[list[int]], group: int, tokens: int, stop: int, seed: int = 0) -> Samples:
    how = {"group_size": group, "max_new_tokens": tokens, "temperature": 1.0, "stop_token": stop}
    return sample(model, prompts, **how, generator=torch.Generator().manual_seed(seed))


# ---- beside transformers ---------------------------------------------------------------------------------------------


def peers(*names: str) -> list:
    """The named packages, imported, offline and quiet."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise Skipped("not installed: pip install -r requirements-bench.txt") from error


def to_transformers(model: Transformer):
    """A transformers model of the same weights, by way of the folder that an export writes."""
    transformers, _ = peers("transformers", "safetensors")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        weights.save(model, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return theirs.to(model.embed.weight.device).eval()


def beside_generate(run: Run, config: ModelConfig, prompts: list[list[int]], tokens: int, stop: int) -> dict:
    """Tokens per second of our sampler over those of `generate`, completion tokens counted, padding not."""
    (transformers,) = peers("transformers")
    model = new_model(run, config)
    theirs = to_transformers(model)
    device, group = run.device, run.size.group
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.no_grad():
        torch.testing.assert_close(theirs(padded).logits, model(padded), atol=1e-4, rtol=0)
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": group}
    ends = {"max_new_tokens": tokens, "eos_token_id": None if stop == NEVER else stop, "pad_token_id": 0}
    settings = transformers.GenerationConfig(**how, **ends)

    def ours(i: int) -> int:
        return int(draw(model, prompts, group, tokens, stop, i).mask.sum())

    def generate(i: int) -> int:
        torch.manual_seed(i)
        drawn = theirs.generate(input_ids=padded, attention_mask=mask, generation_config=settings)[:, longest:]
        stopped = (drawn == stop).cumsum(dim=1) - (drawn == stop).long()  # the stop token itself still counts
        return int((stopped == 0).sum())

    a, b = turns(run, ours, generate)
    return {
        "ratios": [(m / s) / (n / t) for (s, m), (t, n) in zip(a, b)],
        "tokens_per_second": median(m / s for s, m in a),
        "tokens_per_second_beside": median(n / t for t, n in b),
        "tokens": mean(m for _, m in a),
        "tokens_beside": mean(n for _, n in b),
    }


def sampling(run: Run) -> dict:
    return beside_generate(run, DEFAULT, random_prompts(run.size.prompts, 6, 20), run.size.tokens, tasks.END)


def sampling_512(run: Run) -> dict:
    hidden, layers, prompts, tokens = run.size.wide
    heads = {"num_heads": hidden // 64, "num_kv_heads": hidden // 128, "head_dim": 64}
    config = ModelConfig(tasks.TOKENIZER.n_vocab, hidden, 3 * hidden, layers, **heads)
    return beside_generate(run, config, random_prompts(prompts, 6, 20), tokens, NEVER)


# ---- whole steps -----------------------------------------------------------------------------------------------------


def config_of(run: Run, method: str) -> train.Config:
    size = f"--prompts_per_step {run.size.prompts} --group_size {run.size.group} --max_new_tokens {run.size.tokens}"
    return train.parse_config(f"--method {method} --warm_steps 0 --device {run.device} {size}".split())


def coin(share: float) -> verifiers.Verifier:
    """A verifier that pays by a hash of the completion, for `share` of the questions.

    Untrained weights never answer right, and a group without spread is left out of the update: a step that trained on
    nothing would look fast. The task's own verifier runs as well, so that its time counts.
    """

    def verifier(completion: str, answer: str) -> float:
        right = verifiers.number(completion, answer)
        pays = zlib.crc32(answer.encode()) % 1000 < 1000 * share
        return max(right, float(pays and zlib.crc32(completion.encode()) % 2))

    return verifier


class Trainer:
    """One of our training runs, from the same untrained weights every time."""

    def __init__(self, run: Run, method: str, share: float):
        self.config, self.verifier = config_of(run, method), coin(share)
        self.source = tasks.generated("addition", held_out=100)
        self.state = train.State(self.config)

    def step(self, i: int, lam: float = 0.0) -> int:
        """Sample, verify, score, update, and what the update does to the teacher -> completion tokens."""
        state = self.state
        batch = train.rollout(state.model, self.source, self.verifier, self.config, i)
        train.update(state.model, state.teacher, state.optimizer, batch, self.config, lam)
        state.step = i
        state.teach(self.config)
        return int(batch.samples.mask.sum())

    def snapshot(self) -> Callable[[], None]:
        """A function that puts the weights and the optimizer back as they are now."""
        parts = [part for part in (self.state.model, self.state.teacher, self.state.optimizer) if part is not None]
        saved = [copy.deepcopy(part.state_dict()) for part in parts]

        def restore() -> None:
            for part, state in zip(parts, saved):
                part.load_state_dict(copy.deepcopy(state))  # an optimizer would go on to write into what it is given

        return restore


def byte_tokenizer():
    """Our tokenizer for transformers: the same id for every byte and role."""
    transformers, tokenizers = peers("transformers", "tokenizers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {letter: byte for byte, letter in bytes_to_unicode().items()} | {"##": 256, "####": 257}
    vocab |= {role: tasks.TOKENIZER.encode_single_token(role) for role in tasks.ROLES}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(tasks.ROLES))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|reference|>", padding_side="left"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, progress bars or warnings of a peer among ours."""
    lost = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(lost), contextlib.redirect_stderr(lost):
        warnings.simplefilter("ignore")
        yield


def beside_trl(run: Run, **options) -> dict:
    """Seconds of a step of TRL's GRPOTrainer over those of ours, which goes first in every round."""
    with quiet():
        transformers, trl, datasets = peers("transformers", "trl", "datasets")
    ours = Trainer(run, "grpo", share=1.0)  # every group has spread: we leave out nothing that TRL computes
    our_steps, trl_steps, trl_tokens = [], [], []
    rounds = run.rounds + TRL_WARM_UP
    problems = ours.source.draw(random.Random(0), run.size.prompts * rounds)
    queue = iter(problems)
    ours.source = replace(ours.source, draw=lambda _, n: [next(queue) for _ in range(n)])
    prompts = [tasks.TOKENIZER.decode(tasks.student_prompt(p)) for p in problems]
    data = datasets.Dataset.from_dict({"prompt": prompts, "answer": [p.answer for p in problems]})

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_) -> list[float]:
        trl_tokens.append(sum(map(len, completion_ids)))
        return [ours.verifier(completion, a) for completion, a in zip(completions, answer)]

    class Turns(transformers.TrainerCallback):
        """TRL's loop calls it at the two ends of a step: ours goes first."""

        def on_step_begin(self, *_, **__):
            start = now(run.device)
            tokens = ours.step(len(our_steps) + 1)
            our_steps.append((now(run.device) - start, tokens))
            self.start = now(run.device)

        def on_step_end(self, *_, **__):
            trl_steps.append((now(run.device) - self.start, trl_tokens[-1]))

    N = run.size.prompts * run.size.group
    options |= {"per_device_train_batch_size": N, "num_generations": run.size.group, "shuffle_dataset": False}
    options |= {"max_completion_length": run.size.tokens, "learning_rate": ours.config.lr, "beta": 0.0}
    options |= {"max_steps": rounds, "use_cpu": run.device == "cpu", "report_to": "none", "disable_tqdm": True}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trl.GRPOTrainer(
            to_transformers(ours.state.model),
            reward,
            trl.GRPOConfig(folder, save_strategy="no", logging_strategy="no", **options),
            data,
            processing_class=byte_tokenizer(),
            callbacks=[Turns()],
        ).train()
    a, b = our_steps[TRL_WARM_UP:], trl_steps[TRL_WARM_UP:]
    tokens = {"tokens": [n for _, n in a], "tokens_beside": [n for _, n in b]}
    return {**compared(a, b), "ratios": time_ratios(b, a), **tokens}  # steps a second, as the table has them


def beside_grpo(run: Run, lam: float) -> dict:
    """Seconds of an RLSD step over those of a GRPO step on the same samples, three turns for each round asked for."""
    rlsd, grpo = (Trainer(run, method, share=0.6) for method in ("rlsd", "grpo"))
    rlsd.step(1)  # the optimizer now has allocated what it keeps
    rlsd.state.sync_teacher()
    for name in ("model", "optimizer"):
        getattr(grpo.state, name).load_state_dict(copy.deepcopy(getattr(rlsd.state, name).state_dict()))
    restore = [rlsd.snapshot(), grpo.snapshot()]
    threefold = run._replace(rounds=3 * run.rounds)
    a, b = turns(threefold, lambda i: rlsd.step(i, lam), grpo.step, before=lambda: [put_back() for put_back in restore])
    if [tokens for _, tokens in a] != [tokens for _, tokens in b]:
        raise RuntimeError("the two steps must draw the same samples, or their times say nothing")
    return {**compared(a, b), "tokens": mean(tokens for _, tokens in a)}


# ---- beside the machine itself ---------------------------------------------------------------------------------------


def linear_products(model: Transformer, rows: int, head_rows: int, backward: bool) -> list[tuple[Tensor, Tensor]]:
    """The products of all linear layers with `rows` rows, the head's with `head_rows`; backward: two more for each."""
    ahead, back = [], []
    for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
        w, n = linear.weight.detach(), head_rows if linear is model.head else rows
        x, gradient = (w.new_empty(n, width).normal_() for width in (linear.in_features, linear.out_features))
        ahead.append((x, w.t()))
        back = [(gradient, w), (gradient.t(), x), *back]
    return ahead + back * backward


def attention_products(model: Transformer, rows: int, queries: int, keys: int, backward: bool) -> list:
    """Scores and their sums of values, in all layers: `queries` tokens of each row look at `keys` tokens."""
    c, new = model.config, model.embed.weight.new_empty
    batch, asking = rows * c.num_kv_heads, c.num_heads // c.num_kv_heads * queries
    sizes = (asking, c.head_dim), (keys, c.head_dim), (keys, c.head_dim), (asking, keys)
    products = []
    for _ in model.blocks:
        q, k, v, weights = (new(batch, *size).normal_() for size in sizes)
        products += [(q, k.mT), (weights, v)]
        products += [(q, v.mT), (weights.mT, q), (weights, k), (weights.mT, q)] * backward
    return products


def multiply(products: list[tuple[Tensor, Tensor]]) -> None:
    for a, b in products:
        (torch.mm if a.dim() == 2 else torch.bmm)(a, b)


def floor_decode(run: Run) -> dict:
    """Seconds of sample(), every row to its end and nothing left out, over those of its steps' products."""
    size, model = run.size, new_model(run, DEFAULT)
    prompts, N = random_prompts(size.prompts, 8, 8), size.prompts * size.group
    linear = linear_products(model, N, N, backward=False)
    attention = attention_products(model, N, 1, 8 + size.tokens // 2, backward=False)  # the mean context
    a, b, c = turns(
        run,
        lambda i: draw(model, prompts, size.group, size.tokens, NEVER, i),
        lambda i: multiply((linear + attention) * size.tokens),
        lambda i: multiply(linear * size.tokens),
    )
    return {
        "ratios": time_ratios(a, b),
        "seconds_per_token": median_seconds(a) / size.tokens,
        "seconds_per_token_beside": median_seconds(b) / size.tokens,
        "ratio_to_the_linear_layers_alone": median(time_ratios(a, c)),
    }


def floor_update(run: Run) -> dict:
    """Seconds of train.update() without a teacher over those of its products, forward and backward."""
    size, config = run.size, config_of(run, "grpo")
    state, N, T = train.State(config), size.prompts * size.group, size.floor_tokens
    questions = [tasks.Problem(f"{i:03d}+{i:03d}", "0") for i in range(size.prompts)]  # prompts of 9 tokens
    problems = [problem for problem in questions for _ in range(size.group)]
    samples = Samples.of(random_prompts(N, T, T), run.device)
    with torch.no_grad():
        samples.logps = rollout.score(state.model, Rollout(problems, samples, None, None), config, tasks.student_prompt)
    rewards = torch.arange(N, device=run.device) % 2.0
    batch = Rollout(problems, samples, rewards, group_advantages(rewards, size.group))
    linear = linear_products(state.model, size.prompts * 9 + N * (T - 1), N * T, backward=True)
    attention = attention_products(state.model, N, T - 1, 9 + T - 1, backward=True)
    a, b, c = turns(
        run,
        lambda i: train.update(state.model, None, state.optimizer, batch, config, 0.0),
        lambda i: multiply(linear + attention),
        lambda i: multiply(linear),
    )
    return {**compared(a, b), "ratio_to_the_linear_layers_alone": median(time_ratios(a, c))}


def length(run: Run) -> dict:
    """Seconds a token of sampling the fourth length over those of the first; all lengths take turns."""
    size = run.size
    model = new_model(run, ModelConfig(tasks.TOKENIZER.n_vocab, max_seq_len=8 + max(size.lengths)))
    prompts = random_prompts(max(1, size.prompts // 4), 8, 8)
    works = [lambda i, T=T: draw(model, prompts, size.group, T, NEVER, i) for T in size.lengths]
    results = turns(run, *works)
    first, fourth = size.lengths[0], size.lengths[3]
    return {
        "ratios": [ratio * first / fourth for ratio in time_ratios(results[3], results[0])],
        "seconds_per_token": {T: median_seconds(r) / T for T, r in zip(size.lengths, results)},
    }


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(run: Run) -> dict:
    """Peak memory of scoring and its backward pass over that of a full log-softmax, each in a process of its own."""
    ours, full = (peak_in_a_process(run, which) for which in ("ours", "full"))
    figures = {"ratios": [ours / full], "bytes": ours, "bytes_beside": full}
    ntv = 4 * math.prod(run.size.memory)
    return {**figures, "ntv_float_tensors": ours / ntv, "ntv_float_tensors_beside": full / ntv}


def peak_in_a_process(run: Run, which: str) -> int:
    if run.device == "cpu" and not memory_status("VmHWM"):
        raise Skipped("not measured: the peak of a process is read from /proc, which Linux has")
    command = [sys.executable, str(ROOT / "bench.py"), "--memory", which, "--device", run.device]
    done = subprocess.run(command + ["--smoke"] * (run.size is SMOKE), capture_output=True, text=True)
    if done.returncode < 0:
        raise Skipped(f"not measured: {which!r} was killed by signal {-done.returncode}; too little memory?")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return int(done.stdout)


def peak_of_update(run: Run, which: str) -> int:
    """Bytes that an update of one layer and a large vocabulary takes on top of weights and samples."""
    N, T, V = run.size.memory
    model = new_model(run, ModelConfig(V, num_layers=1))
    prompts = random_prompts(N, 9, 9)
    samples = Samples.of(random_prompts(N, T, T), run.device)
    tokens = torch.cat([torch.tensor(prompts, device=run.device), samples.tokens], dim=1)
    if run.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = memory_status("VmRSS")
    if which == "ours":
        logps = token_logps(model, prompts, samples, 1.0)
    else:
        logits = model.head(model.hidden(tokens[:, :-1])[:, 8:])  # (N, T, V)
        logps = torch.log_softmax(logits, dim=-1).gather(2, samples.tokens[..., None])
    logps.sum().backward()
    return (torch.cuda.max_memory_allocated() if run.device == "cuda" else memory_status("VmHWM")) - before


def memory_status(name: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak); getrusage would count the parent's peak before this program was loaded."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))  # 0: not told


# ---- profile ---------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds by stage; a stage that runs inside another one is taken out of it."""

    def __init__(self, device: str):
        self.device, self.seconds = device, defaultdict(float)
        self.inside = 0.0  # seconds of stages within the one that is running

    def timed(self, stage: str, function: Callable) -> Callable:
        def run_and_time(*args, **kwargs):
            outer, self.inside = self.inside, 0.0
            start = now(self.device)
            result = function(*args, **kwargs)
            elapsed = now(self.device) - start
            self.seconds[stage] += elapsed - self.inside
            self.inside = outer + elapsed
            return result

        return run_and_time


def profile(run: Run) -> dict:
    """Seconds and shares of the stages of an RLSD step with its teacher pass, means over the rounds."""
    trainer, watch = Trainer(run, "rlsd", share=0.6), Stopwatch(run.device)
    trainer.step(0, 0.5)
    optimizer = trainer.state.optimizer
    stages = [
        ("noise", model_file, "row_noise"),
        ("prefill", model_file, "_prefill"),
        ("decode", train, "sample"),
        ("verify", train, "verify"),
        ("student forward and loss", train, "loss_of"),
        ("teacher forward", methods, "evidence"),
        ("backward", Tensor, "backward"),
        ("optimizer", torch.nn.utils, "clip_grad_norm_"),
        ("optimizer", optimizer, "zero_grad"),
        ("optimizer", optimizer, "step"),
    ]
    step = watch.timed("rest", trainer.step)
    with contextlib.ExitStack() as patches:
        for stage, owner, name in stages:
            patches.enter_context(patch.object(owner, name, watch.timed(stage, getattr(owner, name))))
        for i in range(1, run.rounds + 1):
            step(i, 0.5)
    seconds = {stage: watch.seconds[stage] for stage in [*(stage for stage, _, _ in stages), "rest"]}
    wall = sum(seconds.values())
    return {
        "seconds": wall / run.rounds,
        "stages": {stage: {"seconds": s / run.rounds, "share": s / wall} for stage, s in seconds.items()},
    }


# ---- the table -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table: the goal is a least ratio or a greatest one, or there is none."""

    work: str
    beside: str
    goal: str
    measure: Callable[[Run], dict]


GENERATE, GRPO = "transformers `generate`, same weights", "GRPO step, 16 prompts x 16, steps/s"
OURS, PRODUCTS, FULL = "our GRPO step, same samples", "its matrix products alone", "full log-softmax + gather"
beside_plain_trl = partial(beside_trl, bf16=False, gradient_checkpointing=False)
ROWS = {
    "sampling": Row("sampling 16 prompts x 16, at most 64 tokens, tokens/s", GENERATE, ">= 5", sampling),
    "sampling-512": Row(
        "sampling 4 prompts x 16 at width 512, 8 layers, 128 tokens each, tokens/s", GENERATE, ">= 1.5", sampling_512
    ),
    "grpo-step": Row(GRPO, "TRL `GRPOTrainer`, its defaults: bfloat16, gradient checkpointing", ">= 4", beside_trl),
    "grpo-step-plain": Row(GRPO, "TRL `GRPOTrainer` in float32 without checkpointing, as ours", "-", beside_plain_trl),
    "rlsd-lambda": Row("RLSD step with the teacher pass, time", OURS, "<= 1.12", partial(beside_grpo, lam=0.5)),
    "rlsd-zero": Row("RLSD step at lambda 0, time", OURS, "<= 1.01", partial(beside_grpo, lam=0.0)),
    "floor-decode": Row("sampling 256 rows, time a token", PRODUCTS, "<= 2.5", floor_decode),
    "floor-update": Row("update on 256 samples of 34 tokens, time", PRODUCTS, "<= 2", floor_update),
    "memory": Row("memory of scoring and backward, 256 x 64 tokens, vocabulary 50,000", FULL, "<= 0.5", memory),
    "length": Row("sampling 512 tokens, time a token", "sampling 64 tokens", "<= 1.6", length),
}


def measure(name: str, run: Run) -> dict:
    row = ROWS[name]
    figures = {"name": name, "work": row.work, "beside": row.beside, "goal": row.goal}
    try:
        found = row.measure(run)
    except Skipped as reason:
        return {**figures, "skipped": str(reason)}
    ratio, reached = median(found["ratios"]), None
    if run.size is not SMOKE and row.goal != "-":  # small sizes say nothing about the goals
        sign, limit = row.goal.split()
        reached = ratio >= float(limit) if sign == ">=" else ratio <= float(limit)
    extremes = {"least": min(found["ratios"]), "greatest": max(found["ratios"])}
    return {**figures, "ratio": ratio, **extremes, "reached": reached, **found}


def table_line(row: dict) -> str:
    if "skipped" in row:
        return f"| {row['work']} | {row['beside']} | {row['skipped']} | {row['goal']} | - |"
    ratio = f"{row['ratio']:.3g}" + (f" [{row['least']:.3g}..{row['greatest']:.3g}]" if len(row["ratios"]) > 1 else "")
    reached = {True: "yes", False: "no", None: "-"}[row["reached"]]
    return f"| {row['work']} | {row['beside']} | {ratio} | {row['goal']} | {reached} |"


def machine(device: str) -> dict:
    """What the figures were measured on and with; None for what this system does not tell."""

    def told(question: Callable[[], object]):
        with contextlib.suppress(OSError, AttributeError, StopIteration, ImportError):
            return question()

    def model_name() -> str:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": told(model_name) or platform.processor(),
        "cpus": os.cpu_count(),
        "load_average": told(lambda: os.getloadavg()[0]),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build: the package's metadata may leave +cpu or +cu130 out
        **{package: told(lambda: importlib.metadata.version(package)) for package in ("transformers", "trl")},
    }


def rounded(figures: dict) -> dict:
    """The same figures to four digits, however deep they lie."""
    return json.loads(json.dumps(figures), parse_float=lambda digits: float(f"{float(digits):.4g}"))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("bench.py", __doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--rounds", type=int, help="paired rounds (default: 7, with --smoke 2)")
    parser.add_argument("--only", metavar="NAME", choices=(*ROWS, "profile"), help=f"one of {', '.join(ROWS)}, profile")
    parser.add_argument("--out", help="file of the figures")
    parser.add_argument("--memory", choices=("ours", "full"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.rounds = args.rounds if args.rounds is not None else 2 if args.smoke else 7
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1 is needed")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; leave it out to run on the CPU")
    if not (args.out or args.smoke or args.only):
        args.out = str(ROOT / "results" / ("bench.json" if args.device == "cpu" else "bench-cuda.json"))
    if args.out and (Path(args.out).is_dir() or not Path(args.out).parent.is_dir()):
        parser.error(f"--out {args.out}: a file in a folder that is there is needed")
    return args


def profile_table(stages: dict[str, dict[str, float]]) -> str:
    lines = [f"| {stage} | {1000 * of['seconds']:.1f} | {of['share']:.1%} |" for stage, of in stages.items()]
    return "\n".join(["| stage of an RLSD step | ms | share |", "|---|---|---|", *lines])


def write(result: dict, tables: list[str], out: Path) -> None:
    """The figures as JSON, and beside them the tables as a page to read."""
    out.write_text(json.dumps(result, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    page = ["# Speed and memory", f"`python bench.py`; {about}.", *tables]
    out.with_suffix(".md").write_text("\n\n".join(page) + "\n")


@program
def main(argv: list[str]) -> int:
    args = parse(argv)
    run = Run(SMOKE if args.smoke else Size(), args.device, args.rounds)
    if args.memory:
        print(peak_of_update(run, args.memory))
        return 0
    result = {"machine": machine(args.device), "smoke": args.smoke, "rounds": args.rounds, "rows": []}
    load = result["machine"]["load_average"] or 0
    if load > 0.5:
        print(f"load average {load:.1f} before the start: if other programs are running, these ratios are off\n")
    if args.smoke:
        print("--smoke: everything runs at tiny sizes, not at those named here\n")
    tables = []
    if args.only != "profile":
        lines = ["| work | beside | median ratio [least..greatest] | goal | reached |", "|---|---|---|---|---|"]
        print("\n".join(lines), flush=True)
        for name in [args.only] if args.only else ROWS:
            result["rows"].append(measure(name, run))
            lines.append(table_line(result["rows"][-1]))
            print(lines[-1], flush=True)
        tables.append("\n".join(lines))
    if args.only in (None, "profile"):
        result["profile"] = profile(run)
        tables.append(profile_table(result["profile"]["stages"]))
        print("\n" + tables[-1])
    result = rounded(result)
    print("\n" + json.dumps(result))
    if args.out:
        write(result, tables, Path(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
