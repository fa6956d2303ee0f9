"""Every operation that a call executes, counted: products by torch's and our formulas, the rest by the rules below.

torch's own counter knows matrix products, convolutions and attention, and our ops' formulas; what happens element by
element it leaves out. Here each ATen call is looked up:

    formula       its entry in torch's registry: a multiply-add is two operations
    elementwise   so many operations an element of the result (`ELEMENTWISE`) or of the argument (`REDUCTIONS`, `WHOLE`)
    nothing       what only moves, makes or looks at numbers (`MOVES`, and all views)

An exponential, a logarithm, a root and a division are one operation each, as the paper's supplement counts them. What a
function is made of counts in full: sigmoid is an exponential, an addition and a division. A call that stands in no
table is not passed over: `count` raises.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_ONE = (
    "add", "sub", "rsub", "mul", "div", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "neg", "abs", "maximum",
    "minimum", "clamp", "clamp_min", "clamp_max", "relu", "round", "floor", "ceil", "pow", "reciprocal", "sign", "eq",
    "ne", "lt", "le", "gt", "ge", "logical_and", "logical_not", "bitwise_and", "bitwise_not", "tanh", "erf", "erfc",
)  # fmt: skip
ELEMENTWISE = dict.fromkeys(_ONE, 1) | {
    "leaky_relu": 2, "addcmul": 2, "lerp": 3, "sigmoid": 3, "softplus": 3, "silu": 4, "gelu": 5,
}  # fmt: skip
REDUCTIONS = ("sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "cumsum")  # one an element
# Largest, difference, exponential, sum, division; a norm as our norm_shift's formula has it. Of the argument.
WHOLE = {"_softmax": 5, "_safe_softmax": 5, "native_layer_norm": 8, "native_group_norm": 8}
FOURIER = ("_fft_r2c", "_fft_c2r", "_fft_c2c")  # 5 n log2 n for n complex points (Cooley and Tukey), half for real ones
MOVES = {
    "copy", "clone", "cat", "stack", "constant_pad_nd", "index", "index_select", "index_put", "gather", "scatter",
    "embedding", "roll", "flip", "where", "empty", "empty_like", "empty_strided", "new_empty", "new_zeros",
    "new_ones", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "fill", "zero", "arange", "linspace",
    "eye", "_to_copy", "scalar_tensor", "lift_fresh", "lift_fresh_copy", "repeat", "_local_scalar_dense", "tril",
    "triu", "masked_fill", "resize", "pixel_shuffle", "pixel_unshuffle", "searchsorted", "_unsafe_view",
    "reflection_pad2d", "replication_pad2d", "im2col",
}  # fmt: skip
ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Operations of a call.

    Attributes:
        formula: of matrix products, convolutions, attention and our ops.
        elementwise: of the rest.
        calls: ATen calls that are no views.
    """

    formula: int
    elementwise: int
    calls: int

    @property
    def total(self) -> int:
        return self.formula + self.elementwise


class Operations(TorchDispatchMode):
    """Counts inside; `unknown` holds the calls that stand in no table."""

    def __init__(self) -> None:
        super().__init__()
        self.formula = self.elementwise = self.calls = 0
        self.unknown: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func._overloadpacket not in flop_registry:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._add(func, args, kwargs, result)
        return result

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func._schema.name.partition("::")[2]
        plain = name.rstrip("_") if name.endswith("_") else name
        if func.namespace == "aten" and _is_view(func):
            return
        self.calls += 1
        if plain in ATTENTION:
            query, key = args[0], args[1]
            self.formula += sdpa_flop_count(query.shape, key.shape, args[2].shape)
            scores = math.prod(query.shape[:-1]) * key.shape[-2]
            self.elementwise += (1 + WHOLE["_softmax"]) * scores  # scaled first
        elif func._overloadpacket in flop_registry:
            self.formula += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        elif plain in ELEMENTWISE:
            more = 1 if plain in ("add", "sub") and kwargs.get("alpha", 1) != 1 else 0
            self.elementwise += (ELEMENTWISE[plain] + more) * _elements(result) * _parts(plain, result)
        elif plain in FOURIER:
            self.elementwise += _fourier(plain, args, result)
        elif plain in REDUCTIONS:
            self.elementwise += _elements(args[0])
        elif plain in WHOLE:
            self.elementwise += WHOLE[plain] * _elements(args[0])
        elif plain not in MOVES:
            self.unknown[func._schema.name] += 1


def _is_view(func: Any) -> bool:
    aliases = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _parts(plain: str, result: Any) -> int:
    """Real operations in one of complex numbers: a product is six, others are taken for two."""
    if not (isinstance(result, Tensor) and result.is_complex()):
        return 1
    return 6 if plain == "mul" else 2


def _fourier(plain: str, args: Any, result: Tensor) -> int:
    whole = result if plain == "_fft_c2r" else args[0]  # real sides have all points
    points = math.prod(whole.shape[dim] for dim in args[1])
    return round((5 if plain == "_fft_c2c" else 2.5) * whole.numel() * math.log2(points))


def _elements(found: Any) -> int:
    if isinstance(found, Tensor):
        return found.numel()
    return sum(map(_elements, found)) if isinstance(found, tuple | list) else 1


def count(call: Callable[[], Any]) -> tuple[Counted, Any]:
    """What a call executes, and its result. No gradients.

    Works on tensors without memory too (`FakeTensorMode`). Raises ``ValueError`` naming what no rule counts.
    """
    with torch.no_grad(), Operations() as seen:
        result = call()
    if seen.unknown:
        raise ValueError(f"no rule counts {', '.join(sorted(seen.unknown))}: enter them in benchmarks/operations.py")
    return Counted(seen.formula, seen.elementwise, seen.calls), result
