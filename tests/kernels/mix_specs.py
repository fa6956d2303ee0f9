"""The registry's entries for the two mixes of an RWKV block."""

from __future__ import annotations

import torch
from op_specs import CPU_BACKENDS, Arguments, BadCall, OpSpec, _normal, _with

import lalic_kernels
from lalic_kernels.mix import reference


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
    reference=reference.channel_mix,
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
    bad={
        "x is flat": BadCall(
            _with(x=lambda a: a["x"].flatten(1, 2)), ValueError, ("x must have 4 dimensions", "(B, H, W, C)")
        ),
        "key transposed": BadCall(
            _with(key=lambda a: a["key"].t()), ValueError, ("key must have shape (F, C)", "C = 24")
        ),
        "value transposed": BadCall(
            _with(value=lambda a: a["value"].t()), ValueError, ("value must have shape (C, F)", "F = 96")
        ),
        "receptance is no tensor": BadCall(_with(receptance=lambda a: 1), TypeError, ("receptance must be a tensor",)),
        "x is integer": BadCall(_with(x=lambda a: a["x"].int()), TypeError, ("x must be float16", "int32")),
        "value is float64": BadCall(
            _with(value=lambda a: a["value"].double()), TypeError, ("value must be float32", "float64")
        ),
        "residual of another size": BadCall(
            _with(residual=lambda a: a["residual"][:, 1:]), ValueError, ("residual must have shape (B, H, W, C)",)
        ),
        "residual without gamma": BadCall(
            _with(gamma=lambda a: None), ValueError, ("gamma must be given with residual",)
        ),
        "gamma without residual": BadCall(
            _with(residual=lambda a: None), ValueError, ("residual must be given with gamma",)
        ),
        "gamma is float16": BadCall(_with(gamma=lambda a: a["gamma"].half()), TypeError, ("gamma must be float32",)),
        "key is elsewhere": BadCall(_with(key=lambda a: a["key"].to("meta")), ValueError, ("key must be on", "meta")),
    },
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
    reference=reference.spatial_mix,
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
    bad={
        "x is flat": BadCall(
            _with(x=lambda a: a["x"].flatten(1, 2)), ValueError, ("x must have 4 dimensions", "(B, H, W, C)")
        ),
        "key is not square": BadCall(
            _with(key=lambda a: a["key"][1:]), ValueError, ("key must have shape (C, C)", "C = 24")
        ),
        "decay is a number": BadCall(_with(decay=lambda a: 1.0), TypeError, ("decay must be a tensor", "float")),
        "boost is too short": BadCall(
            _with(boost=lambda a: a["boost"][1:]), ValueError, ("boost must have shape (C,)",)
        ),
        "x is integer": BadCall(_with(x=lambda a: a["x"].int()), TypeError, ("x must be float16", "int32")),
        "decay is float16": BadCall(_with(decay=lambda a: a["decay"].half()), TypeError, ("decay must be float32",)),
        "output is float64": BadCall(
            _with(output=lambda a: a["output"].double()), TypeError, ("output must be float32", "float64")
        ),
        "residual without gamma": BadCall(
            _with(gamma=lambda a: None), ValueError, ("gamma must be given with residual",)
        ),
        "residual of another size": BadCall(
            _with(residual=lambda a: a["residual"][:, 1:]), ValueError, ("residual must have shape (B, H, W, C)",)
        ),
        "value is elsewhere": BadCall(
            _with(value=lambda a: a["value"].to("meta")), ValueError, ("value must be on", "meta")
        ),
        "boost is elsewhere": BadCall(
            _with(boost=lambda a: a["boost"].to("meta")), ValueError, ("boost must be on", "meta")
        ),
    },
    cpu_backends=CPU_BACKENDS,
    multiplies_matrices=True,
    registered=lambda a, backend: (*a.values(), backend == "cpu", backend),
    flops=lambda s: s[0] * s[1] * s[2] * s[3] * (8 * s[3] + 33),
    bytes=lambda s: 4 * (3 * s[0] * s[1] * s[2] * s[3] + 4 * s[3] ** 2 + 3 * s[3]),
)
