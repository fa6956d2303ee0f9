"""Every operation that a call executes, counted: products by formulas, the rest by the rules below.

torch's own counter knows matrix products, convolutions and attention, and the formulas of our ops; what happens element
by element it leaves out. Here each ATen call is looked up:

    formula       its entry in torch's registry: a multiply-add is two operations
    elementwise   so many operations an element of the result (`ELEMENTWISE`) or of the argument (`REDUCTIONS`, `WHOLE`)
    nothing       what only moves, makes or looks at numbers (`MOVES`, and all views)

An exponential, a logarithm, a root and a division are one operation each, as the paper's supplement counts them. What a
function is made of counts in full: sigmoid is an exponential, an addition and a division. A call that stands in no
table is not passed over: `count` raises.

Tools disagree on what they call FLOPs, so `operations` gives four counts of a model's forward pass:

    complete    every operation: formula and elementwise
    formulas    formula alone: what `FlopCounterMode` says with our package imported
    layers      multiply-adds of convolutions and linear layers, fused or not: no BiWKV, attention, norms, activations
    thop        multiply-adds that hooks on nn.Conv2d, nn.ConvTranspose2d and nn.Linear see, by thop's rules: what is
                computed without calling such a module is missed, and a transposed convolution counts once an output

All of it works on tensors without memory, at any size of picture.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from benchmarks.counting import Parts

Size = tuple[int, int]  # height, width

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
    "triu", "masked_fill", "resize", "pixel_shuffle", "pixel_unshuffle", "searchsorted",
    "reflection_pad2d", "replication_pad2d", "im2col",
}  # fmt: skip
ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
}  # fmt: skip
# Of layers: here multiply-adds are half of the formula.
PRODUCTS = {
    "aten::convolution", "aten::mm", "aten::addmm", "lalic_kernels::channel_mix", "lalic_kernels::entropy_params",
}  # fmt: skip
SHIFTS = {"lalic_kernels::token_shift", "lalic_kernels::norm_shift"}
NO_LAYERS = {"lalic_kernels::biwkv", "lalic_kernels::gaussian_likelihood"}


@dataclass
class Counted:
    """Operations of a call or of a part of it.

    Attributes:
        formula: of matrix products, convolutions, attention and our ops.
        elementwise: of the rest.
        layers: multiply-adds of convolutions and linear layers.
        calls: ATen calls that are no views; an op of ours is one.
        bytes: what the calls read and write, each tensor once a call.
    """

    formula: int = 0
    elementwise: int = 0
    layers: int = 0
    calls: int = 0
    bytes: int = 0

    @property
    def total(self) -> int:
        return self.formula + self.elementwise


class Operations(TorchDispatchMode, Parts):
    """The counter: counts inside, by part; `unknown` holds the calls that stand in no table."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        Parts.__init__(self)
        self.parts: defaultdict[str, Counted] = defaultdict(Counted)
        self.unknown: Counter[str] = Counter()

    def sum(self) -> Counted:
        """All parts together. Raises ``ValueError`` naming the calls that no rule counts."""
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            raise ValueError(f"no rule counts {names}: enter them in benchmarks/counting/operations.py")
        whole = Counted()
        for found in self.parts.values():
            for name, value in vars(found).items():
                setattr(whole, name, getattr(whole, name) + value)
        return whole

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
        if not (func.namespace == "aten" and _is_view(func)):
            self._add(func, args, kwargs, result)
        return result

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        found = self.parts[self.current]
        name = func._schema.name.partition("::")[2]
        plain = name.rstrip("_") if name.endswith("_") else name
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        found.bytes += sum(x.numel() * x.element_size() for x in tensors)
        if plain == "_unsafe_view":  # no call; its bytes stand in docs/gpu-prediction.md, which a measurement will end
            return
        found.calls += 1
        if plain in ATTENTION:
            query, key = args[0], args[1]
            found.formula += sdpa_flop_count(query.shape, key.shape, args[2].shape)
            scores = math.prod(query.shape[:-1]) * key.shape[-2]
            found.elementwise += (1 + WHOLE["_softmax"]) * scores  # scaled first
        elif func._overloadpacket in flop_registry:
            operations = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            found.formula += operations
            layers = _layers(func._schema.name, operations, result)
            if layers is None:
                self.unknown[func._schema.name] += 1
            found.layers += layers or 0
        elif plain in ELEMENTWISE:
            more = 1 if plain in ("add", "sub") and kwargs.get("alpha", 1) != 1 else 0
            found.elementwise += (ELEMENTWISE[plain] + more) * _elements(result) * _parts(plain, result)
        elif plain in FOURIER:
            found.elementwise += _fourier(plain, args, result)
        elif plain in REDUCTIONS:
            found.elementwise += _elements(args[0])
        elif plain in WHOLE:
            found.elementwise += WHOLE[plain] * _elements(args[0])
        elif plain not in MOVES:
            self.unknown[func._schema.name] += 1


