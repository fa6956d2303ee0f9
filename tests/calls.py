"""Watches torch's calls from inside, for tests of copies, memory and launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

ALLOCATIONS = ("aten::detach", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")


class Calls(TorchDispatchMode):
    """Inside, seen(operation, arguments, result) is called for every operation that reaches torch's dispatcher."""

    def __init__(self, seen: Callable[[Any, tuple[Any, ...], Any], object]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen(func, args, result)
        return result


def computes(func: Any) -> bool:
    """Whether an operation runs a kernel: no allocation, no view."""
    view = any(info.alias_info is not None and not info.alias_info.is_write for info in func._schema.returns)
    return not view and func._schema.name not in ALLOCATIONS
