"""Image <-> bytes: the two functions that most people need.

    encode:  picture -> images.load -> pad to multiples of model.downsampling -> model.encode -> Container.pack
    decode:  bytes -> container.parse -> find the model and check its hash -> model.decode -> crop -> picture

Padding repeats the last column to the right and the last row to the bottom; the file keeps the picture's own size.
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

if TYPE_CHECKING:
    from lalic.images import Color, ImageSource
    from lalic.model import LALIC

__all__ = [
    "MAX_PIXELS",
    "Prepared",
    "coded_quality",
    "decode",
    "decode_many",
    "encode",
    "resolve_device",
    "shipped_model",
]

SHIPPED = ("slim",)  # names of the models whose weights are part of the package

_cache: dict[tuple[str, str], LALIC] = {}
_cache_lock = threading.Lock()


def shipped_model(name: str = "slim", device: str | torch.device | None = None) -> LALIC:
    """The model `name` whose weights ship with the package, in eval mode on `device` (None: the CPU).

    Loaded once for each device and then shared, by threads too: treat it as read-only. Raises `LalicError` for a name
    that does not ship or a device that is not there.
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
    """What "cpu", "cuda", "cuda:N" or None (the CPU) means, with its index. Raises `LalicError` if it is not there."""
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
    """Where the model is; a `device` that says otherwise is an error, for a caller's model is not moved silently."""
    if device is not None and resolve_device(device) != model.device:
        raise LalicError(
            f"device is {str(device)!r}, but the given model is on {model.device}; move it with model.to(device)"
        )
    return model.device


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

    image: a path, the bytes of a picture file, or a `PIL.Image`; `lalic.images` says what is converted how.
    model: None for the slim model that ships, or one made by `lalic.load_checkpoint`. device: where the shipped model
    runs (None: the CPU); a given model runs where it is. quality: 1 to 100, taken to hundredths, None for 50; a model
    of one quality takes None only. background: colour below transparent pixels, without which they are refused.
    max_pixels: limit on width * height. graph: as of `decode`. `lalic.search` finds the quality for a size or a PSNR.

    Raises `ImageError` if the picture is refused, `LalicError` if the quality is, `OSError` if a path cannot be opened,
    `ValueError` for a graph where symbols are not coded on a GPU.

        >>> data = lalic.encode("photo.png")
        >>> lalic.decode(data).save("decoded.png")
    """
    prepared = Prepared(image, model, device=device, background=background, max_pixels=max_pixels, graph=graph)
    return prepared.encode(quality, once=True)


class Prepared:
    """A picture ready to be coded, once or at several qualities: it is loaded and analysed once.

    Arguments and errors as of `encode`. picture: what is coded, RGB in sRGB. graph: as given.
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

    def encode(self, quality: float | None = None, *, once: bool = False) -> bytes:
        """The bytes of a .lalic file. once: no other quality will be asked for, so nothing is kept for that."""
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
        return _pad(images.to_tensor(self.picture).to(self._device), self.model.downsampling)


def coded_quality(model: LALIC, quality: float | None) -> float | None:
    """What a file of this model says and is coded at: hundredths, 50 for None; None for a model of one quality.

    Raises `QualityError` beyond 1 to 100, and for any number if the model has one quality only.
    """
    coded = model.as_qualities(quality, 1)
    if coded is None:
        return None
    return round(100 * (DEFAULT_QUALITY if quality is None else quality)) / 100