def _layers(name: str, operations: int, result: Any) -> int | None:
    """Multiply-adds that are a layer's; None for an op of ours that no rule knows."""
    if name in PRODUCTS:
        return operations // 2
    if name in SHIFTS:
        return 25 * result.numel()
    if name == "lalic_kernels::spatial_mix":
        y = result[0]  # beside it: what training keeps
        return 4 * y.numel() * y.shape[-1]  # key, value, receptance, output
    return None if name.startswith("lalic_kernels::") and name not in NO_LAYERS else 0


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

    Raises ``ValueError`` naming what no rule counts.
    """
    with torch.no_grad(), Operations() as seen:
        result = call()
    return seen.sum(), result


class Thop:
    """Multiply-adds that module hooks see while it is entered, by thop's rules (thop/vision/calc_func.py)."""

    def __init__(self, model: nn.Module):
        self.macs = 0
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> Thop:
        for module in self._model.modules():
            if type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear):
                self._handles.append(module.register_forward_hook(self._seen))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        if isinstance(module, nn.Linear):
            self.macs += module.in_features * result.numel()
        else:
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            self.macs += result.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)


class RealNumbers(TorchFunctionMode):
    """Inside FakeTensorMode, lets whole numbers that code makes to address others with be real, and so be looked at.

    CompressAI's prior, for one, holds the order of dimensions in a tensor that it makes in each pass.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func in (torch.tensor, torch.arange) or (tensors and not any(isinstance(x, FakeTensor) for x in tensors)):
            with unset_fake_temporarily():
                made = func(*args, **kwargs)
            if not isinstance(made, Tensor) or not made.is_floating_point():
                return made
        elif len(tensors) > 1:
            with unset_fake_temporarily():  # what is given as a number is handed on as one
                args = tree_map(lambda x: int(x) if _is_number(x) else x, args)
        return func(*args, **kwargs)


def _is_number(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, FakeTensor) and x.ndim == 0 and not x.is_floating_point()


def without_memory(model: nn.Module) -> nn.Module:
    """The model with weights that take no memory, as on a CPU; inside FakeTensorMode. It stays so."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def operations(model: nn.Module, run: Callable[[Tensor], Any], sizes: Sequence[Size]) -> Iterator[dict[str, int]]:
    """Counts of run(picture) for each size: "complete", "formulas", "layers", "thop". `model` holds the modules.

    Raises ``ValueError`` naming a call that no rule counts.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), RealNumbers(), torch.no_grad():
        without_memory(model)
        run(torch.empty(1, 3, 128, 128))  # what is made of weights once is not counted
        for height, width in sizes:
            x = torch.empty(1, 3, height, width)
            with Thop(model) as thop:  # its hooks have layers called one by one
                run(x)
            with Operations() as seen:
                run(x)
            found = seen.sum()
            yield {"complete": found.total, "formulas": found.formula, "layers": found.layers, "thop": thop.macs}


def parameters(module: nn.Module) -> int:
    """Numbers in a module, derived ones that a state dict holds left out."""
    return sum(p.numel() for name, p in module.named_parameters() if "conv5x5_reparam" not in name)
