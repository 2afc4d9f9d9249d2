"""The whole loop on a device that refuses to meet the CPU's tensors (second_device.py), in processes of its own."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import figures

HERE = Path(__file__).resolve().parent
needed = "_setup_privateuseone_for_python_backend"
if not hasattr(importlib.import_module("torch.utils.backend_registration"), needed):
    pytest.skip("this torch lets no Python stand for a device", allow_module_level=True)
START = f"import json, sys\nsys.path.insert(0, {str(HERE)!r})\nimport second_device\nsecond_device.install()\n"
# torch's own thread for this device: the end of the interpreter may meet it at work, and is then an abort
END = "\nimport os\nsys.stdout.flush()\nos._exit(0)\n"
RULE = "def check(completion, answer):\n    return sum(map(ord, completion)) % 3 / 2\n"
TINY = (
    "--hidden_size 32 --num_layers 1 --warm_steps 2 --warm_batch 4 --steps 2 --prompts_per_step 2 --group_size 4 "
    "--max_new_tokens 24 --chain 1 --eval_every 2 --eval_problems 3 --save_every 1 --verifier rule.py:check"
)
OPTIONS = [
    "--rlsd_teacher_sync_interval 1",
    "--method grpo --micro_batch 3",
    "--method opsd --micro_tokens 300",
    "--method sdpo",
    "--method grpo+opsd",
    "--evidence contrastive",
    "--evidence agreement",
    "--rlsd_negative_only --rlsd_thought_only",
    "--gradient_checkpointing",
    "--temperature 0.7 --on_verifier_error drop",
]


def run(folder: Path, program: str, *args: str) -> None:
    command = [sys.executable, "-c", START + program + END, *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout, done.stderr)


def test_a_tensor_of_the_cpu_is_refused_there_and_a_number_is_not(tmp_path):
    program = """
import torch
with second_device.Creations():
    x = torch.arange(3.0, device="second")
    x.requires_grad_(True)
    assert x.device.type == "second" and x[1:].device.type == "second"
    assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4] and sum(second_device.waits.values()) == 1
    for mixed in (lambda: x + torch.ones(3), lambda: torch.cat([torch.ones(3), x]), lambda: x[torch.tensor([0])]):
        try:
            mixed()
            raise SystemExit("no refusal")
        except RuntimeError as error:
            assert "two devices" in str(error)
    (x.exp() * x).sum().backward()
    assert x.grad.device.type == "second"
    assert torch.allclose(x.grad.cpu(), (x.detach().cpu().exp() * (1 + x.detach().cpu())))
"""
    run(tmp_path, program)


def test_a_decode_step_waits_for_the_device_once_in_eight(tmp_path):
    """Beside that: once for the prompts' lengths, once for the completions'. What it draws is what the CPU draws."""
    program = """
import torch
from model import ModelConfig, Transformer, sample
torch.manual_seed(0)
how = dict(group_size=4, max_new_tokens=33, temperature=1.0)
with second_device.Creations():
    for stop, most in ((-1, 2 + 33 // 8), (3, 2 + 33 // 8 + 4)):  # rows that leave are found by one wait more
        model, drawn = Transformer(ModelConfig(12)), {}
        for device in ("cpu", "second"):
            model = model.to(device)
            second_device.waits.clear()
            noise = torch.Generator().manual_seed(1)
            drawn[device] = sample(model, [[1, 2], [3, 4, 5]], stop_token=stop, generator=noise, **how)
            waits = dict(second_device.waits)
        assert stop == 3 or sum(waits.values()) == most, waits
        assert sum(waits.values()) <= most, waits
        ours, theirs = drawn["cpu"], drawn["second"]
        assert torch.equal(ours.tokens, theirs.tokens.cpu()) and torch.equal(ours.mask, theirs.mask.cpu())
        assert torch.allclose(ours.logps, theirs.logps.cpu(), atol=1e-5)
        assert stop == -1 or ours.mask.sum() < ours.mask.numel() * 0.8
"""
    run(tmp_path, program)


@pytest.mark.slow
def test_every_method_runs_there_with_the_figures_of_the_cpu(tmp_path):
    """Warm start, updates, evaluations, checkpoints, and a resumption from them."""
    (tmp_path / "rule.py").write_text(RULE)
    program = """
import contextlib, io
import train
from harness import curves
curves.curves = lambda runs, out: out  # half of the time
for i, options in enumerate(json.loads(sys.argv[1])):
    for device in ("cpu", "second"):
        for more in (options, ["--resume", "--steps", "3", "--verifier", "rule.py:check"]):
            own = ["--out", f"{device}-{i}"] + ["--device", device, "--warm_dir", f"warm-{device}"] * (more is options)
            with second_device.Creations(), contextlib.redirect_stdout(io.StringIO()):
                assert train.main([*more, *own]) == 0, (options, device)
    print(i, flush=True)
"""
    run(tmp_path, program, json.dumps([[*TINY.split(), *options.split()] for options in OPTIONS]))
    for i in range(len(OPTIONS)):
        cpu, second = figures(tmp_path / f"cpu-{i}"), figures(tmp_path / f"second-{i}")
        assert [row["step"] for row in second] == [0, 1, 2, 3] and any(row.get("grad_norm", 0) > 0 for row in second)
        for a, b in zip(cpu, second):
            assert b == pytest.approx(a, rel=1e-3, abs=1e-5), OPTIONS[i]
