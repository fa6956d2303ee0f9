"""Argument checks of every op (type, layout, shape, dtype, device), and the dtypes of torch.autocast.

The message of a failed check names the argument, what it was and what was expected. TypeError: not a tensor, or a wrong
dtype. ValueError: layout, shape or device. Strides are never an error: ops take any strided tensor and copy what their
kernels cannot read in place.

All checks are plain Python on sizes and types, so that torch.compile traces through them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shapes(op: str, *arguments: tuple[str, Tensor | None, str]) -> None:
    """Check shapes against patterns such as "B T C", "5 5" or "2*Cout Cout".

    Args:
        op: the op's name, for messages.
        arguments: (argument name, tensor, pattern). The first axis with a name sets its size; later axes of that name
            must agree. "2*N" means twice the size N, which must be set already. A number means itself. If a pattern
            ends with "?", the argument may be None.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: an argument is not strided, or its shape does not fit.
    """
    sizes: dict[str, int] = {}
    for name, value, pattern in arguments:
        if value is None and pattern.endswith("?"):
            continue
        axes = pattern.removesuffix("?").split()
        shown = f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"
        value = _strided(op, name, value, f"a tensor of shape {shown}")
        if value.dim() != len(axes):
            raise ValueError(
                f"{op}: {name} must have {len(axes)} dimensions {shown}, but has {value.dim()}: {tuple(value.shape)}"
            )
        for axis, size in zip(axes, value.shape, strict=True):
            expected = _size(axis, size, sizes)
            if size != expected:
                given = ", ".join(f"{key} = {number}" for key, number in sizes.items())
                raise ValueError(
                    f"{op}: {name} must have shape {shown}{' with ' + given if given else ''}, "
                    f"but has shape {tuple(value.shape)}"
                )


def _size(axis: str, size: int, sizes: dict[str, int]) -> int:
    if axis.isdigit():
        return int(axis)
    factor, _, name = axis.rpartition("*")
    if factor:
        return int(factor) * sizes[name]
    if name not in sizes:
        sizes[name] = size
    return sizes[name]


def _strided(op: str, name: str, value: Any, expected: str) -> Tensor:
    """`value`, if it is a strided tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be {expected}, but is a {type(value).__name__}")
    if value.layout is not torch.strided:
        raise ValueError(f"{op}: {name} must be a strided (dense) tensor, but its layout is {value.layout}")
    return value


def same_shape(op: str, first: tuple[str, Tensor], *others: tuple[str, Tensor]) -> None:
    """Check that all arguments are strided tensors of one shape.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: an argument is not strided, or has another shape.
    """
    for name, value in (first, *others):
        if _strided(op, name, value, "a tensor").shape != first[1].shape:
            raise ValueError(
                f"{op}: {name} must have {first[0]}'s shape {tuple(first[1].shape)}, but has shape {tuple(value.shape)}"
            )


def floating(op: str, name: str, value: Tensor) -> torch.dtype:
    """Check that a tensor's dtype is float16, bfloat16, float32 or float64, and return it."""
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, but is {_dtype(value.dtype)}")
    return value.dtype


def dtype_in(op: str, allowed: Sequence[torch.dtype], why: str, *arguments: tuple[str, Tensor | None]) -> None:
    """Check that each tensor has one of the allowed dtypes; `why` ends the sentence, e.g. "as k does"."""
    for name, value in arguments:
        if value is not None and value.dtype not in allowed:
            options = " or ".join(dict.fromkeys(_dtype(x) for x in allowed))
            raise TypeError(f"{op}: {name} must be {options} {why}, but is {_dtype(value.dtype)}")


def result_dtype(op: str, dtype: torch.dtype | None, name: str, value: Tensor) -> None:
    """Check a requested result dtype: None, the dtype of the tensor `name`, or a 16-bit one if that is float32."""
    narrower = (torch.float16, torch.bfloat16) if value.dtype == torch.float32 else ()
    allowed = (value.dtype, *narrower)
    if dtype is not None and dtype not in allowed:
        options = " or ".join(("None", *map(_dtype, allowed)))
        what = _dtype(dtype) if isinstance(dtype, torch.dtype) else f"a {type(dtype).__name__}"
        raise TypeError(f"{op}: dtype must be {options} beside {_dtype(value.dtype)} {name}, but is {what}")


def same_device(op: str, first: tuple[str, Tensor], *others: tuple[str, Tensor | None]) -> None:
    """Check that all tensors are on the first one's device."""
    device = first[1].device
    for name, value in others:
        if value is not None and value.device != device:
            raise ValueError(
                f"{op}: {name} must be on {device} as {first[0]} is, but is on {value.device}; move one of them"
            )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Autocast. Ops that are limited by memory traffic and compute in float32 narrow nothing: if autocast has narrowed some
# of their arguments before, all are promoted to the widest dtype.


def autocast_enabled(device: torch.device) -> bool:
    """Whether torch.autocast is on for tensors of a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> torch.autocast:
    """Switch autocast off: inside an op it would give a result another dtype than the registered one."""
    return torch.autocast(device_type=device.type, enabled=False)


def widest(*tensors: Tensor | None) -> list[Any]:
    """Tensors promoted to their widest dtype (float16 with bfloat16: float32). All unchanged if one is not floating."""
    dtypes = [x.dtype for x in tensors if x is not None]
    if any(dtype not in FLOATING for dtype in dtypes):
        return list(tensors)
    wide = functools.reduce(torch.promote_types, dtypes)
    return [None if x is None else x.to(wide) for x in tensors]


def beside(data: Tensor, parameter: Tensor) -> Tensor:
    """A parameter in a dtype that ops accept with `data`: unchanged in data's dtype or float32, else promoted."""
    if parameter.dtype in (data.dtype, torch.float32) or parameter.dtype not in FLOATING:
        return parameter
    return parameter.to(torch.promote_types(data.dtype, torch.float32))
