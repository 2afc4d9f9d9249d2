"""How many threads a process computes in: several processes have one each, and so does a small model.

Threads wait for each other at every small product. Two are faster while nothing else runs, and several times slower
than one as soon as another program keeps a core busy.
"""

import os

import torch

from config import Config

SMALL = 256  # --hidden_size below which a product is too small for several threads
LOCAL = "LOCAL_WORLD_SIZE"  # processes on this machine, as torchrun tells


def settle(config: Config) -> int:
    """Take --threads, or what OMP_NUM_THREADS has made torch take; with neither, one where more would lose."""
    small = config.device == "cpu" and not config.init and config.hidden_size < SMALL
    if config.threads:
        torch.set_num_threads(config.threads)
    elif "OMP_NUM_THREADS" not in os.environ and (small or os.environ.get(LOCAL, "1") != "1"):
        torch.set_num_threads(1)
    return torch.get_num_threads()
