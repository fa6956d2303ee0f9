"""Pictures to the bytes of .lalic files and back: `encode`, `decode`, `decode_many`.

    encode:  picture -> images.load -> pad to multiples of model.downsampling -> model.encode -> Container.pack
    decode:  bytes -> container.parse -> choose the model, check its hash -> model.decode -> crop -> picture

Padding repeats the last column to the right and the last row to the bottom; the file has the size before padding.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from lalic import images
from lalic.coder import Stream
from lalic.config import DEFAULT_QUALITY
from lalic.container import MAX_PIXELS, MAX_SIDE, Container, parse
from lalic.errors import BitstreamError, ImageError, LalicError, ModelMismatchError
from lalic_kernels.cache import one_look

if TYPE_CHECKING:
    from lalic.images import Color, ImageSource
    from lalic.model import LALIC

__all__ = ["Prepared", "coded_quality", "decode", "decode_many", "encode", "resolve_device", "shipped_model"]

SHIPPED = ("slim",)  # names of the models whose weights are part of the package

_cache: dict[tuple[str, str], LALIC] = {}
_cache_lock = threading.Lock()


# Models and devices


def shipped_model(name: str = "slim", device: str | torch.device | None = None) -> LALIC:
    """The model `name`, whose weights ship with the package, in eval mode on `device` (None: the CPU).

    It is loaded once for each device and shared between threads: treat it as read-only. Raises `LalicError` for another
    name, or a device that does not exist.
    """
    if name not in SHIPPED:
        raise LalicError(f"no model named {name!r} ships with this release, expected one of {', '.join(SHIPPED)}")
    target = resolve_device(device)
    with _cache_lock:
        key = (name, str(target))
        if key not in _cache:
            import lalic

            _cache[key] = lalic.slim(pretrained=True).to(target).eval()
        return _cache[key]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N", with its index; None: the CPU. Raises `LalicError` if it does not exist."""
    try:
        target = torch.device("cpu" if device is None else device)
    except RuntimeError:
        raise LalicError(f"device is {str(device)!r}, expected cpu, cuda or cuda:N") from None
    if target.type not in ("cpu", "cuda"):
        raise LalicError(f"device is {str(target)!r}, expected cpu, cuda or cuda:N")
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (target.index or 0) >= count:
            raise LalicError(f"device is {str(target)!r}, but this machine has {count} CUDA devices that torch can use")
        target = torch.device("cuda", target.index if target.index is not None else torch.cuda.current_device())
    return target


def _check_device(model: LALIC, device: str | torch.device | None) -> torch.device:
    """The model's device. Raises `LalicError` if `device` is another one: a given model is not moved."""
    if device is not None and resolve_device(device) != model.device:
        raise LalicError(
            f"device is {str(device)!r}, but the given model is on {model.device}; move it with model.to(device)"
        )
    return model.device


# Encoding


