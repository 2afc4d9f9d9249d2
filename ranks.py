"""Several processes under torchrun: each takes a share of the questions, and the gradients are summed.

    torchrun --nproc_per_node=2 train.py ...      # the same samples and updates as one process, to rounding

gloo on CPU, nccl on CUDA. Without torchrun every function here leaves what it is given as it is.
"""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

apart = False  # set by train.py once options and data are known to be sound


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def take_device(device: str) -> None:
    """On CUDA each process of a machine takes the device of its own number."""
    if device == "cuda" and world() > 1:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def start(device: str, *models: torch.nn.Module | None) -> None:
    """Join the group that torchrun has prepared, with the weights of process 0."""
    if world() > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        for p in (p for model in models if model is not None for p in model.parameters()):
            dist.broadcast(p.detach(), 0)


def speaks() -> bool:
    """Mistakes in options and data are met by all processes, and process 0 says so; after that each has its own."""
    return apart or rank() == 0


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def share(questions: Sequence) -> list:
    """This process's part; equal ones stay together, since the sampler's noise counts a prompt's repeats."""
    place = {question: i for i, question in enumerate(dict.fromkeys(questions))}
    return [question for question in questions if place[question] % world() == rank()]


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def summed(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's sum over all processes; one that a process lacks counts 0 there."""
    if world() == 1:
        return figures
    parts: list = [None] * world()
    dist.all_gather_object(parts, figures)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in max(parts, key=len)}


def latest_signal(number: int) -> int:
    """The signal that any process has got, so that all of them end after the same step."""
    return max(int(n) for n in gather(torch.tensor([number])))


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Each loss is already a part of one global token mean: its gradients are summed, not averaged."""
    if world() > 1:
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = gradient.view_as(p).clone()


def gather(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, n free to differ, in the order of their numbers."""
    if world() == 1:
        return rows
    parts: list = [None] * world()
    dist.all_gather_object(parts, rows.cpu())
    return torch.cat(parts).to(rows.device)
