"""Runs somebody else's codec and prints what came out: `python benchmarks/peers/worker.py JSON`, for `checkouts`.

To time a codec it imports nothing of this project, so that any interpreter with what the peer needs can run it. To
count or to measure a forward pass the interpreter needs this project beside the peer, for its counters. The last line
it prints is {"rows": [...]}; what the peer itself prints stands before it. Each row has the keys of `benchmarks.codec`
or of `benchmarks.paper.scaling`, or "skipped" with the reason. Networks have random weights, which change no count.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import resource
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # instead of this folder, whose names a peer may use for its own

import torch

QP = 32  # of DCVC's 64 qualities


class CannotRun(Exception):
    """Why a peer cannot run, as a sentence for its row."""


# Networks: what a peer's forward pass runs, with random weights; it needs neither coder nor extension.

Network = tuple[str, Any, Callable[[torch.Tensor], Any]]  # title, module, forward pass of pictures (1, 3, H, W)


def _compressai() -> list[Network]:
    from compressai.models import Elic2022Official
    from compressai.zoo import mbt2018_mean

    version = importlib.metadata.version("compressai")
    found: list[Network] = []
    for name, build in (
        ("mbt2018-mean q6", lambda: mbt2018_mean(quality=6, pretrained=False)),
        ("ELIC", Elic2022Official),
    ):
        torch.manual_seed(0)
        model = build()
        found.append((f"CompressAI {version} {name}", model, model))
    return found


def _tcm() -> list[Network]:
    tcm = importlib.import_module("models").TCM
    config, heads = [2] * 6, [8, 16, 32, 32, 16, 8]  # as its README runs it
    found: list[Network] = []
    for n in (64, 128):
        model = tcm(config=config, head_dim=heads, drop_path_rate=0.0, N=n, M=320)
        found.append((f"TCM, N = {n}", model, _padding(model, 128, least=256)))  # its windows do not fit 128 x 128
    return found


def _padding(model: Any, step: int, least: int = 0) -> Callable[[torch.Tensor], Any]:
    """The forward pass with zeros to the right and below, up to multiples of `step`, as the peer's own evaluation."""

    def forward(x: torch.Tensor) -> Any:
        height, width = (max(least, -(-side // step) * step) for side in x.shape[2:])
        return model(torch.nn.functional.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])))

    return forward


def _mlic() -> list[Network]:
    from compressai import ops

    if not hasattr(ops, "ste_round"):  # as it was called before 1.2.4
        ops.ste_round = ops.quantize_ste
    config = importlib.import_module("config.config").model_config()
    model = importlib.import_module("models").MLICPlusPlus(config)
    return [("MLIC++", model, model)]


def _ftic() -> list[Network]:
    if importlib.util.find_spec("range_coder") is None:  # it codes only, and this builds networks
        coder = types.ModuleType("range_coder")
        coder.RangeEncoder = coder.RangeDecoder = None  # type: ignore[attr-defined]
        sys.modules["range_coder"] = coder
    model = importlib.import_module("models").FrequencyAwareTransFormer()
    return [("FTIC", model, _padding(model, 256))]


def _dcvc(title: str) -> list[Network]:
    if title == "DCVC-RT intra":
        raise CannotRun("it has no forward pass, and its compress() needs a CUDA device")
    model = importlib.import_module("src.models.image_model").DMCI()
    return [(title, model, lambda x: model.forward_one_frame(x, torch.tensor([QP]), recon_only=True))]


NETWORKS: dict[str, Callable[[], list[Network]]] = {
    "CompressAI": _compressai,
    "TCM": _tcm,
    "MLIC++": _mlic,
    "FTIC": _ftic,
    "DCVC-RT intra": lambda: _dcvc("DCVC-RT intra"),
    "DCVC-UF intra": lambda: _dcvc("DCVC-UF intra"),
}


# Codecs: pictures to streams and back.


class CompressAIStyle:
    """compress(x) -> {"strings", "shape"}; decompress(strings, shape)."""

    def __init__(self, name: str, model: Any, device: torch.device):
        self.name = name
        self.model = model.eval().to(device)
        self.model.update()

    def encode(self, x: torch.Tensor) -> Any:
        return self.model.compress(x)

    def decode(self, found: Any) -> torch.Tensor:
        x_hat: torch.Tensor = self.model.decompress(found["strings"], found["shape"])["x_hat"]
        return x_hat

    def size(self, found: Any) -> int:
        return _bytes(found["strings"])


def _bytes(strings: Any) -> int:
    return len(strings) if isinstance(strings, bytes) else sum(map(_bytes, strings))


