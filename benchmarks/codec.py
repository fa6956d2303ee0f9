"""`python -m benchmarks.codec`: whole models at several sizes and batches, their parts, and others beside them.

A model, a size and a batch are one process of its own, where ours and the baseline (`benchmarks.peers.plain`) run in
turn, and with --save one record, appended at once. Nothing is timed before each decoded picture was found the encoder's
own: bit for bit where it was decoded alone, within the bounds of docs/gpu.md where it was decoded in a batch. Encoding
goes from pictures on the device to bytes in host memory, decoding from these to pictures on the device and, a row of
its own, to 8-bit pixels on the host. On a GPU the clock is read between two synchronisations, and cuDNN is asked for
algorithms that give the same bits twice. CUDA graphs are measured where there can be one.

`slim` codes the photo that ships, with the weights that ship. The full model has random weights, and codes latents
drawn so that its stream has the published rate (`benchmarks.streams`); its analysis transform runs on the photo, and
what it gives is replaced by these.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import lalic
from benchmarks import parts, records, report, streams
from benchmarks.cases.transforms import TINY, TOLERANCES
from benchmarks.counting.memory import peak_bytes, too_large
from benchmarks.measure import (
    Call,
    Case,
    Setting,
    WrongResult,
    in_fresh_process,
    measure,
    memory_to_read,
    within,
    within_norm,
)
from benchmarks.peers import checkouts, plain
from lalic import coder, images
from lalic.coder import Stream
from lalic.coder.host import symbols_of
from lalic.config import FULL, SLIM
from lalic.model import LALIC

MODELS = {"full": FULL, "full-bfloat16": FULL, "slim": SLIM, "tiny": TINY}
SIZES = ((768, 512), (1920, 1080), (3840, 2160))
QUICK = ((128, 64),)
BYTES_A_PIXEL = 1500  # that coding takes at most, before it was measured (benchmarks/paper/scaling.py)
IN_A_BATCH = 1 / 255  # that a pixel of float32 transforms may be off, TF32 included (docs/gpu.md)
Row = dict[str, Any]


ROUNDS = (5, 51, 10.0)  # fewer than an op's: a call of the full model is seconds on a CPU


def parsed_size(text: str) -> tuple[int, int]:
    """(width, height) of a word as 768x512."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected a width and a height as 768x512, got {text!r}")
    return int(match[1]), int(match[2])


def picture(height: int, width: int) -> Tensor:
    """`photo` as (1, 3, height, width) in [0, 1]."""
    return images.to_tensor(photo(height, width))


def photo(height: int, width: int) -> Image.Image:
    """The photo that ships, mirrored to the right and below as far as needed."""
    with resources.files(lalic).joinpath("assets/astronaut.png").open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGB"))
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), pixels.shape[:2], strict=True)]
    pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    return Image.fromarray(np.ascontiguousarray(pixels[:height, :width]))


