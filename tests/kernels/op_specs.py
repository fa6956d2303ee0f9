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
from lalic_kernels.mix import reference as mix_reference
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
class OpSpec:
    """What the contract suite needs to know about an op."""

    name: str
    public: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    make: Callable[..., Arguments]  # make(sizes, generator) -> float64 arguments
    cases: dict[str, tuple[int, ...]]  # odd sizes, sizes of one, more than one tile and chunk
    empty: dict[str, tuple[int, ...]]  # no elements in the result
    gradient_case: tuple[int, ...]  # small enough for gradcheck
    wrong: tuple[tuple[str, Callable[[Tensor], Tensor | None], str], ...]  # argument of the last case, change, message
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
    wrong=(
        ("k", lambda k: k[0], "k must have 3 dimensions (B, T, C), but has 2: (200, 9)"),
        ("v", lambda v: v[:, 1:], "v must have shape (B, T, C) with B = 2, T = 200, C = 9, but has shape (2, 199, 9)"),
        ("w", lambda w: w[1:], "w must have shape (C,) with B = 2, T = 200, C = 9, but has shape (8,)"),
        ("u", lambda u: u[0], "u must have 1 dimensions (C,)"),
    ),
    cpu_backends=CPU_BACKENDS,
    registered=lambda a, backend: (a["w"], a["u"], a["k"], a["v"], None, True, backend),
    flops=lambda s: 29 * s[0] * s[1] * s[2],
    bytes=lambda s: 4 * (3 * s[0] * s[1] * s[2] + 2 * s[2]),
)

GATED_BIWKV = replace(
    BIWKV,
    variant="gated",
    make=_gated_biwkv_arguments,
    wrong=(
        ("gate", lambda gate: gate[0], "gate must have 3 dimensions (B, T, C)"),
        ("gate", lambda gate: gate[..., 1:], "gate must have shape (B, T, C)"),
    ),
    registered=lambda a, backend: (a["w"], a["u"], a["k"], a["v"], a["gate"], True, backend),
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
    wrong=(
        ("x", lambda x: x[0], "x must have 4 dimensions (B, H, W, C)"),
        ("x", lambda x: x.permute(0, 3, 1, 2), "weight must have shape (C, 5, 5) with B = 2, H = 35, W = 5, C = 17"),
        ("weight", lambda weight: weight[:, :3, :3], "weight must have shape (C, 5, 5)"),
        ("weight", lambda weight: weight[:, None], "weight must have 3 dimensions"),  # as conv2d has it
    ),
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
    wrong=(
        ("x", lambda x: x.flatten(1, 2), "x must have 4 dimensions (B, H, W, C)"),
        ("norm_weight", lambda weight: weight[1:], "norm_weight must have shape (C,)"),
        ("norm_bias", lambda bias: bias[None], "norm_bias must have 1 dimensions"),
        ("weight", lambda weight: weight[:, None], "weight must have 3 dimensions"),  # as conv2d has it
    ),
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
    wrong=(
        ("x", lambda x: x[None], "x must have 3 dimensions (B, P, Cin)"),
        ("mix_weight", lambda weight: weight[..., None, None], "mix_weight must have 2 dimensions"),
        ("mix_weight", lambda weight: weight.t(), "mix_weight must have shape (Cout, Cin) with B = 1, P = 5, Cin = 20"),
        ("norm_bias", lambda bias: bias[:1], "norm_bias must have shape"),
        ("key", lambda key: key.t(), "key must have shape (2*Cout, Cout)"),
        ("receptance", lambda receptance: receptance[:, 1:], "receptance must have shape"),
    ),
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
    wrong=(
        ("partial", lambda partial: partial[None], "partial must have 3 dimensions (B, P, Cout)"),
        ("partial", lambda partial: partial[..., :20], "partial must have shape (B, P, Cout)"),
    ),
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
    wrong=(
        (
            "scales",
            lambda scales: scales[:, :1],
            "scales must have y's shape (2, 3, 4, 51), but has shape (2, 1, 4, 51)",
        ),
        ("means", lambda means: means[0, 0, 0], "means must have y's shape (2, 3, 4, 51), but has shape (51,)"),
    ),
    cpu_backends=CPU_BACKENDS,
    registered=lambda a, backend: (a["y"], a["scales"], a["means"], backend),
    flops=lambda s: 69 * math.prod(s),
    bytes=lambda s: 16 * math.prod(s),
    float32_result=True,
)


def _channel_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    batch, height, width, channels, rate = sizes
    hidden, root = rate * channels, max(channels, 1) ** 0.5
    image = (batch, height, width, channels)
    return {
        "x": _normal(generator, *image),
        "key": _normal(generator, hidden, channels) / root,
        "receptance": _normal(generator, channels, channels) / root,
        "value": _normal(generator, channels, hidden) / max(hidden, 1) ** 0.5,
        "residual": _normal(generator, *image),
        "gamma": 1 + _normal(generator, channels) / 4,
    }


