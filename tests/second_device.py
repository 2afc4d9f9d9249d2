"""A device that is none: a tensor on it refuses to meet one on the CPU, and each wait for it is counted.

torch lets Python stand for a device of somebody's own (PrivateUse1): here each operation runs on a CPU tensor that
nothing else can reach. As on a GPU, a number (a tensor without dimensions) may come from the CPU.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model  # noqa: E402
from config import Config  # noqa: E402

NAME = "second"
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}  # and copies to the CPU
raw_of = lambda x: x.raw if isinstance(x, Second) else x
waits: Counter = Counter()  # moments in which the program asks the device for a value, and until then stands still


class Second(torch.Tensor):
    """A tensor on the device; `raw`, on the CPU, has its values."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "Second":
        where = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, raw.shape, device=f"{NAME}:0", **where)
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})

    def tolist(self) -> list:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copy = self.detach().clone()
        memo[id(self)] = torch.nn.Parameter(copy) if isinstance(self, torch.nn.Parameter) else copy
        return memo[id(self)]


class Creations(TorchDispatchMode):
    """What makes a tensor on the device of none that is there: torch.zeros(2, device=...), x.to(device)."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


def run(op, args: tuple, kwargs: dict):
    """Any operation, on the device where a tensor or a word of the call is."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours, name = [x for x in tensors if isinstance(x, Second)], op.name()
    asked = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else ""
    here = asked == NAME or bool(ours) and not asked
    if name == "aten::copy_":
        here = isinstance(args[0], Second)
    elif name != "aten::_to_copy" and here and any(not isinstance(x, Second) and x.dim() > 0 for x in tensors):
        raise RuntimeError(f"{name}: tensors on two devices")
    if ours and (name in WAITS or not here):
        waits[name] += 1
    own = {id(raw_of(x)): x for x in tensors}
    kwargs = {key: "cpu" if key == "device" and here else value for key, value in kwargs.items()}
    result = op(*tree_map_only(Second, raw_of, args), **tree_map_only(Second, raw_of, kwargs))
    if not here:
        return tree_map_only(torch.Tensor, lambda x: own.get(id(x), x), result)
    return tree_map_only(torch.Tensor, lambda x: own[id(x)] if id(x) in own else Second(x), result)


def moved(self: torch.nn.Module, device: str) -> torch.nn.Module:
    """module.to(device), which would lose what Python knows of a tensor; tied weights stay tied."""
    made: dict = {}
    for module in self.modules():
        for name, p in module._parameters.items():
            if p is not None:
                made[p] = made[p] if p in made else torch.nn.Parameter(p.detach().to(device))
                module._parameters[name] = made[p]
    return self


def install() -> None:
    """Register the device, and let lists, models and checkpoints go to it and from it."""
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.float32]  # which a checkpointed block asks for
    device = Config.__dataclass_fields__["device"]
    device.metadata = {**device.metadata, "choices": (*device.metadata["choices"], NAME)}
    save, load, made = torch.save, torch.load, torch.tensor
    torch.tensor = lambda x, device="cpu", **k: made(x, **k).to(device)  # it asks no mode
    torch.inference_mode = torch.no_grad  # which knows no tensors made in Python
    model.Transformer.to = moved
    here = lambda x: tree_map_only(torch.Tensor, lambda t: raw_of(t.detach()).clone(), x)
    torch.save = lambda x, *a, **k: save(here(x), *a, **k)
    there = lambda x, device: tree_map_only(torch.Tensor, lambda t: t.to(device) if t.dim() else t, x)
    torch.load = lambda path, map_location, **k: there(load(path, map_location="cpu", **k), map_location)