def padded(side: int) -> int:
    """The multiple of 64 that a picture is filled up to."""
    return -(-side // LALIC.downsampling) * LALIC.downsampling


class Subject:
    """A model with pictures to code, and what decoding must give back."""

    def __init__(self, name: str, height: int, width: int, batch: int, device: torch.device):
        torch.manual_seed(0)
        photo = picture(height, width)
        self.x = torch.cat([photo.roll(64 * i, 3) for i in range(batch)]).to(device)
        self.drawn: list[Tensor] | None = None  # latents that stand for the analysis transform's
        self.precision = "bfloat16" if name.endswith("bfloat16") else "float32"
        if name == "slim":
            self.model = lalic.slim(pretrained=True)
        else:
            self.model = LALIC.from_config(MODELS[name]).eval()
            drawn = streams.latents(streams.imitate(self.model), batch, height, width)
            self.drawn = [y[None].to(device) for y in drawn]
        self.model.set_precision(self.precision).to(device)

    @torch.inference_mode()
    def start(self) -> Subject:
        """Code once, as the baseline inside `plain.baseline`, else as ours; decoding must give `expected`."""
        self.streams = self.encode()
        self.expected = []
        for i in range(len(self.x)):
            y = self.model.latents(self.x[i : i + 1]) if self.drawn is None else self.drawn[i]
            y_hat = symbols_of(self.model, y, None).y_hat
            qualities = self.model.as_qualities(None, 1)
            self.expected.append(self.model.synthesise(y_hat, qualities).clamp(0, 1))
        return self

    @torch.inference_mode()
    def encode(self, graph: bool = False) -> list[Stream]:
        """Pictures one after another, as files are written; graph: on a GPU, replay a captured graph."""
        found = []
        for i in range(len(self.x)):
            x = self.x[i : i + 1]
            if self.drawn is None:
                found.append(self.model.encode(x, graph=graph))
            else:
                self.model.latents(x)
                found.append(self.model.encode_latents(self.drawn[i], graph=graph))
        return found

    @torch.inference_mode()
    def decode(self, graph: bool = False) -> list[Tensor]:
        """Pictures one after another; graph: on a GPU, replay a captured graph."""
        height, width = self.x.shape[2:]
        return [self.model.decode(stream, height, width, graph=graph) for stream in self.streams]

    @torch.inference_mode()
    def decode_together(self, graph: bool) -> list[Tensor]:
        """Pictures in one batch, where symbols are decoded on the device. Raises what is wrong with one."""
        height, width = self.x.shape[2:]
        qualities = [None] * len(self.streams)
        found: list[Any] = self.model.decode_batch(self.streams, height, width, qualities, graph=graph)
        for one in found:
            if isinstance(one, Exception):
                raise one
        return found

    def check(self, found: Sequence[Tensor]) -> None:
        """Of decoding on the device."""
        pairs = zip(found, self.expected, strict=True)
        if not all(torch.equal(x_hat, expected) for x_hat, expected in pairs):
            raise WrongResult("codec: a decoded picture is not the encoder's own reconstruction")

    def check_batch(self, found: Sequence[Tensor]) -> None:
        """Of decoding in one batch: a library may choose another algorithm for it than for one picture."""
        for x_hat, expected in zip(found, self.expected, strict=True):
            if self.precision == "float32":
                within("codec, in one batch", x_hat, expected, IN_A_BATCH)
            else:
                within_norm("codec, in one batch", x_hat, expected, TOLERANCES[self.precision])

    def check_streams(self, found: Sequence[Stream]) -> None:
        """Of encoding: the same streams again, whose pictures `check` looks at."""
        if list(found) != self.streams:
            raise WrongResult("codec: encoding again gives other streams")

    def check_host(self, found: Sequence[Tensor], levels: int = 0) -> None:
        """Of decoding to the host; pixels may be so many levels off."""
        for x, y in zip(found, self.expected, strict=True):
            if x.is_cuda or int((x.int() - to_host(y).int()).abs().max()) > levels:
                raise WrongResult("codec: pixels on the host are not those of the encoder's own reconstruction")

    def check_host_batch(self, found: Sequence[Tensor]) -> None:
        """Of decoding to the host in one batch: the bound of `check_batch`, rounded to levels."""
        self.check_host(found, 2 if self.precision == "float32" else round(255 * TOLERANCES[self.precision]))

    def bits_per_pixel(self) -> float:
        return sum(8 * len(stream.data) for stream in self.streams) / (self.x.numel() / 3)


def to_host(x_hat: Tensor) -> Tensor:
    """8-bit pixels (1, 3, H, W) in host memory."""
    return (255 * x_hat).round_().to(torch.uint8).cpu()


def _and_to_host(decode: Callable[[], list[Tensor]]) -> list[Tensor]:
    return [to_host(x) for x in decode()]


def ways(subject: Subject) -> list[tuple[str, str, Callable[[], Any]]]:
    """(direction, way of launching, call) of all that can be timed.

    On a GPU with CUDA graphs, where there can be one of this size, and without; in one batch if its memory suffices.
    """
    device, batch = subject.x.device, len(subject.x)
    if not coder.codes_on_gpu(device):  # asked at its place: the baseline answers for itself
        return [("encode", "", subject.encode), ("decode", "", subject.decode)]
    from lalic.coder.gpu import why_no_graph

    height, width = subject.x.shape[2:]
    size = (height // LALIC.downsampling, width // LALIC.downsampling)
    found: list[tuple[str, str, Callable[[], Any]]] = []
    for way, graph in (("graph", True), ("plain launches", False)):
        if not (graph and why_no_graph(subject.model, 1, size)):
            found.append(("encode", way, partial(subject.encode, graph)))
            found.append(("decode", way, partial(subject.decode, graph)))
        fits = not too_large(BYTES_A_PIXEL * height * width * batch, device)
        if batch > 1 and fits and not (graph and why_no_graph(subject.model, batch, size)):
            found.append(("decode", f"{way}, in one batch", partial(subject.decode_together, graph)))
    return found


def time_side(subject: Subject, side: str, setting: Setting, rates: dict[str, float], counted: Any) -> list[Row]:
    """Rows of ours or of the baseline: one for encoding, one for each way of decoding. Memory is read in `peaks`."""
    with torch.inference_mode(), plain.baseline(subject.model) if side == "baseline" else nullcontext():
        subject.start()
        rows = []
        calls: list[tuple[str, str, Call]] = []
        for direction, way, run in ways(subject):
            checks: tuple[Any, Any] = (subject.check, subject.check_host)
            if way.endswith("in one batch"):
                checks = subject.check_batch, subject.check_host_batch
            check = subject.check_streams if direction == "encode" else checks[0]
            calls.append((direction, way, Call(f"{direction} {way}", run, check)))
            if direction == "decode":
                host = Call(f"to host {way}", partial(_and_to_host, run), checks[1])
                calls.append(("decode to the host", way, host))
        case = Case("codec", tuple(call for _, _, call in calls), wall_clock=True)
        found = {row["call"]: row for row in measure("codec", case, setting)}
        clock = parts.Events() if setting.device.type == "cuda" else parts.Clock()
        for direction, way, call in calls:
            row: Row = {"side": side, "direction": direction, "way": way, "bits per pixel": subject.bits_per_pixel()}
            row |= {key: found[call.name][key] for key in ("seconds", "quartiles", "repeats")}
            row["Mpixel/s"] = 1e-6 * subject.x.numel() / 3 / row["seconds"]
            if side == "ours" and direction != "decode to the host" and way in ("", "plain launches"):
                seconds = parts.times(call.run, direction, clock, 1 if setting.quick else 3)
                row["parts"] = parts.beside_floors(seconds, counted, rates, subject.precision, len(subject.x))
            rows.append(row)
    return rows


def peaks(
    name: str, size: tuple[int, int], batch: int, setting: Setting, sides: Sequence[str] = ("ours", "baseline")
) -> dict[str, int | None]:
    """Bytes that encoding and decoding add at their peaks, by side and direction. Runs in a process of its own."""
    found: dict[str, int | None] = {}
    subject = Subject(name, *size, batch, setting.device)
    for side in sides:
        found |= {f"{side} {direction}": None for direction in ("encode", "decode")}
        with (
            torch.inference_mode(),
            plain.baseline(subject.model) if side == "baseline" else nullcontext(),
            suppress(torch.OutOfMemoryError),
        ):
            subject.start()
            for direction in ("encode", "decode"):
                found[f"{side} {direction}"] = peak_bytes(getattr(subject, direction), setting.device)
    return found


def timed(name: str, size: tuple[int, int], batch: int, setting: Setting) -> list[Row]:
    """Rows of both sides. Runs in a process of its own."""
    subject = Subject(name, *size, batch, setting.device)
    rates = parts.ceilings(setting.device, setting.quick)
    counted = parts.counts(MODELS[name], *size)
    torch.backends.cudnn.deterministic = True  # else two decodes of one stream may differ in a last bit
    rows: list[Row] = []
    for side in ("ours", "baseline"):
        try:
            rows += time_side(subject, side, setting, rates, counted)
        except torch.OutOfMemoryError as error:
            rows.append({"side": side, "skipped": f"there was not enough memory: {str(error).splitlines()[0]}"})
            torch.cuda.empty_cache()
    for row in rows:
        if "parts" in row:
            row["ceilings"] = rates
            break
    return rows


def measured(name: str, size: tuple[int, int], batch: int, setting: Setting) -> list[Row]:
    """Rows of a model, a size and a batch; a single one that says why where it is too large for this machine."""
    height, width = size
    reason = too_large(BYTES_A_PIXEL * height * width, setting.device)
    if reason is not None:
        return [{"side": "ours", "skipped": reason}]
    rows = in_fresh_process(timed, name, size, batch, setting)
    memory = in_fresh_process(peaks, name, size, batch, setting, memory=memory_to_read(setting.device))
    for row in rows:
        if "direction" in row:
            row["peak bytes"] = memory[f"{row['side']} {row['direction'].split()[0]}"]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows. Returns 0, or 1 if a model was not timed; usage errors and a busy machine exit with 2."""
    parser = records.parser("codec", "Whole models and their parts.", quick="a tiny model and picture")
    sizes = "(default 768x512 1920x1080 3840x2160)"
    parser.add_argument("--sizes", nargs="+", type=parsed_size, default=SIZES, metavar="WxH", help=sizes)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=("full", "full-bfloat16", "slim"))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8), metavar="N", help="pictures (default 1 8)")
    checkouts.add_options(parser)
    options = parser.parse_args(argv)
    if options.quick:
        options.models, options.sizes, options.batches = ("tiny",), QUICK, (1, 2)
    if min(options.batches) < 1:
        parser.error(f"--batches: expected at least 1, got {min(options.batches)}")
    device = records.check(parser, options)
    setting = Setting(device, options.quick, full_rounds=ROUNDS)
    record = records.environment(device)
    failed = False
    for width, height in options.sizes:
        size = padded(height), padded(width)
        for batch in options.batches:
            where = {"width": width, "height": height, "batch": batch}

            def keep(rows: list[Row], where: Row = where) -> None:
                found = record | {"codec": [where | row for row in rows]}
                report.show(found)
                records.keep(found, options)

            for name in options.models:
                try:
                    keep([{"model": f"LALIC {name}"} | row for row in measured(name, size, batch, setting)])
                except WrongResult as error:
                    failed = True
                    print(f"LALIC {name}, {width}x{height}: not timed, {error}", file=sys.stderr)
                except Exception:  # such as a launch that a GPU refuses: the others are still measured
                    failed = True
                    print(f"LALIC {name}, {width}x{height}: not timed\n{traceback.format_exc()}", file=sys.stderr)
            for peer in options.peers:
                keep(checkouts.measured(peer, options.peer_python, size, batch, setting))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