class Dcvc:
    """compress(x, qp, ...) of 16-bit pictures in YCbCr through its CUDA extension."""

    def __init__(self, name: str, device: torch.device):
        if device.type != "cuda":
            raise CannotRun("its inference is a CUDA extension, and this is no CUDA device")
        try:
            importlib.import_module("inference_extensions_cuda")
        except ImportError as error:
            raise CannotRun(f"its CUDA extension is not built: {error}") from error
        self.name = name
        self.model = importlib.import_module("src.models.image_model").DMCI().eval()
        self.model.update(0.0)
        self.model.half().to(device)

    def encode(self, x: torch.Tensor) -> Any:
        self.shape = {"height": x.shape[2], "width": x.shape[3], "ec_part": 0, "use_ada_i": 0}
        if self.name.startswith("DCVC-RT"):
            return self.model.compress(x.half(), QP)
        return self.model.compress(x.half(), QP, 0, 0)

    def decode(self, found: Any) -> torch.Tensor:
        more = () if self.name.startswith("DCVC-RT") else (found["ec_parallel"],)
        x_hat: torch.Tensor = self.model.decompress(found["bit_stream"], self.shape, QP, *more)["x_hat"]
        return x_hat

    def size(self, found: Any) -> int:
        return len(found["bit_stream"])


def codecs(peer: str, device: torch.device) -> list[Any]:
    """Of a peer, on a device. Raises ``CannotRun`` for one that does not code there."""
    if peer.startswith("DCVC"):
        return [Dcvc(peer, device)]
    if peer == "MLIC++" and device.type != "cuda":
        raise CannotRun("its compress() and decompress() synchronise with a CUDA device, so they need one")
    if peer == "FTIC":
        raise CannotRun("its compress() codes one symbol after another in Python, which is not what is measured here")
    return [CompressAIStyle(title, model, device) for title, model, _ in NETWORKS[peer]()]


def _seconds(call: Callable[[], Any], device: torch.device, rounds: tuple[int, int, float]) -> list[float]:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    least, most, enough = rounds
    call()
    found: list[float] = []
    gc.collect()
    while len(found) < least or (len(found) < most and sum(found) < enough):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - begin)
    return found


def _peak(device: torch.device) -> int:
    """Of all that the process held so far (CPU), or of what torch's allocator gave out since the last call."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@torch.inference_mode()
def rows_of(codec: Any, request: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """A row of encoding and one of decoding."""
    height, width, batch = request["height"], request["width"], request["batch"]
    x = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic").clamp(0, 1).to(device)
    streams = codec.encode(x)
    x_hat = codec.decode(streams)
    if tuple(x_hat.shape[-2:]) != (height, width) or not bool(torch.isfinite(x_hat).all()):
        raise CannotRun(f"it decodes to a picture of shape {tuple(x_hat.shape)}, or to numbers that are not finite")
    rows = []
    for direction, call in (
        ("encode", lambda: [codec.encode(x) for _ in range(batch)]),
        ("decode", lambda: [codec.decode(streams) for _ in range(batch)]),
    ):
        times = _seconds(call, device, tuple(request["rounds"]))
        low, middle, high = statistics.quantiles(times, n=4)
        rows.append({
            "model": codec.name, "direction": direction, "way": "", "seconds": middle, "quartiles": [low, high],
            "repeats": len(times), "Mpixel/s": 1e-6 * batch * height * width / middle, "process peak": _peak(device),
            "bits per pixel": 8 * codec.size(streams) / (height * width),
            "parameters": sum(p.numel() for p in codec.model.parameters()),
        })  # fmt: skip
    return rows


def reason(error: Exception) -> str:
    """Why a peer does not run, for its row."""
    if isinstance(error, CannotRun):
        return str(error)
    if isinstance(error, ImportError):
        return f"it does not import here: {error}"
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"


def passes_of(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row a network and size with `operations`, or, where a device is given, with what `scaling.passes` says."""
    from benchmarks.counting import operations
    from benchmarks.paper import scaling

    sizes = [(height, width) for height, width in request["sizes"]]
    for title, model, forward in NETWORKS[request["peer"]]():
        model.eval()
        try:
            if "device" in request:
                model.to(request["device"])
                device = torch.device(request["device"])
                yield from scaling.passes(title, forward, sizes, device, request["longest"])
                continue
            parameters = sum(p.numel() for p in model.parameters())
            for (height, width), found in zip(sizes, operations.operations(model, forward, sizes), strict=True):
                where = {"height": height, "width": width, "pixels": height * width}
                yield {"model": title, **where, "parameters": parameters, "operations": found}
        except Exception as error:  # whatever a peer's code does
            yield {"model": title, "skipped": reason(error)}
            return


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a peer: keys peer, root, and what is asked.

    To time: height, width, batch, device, threads, rounds (least, most, enough seconds). To count: sizes (height,
    width). To measure passes: sizes, device, threads, longest (seconds).
    """
    warnings.simplefilter("ignore")
    sys.path.insert(0, request["root"])
    name: str = request["peer"]
    rows: list[dict[str, Any]] = []
    try:
        torch.manual_seed(0)
        torch.set_num_threads(request.get("threads", torch.get_num_threads()))
        if "sizes" in request:
            rows += passes_of(request)
            return rows
        device = torch.device(request["device"])
        for codec in codecs(name, device):
            name = codec.name
            rows += rows_of(codec, request, device)
    except Exception as error:  # whatever a peer's code does
        rows.append({"model": name, "skipped": reason(error)})
    return rows


if __name__ == "__main__":
    print(json.dumps({"rows": main(json.loads(sys.argv[1]))}))