def encode(
    image: ImageSource,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    quality: float | None = None,
    background: Color | None = None,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> bytes:
    """Compress a picture to the bytes of a .lalic file.

    image: a path, the bytes of a picture file, or a `PIL.Image`, converted by the rules of `lalic.images`.
    model: None for the slim model that ships, or one from `lalic.load_checkpoint`. device: of the shipped model (None:
    the CPU); a given model stays on its device. quality: 1 to 100, rounded to hundredths, None for 50; a model of one
    quality takes None only. background: colour below transparent pixels; None: they are an error. max_pixels: limit on
    width * height. graph: of a model on a GPU, True to capture its launches as a CUDA graph, False to launch one by
    one, None for a graph from the second picture of a size on. `lalic.search` finds the quality for a size or a PSNR.

    Raises `ImageError` for a picture that is not taken, `LalicError` for a bad quality or device, `OSError` for a path
    that cannot be opened, `ValueError` for `graph=True` if symbols are not coded on a GPU.

        >>> data = lalic.encode("photo.png")
        >>> lalic.decode(data).save("decoded.png")
    """
    prepared = Prepared(image, model, device=device, background=background, max_pixels=max_pixels, graph=graph)
    return prepared.encode(quality, once=True)


class Prepared:
    """A picture to be coded at one or several qualities: it is loaded and analysed once.

    Arguments and errors are those of `encode`. Attributes: picture, RGB in sRGB; model; graph.
    """

    def __init__(
        self,
        image: ImageSource,
        model: LALIC | None = None,
        *,
        device: str | torch.device | None = None,
        background: Color | None = None,
        max_pixels: int = MAX_PIXELS,
        graph: bool | None = None,
    ) -> None:
        self.picture = images.load(image, background=background, max_pixels=max_pixels)
        if max(self.picture.size) > MAX_SIDE:
            width, height = self.picture.size
            raise ImageError(f"the picture is too large: {width}x{height}, expected at most {MAX_SIDE} a side")
        self.model = shipped_model(device=device) if model is None else model
        self._device = _check_device(self.model, device)
        self._latents: torch.Tensor | None = None
        self.graph = graph

    @one_look()
    def encode(self, quality: float | None = None, *, once: bool = False) -> bytes:
        """The bytes of a .lalic file. once: this is the only call, so the latents need not be stored."""
        quality = coded_quality(self.model, quality)
        with torch.inference_mode():
            if once and self._latents is None:
                stream = self.model.encode(self._tensor(), quality, graph=self.graph)
            else:
                if self._latents is None:
                    self._latents = self.model.latents(self._tensor())
                stream = self.model.encode_latents(self._latents, quality, graph=self.graph)
        return Container(
            model_name=self.model.config.name,
            model_hash=self.model.weights_hash(),
            width=self.picture.width,
            height=self.picture.height,
            stream=stream.data,
            symbol_checksum=stream.checksum,
            quality=quality,
        ).pack()

    def _tensor(self) -> torch.Tensor:
        return pad(images.to_tensor(self.picture, self._device), self.model.downsampling)


def coded_quality(model: LALIC, quality: float | None) -> float | None:
    """The quality of a file of this model: rounded to hundredths, 50 for None; None for a model of one quality.

    Raises `QualityError` for a number not in 1 to 100, and for any number if the model has one quality.
    """
    if model.as_qualities(quality, 1) is None:
        return None
    return round(100 * (DEFAULT_QUALITY if quality is None else quality)) / 100


# Decoding


@one_look()
def decode(
    data: bytes,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Image.Image:
    """Decompress the bytes of a .lalic file to a `PIL.Image` of mode RGB, in sRGB.

    model: the one that wrote the file; None for the slim model that ships. device: of the shipped model (None: the
    CPU). max_pixels: limit on width * height, checked before memory is allocated. graph: of a model on a GPU, True to
    capture its launches as a CUDA graph, False to launch one by one, None for a graph from the second picture of a
    size on (docs/gpu.md).

    Raises `ModelMismatchError` if the file was written with other weights, `BitstreamError` for any other fault: a file
    is decoded to the picture that was written, or not at all.
    """
    container = parse(data, max_pixels)
    model = _matching_model(container, model, device)
    with torch.inference_mode():
        x = model.decode(_stream(container), *_padded_size(container, model), container.quality, graph=graph)
    return _cropped(x, container)


def decode_many(
    files: Iterable[bytes],
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    batch: int = 8,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Iterator[Image.Image | LalicError]:
    """Decompress the bytes of many .lalic files: yields for each its picture, or the error that `decode` would raise.

    batch: number of files that are read at a time. On a GPU those of one padded size are decoded together; this changes
    no symbol, and no pixel by more than the rounding of the synthesis transform. A damaged file affects no other. On a
    CPU they are decoded one by one. The other arguments are those of `decode`. Raises `ValueError` for a batch below
    one, and errors that are not about a file, such as too little memory.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    remaining = iter(files)
    while batch_files := list(itertools.islice(remaining, batch)):
        yield from _decode_batch(batch_files, model, device, max_pixels, graph)


@one_look()
def _decode_batch(
    files: list[bytes], model: LALIC | None, device: str | torch.device | None, max_pixels: int, graph: bool | None
) -> list[Image.Image | LalicError]:
    results: list[Any] = [None] * len(files)
    groups: dict[tuple[int, int, int], list[tuple[int, Container]]] = {}
    models = {}
    for i, data in enumerate(files):
        try:
            container = parse(data, max_pixels)
            matching = _matching_model(container, model, device)
        except LalicError as error:
            results[i] = error
            continue
        models[id(matching)] = matching
        groups.setdefault((id(matching), *_padded_size(container, matching)), []).append((i, container))
    for (key, height, width), members in groups.items():
        with torch.inference_mode():
            pictures = models[key].decode_batch(
                [_stream(c) for _, c in members], height, width, [c.quality for _, c in members], graph=graph
            )
        for (i, container), x in zip(members, pictures, strict=True):
            results[i] = x if isinstance(x, LalicError) else _cropped(x, container)
    return results


def _stream(container: Container) -> Stream:
    return Stream(container.stream, container.symbol_checksum)


def _padded_size(container: Container, model: LALIC) -> tuple[int, int]:
    """Height and width of the padded picture."""
    step = model.downsampling
    return -(-container.height // step) * step, -(-container.width // step) * step


def _cropped(x: torch.Tensor, container: Container) -> Image.Image:
    return images.from_tensor(x[:, :, : container.height, : container.width])


def symbol_hashes(
    data: bytes, model: LALIC | None = None, *, device: str | torch.device | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, str]:
    """Hashes of a .lalic file's symbols and latents: {"symbols_sha256", "latents_sha256"}, 64 hex digits each.

    The first is over all symbols as little-endian int32 in coding order; the second over y_hat, symbols plus predicted
    means, as little-endian float32 (channel, row, column). They are equal on two machines if and only if both decode
    the same bits. Arguments and errors are those of `decode`; no picture is made.
    """
    container = parse(data, max_pixels)
    model = _matching_model(container, model, device)
    with torch.inference_mode():
        decoded = model.read(_stream(container), *_padded_size(container, model))
    latents = decoded.y_hat[0].float().cpu().contiguous().numpy().astype("<f4")
    return {"symbols_sha256": decoded.symbols_sha256, "latents_sha256": hashlib.sha256(latents.tobytes()).hexdigest()}


def _matching_model(container: Container, model: LALIC | None, device: str | torch.device | None) -> LALIC:
    """The model for the file, the given one or one that ships. Raises `ModelMismatchError` if it did not write it."""
    writer = f"{container.model_name!r} with hash {container.model_hash.hex()}"
    if model is None:
        if container.model_name not in SHIPPED:
            raise ModelMismatchError(
                f"the file was written by the model {writer}, which does not ship with this release;"
                " give its weights (--checkpoint PATH, or model=)"
            )
        model = shipped_model(container.model_name, device)
        given = f"the {container.model_name} model of this release has hash"
    else:
        _check_device(model, device)
        given = f"the given model is {model.config.name!r} with hash"
    actual = model.weights_hash()
    if (model.config.name, actual) != (container.model_name, container.model_hash):
        raise ModelMismatchError(f"the file was written by the model {writer}, but {given} {actual.hex()}")
    if (container.quality is None) == bool(model.config.qualities):
        quality = "no quality" if container.quality is None else f"quality {container.quality:g}"
        raise BitstreamError(f"the file names {quality}, which its model {model.config.name!r} does not write")
    return model


def pad(x: torch.Tensor, step: int) -> torch.Tensor:
    """(1, 3, H, W) with its last row and column repeated until both sides are multiples of `step`."""
    height, width = x.shape[-2:]
    return torch.nn.functional.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