CHANNEL_MIX = OpSpec(
    name="channel_mix",
    public=lalic_kernels.channel_mix,
    reference=mix_reference.channel_mix,
    make=_channel_arguments,
    # A tile is 16 tokens in float32; two powers of two cover the channels; hidden channels come in blocks of 16 or 32.
    cases={
        "one of each": (1, 1, 1, 1, 1),
        "one line, narrow": (2, 1, 17, 5, 3),
        "one column": (1, 17, 1, 16, 4),
        "three by three, two parts": (1, 3, 3, 24, 4),
        "odd channels past a tile": (2, 3, 17, 37, 2),
        "whole vectors past a tile": (1, 3, 17, 48, 4),
        "a wide hidden layer": (1, 1, 3, 40, 8),
    },
    empty={"no batch": (0, 3, 2, 4, 2), "no lines": (1, 0, 2, 4, 2), "no channels": (1, 3, 2, 0, 2)},
    gradient_case=(1, 2, 3, 4, 2),
    wrong=(
        ("x", lambda x: x.flatten(1, 2), "x must have 4 dimensions (B, H, W, C)"),
        ("key", lambda key: key.t(), "key must have shape (F, C) with B = 1, H = 1, W = 3, C = 40"),
        ("value", lambda value: value.t(), "value must have shape (C, F)"),
        ("residual", lambda residual: residual[:, :, 1:], "residual must have shape (B, H, W, C)"),
        ("gamma", lambda gamma: None, "gamma must be given with residual"),
        ("residual", lambda residual: None, "residual must be given with gamma"),
    ),
    cpu_backends=CPU_BACKENDS,
    multiplies_matrices=True,
    registered=lambda a, backend: (*a.values(), backend == "cpu", backend),
    flops=lambda s: 2 * s[0] * s[1] * s[2] * s[3] ** 2 * (2 * s[4] + 1),
    bytes=lambda s: 4 * (3 * s[0] * s[1] * s[2] * s[3] + s[3] ** 2 * (2 * s[4] + 1) + s[3]),
)


def _spatial_arguments(sizes: tuple[int, ...], generator: torch.Generator) -> Arguments:
    channels, root = sizes[-1], max(sizes[-1], 1) ** 0.5
    matrices = {name: _normal(generator, channels, channels) / root for name in ("value", "receptance", "output")}
    return {
        "x": _normal(generator, *sizes),
        "decay": _normal(generator, channels) * 3,
        "boost": _normal(generator, channels) * 3,
        "key": _normal(generator, channels, channels) * 2 / root,
        **matrices,
        "residual": _normal(generator, *sizes),
        "gamma": 1 + _normal(generator, channels) / 4,
    }


SPATIAL_MIX = OpSpec(
    name="spatial_mix",
    public=lalic_kernels.spatial_mix,
    reference=mix_reference.spatial_mix,
    make=_spatial_arguments,
    # A tile is 32 tokens by 32 outputs in float32.
    cases={
        "one of each": (1, 1, 1, 1),
        "one line, narrow": (1, 1, 17, 5),
        "one column": (1, 17, 1, 16),
        "odd channels past a tile": (2, 1, 17, 37),
        "three lines, two parts": (1, 3, 3, 24),
    },
    empty={"no batch": (0, 3, 2, 4), "no lines": (1, 0, 2, 4), "no channels": (1, 3, 2, 0)},
    gradient_case=(1, 2, 3, 4),
    wrong=(
        ("x", lambda x: x.flatten(1, 2), "x must have 4 dimensions (B, H, W, C)"),
        ("key", lambda key: key[1:], "key must have shape (C, C)"),
        ("boost", lambda boost: boost[1:], "boost must have shape (C,)"),
        ("residual", lambda residual: residual[:, 1:], "residual must have shape (B, H, W, C)"),
        ("gamma", lambda gamma: None, "gamma must be given with residual"),
        ("residual", lambda residual: None, "residual must be given with gamma"),
    ),
    cpu_backends=CPU_BACKENDS,
    multiplies_matrices=True,
    registered=lambda a, backend: (*a.values(), backend == "cpu", backend),
    flops=lambda s: s[0] * s[1] * s[2] * s[3] * (8 * s[3] + 33),
    bytes=lambda s: 4 * (3 * s[0] * s[1] * s[2] * s[3] + 4 * s[3] ** 2 + 3 * s[3]),
)

SPECS = (
    *(BIWKV, GATED_BIWKV, TOKEN_SHIFT, NORM_SHIFT, ENTROPY_PARAMS, ENTROPY_PARAMS_PARTIAL, GAUSSIAN_LIKELIHOOD),
    *(CHANNEL_MIX, SPATIAL_MIX),
)
