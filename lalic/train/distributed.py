"""Several processes that train one model: torchrun starts them, `torch.distributed` connects them.

    torchrun --nproc-per-node 2 -m lalic train ...

Each process has its part of every batch, and DistributedDataParallel averages the gradients. Noise and qualities are
drawn for the whole batch, so the result is that of one process with the same recipe, but for the order of sums. All
processes need access to the folder of the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lalic.errors import LalicError
from lalic.nn.noise import ALL, Share
from lalic_kernels.layers import derived


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[Share, torch.device]]:
    """Connect the processes that torchrun started, by gloo on CPUs and NCCL on GPUs: (share, device) of this process.

    Without torchrun: the whole batch, and the device as given. Raises ``LalicError`` if a GPU is missing.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield ALL, device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise LalicError(f"process {local} of this machine has no GPU: it has {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Share(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def parallel(module: nn.Module, share: Share, device: torch.device) -> nn.Module:
    """The module with gradients averaged over all processes; the module itself for one process."""
    if share.parts == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    DDP._set_params_and_buffers_to_ignore_for_model(module, derived(module))
    return DDP(module, device_ids=devices, broadcast_buffers=False)


def mean_over(values: dict[str, float], share: Share, device: torch.device) -> dict[str, float]:
    """The mean of each value over all processes."""
    if share.parts == 1:
        return values
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return dict(zip(values, (sums / share.parts).tolist(), strict=True))
