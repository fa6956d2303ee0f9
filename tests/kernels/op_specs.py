"""The registry of the contract suite, one OpSpec per op. A new op needs an entry and must pass `test_contract.py`."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor

import lalic_kernels
from lalic_kernels import installed
from lalic_kernels.biwkv import reference as biwkv_reference
from lalic_kernels.entropy_params import reference as entropy_reference
from lalic_kernels.gaussian import reference as gaussian_reference
from lalic_kernels.shift import reference as shift_reference

Arguments = dict[str, Tensor]
CPU_BACKENDS = ("torch", "cpu") if installed.NUMBA else ("torch",)  # of an op with compiled code


def _why_no_interpreter() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's interpreter is off (with a GPU the kernels run on it)"
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        return "the interpreter of this Triton cannot loop with numpy >= 2.4"
    return ""


WHY_NO_INTERPRETER = _why_no_interpreter()
INTERPRETER = not WHY_NO_INTERPRETER


@dataclass(frozen=True)
class BadCall:
    """A call that must be refused: how to spoil good arguments, the exception, and parts of its message."""

    spoil: Callable[[Arguments], Arguments]
    error: type[Exception]
    message: tuple[str, ...]


@dataclass(frozen=True)
class OpSpec:
    """What the contract suite needs to know about an op."""

    name: str
    public: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    make: Callable[..., Arguments]  # make(sizes, generator) -> float64 arguments
    cases: dict[str, tuple[int, ...]]  # odd sizes, sizes of one, more than one tile and chunk
    empty: dict[str, tuple[int, ...]]  # no elements in the result
    gradient_case: tuple[int, ...]  # small enough for gradcheck
    bad: dict[str, BadCall]
    cpu_backends: tuple[str, ...]
    registered: Callable[[Arguments, str], tuple]  # arguments of torch.ops.lalic_kernels.<name>
    flops: Callable[[tuple[int, ...]], int]
    bytes: Callable[[tuple[int, ...]], int]  # for float32
    variant: str = ""  # another entry of the same op, with optional arguments given
    # Triton's interpreter stores bfloat16 as bit patterns, and tl.dot multiplies those: only a GPU can test it.
    multiplies_matrices: bool = False
    float32_result: bool = False  # also for 16-bit arguments

    @property
    def id(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    def backends(self, device: str) -> tuple[str, ...]:
        """The implementations that can run on a device."""
        if device == "cuda":
            return ("triton", "torch")
        return self.cpu_backends + (("triton",) if INTERPRETER else ())


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _biwkv_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    batch, tokens, channels = sizes
    divisor = max(tokens, 1)  # as the model does; decays of both signs
    return {
        "w": _normal(generator, channels) * 3 / divisor,
        "u": _normal(generator, channels) * 3 / divisor,
        "k": _normal(generator, batch, tokens, channels) * 2,
        "v": _normal(generator, batch, tokens, channels),
    }


def _gated_biwkv_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    return _biwkv_arguments(sizes, generator) | {"gate": _normal(generator, *sizes) * 3}


def _shift_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    return {"x": _normal(generator, *sizes), "weight": _normal(generator, sizes[-1], 5, 5) / 5}


def _norm_shift_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    return {
        # A mean as large as the deviations, like that of a residual stream.
        "x": 1 + _normal(generator, *sizes),
        "norm_weight": 1 + _normal(generator, sizes[-1]) / 4,
        "norm_bias": _normal(generator, sizes[-1]) / 4,
        "weight": _normal(generator, sizes[-1], 5, 5) / 5,
    }


def _gaussian_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    """Not at the bounds, where finite differences miss the gradient that passes; test_gaussian.py tests the bounds."""
    scales = 0.3 + _normal(generator, *sizes).abs() * 2
    means = _normal(generator, *sizes) * 3
    return {"y": means + _normal(generator, *sizes).clamp(-4, 4) * scales, "scales": scales, "means": means}


def _entropy_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    batch, positions, n_in, n_out = sizes
    return {
        "x": _normal(generator, batch, positions, n_in),
        "mix_weight": _normal(generator, n_out, n_in) / max(n_in, 1) ** 0.5,
        "mix_bias": _normal(generator, n_out) / 2,
        "norm_weight": 1 + _normal(generator, n_out) / 4,
        "norm_bias": _normal(generator, n_out) / 4,
        "key": _normal(generator, 2 * n_out, n_out) / n_out**0.5,
        "receptance": _normal(generator, n_out, n_out) / n_out**0.5,
        "value": _normal(generator, n_out, 2 * n_out) / (2 * n_out) ** 0.5,
    }


def _with(**changes: Callable[[Arguments], object]) -> Callable[[Arguments], Arguments]:
    return lambda arguments: arguments | {name: change(arguments) for name, change in changes.items()}  # type: ignore[return-value]


BIWKV = OpSpec(
    name="biwkv",
    public=lalic_kernels.biwkv,
    reference=biwkv_reference.biwkv,
    make=_biwkv_arguments,
    # 64 is the chunk of the short launch and of the torch path; 16 and 32 are blocks of channels.
    cases={
        "one token": (1, 1, 3),
        "one of each": (1, 1, 1),
        "two tokens": (2, 2, 5),
        "one chunk": (1, 16, 32),
        "one more than a chunk": (1, 17, 33),
        "a few chunks, batch": (3, 50, 7),
        "past the torch path's chunk": (1, 65, 40),
        "several torch chunks": (2, 200, 9),
    },
    empty={"no batch": (0, 5, 4), "no tokens": (2, 0, 4), "no channels": (2, 5, 0)},
    gradient_case=(2, 6, 3),
    bad={
        "k is a list": BadCall(_with(k=lambda a: a["k"].tolist()), TypeError, ("k must be a tensor", "list")),
        "k has two dimensions": BadCall(
            _with(k=lambda a: a["k"][0]), ValueError, ("k must have 3 dimensions", "(B, T, C)")
        ),
        "v is shorter": BadCall(
            _with(v=lambda a: a["v"][:, 1:]), ValueError, ("v must have shape (B, T, C)", "T = 17")
        ),
        "w has another width": BadCall(
            _with(w=lambda a: a["w"][1:]), ValueError, ("w must have shape (C,)", "C = 33", "(32,)")
        ),
        "u is a scalar": BadCall(_with(u=lambda a: a["u"][0]), ValueError, ("u must have 1 dimensions",)),
        "k is integer": BadCall(_with(k=lambda a: a["k"].long()), TypeError, ("k must be float16", "int64")),
        "v has another dtype": BadCall(_with(v=lambda a: a["v"].double()), TypeError, ("v must be float32", "float64")),
        "w has a wrong dtype": BadCall(_with(w=lambda a: a["w"].half()), TypeError, ("w must be float32", "float16")),
        "v is elsewhere": BadCall(_with(v=lambda a: a["v"].to("meta")), ValueError, ("v must be on", "meta")),
        "k is sparse": BadCall(_with(k=lambda a: a["k"].to_sparse()), ValueError, ("k must be a strided", "sparse")),
    },
    cpu_backends=CPU_BACKENDS,
    registered=lambda a, backend: (a["w"], a["u"], a["k"], a["v"], None, backend),
    flops=lambda s: 29 * s[0] * s[1] * s[2],
    bytes=lambda s: 4 * (3 * s[0] * s[1] * s[2] + 2 * s[2]),
)

GATED_BIWKV = replace(
    BIWKV,
    variant="gated",
    make=_gated_biwkv_arguments,
    bad={
        "gate is a number": BadCall(_with(gate=lambda a: 0.5), TypeError, ("gate must be a tensor", "float")),
        "gate has two dimensions": BadCall(
            _with(gate=lambda a: a["gate"][0]), ValueError, ("gate must have 3 dimensions", "(B, T, C)")
        ),
        "gate is narrower": BadCall(
            _with(gate=lambda a: a["gate"][..., 1:]), ValueError, ("gate must have shape (B, T, C)", "C = 33")
        ),
        "gate has another dtype": BadCall(
            _with(gate=lambda a: a["gate"].bfloat16()), TypeError, ("gate must be float32", "bfloat16")
        ),
        "gate is elsewhere": BadCall(
            _with(gate=lambda a: a["gate"].to("meta")), ValueError, ("gate must be on", "meta")
        ),
    },
    registered=lambda a, backend: (a["w"], a["u"], a["k"], a["v"], a["gate"], backend),
    flops=lambda s: 33 * s[0] * s[1] * s[2],
    bytes=lambda s: 4 * (4 * s[0] * s[1] * s[2] + 2 * s[2]),
)

TOKEN_SHIFT = OpSpec(
    name="token_shift",
    public=lalic_kernels.token_shift,
    reference=shift_reference.token_shift,
    make=_shift_arguments,
    cases={
        "one pixel": (1, 1, 1, 3),
        "one line": (2, 1, 9, 5),
        "one column": (1, 7, 1, 33),
        "smaller than the kernel": (1, 3, 2, 4),
        "a whole tile": (1, 8, 16, 32),
        "odd and past a tile": (2, 5, 17, 35),
    },
    empty={"no batch": (0, 4, 4, 3), "no lines": (1, 0, 4, 3), "no columns": (1, 4, 0, 3), "no channels": (1, 4, 4, 0)},
    gradient_case=(1, 3, 4, 2),
    bad={
        "x is None": BadCall(_with(x=lambda a: None), TypeError, ("x must be a tensor", "NoneType")),
        "x has three dimensions": BadCall(
            _with(x=lambda a: a["x"][0]), ValueError, ("x must have 4 dimensions", "(B, H, W, C)")
        ),
        "weight is 3x3": BadCall(
            _with(weight=lambda a: a["weight"][:, :3, :3]), ValueError, ("weight must have shape (C, 5, 5)",)
        ),
        "weight as conv2d has it": BadCall(
            _with(weight=lambda a: a["weight"][:, None]), ValueError, ("weight must have 3 dim",)
        ),
        "channels first": BadCall(
            _with(x=lambda a: a["x"].permute(0, 3, 1, 2)),
            ValueError,
            ("weight must have shape", "C = 17", "(35, 5, 5)"),
        ),
        "x is bool": BadCall(_with(x=lambda a: a["x"] > 0), TypeError, ("x must be float16", "bool")),
        "weight has another dtype": BadCall(
            _with(weight=lambda a: a["weight"].half()), TypeError, ("weight must be float32",)
        ),
        "weight is elsewhere": BadCall(
            _with(weight=lambda a: a["weight"].to("meta")), ValueError, ("weight must be on", "meta")
        ),
    },
    cpu_backends=CPU_BACKENDS,
    registered=lambda a, backend: (a["x"], a["weight"], backend),
    flops=lambda s: 50 * s[0] * s[1] * s[2] * s[3],
    bytes=lambda s: 4 * (2 * s[0] * s[1] * s[2] * s[3] + 25 * s[3]),
)

NORM_SHIFT = OpSpec(
    name="norm_shift",
    public=lalic_kernels.norm_shift,
    reference=shift_reference.norm_shift,
    make=_norm_shift_arguments,
    cases={
        "one pixel": (1, 1, 1, 3),
        "one line": (2, 1, 17, 5),
        "one column": (1, 17, 1, 33),
        "smaller than the kernel": (1, 3, 2, 4),
        "a whole tile": (1, 8, 16, 32),
        "odd and past a tile": (2, 5, 17, 35),
    },
    empty={"no batch": (0, 4, 4, 3), "no lines": (1, 0, 4, 3), "no columns": (1, 4, 0, 3), "no channels": (1, 4, 4, 0)},
    gradient_case=(1, 3, 4, 3),
    bad={
        "x is a number": BadCall(_with(x=lambda a: 1.0), TypeError, ("x must be a tensor", "float")),
        "x is tokens": BadCall(
            _with(x=lambda a: a["x"].flatten(1, 2)), ValueError, ("x must have 4 dimensions", "(B, H, W, C)")
        ),
        "norm_weight is short": BadCall(
            _with(norm_weight=lambda a: a["norm_weight"][1:]), ValueError, ("norm_weight must have shape (C,)", "(34,)")
        ),
        "norm_bias is an image": BadCall(
            _with(norm_bias=lambda a: a["norm_bias"][None]), ValueError, ("norm_bias must have 1 dimensions",)
        ),
        "weight as conv2d has it": BadCall(
            _with(weight=lambda a: a["weight"][:, None]), ValueError, ("weight must have 3 dim",)
        ),
        "x is integer": BadCall(_with(x=lambda a: a["x"].int()), TypeError, ("x must be float16", "int32")),
        "norm_bias has another dtype": BadCall(
            _with(norm_bias=lambda a: a["norm_bias"].half()), TypeError, ("norm_bias must be float32",)
        ),
        "weight is elsewhere": BadCall(
            _with(weight=lambda a: a["weight"].to("meta")), ValueError, ("weight must be on", "meta")
        ),
    },
    cpu_backends=CPU_BACKENDS,
    registered=lambda a, backend: (*a.values(), 1e-5, None, backend),
    flops=lambda s: 58 * s[0] * s[1] * s[2] * s[3],
    bytes=lambda s: 4 * (2 * s[0] * s[1] * s[2] * s[3] + 27 * s[3]),
)

ENTROPY_PARAMS = OpSpec(
    name="entropy_params",
    public=lalic_kernels.entropy_params,
    reference=entropy_reference.entropy_params,
    make=_entropy_arguments,
    cases={
        "one of each": (1, 1, 1, 1),
        "narrow": (2, 3, 5, 4),
        "one tile": (1, 32, 32, 32),
        "odd and past a tile": (2, 17, 45, 37),
        "past a 16-bit tile": (1, 67, 33, 70),
        "past a block of the norm": (1, 5, 20, 261),
    },
    empty={"no batch": (0, 4, 6, 5), "no positions": (2, 0, 6, 5)},
    gradient_case=(1, 3, 4, 5),
    bad={
        "x is an image": BadCall(
            _with(x=lambda a: a["x"][None]), ValueError, ("x must have 3 dimensions", "(B, P, Cin)")
        ),
        "mix_weight as conv2d has it": BadCall(
            _with(mix_weight=lambda a: a["mix_weight"][..., None, None]),
            ValueError,
            ("mix_weight must have 2 dimensions",),
        ),
        "mix_weight transposed": BadCall(
            _with(mix_weight=lambda a: a["mix_weight"].t()),
            ValueError,
            ("mix_weight must have shape (Cout, Cin)", "Cin = 45"),
        ),
        "key transposed": BadCall(
            _with(key=lambda a: a["key"].t()), ValueError, ("key must have shape (2*Cout, Cout)", "Cout = 37")
        ),
        "receptance too wide": BadCall(
            _with(receptance=lambda a: a["key"]), ValueError, ("receptance must have shape",)
        ),
        "norm_bias too short": BadCall(
            _with(norm_bias=lambda a: a["norm_bias"][:1]), ValueError, ("norm_bias must have shape",)
        ),
        "value is a number": BadCall(_with(value=lambda a: 1.0), TypeError, ("value must be a tensor", "float")),
        "x is integer": BadCall(_with(x=lambda a: a["x"].int()), TypeError, ("x must be float16", "int32")),
        "mix_bias is float64": BadCall(
            _with(mix_bias=lambda a: a["mix_bias"].double()), TypeError, ("mix_bias must be float32",)
        ),
        "key is elsewhere": BadCall(_with(key=lambda a: a["key"].to("meta")), ValueError, ("key must be on", "meta")),
    },
    cpu_backends=("torch",),
    multiplies_matrices=True,
    registered=lambda a, backend: (*a.values(), None, 1e-5, backend),
    flops=lambda s: 2 * s[0] * s[1] * s[3] * (s[2] + 5 * s[3]),
    bytes=lambda s: 4 * (s[0] * s[1] * (s[2] + s[3]) + s[3] * s[2] + 3 * s[3] + 5 * s[3] ** 2),
)


def _entropy_partial_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    batch, positions, _, n_out = sizes
    return _entropy_arguments(sizes, generator) | {"partial": _normal(generator, batch, positions, n_out)}


ENTROPY_PARAMS_PARTIAL = replace(
    ENTROPY_PARAMS,
    variant="partial",
    make=_entropy_partial_arguments,
    # Not a norm of one channel: m - mean is the rounding error of the sum, times 1 / sqrt(eps).
    cases={case: sizes for case, sizes in ENTROPY_PARAMS.cases.items() if case != "one of each"},
    bad={
        "partial is a number": BadCall(_with(partial=lambda a: 0.0), TypeError, ("partial must be a tensor", "float")),
        "partial is an image": BadCall(
            _with(partial=lambda a: a["partial"][None]), ValueError, ("partial must have 3 dimensions", "(B, P, Cout)")
        ),
        "partial is as wide as x": BadCall(
            _with(partial=lambda a: a["x"]), ValueError, ("partial must have shape (B, P, Cout)", "Cout = 37")
        ),
        "partial is float64": BadCall(
            _with(partial=lambda a: a["partial"].double()), TypeError, ("partial must be float32", "float64")
        ),
        "partial is elsewhere": BadCall(
            _with(partial=lambda a: a["partial"].to("meta")), ValueError, ("partial must be on", "meta")
        ),
    },
    registered=lambda a, backend: (*a.values(), 1e-5, backend),
    bytes=lambda s: ENTROPY_PARAMS.bytes(s) + 4 * s[0] * s[1] * s[3],
)

GAUSSIAN_LIKELIHOOD = OpSpec(
    name="gaussian_likelihood",
    public=lalic_kernels.gaussian_likelihood,
    reference=gaussian_reference.gaussian_likelihood,
    make=_gaussian_arguments,
    # 1024 elements per program, in vectors of 4 if the row length is a multiple of 4.
    cases={
        "a number": (),
        "one": (1,),
        "a few": (7,),
        "one program": (32, 32),
        "past a program": (3, 5, 70),
        "rows of vectors past a program": (2, 3, 4, 52),
        "rows past a program": (2, 3, 4, 51),
    },
    empty={"no rows": (0, 4), "no columns": (2, 3, 0), "nothing": (0,)},
    gradient_case=(2, 3, 2),
    bad={
        "y is a list": BadCall(_with(y=lambda a: a["y"].tolist()), TypeError, ("y must be a tensor", "list")),
        "scales is a number": BadCall(_with(scales=lambda a: 1.0), TypeError, ("scales must be a tensor", "float")),
        "scales would broadcast": BadCall(
            _with(scales=lambda a: a["scales"][:, :1]),
            ValueError,
            ("scales must have y's shape (2, 3, 4)", "(2, 1, 4)"),
        ),
        "means is a row": BadCall(
            _with(means=lambda a: a["means"][0, 0]), ValueError, ("means must have y's shape (2, 3, 4)", "(4,)")
        ),
        "means is sparse": BadCall(
            _with(means=lambda a: a["means"].to_sparse()), ValueError, ("means must be a strided", "sparse")
        ),
        "y is integer": BadCall(_with(y=lambda a: a["y"].int()), TypeError, ("y must be float16", "int32")),
        "scales is bool": BadCall(_with(scales=lambda a: a["scales"] > 0), TypeError, ("scales must be", "bool")),
        "means is elsewhere": BadCall(
            _with(means=lambda a: a["means"].to("meta")), ValueError, ("means must be on", "meta")
        ),
    },
    cpu_backends=CPU_BACKENDS,
    registered=lambda a, backend: (a["y"], a["scales"], a["means"], backend),
    flops=lambda s: 69 * math.prod(s),
    bytes=lambda s: 16 * math.prod(s),
    float32_result=True,
)

SPECS = (BIWKV, GATED_BIWKV, TOKEN_SHIFT, NORM_SHIFT, ENTROPY_PARAMS, ENTROPY_PARAMS_PARTIAL, GAUSSIAN_LIKELIHOOD)
BAD_CASE = {
    "biwkv": (1, 17, 33),
    "token_shift": (2, 5, 17, 35),
    "norm_shift": (2, 5, 17, 35),
    "entropy_params": (2, 17, 45, 37),
    "gaussian_likelihood": (2, 3, 4),
}

from mix_specs import CHANNEL_MIX, SPATIAL_MIX  # noqa: E402  (mix_specs imports the definitions above)

SPECS += (CHANNEL_MIX, SPATIAL_MIX)
BAD_CASE |= {"channel_mix": (1, 3, 3, 24, 4), "spatial_mix": (1, 3, 3, 24)}
