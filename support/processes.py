"""Several processes under torchrun: each takes a share of the questions, and the gradients are summed.

    torchrun --nproc_per_node=2 train.py ...      # the same samples and updates as one process, to rounding

gloo on CPU, nccl on CUDA. Without torchrun every function here leaves what it is given as it is.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from support.errors import UserError, one_line

apart = False  # set by harness/run.py once options and data are known to be sound


def place() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun tells; UserError for what it never tells."""
    told = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    with contextlib.suppress(ValueError):
        number, processes = map(int, told.values())
        if 0 <= number < processes:
            return number, processes
    told_so = ", ".join(f"{name}={value[:20]!r}" for name, value in told.items())
    raise UserError(f"{told_so} in the environment: torchrun sets both, RANK from 0 below WORLD_SIZE; else unset them")


def rank() -> int:
    return place()[0]


def world() -> int:
    return place()[1]


def join(device: str) -> None:
    """Enter the group that torchrun has prepared; from here on the end of one process is the end of all.

    UserError where the environment does not say where the others are, or nobody is there.
    """
    if world() == 1:
        return
    if device == "cuda":  # each process of a machine takes the device of its own number
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank())))
    try:
        socket.getaddrinfo(os.environ.get("MASTER_ADDR"), None)  # torch would try for minutes
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    except (ValueError, OSError, dist.DistNetworkError) as error:
        where = " ".join(f"{name}={os.environ.get(name)!r:.60}" for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"{where}: the processes do not find each other, start them by torchrun: {one_line(error)}"
        ) from error


def has_lost_another(error: Exception) -> bool:
    """Is this what a process meets where another one has ended: a connection of gloo's, or to the store, that broke?"""
    broken = isinstance(error, dist.DistNetworkError | dist.DistStoreError) or "gloo/transport" in str(error)
    return broken and world() > 1


def same_weights(*models: torch.nn.Module | None) -> None:
    """Take the weights of process 0; a sharded model has no two alike, and is left as it is."""
    for model in models:
        if model is not None and not is_sharded(model):
            same(model.parameters())


def same(tensors: Iterable[Tensor]) -> None:
    """Take what these tensors hold in process 0."""
    for x in tensors if world() > 1 else ():
        dist.broadcast(x.detach(), 0)


def speaks() -> bool:
    """Mistakes in options and data are met by all processes, and process 0 says so; after that each has its own."""
    try:
        return apart or rank() == 0
    except UserError:  # the number itself is the mistake
        return True


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def part(problems: Sequence) -> list:
    """This process's, perhaps none; equal questions stay together, since the sampler's noise counts their repeats."""
    place = {question: i for i, question in enumerate(dict.fromkeys(problem.question for problem in problems))}
    return [problem for problem in problems if place[problem.question] % world() == rank()]


def share(problems: Sequence) -> list:
    """This process's part of an update's problems, one at least."""
    mine = part(problems)
    if not mine:
        few = f"fewer different questions in a batch than the {world()} processes"
        raise UserError(f"{few}: raise --prompts_per_step, or start fewer of them")
    return mine


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def everyones(x: Any) -> list:
    """What each process has in the place of this one's `x`, in the order of their numbers."""
    parts = [x] * world()
    if world() > 1:
        dist.all_gather_object(parts, x)
    return parts


def together(work: Callable[[], Any]) -> list:
    """What `work` gives in each process; if it fails in any, all raise the first failure, and process 0 says so."""
    global apart
    try:
        parts = everyones(work())
    except (UserError, OSError) as error:
        parts = everyones(UserError(one_line(error)))
    for failure in [part for part in parts if isinstance(part, UserError)]:
        apart = False
        raise failure
    return parts


def gather(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, n free to differ, in the order of their numbers."""
    return torch.cat(everyones(rows.cpu())).to(rows.device) if world() > 1 else rows


def most(n: int) -> int:
    """The largest of the processes' numbers, such as of a signal that one has got and all are to end after."""
    return int(gather(torch.tensor([n])).max())


# ---- words of an update and a rollout --------------------------------------------------------------------------------


def add_up(policy: Any, teacher: Any, metrics: dict[str, float]) -> dict[str, float]:
    """Sum gradients and figures over all processes: each loss is already a part of one global token mean."""
    apart_again(teacher)
    if world() == 1:
        return metrics
    parameters = list(policy.parameters())
    if not is_sharded(policy):  # of a sharded model they are, in the backward pass
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = gradient.view_as(p).clone()
    parts = everyones(metrics)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in max(parts, key=len)}


def total_norm(norm: Any) -> Tensor:
    return norm.full_tensor() if is_sharded(norm) else norm


def is_sharded(x: object) -> bool:
    return hasattr(x, "unshard") or hasattr(x, "full_tensor")


@contextlib.contextmanager
def whole(model: Any) -> Iterator[None]:
    """Every process has all of the weights, so that each may run the model as often as it needs to."""
    parts = (model, *model.blocks) if is_sharded(model) else ()
    for part in parts:
        part.unshard()
    for block in parts[1:]:
        block.set_reshard_after_forward(False)
    yield
    for block in parts[1:]:
        block.set_reshard_after_forward(True)
    apart_again(model)


def apart_again(model: Any) -> None:
    """Let go of what forward passes without a backward one leave whole."""
    if is_sharded(model):
        model.reset_iter_state()
