"""`lalic demo`: compress and decompress the picture that ships, and compare with a JPEG of equal PSNR."""

from __future__ import annotations

import io
import os
import platform
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from lalic import codec, images
from lalic.files import check_folder, write_atomic
from lalic.metrics import psnr

__all__ = ["JpegMatch", "jpeg_of_equal_psnr", "run"]

_REPEATS = 3
_T = TypeVar("_T")


class JpegMatch:
    """A JPEG and its PSNR. data: the file. quality: Pillow's, 1..100. subsampling: "4:4:4" or "4:2:0"."""

    def __init__(self, picture: Image.Image, quality: int, subsampling: str) -> None:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
        self.data, self.quality, self.subsampling = out.getvalue(), quality, subsampling
        self.psnr = psnr(picture, Image.open(io.BytesIO(self.data)))


def jpeg_of_equal_psnr(picture: Image.Image, wanted: float) -> JpegMatch | None:
    """The smallest JPEG with a PSNR of at least `wanted` dB, in 4:4:4 or 4:2:0; None if quality 100 stays below.

    A binary search, which assumes that PSNR rises with quality; where it falls by some hundredths of a dB the result
    may be one step of quality too high.
    """
    matches = []
    for subsampling in ("4:4:4", "4:2:0"):
        jpeg = partial(JpegMatch, picture, subsampling=subsampling)
        quality = 1 + bisect_left(range(1, 101), wanted, key=lambda quality: jpeg(quality).psnr)
        if quality <= 100:
            matches.append(jpeg(quality))
    return min(matches, key=lambda match: len(match.data), default=None)


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """The result of a call, and the median of its seconds in a few runs. Results must be on the CPU."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def run(out_dir: str | os.PathLike = "lalic-demo", *, device: str | None = None) -> None:
    """Compress and decompress the picture that ships with the slim model, print sizes and times, write the pictures.

    out_dir: folder, made if it does not exist; files of an earlier demo are replaced. device: None for the CPU. Raises
    `LalicError` or `OSError`.
    """
    folder = Path(out_dir)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    original = resources.files("lalic").joinpath("assets", "astronaut.png").read_bytes()
    picture = images.load(original)
    pixels = picture.width * picture.height

    codec.decode(codec.encode(picture, device=device), device=device)  # warm-up: loads the model, compiles the kernels
    data, encode_seconds = _timed(lambda: codec.encode(picture, device=device))
    paths = {name: folder / f"astronaut{name}" for name in (".png", ".lalic", "-lalic.png", "-jpeg.jpg")}
    write_atomic(paths[".png"], original)
    write_atomic(paths[".lalic"], data)
    decoded, decode_seconds = _timed(lambda: codec.decode(data, device=device))
    write_atomic(paths["-lalic.png"], images.dump(decoded, ".png"))
    ours = psnr(picture, decoded)

    target = codec.resolve_device(device)
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if target.type == "cuda":
        machine = torch.cuda.get_device_name(target)
    print(f"picture  astronaut, {picture.width}x{picture.height}, {len(original)} bytes as PNG (NASA, public domain)")
    print(f"model    slim, {machine}; its weights are preliminary, so the numbers below are a beginning")
    print(f"lalic    {len(data)} bytes, {8 * len(data) / pixels:.3f} bits per pixel, PSNR {ours:.2f} dB")
    print(
        f"time     encode {encode_seconds:.3f} s, decode {decode_seconds:.3f} s"
        f" (median of {_REPEATS} after a warm-up, file reading and writing left out)"
    )
    match = jpeg_of_equal_psnr(picture, ours)
    paths["-jpeg.jpg"].unlink(missing_ok=True)
    if match is None:
        print(f"jpeg     no JPEG of Pillow's reaches {ours:.2f} dB")
    else:
        write_atomic(paths["-jpeg.jpg"], match.data)
        print(_comparison(match, ours, len(data), pixels))
    print(f"files    {folder.resolve()}:")
    print("         " + "  ".join(path.name for path in paths.values() if path.exists()))


def _comparison(match: JpegMatch, ours: float, our_bytes: int, pixels: int) -> str:
    size = len(match.data)
    line = (
        f"jpeg     {size} bytes, {8 * size / pixels:.3f} bits per pixel, PSNR {match.psnr:.2f} dB"
        f" (quality {match.quality}, {match.subsampling}, the smallest of at least {ours:.2f} dB)\n"
    )
    if size == our_bytes:
        return line + "         both files are equally large"
    smaller, larger = ("lalic", size) if our_bytes < size else ("JPEG", our_bytes)
    return line + f"         the {smaller} file is smaller, by {100 * (1 - min(size, our_bytes) / larger):.1f} %"