def decode(
    data: bytes,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Image.Image:
    """Decompress the bytes of a .lalic file to a `PIL.Image` of mode RGB, in sRGB.

    model, device: as in `encode`; the model must be the one that wrote the file. max_pixels: larger pictures are
    refused before memory is taken. graph: of a model on a GPU, True to make its launches as a CUDA graph, False to make
    them one by one, None for a graph from the second picture of a size on (docs/gpu.md).

    Raises `ModelMismatchError` if the file wants other weights, `BitstreamError` for anything else that is wrong with
    it: a file is decoded to the picture that was written, or not at all.
    """
    container = parse(data, max_pixels)
    model = _matching_model(container, model, device)
    return _decode_one(container, model, graph)


def decode_many(
    files: Iterable[bytes],
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    batch: int = 8,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Iterator[Image.Image | LalicError]:
    """Decompress the bytes of many .lalic files: for each in turn its picture, or the error that `decode` would raise.

    Files are taken `batch` at a time. Of those, on a GPU, the ones whose padded sizes are equal are decoded together,
    which changes no symbol, and no pixel by more than the rounding of the synthesis transform. A damaged file spoils no
    other. Elsewhere they are decoded one by one. Other arguments as of `decode`; raises `ValueError` for a batch below
    one, and what is no fault of a file, such as memory that does not suffice.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    rest = iter(files)
    while together := list(itertools.islice(rest, batch)):
        yield from _decode_together(together, model, device, max_pixels, graph)


def _decode_together(
    files: list[bytes], model: LALIC | None, device: str | torch.device | None, max_pixels: int, graph: bool | None
) -> list[Image.Image | LalicError]:
    found: list[Any] = [None] * len(files)
    groups: dict[tuple[int, int, int], list[tuple[int, Container]]] = {}
    models = {}
    for i, data in enumerate(files):
        try:
            container = parse(data, max_pixels)
            own = _matching_model(container, model, device)
        except LalicError as error:
            found[i] = error
            continue
        models[id(own)] = own
        groups.setdefault((id(own), *_padded(container, own)), []).append((i, container))
    for (name, height, width), members in groups.items():
        own = models[name]
        with torch.inference_mode():
            pictures = own.decode_batch(
                [_stream(c) for _, c in members], height, width, [c.quality for _, c in members], graph=graph
            )
        for (i, container), x in zip(members, pictures, strict=True):
            found[i] = x if isinstance(x, LalicError) else _cropped(x, container)
    return found


def _decode_one(container: Container, model: LALIC, graph: bool | None) -> Image.Image:
    with torch.inference_mode():
        x = model.decode(_stream(container), *_padded(container, model), container.quality, graph=graph)
    return _cropped(x, container)


def _stream(container: Container) -> Stream:
    return Stream(container.stream, container.symbol_checksum)


def _padded(container: Container, model: LALIC) -> tuple[int, int]:
    """Height and width of what is coded."""
    step = model.downsampling
    return -(-container.height // step) * step, -(-container.width // step) * step


def _cropped(x: torch.Tensor, container: Container) -> Image.Image:
    return images.from_tensor(x[:, :, : container.height, : container.width])


def symbol_hashes(
    data: bytes,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, str]:
    """Decode the symbols of a .lalic file, and no picture: {"symbols_sha256", "latents_sha256"}, each 64 hex digits.

    The first is over all symbols as little-endian int32 in coding order; the second over y_hat, symbols plus predicted
    means, as little-endian float32 (channel, row, column). Two machines that print the same decoded the same, to the
    last bit. Arguments and errors as in `decode`.
    """
    container = parse(data, max_pixels)
    model = _matching_model(container, model, device)
    with torch.inference_mode():
        found = model.read(_stream(container), *_padded(container, model))
    latents = found.y_hat[0].float().cpu().contiguous().numpy().astype("<f4")
    return {"symbols_sha256": found.symbols_sha256, "latents_sha256": hashlib.sha256(latents.tobytes()).hexdigest()}


def _matching_model(container: Container, model: LALIC | None, device: str | torch.device | None) -> LALIC:
    """The model that wrote the file: the given one, or one that ships; `ModelMismatchError` if it is not that one."""
    wants = f"{container.model_name!r} with hash {container.model_hash.hex()}"
    if model is None:
        if container.model_name not in SHIPPED:
            raise ModelMismatchError(
                f"the file was written by the model {wants}, which does not ship with this release;"
                " give its weights (--checkpoint PATH, or model=)"
            )
        model = shipped_model(container.model_name, device)
        given = f"the {container.model_name} model of this release has hash"
    else:
        _check_device(model, device)
        given = f"the given model is {model.config.name!r} with hash"
    found = model.weights_hash()
    if (model.config.name, found) != (container.model_name, container.model_hash):
        raise ModelMismatchError(f"the file was written by the model {wants}, but {given} {found.hex()}")
    if (container.quality is None) == bool(model.config.qualities):
        said = "no quality" if container.quality is None else f"quality {container.quality:g}"
        raise BitstreamError(f"the file names {said}, which its model {model.config.name!r} does not write")
    return model


def _pad(x: torch.Tensor, step: int) -> torch.Tensor:
    """(1, 3, H, W) with its last row and column repeated until both sides are multiples of `step`."""
    height, width = x.shape[-2:]
    return torch.nn.functional.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
