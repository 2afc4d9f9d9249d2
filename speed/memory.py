"""Peak memory of scoring and its backward pass, beside that of a full log-softmax."""

import math
import subprocess
import sys
from pathlib import Path

import torch

from model import ModelConfig, Samples, token_logps
from speed.workload import SMOKE, Run, Skipped, new_model, random_prompts

ROOT = Path(__file__).resolve().parents[1]


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
