"""--fsdp: each process holds its share of every weight, gradient and moment, and borrows the rest while it is used.

torch's own fully_shard, imported when it is asked for.
"""

from typing import Any

import torch
from torch import Tensor

from support.processes import is_sharded, rank, world


def shard(model: Any, device: str) -> None:
    """Keep this process's share of every weight, on the device; a block is whole while it runs, forward or backward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (world(),))
    for module in (*model.blocks, model):  # the rest, tied embeddings among it, goes with the model itself
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # a sum, as add_up makes it
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    register_fsdp_forward_method(model, "hidden")  # after which the head stays whole for those who call it


def full(state: Any) -> Any:
    """A state whose sharded tensors are whole, in the memory of process 0; the others get None in their places."""
    if isinstance(state, dict):
        return {name: full(value) for name, value in state.items()}
    if is_sharded(state):
        tensor = state.full_tensor()
        return tensor.detach().cpu() if rank() == 0 else None
    return state


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's state dict, whole on process 0."""
    if not is_sharded(model):
        return model.state_dict()
    once = {p: full(p) for p in model.parameters()}  # tied ones are written once, as in a plain state dict
    return {name: once[p] for name, p in model.named_parameters(remove_duplicate=False)}


def share_of(tensor: Tensor, like: Any) -> Tensor:
    """This process's share of a whole tensor, if `like` is such a share."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
