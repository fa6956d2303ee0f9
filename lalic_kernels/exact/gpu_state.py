"""Shared by exact launches: the check that inputs are finite, memory of zeros, strides of images."""

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
    """Zeros for a status and for maxima, allocated in one block and handed out in parts, to save launches."""

    def __init__(self, device: torch.device, size: int):
        self.memory = torch.zeros(size, dtype=torch.int32, device=device)
        self.status = self.memory[:1]
        self.used = ALIGN

    def take(self, count: int) -> Tensor:
        if self.used + count > self.memory.numel():
            self.memory = torch.zeros(max(count, ARENA), dtype=torch.int32, device=self.memory.device)
            self.used = 0
        part = self.memory[self.used : self.used + count]
        self.used += blocks(count, ALIGN) * ALIGN
        return part


ARENA, ALIGN = 1 << 15, 32  # counted in int32
_SHARED: ContextVar[dict[torch.device, _Zeros] | None] = ContextVar("lalic_exact_zeros", default=None)


@contextlib.contextmanager
def _sharing() -> Iterator[dict[torch.device, _Zeros]]:
    """A context in which all calls share one status a device; it fills the dictionary."""
    zeros_by_device: dict[torch.device, _Zeros] = {}
    token = _SHARED.set(zeros_by_device)
    try:
        yield zeros_by_device
    finally:
        _SHARED.reset(token)


@contextlib.contextmanager
def one_check() -> Iterator[None]:
    """One check at the end that the inputs of all calls inside were finite, so that no call waits for the device.

    Raises:
        NotFinite: at the end, if an input was not finite; then results are meaningless.
    """
    if _SHARED.get() is not None:
        yield
        return
    with _sharing() as shared:
        yield
    for memory in shared.values():
        _raise_for(memory.status)


@contextlib.contextmanager
def statuses() -> Iterator[list[Tensor]]:
    """No check; at the end the list has one status (1,) int32 for each device.

    A status is not zero if an input of a call inside was not finite, once the launches have run.
    """
    result: list[Tensor] = []
    with _sharing() as shared:
        yield result
    result += [memory.status for memory in shared.values()]


def _raise_for(status: Tensor) -> None:
    if int(status):
        raise NotFinite


def _shared_zeros(device: torch.device) -> _Zeros | None:
    """The zeros of the calls that share one check; None outside of one."""
    shared = _SHARED.get()
    if shared is None:
        return None
    if device not in shared:
        shared[device] = _Zeros(device, ARENA)
    return shared[device]


@contextlib.contextmanager
def checked(device: torch.device) -> Iterator[Tensor]:
    """A status (1,) int32 for kernels to write to, checked at the end; makes the device current."""
    shared = _shared_zeros(device)
    status = torch.zeros(1, dtype=torch.int32, device=device) if shared is None else shared.status
    with on(device):
        yield status
    if shared is None:
        _raise_for(status)


def zeros(device: torch.device, *shape: int) -> Tensor:
    """int32 zeros, the start of maxima: not above any magnitude bits or order key."""
    shared, count = _shared_zeros(device), math.prod(shape)
    flat = torch.zeros(count, dtype=torch.int32, device=device) if shared is None else shared.take(count)
    return flat.reshape(shape)


def evenly_spaced(x: Tensor) -> Tensor:
    """x (B, H, W, C), or a contiguous copy if its channels are not contiguous or its positions not evenly spaced."""
    return x if _position_stride(x) else x.contiguous()


def position_stride(x: Tensor) -> int:
    """The stride between the positions of x (B, H, W, C).

    Raises:
        ValueError: channels are not contiguous, or positions not evenly spaced in row-major order.
    """
    stride = _position_stride(x)
    if not stride:
        raise ValueError(f"x must have its positions one after the other, but has strides {x.stride()}")
    return stride


def _position_stride(x: Tensor) -> int:
    """The stride between positions; 0 if they are not evenly spaced."""
    images, height, width, channels = x.shape
    # The stride of a dimension of size 1 has no meaning.
    stride = x.stride(2) if width > 1 else x.stride(1) if height > 1 else x.stride(0) if images > 1 else channels
    steps = ((width, stride), (height, width * stride), (images, height * width * stride))
    good = stride >= channels and (channels == 1 or x.stride(3) == 1)
    good = good and all(size == 1 or x.stride(d) == step for d, (size, step) in zip((2, 1, 0), steps, strict=True))
    return stride if good else 0
