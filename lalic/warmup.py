"""`lalic warmup`: compile all that a model needs to encode and decode, so that the first picture does not wait for it.

numba compiles for the CPU, Triton for a GPU. What they compile goes to their caches on disk, and serves all later
processes (`NUMBA_CACHE_DIR`, `TRITON_CACHE_DIR`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from importlib import resources

import torch

from lalic import images
from lalic.codec import pad
from lalic.coder import Stream, codes_on_gpu
from lalic.model import LALIC
from lalic_kernels import compiling, installed

__all__ = ["SIZES", "warm_up"]

SIZES = ((768, 512),)


def warm_up(
    model: LALIC,
    sizes: Iterable[tuple[int, int]] = SIZES,
    *,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Compile what `model` needs on its device, in its precision, and code a picture of each size to see that it works.

    sizes: (width, height); code hardly depends on them. threads: in which kernels for a GPU are compiled, None for as
    many as there are processors. say: is called with a line about each step and how long it took.
    """
    pictures = [_picture(width, height) for width, height in sizes]
    on_gpu = codes_on_gpu(model.device)
    where = torch.cuda.get_device_name(model.device) if on_gpu else f"this processor, {torch.get_num_threads()} threads"
    say(f"{model.config.name} in {model.precision} on {where}")
    compiled = _Counter()
    if on_gpu:
        compiling.on_kernel_compiling(compiled)
        start = time.perf_counter()
        compile_kernels(model, [(x.shape[2], x.shape[3]) for x in pictures], threads)
        say(f"{compiled.count} kernels compiled in parallel, {time.perf_counter() - start:.1f} s")
    else:
        installed.on_compiling(compiled, every=True)
    for x in pictures:
        before, start = compiled.count, time.perf_counter()
        with torch.inference_mode():
            stream = model.encode(x.to(model.device))
            model.decode(stream, x.shape[2], x.shape[3])
        more = f", {compiled.count - before} functions compiled" if compiled.count > before else ""
        say(f"{x.shape[3]}x{x.shape[2]} encoded and decoded{more}, {time.perf_counter() - start:.1f} s")


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def compile_kernels(model: LALIC, sizes: Iterable[tuple[int, int]], threads: int | None = None) -> None:
    """Compile the kernels of encoding and decoding pictures (height, width), multiples of 64, in threads.

    Nothing is computed. What the coder launches after it has looked at symbols is left out: the end of an encode.
    """
    from lalic.coder import gpu

    device = model.device
    with torch.no_grad(), compiling.ahead(device, threads):
        blank = copy.deepcopy(model)  # has caches of its own, whose contents get no values
        for height, width in sizes:
            size = (height // blank.downsampling, width // blank.downsampling)
            gpu.launch_once(
                blank, torch.zeros(1, 3, height, width, device=device, dtype=torch.float32), [Stream(b"", 0)], size
            )


def _picture(width: int, height: int) -> torch.Tensor:
    """The picture that ships, repeated as far as needed: (1, 3, H, W), padded."""
    with images.load(resources.files("lalic").joinpath("assets", "astronaut.png").read_bytes()) as photo:
        x = images.to_tensor(photo)
    x = x.repeat(1, 1, -(-height // x.shape[2]), -(-width // x.shape[3]))
    return pad(x[:, :, :height, :width], LALIC.downsampling)
