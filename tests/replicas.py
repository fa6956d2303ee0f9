"""A replica of a module as nn.DataParallel makes one on each GPU, on the CPU."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def replica_of(module: nn.Module) -> nn.Module:
    """As `torch.nn.parallel.replicate`, with products with one in place of broadcasts to another device."""
    parts = list(module.modules())
    copies = [part._replicate_for_data_parallel() for part in parts]
    for part, copy in zip(parts, copies, strict=True):
        copy._former_parameters = OrderedDict()
        for name, child in part._modules.items():
            copy._modules[name] = None if child is None else copies[next(i for i, p in enumerate(parts) if p is child)]
        for name, weight in part._parameters.items():
            if weight is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, weight * 1)
                copy._former_parameters[name] = getattr(copy, name)
        for name, buffer in part._buffers.items():
            setattr(copy, name, buffer)
    return copies[0]
