"""What exact launches share: the check for inputs that are not finite, memory that begins as zeros, images' strides."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from lalic_kernels.exact.numbers import NotFinite
from lalic_kernels.launch import blocks, on


class _Zeros:
    """Memory that began as zeros, for a status and maxima, handed out in pieces: one launch for a whole picture."""

    def __init__(self, device: torch.device, size: int):
        self.memory = torch.zeros(size, dtype=torch.int32, device=device)
        self.status = self.memory[:1]
        self.used = ALIGN

    def take(self, count: int) -> Tensor:
        if self.used + count > self.memory.numel():
            self.memory = torch.zeros(max(count, ARENA), dtype=torch.int32, device=self.memory.device)
            self.used = 0
        found = self.memory[self.used : self.used + count]
        self.used += blocks(count, ALIGN) * ALIGN
        return found


ARENA, ALIGN = 1 << 15, 32  # numbers of int32
_SHARED: ContextVar[dict[torch.device, _Zeros] | None] = ContextVar("lalic_exact_zeros", default=None)


@contextlib.contextmanager
def one_check() -> Iterator[None]:
    """Calls inside look for inputs that are not finite together, at the end: no call of its own waits for the device.

    Raises:
        NotFinite: at the end, if one was not finite. What was computed from it is then without meaning.
    """
    if _SHARED.get() is not None:
        yield
        return
    found: dict[torch.device, _Zeros] = {}
    token = _SHARED.set(found)
    try:
        yield
    finally:
        _SHARED.reset(token)
    for memory in found.values():
        _raise_for(memory.status)


@contextlib.contextmanager
def statuses() -> Iterator[list[Tensor]]:
    """Calls inside look for inputs that are not finite together; the list has a status (1,) int32 a device at the end.

    A status is not zero where an input was not finite, as soon as the launches inside have run.
    """
    found: dict[torch.device, _Zeros] = {}
    left: list[Tensor] = []
    token = _SHARED.set(found)
    try:
        yield left
    finally:
        _SHARED.reset(token)
    left += [memory.status for memory in found.values()]


def _raise_for(status: Tensor) -> None:
    if int(status):
        raise NotFinite


def _shared_zeros(device: torch.device) -> _Zeros | None:
    """The memory of the calls that share one check; None outside."""
    shared = _SHARED.get()
    if shared is None:
        return None
    if device not in shared:
        shared[device] = _Zeros(device, ARENA)
    return shared[device]


@contextlib.contextmanager
def checked(device: torch.device) -> Iterator[Tensor]:
    """A status for kernels to write to, looked at on leaving; the device is current meanwhile."""
    shared = _shared_zeros(device)
    status = torch.zeros(1, dtype=torch.int32, device=device) if shared is None else shared.status
    with on(device):
        yield status
    if shared is None:
        _raise_for(status)


def zeros(device: torch.device, *shape: int) -> Tensor:
    """int32 zeros, which are below all magnitude bits and every order key: what maxima are raised from."""
    shared, count = _shared_zeros(device), math.prod(shape)
    found = torch.zeros(count, dtype=torch.int32, device=device) if shared is None else shared.take(count)
    return found.reshape(shape)


def lined_up(x: Tensor) -> Tensor:
    """x (B, H, W, C) or a copy: with channels side by side, positions one after the other, any distance apart."""
    return x if _distance(x) else x.contiguous()


def positions(x: Tensor) -> int:
    """How far apart the positions of x (B, H, W, C) are. Raises ValueError where `lined_up` would copy."""
    found = _distance(x)
    if not found:
        raise ValueError(f"x must have its positions one after the other, but has strides {x.stride()}")
    return found


def _distance(x: Tensor) -> int:
    """0 where positions are not one after the other."""
    images, height, width, channels = x.shape
    # Of a dimension of one the stride says nothing.
    stride = x.stride(2) if width > 1 else x.stride(1) if height > 1 else x.stride(0) if images > 1 else channels
    steps = ((width, stride), (height, width * stride), (images, height * width * stride))
    good = stride >= channels and (channels == 1 or x.stride(3) == 1)
    good = good and all(size == 1 or x.stride(d) == step for d, (size, step) in zip((2, 1, 0), steps, strict=True))
    return stride if good else 0
