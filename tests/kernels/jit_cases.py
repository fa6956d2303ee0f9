"""What test_jit.py asks of Triton's JIT: `PYTHONPATH=. python tests/kernels/jit_cases.py PART` prints JSON.

It is a process of its own: Triton reads at its import whether it interprets, and the tests' own process does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton.language as tl
from op_specs import SPECS
from torch import Tensor

import lalic_kernels
from benchmarks.counting import jit, resources
from benchmarks.counting.launches import encode, random_model, some_stream
from lalic.coder import gpu
from lalic.model import LALIC
from lalic_kernels import rans
from lalic_kernels.rans import gpu as rans_gpu

# (H, W, pictures): sizes of one block of hyper latents and of many, divisible by high powers of two and not.
SIZES = ((64, 64, 1), (64, 128, 1), (128, 64, 1), (192, 256, 1), (256, 256, 1), (256, 320, 1), (320, 448, 1),
         (448, 512, 1), (512, 384, 1), (512, 512, 1), (256, 256, 2), (192, 256, 3), (64, 1088, 1))  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)


def failure(run: Callable[[], Any]) -> str:
    """The error of a call in one line; empty if there is none."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    return ""


def both_ways(public: Callable[..., Tensor], arguments: dict[str, Tensor]) -> None:
    """Forward and backward. No value is computed, so nothing is asked of them."""
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    result = public(**leaves, backend="triton")
    torch.autograd.grad(result, list(leaves.values()), torch.empty_like(result))


def shapes(cases: dict[str, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """All shapes of a contract, its last one with each dimension 1 in turn, and one of ones alone."""
    yield from cases.values()
    last = list(cases.values())[-1]
    for place in range(len(last)):
        yield (*last[:place], 1, *last[place + 1 :])
    yield (1,) * len(last)


def contract() -> dict[str, str]:
    """Failures of all ops at all shapes in two dtypes, by op, shape and dtype."""
    found = {}
    with jit.recording():
        for spec in SPECS:
            for sizes in shapes(spec.cases):
                for dtype in DTYPES:
                    made = spec.make(sizes, torch.Generator().manual_seed(0))
                    arguments = {name: value.to(dtype) for name, value in made.items()}
                    found[f"{spec.id} {sizes} {dtype}"] = failure(lambda a=arguments, s=spec: both_ways(s.public, a))
    return found


def large() -> dict[str, str]:
    """Failures of tensors with many elements, batches, tokens or channels. They are reserved and never touched."""
    found = {}

    def check(name: str, run: Callable[..., Any], **sizes: tuple[int, ...]) -> None:
        made = {each: torch.empty(size, dtype=torch.bfloat16) for each, size in sizes.items()}
        found[f"{name} {next(reversed(sizes.values()))}"] = failure(lambda: run(made))

    def gradient(public: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], None]:
        return lambda made: both_ways(public, made)

    def forward(public: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda made: public(**made, backend="triton")

    with jit.recording(compile="none"):
        for shape in (
            (8, 1 << 20, 96), (300, 128 * 128, 96), (70000, 16, 8), (1, 1 << 24, 32), (1, 2, 1 << 21)
        ):  # fmt: skip
            vector = shape[2:]
            check("biwkv", gradient(lalic_kernels.biwkv), w=vector, u=vector, k=shape, v=shape)

        # torch.vmap makes one batch of all its slices.
        def in_vmap(made: dict[str, Tensor]) -> None:
            torch.vmap(lambda k: lalic_kernels.biwkv(made["w"], made["u"], k, k, backend="triton"))(made["k"])

        check("biwkv in vmap", in_vmap, w=(8,), u=(8,), k=(35000, 2, 16, 8))
        for shape in ((70000, 4, 4, 8), (1, 70000, 8, 16), (1, 8, 70000, 16), (8, 1024, 1024, 96)):
            check("token_shift", gradient(lalic_kernels.token_shift), weight=(shape[3], 5, 5), x=shape)
        for shape in ((1 << 31,), (1 << 18, 3)):
            same = dict.fromkeys(("y", "scales", "means"), shape)
            check("gaussian_likelihood", gradient(lalic_kernels.gaussian_likelihood), **same)
        for shape in ((8, 1024, 1024, 96), (70000, 2, 2, 8)):
            one = shape[3:]
            square, wide, flat = one * 2, (4 * one[0], *one), (*one, 4 * one[0])
            spatial = {"decay": one, "boost": one, **dict.fromkeys(("key", "value", "receptance", "output"), square)}
            check("spatial_mix", forward(lalic_kernels.spatial_mix), **spatial, x=shape)
            channel = {"key": wide, "receptance": square, "value": flat}
            check("channel_mix", forward(lalic_kernels.channel_mix), **channel, x=shape)
        symbols = torch.empty(70000, 8, dtype=torch.int32)
        found["symbol_checksum (70000, 8)"] = failure(lambda: rans.symbol_checksum(symbols))
        tables = model_of("slim").tables()
        decoder = rans_gpu.DeviceDecoder([b""] * 70000, tables, torch.device("cpu"))
        found["rans decoder of 70000 streams"] = failure(lambda: decoder.decode(torch.zeros(8, dtype=torch.int32)))
    return found


def model_of(name: str, precision: str = "float32") -> LALIC:
    return random_model(name).set_precision(precision)


def sizes(name: str, precision: str, compile: str) -> dict[str, Any]:
    """Launches and compilations of a decode and, of one picture, an encode; the first size first.

    "constants": by kernel those of modules that Triton compares slowly at each launch (`lalic_kernels.triton_math`).
    """
    model, found = model_of(name, precision), []
    constants: dict[str, list[str]] = {}
    stream, decoder = some_stream(model), gpu.GpuCoder(model, False)
    with torch.no_grad(), jit.recording(compile=compile) as record:
        for height, width, batch in SIZES:
            runs: dict[str, Callable[[], Any]] = {}
            size = (height // model.downsampling, width // model.downsampling)
            runs["decode"] = lambda b=batch, s=size: decoder.decode([stream] * b, s, [None] * b)
            if batch == 1:
                runs["encode"] = lambda h=height, w=width: encode(model, h, w)
            for what, run in runs.items():
                record.clear()
                run()
                for each in record.compilations:
                    compared = each.function.used_global_vals.items()  # empty where the front end did not run
                    slow = {name for (name, _), (value, _) in compared if type(value) is tl.constexpr}
                    constants[each.kernel] = sorted(slow)
                fusion = {(each.kernel, each.options.get("enable_fp_fusion")) for each in record.compilations}
                found.append(
                    {
                        "what": f"{what} {batch} x {height} x {width}",
                        "launches": len(record.launches),
                        "compiled": dict(record.compiled_kernels()),
                        "fusion": sorted(fusion),
                    }
                )
    return {"pictures": found, "constants": constants}


def machine_code() -> list[dict[str, Any]]:
    """What a decode and an encode of the slim model compile for sm_90: registers, spilled bytes, shared memory."""
    return resources.compiled("cuda 90", ["slim"], (384, 256))["kernels"]


PARTS: dict[str, Callable[[], Any]] = {
    "contract": contract,
    "large": large,
    "slim": lambda: sizes("slim", "float32", "front"),
    "full": lambda: sizes("full", "bfloat16", "none"),
    "machine code": machine_code,
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]]()))
