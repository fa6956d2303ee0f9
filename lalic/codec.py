"""Pictures to the bytes of .lalic files and back: `encode`, `decode`, `decode_many`.

    encode:  picture -> images.open_picture -> for each tile: its window -> model.latents -> the tile's part
             -> model.encode_latents, or with effort `lalic.refine`; then Container.pack
    decode:  bytes -> container.parse -> choose the model, check its hash -> for each tile: model.read; for each window:
             model.synthesise -> the tile's part -> picture

A picture of at most `ONE_TILE` pixels is one tile and one window. A larger one is coded window by window
(`lalic.tiles`), so memory does not grow with it. Tiles follow one another, and threads share the work inside of a tile:
workers with a tile each would hold a window each, and were no faster on two cores. Padding repeats the last column to
the right and the last row to the bottom, up to a multiple of 64; the file has the size before padding.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import mmap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from lalic import images, metadata, weights
from lalic.alpha import decode_alpha, encode_alpha
from lalic.coder import Coder, Stream, codes_on_gpu
from lalic.container import MAX_PIXELS, Container, FileSource, Tile, contents, parse
from lalic.errors import BitstreamError, LalicError, ModelMismatchError, RequestError
from lalic.memory import apart, give_back
from lalic.refine import Refiner, check_effort
from lalic.tiles import MAX_WINDOW, SCALES, STEP, Box, Grid
from lalic_kernels.cache import one_look

if TYPE_CHECKING:
    from lalic.images import Color, ImageSource
    from lalic.model import LALIC

__all__ = ["Prepared", "coded_quality", "decode", "decode_many", "encode", "resolve_device", "shipped_model"]

ONE_TILE = MAX_WINDOW  # pixels, after padding
MAX_TILE_SIDE = 1 << 14  # pixels, of alpha in a WebP file
TILE, MARGIN = 768, 64  # pixels; larger margins give no better seams (benchmarks/results)
LATENT = 16  # pixels a side for one latent
BAND = 12  # tiles
GIVE_BACK = 16  # windows after which free memory goes back, for heaps grow around what is in use
MANY = 64  # windows, some 38 megapixels: with as many, free memory goes back after each
GPU_WINDOWS = 4  # that a GPU transforms at once, and tiles whose latents it decodes at once, of at most
GPU_PIXELS = 1 << 22  # together

_cache: dict[tuple[str, str], LALIC] = {}
_cache_lock = threading.Lock()


# Models and devices


def shipped_model(name: str = "slim", device: str | torch.device | None = None) -> LALIC:
    """The model `name`, whose weights ship with the package, in eval mode on `device` (None: the CPU).

    It is loaded once for each device and shared between threads: treat it as read-only. Raises `LalicError` for another
    name, or a device that does not exist.
    """
    if name not in (names := weights.shipped()):
        raise LalicError(f"no model named {name!r} ships with this release, expected one of {', '.join(names)}")
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
        return torch.device("cuda", target.index if target.index is not None else torch.cuda.current_device())
    return torch.device("cpu")  # also for cpu:0, which torch takes for another device


def _check_device(model: LALIC, device: str | torch.device | None) -> torch.device:
    """The model's device. Raises `LalicError` if `device` is another one: a given model is not moved."""
    if device is not None and resolve_device(device) != model.device:
        raise LalicError(
            f"device is {str(device)!r}, but the given model is on {model.device}; move it with model.to(device)"
        )
    return model.device


@contextlib.contextmanager
def _coding() -> Iterator[None]:
    """One look at the weights, and no autocast of the caller's: `LALIC.set_precision` chooses how files are coded."""
    with one_look(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


# Encoding


def encode(
    image: ImageSource | images.Picture,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    quality: float | None = None,
    effort: float | None = None,
    background: Color | None = None,
    strip: bool = False,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> bytes:
    """Compress a picture to the bytes of a .lalic file.

    image: a path, the bytes of a picture file, an open binary file, a `PIL.Image`, an array or a tensor, converted by
    the rules of `lalic.images.open_picture`; or what that gave, then without background and strip, which it takes
    itself. model: None for the slim model that ships, or one from `lalic.load`. device: of the shipped model (None: the
    CPU); a given model stays on its device. quality: 1 to 100, rounded to hundredths, None for 50; a model of one
    quality takes None only. effort: seconds that may go into a smaller file of equal PSNR (`lalic.refine`); with
    `math.inf`, for all steps, one machine makes the same file each time. background: colour below transparent pixels;
    None: alpha is stored, losslessly. strip: leave out metadata (EXIF, XMP, text, resolution), which is stored
    otherwise. max_pixels: limit on width * height. graph: of a model on a GPU, True to capture its launches as a CUDA
    graph, False to launch one by one, None for a graph from the second picture of a size on. `lalic.search` finds the
    quality for a size or a PSNR.

    Raises `ImageError` for a picture that is not taken, `LalicError` for a bad quality, effort or device and options
    that contradict, `OSError` for a path that cannot be opened, `ValueError` for `graph=True` if symbols are not coded
    on a GPU.

        >>> data = lalic.encode("photo.png")
        >>> lalic.decode(data).save("decoded.png")
    """
    prepared = Prepared(
        image, model, device=device, background=background, strip=strip, max_pixels=max_pixels, graph=graph
    )
    return prepared.encode(quality, once=True, effort=effort)


class Prepared:
    """A picture to be coded at one or several qualities: it is loaded once, and analysed once if it is one tile.

    Arguments and errors are those of `encode`. Attributes: picture, a `lalic.images.Picture`; model; graph.
    """

    def __init__(
        self,
        image: ImageSource | images.Picture,
        model: LALIC | None = None,
        *,
        device: str | torch.device | None = None,
        background: Color | None = None,
        strip: bool = False,
        max_pixels: int = MAX_PIXELS,
        graph: bool | None = None,
    ) -> None:
        if isinstance(image, images.Picture):
            if background is not None or strip:
                raise RequestError("background, strip: expected none beside a Picture; open_picture takes them")
        else:
            image = images.open_picture(image, background=background, strip=strip, max_pixels=max_pixels)
        self.picture = image
        self.model = shipped_model(device=device) if model is None else model
        self._device = _check_device(self.model, device)
        self._latents: torch.Tensor | None = None
        self.graph = graph
        self.grid = grid_of(*self.picture.image.size)

    @_coding()
    def encode(
        self,
        quality: float | None = None,
        *,
        once: bool = False,
        effort: float | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> bytes:
        """The bytes of a .lalic file.

        once: this is the only call, so the latents need not be stored. effort: as in the function `encode`. progress:
        called after each tile, with effort after each step too, with how many tiles are coded and their number; what it
        raises ends the call.
        """
        quality = coded_quality(self.model, quality)
        check_effort(self.model, effort)
        streams: list[Stream] = []
        with torch.inference_mode():
            if effort is None and once and self._latents is None and len(self.grid) == 1:
                streams = [self.model.encode(self._pixels(self.grid.padded), quality, graph=self.graph)]
            else:
                plain = (self.model.encode_latents(y, quality, graph=self.graph) for y in self.latents())
                for stream in plain if effort is None else self._refined(quality, effort, progress):
                    streams.append(stream)
                    if progress is not None:
                        progress(len(streams), len(self.grid))
        return Container(
            model_name=self.model.config.name,
            model_hash=self.model.weights_hash(),
            grid=self.grid,
            tiles=tuple(Tile(stream.data, stream.checksum) for stream in streams),
            quality=quality,
            grey=self.picture.image.mode == "L",
            alpha=self._alpha,
            metadata=self.picture.metadata,
        ).pack()

    @functools.cached_property
    def _alpha(self) -> tuple[bytes, ...] | None:
        """The alpha of each tile, None if there is none: equal for every quality."""
        channel = self.picture.alpha
        if channel is None:
            return None
        boxes = (self.grid.box(index).intersection(self.grid.whole) for index in range(len(self.grid)))
        files = tuple(encode_alpha(channel.crop(box)) for box in boxes)
        return files if any(files) else None

    def latents(self) -> Iterator[torch.Tensor]:
        """Latents (1, M, h, w) of each tile, before gains: equal for every quality. Those of one tile are kept."""
        if len(self.grid) == 1:
            if self._latents is None:
                with torch.inference_mode():
                    self._latents = self.model.latents(self._pixels(self.grid.padded))
            yield self._latents
            return
        coder, at_once = self.model.coder(self.graph), _at_once(self.model, self.grid)
        if at_once == 1:  # what is cached for a model is made now, and does not lie between the arrays of a window
            coder.encode_latents(coder.latents(self._pixels(Box(0, 0, STEP, STEP))), None)
        for begin in range(0, len(self.grid), at_once):
            if begin % GIVE_BACK == 0:
                give_back()
            indexes = range(begin, min(begin + at_once, len(self.grid)))
            windows = [self.grid.window(index) for index in indexes]
            latents = coder.latents(_batch([self._pixels(window) for window in windows]))
            for index, window, y in zip(indexes, windows, latents.split(1), strict=True):
                tile = _latent_box(self.grid.box(index), window)
                yield y[:, :, tile.top : tile.bottom, tile.left : tile.right].contiguous()
            del latents, y  # before the next ones are made

    def _refined(
        self, quality: float | None, effort: float, progress: Callable[[float, int], None] | None
    ) -> Iterator[Stream]:
        """Streams of the tiles, each refined in its window for an equal share of the time that is left."""
        assert quality is not None  # as in every model that `check_effort` takes
        end = time.perf_counter() + effort
        refiner, count = Refiner(self.model, quality), len(self.grid)

        def step(share: float) -> None:
            if progress is not None:
                progress(index + share, count)

        for index in range(count):
            window = self.grid.window(index)
            seconds = (end - time.perf_counter()) / (count - index)
            yield refiner(self._pixels(window), _latent_box(self.grid.box(index), window), seconds, step).stream

    def _pixels(self, box: Box) -> torch.Tensor:
        """A part (1, 3, H, W) of the padded picture, in [0, 1], on the model's device."""
        inside = box.intersection(self.grid.whole)
        part = self.picture.image.crop(inside)
        part = part if part.mode == "RGB" else part.convert("RGB")
        order = torch.channels_last if self._device.type == "cpu" else torch.contiguous_format  # which needs no copy
        return pad(images.to_tensor(part, self._device, order), STEP)


def grid_of(width: int, height: int) -> Grid:
    """The tiles of a picture of this size: one, or squares of `TILE` pixels."""
    one = Grid(width, height)
    fits = one.padded.width * one.padded.height <= ONE_TILE and max(width, height) < MAX_TILE_SIDE
    return one if fits else Grid(width, height, TILE, MARGIN)


def _latent_box(box: Box, window: Box) -> Box:
    """A box in latents, counted from the window's first."""
    return Box(*(side // LATENT for side in box.moved(-window.left, -window.top)))


def _at_once(model: LALIC, grid: Grid) -> int:
    """How many windows are transformed at once: all have one size, so on a GPU these are one graph."""
    window = grid.window(0)
    return max(1, min(GPU_WINDOWS, GPU_PIXELS // (window.width * window.height))) if codes_on_gpu(model.device) else 1


def coded_quality(model: LALIC, quality: float | None) -> float | None:
    """The quality of a file of this model: rounded to hundredths, its default for None; None for one of one quality.

    Raises `QualityError` for a number not in 1 to 100, and for any number if the model has one quality.
    """
    if model.as_qualities(quality, 1) is None:
        return None
    return round(100 * (model.default_quality if quality is None else float(quality))) / 100


# Decoding


@_coding()
def decode(
    data: FileSource,
    model: LALIC | None = None,
    *,
    region: Sequence[int] | None = None,
    scale: int = 1,
    device: str | torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Image.Image:
    """Decompress a .lalic file to a `PIL.Image` in sRGB, of mode RGB, RGBA, or L if it was grey.

    data: the file's bytes, its path, or an open binary file. model: the one that wrote the file; None for the slim
    model that ships. region: (left, top, right, bottom) in pixels, the part to decode, equal to that part of the whole
    picture; only the tiles near it are decoded, and a picture of at most `ONE_TILE` pixels is one tile. scale: 1, 2, 4,
    8, ... 64, the picture or region is reduced by this factor, by averaging; it takes the time of the whole, and
    without a region the memory of the result. device: of the shipped model (None: the CPU). max_pixels: limit on width
    * height of the whole picture, checked before memory is allocated. graph: of a model on a GPU, True to capture its
    launches as a CUDA graph, False to launch one by one, None for a graph from the second picture of a size on
    (docs/gpu.md).

    Raises `ModelMismatchError` if the file was written with other weights, `BitstreamError` for any other fault: a file
    is decoded to the picture that was written, or not at all. Raises `RequestError` for a region that is not inside the
    picture, or another scale.
    """
    container = parse(data, max_pixels, copy=False)
    model = _matching_model(container, model, device)
    box = _region(region, container.grid)
    _check_scale(scale)
    # Tiles lie at multiples of every scale from the picture's corner, not from a region's: that is reduced at the end.
    step = scale if region is None else 1
    picture: Image.Image | None = None  # gets no memory before a tile was found to be sound
    with torch.inference_mode():
        for place, part in _decoded_parts(container, model, box, graph):
            part = part if step == 1 else part.reduce(step)
            if place == box:
                picture = part
                break
            if picture is None:
                with apart():
                    picture = Image.new(container.mode, (-(-box.width // step), -(-box.height // step)))
            picture.paste(part, ((place.left - box.left) // step, (place.top - box.top) // step))
    assert picture is not None
    picture = picture if step == scale else picture.reduce(scale)
    metadata.attach(picture, container.metadata)
    return picture


def decode_parts(
    data: FileSource,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Iterator[tuple[Box, np.ndarray]]:
    """Decompress the bytes of a .lalic file tile by tile, in bounded memory: (place, pixels) of each.

    Pixels are uint8 (h, w, 3), (h, w, 4) with alpha, or (h, w) if grey. Arguments and errors are those of `decode`; an
    error may come after some parts.
    """
    container = parse(data, max_pixels, copy=False)
    model = _matching_model(container, model, device)
    parts = _decoded_parts(container, model, container.grid.whole, graph)
    while True:
        with _coding(), torch.inference_mode():  # and not in what the caller does between the parts
            found = next(parts, None)
        if found is None:
            return
        yield found[0], np.asarray(found[1])


def _decoded_parts(
    container: Container, model: LALIC, box: Box, graph: bool | None
) -> Iterator[tuple[Box, Image.Image]]:
    """For each tile that meets a box of the picture, what they have in common, and its picture with alpha."""
    for index, tile, x in _decoded_tiles(container, model, box, graph):
        common = tile.intersection(box)
        part = _with_alpha(images.from_tensor(x), container, index)
        del x  # a view of the window's pixels
        yield common, part if common == tile else part.crop(common.moved(-tile.left, -tile.top))


def _with_alpha(picture: Image.Image, container: Container, index: int) -> Image.Image:
    """A decoded tile, RGB and padded, in the file's mode."""
    if container.grey:
        picture = picture.convert("L")
    if container.alpha is None:
        return picture
    picture = picture.convert("RGB")
    whole = container.grid.box(index).intersection(container.grid.whole)
    alpha = decode_alpha(container.alpha[index], (whole.width, whole.height))
    picture.putalpha(alpha.crop((0, 0, *picture.size)))
    return picture


def _decoded_tiles(
    container: Container, model: LALIC, box: Box, graph: bool | None
) -> Iterator[tuple[int, Box, torch.Tensor]]:
    """For each tile that meets a box, its index, its place and its pixels (1, 3, H, W) in [0, 1]."""
    grid, quality = container.grid, container.quality
    if len(grid) == 1:
        side = grid.padded
        yield 0, side, model.decode(_stream(container, 0), side.height, side.width, quality, graph=graph)
        return
    # While many windows come and go the heap grows, so their arrays lie outside of it, which takes a little longer.
    tiles = list(grid.meeting(box))
    many = len(tiles) >= MANY
    with apart() if many else contextlib.nullcontext():
        yield from _decoded_windows(container, model, tiles, graph, 1 if many else GIVE_BACK)


def _decoded_windows(
    container: Container, model: LALIC, tiles: Sequence[int], graph: bool | None, give_back_every: int
) -> Iterator[tuple[int, Box, torch.Tensor]]:
    """`_decoded_tiles` of some of several tiles. give_back_every: windows after which free memory goes back."""
    grid, quality = container.grid, container.quality
    coder, at_once = model.coder(graph), _at_once(model, grid)
    # In bands of columns from top to bottom: however wide the picture is, latents of one row of a band are held, and
    # the last lines of the row above.
    order = sorted(tiles, key=lambda i: (i % grid.columns // BAND, i))
    latents: dict[int, _Part] = {}

    def near(begin: int, count: int) -> dict[int, int]:
        """The tiles that some windows meet, and the first of a tile's lines of pixels that is in one of them."""
        first: dict[int, int] = {}
        for window in map(grid.window, order[begin : begin + count]):
            for tile in grid.meeting(window):
                top = max(window.top, grid.box(tile).top)
                first[tile] = min(top, first.get(tile, top))
        return first

    def missing(begin: int, count: int) -> list[int]:
        needed = near(begin, count).items()
        return sorted(tile for tile, top in needed if tile not in latents or latents[tile].box.top > top)

    for begin in range(0, len(order), at_once):
        if indexes := missing(begin, at_once):
            indexes = indexes if at_once == 1 else missing(begin, BAND)
            for index, y_hat in _read_tiles(container, coder, indexes, at_once):
                latents[index] = _Part(grid.box(index), _kept(y_hat))
        windows = {index: grid.window(index) for index in order[begin : begin + at_once]}
        if begin == 0 and at_once == 1:  # as in the encoder
            first = latents[order[0]].y_hat[:, :, :4, :4]
            coder.synthesise(first.contiguous(), model.as_qualities(quality, 1))
        if begin % give_back_every == 0:
            give_back()
        joined = [_joined_latents(grid, latents, window) for window in windows.values()]
        pictures = coder.synthesise(_batch(joined), model.as_qualities([quality] * len(windows), len(windows)))
        for index, x in zip(windows, pictures.split(1), strict=True):
            tile = grid.box(index)
            inside = tile.moved(-windows[index].left, -windows[index].top)
            yield index, tile, x[:, :, inside.top : inside.bottom, inside.left : inside.right]
        del joined, pictures, x  # before the next ones are made
        later = near(begin + at_once, BAND + 1)
        latents = {tile: part.cut(later[tile]) for tile, part in latents.items() if tile in later}


class _Part(NamedTuple):
    """Latents (1, M, h, w) of a box of the picture."""

    box: Box
    y_hat: torch.Tensor

    def cut(self, top: int) -> _Part:
        """Without the lines of pixels above `top`."""
        if top <= self.box.top:
            return self
        return _Part(self.box._replace(top=top), _kept(self.y_hat[:, :, (top - self.box.top) // LATENT :]))


def _kept(x: torch.Tensor) -> torch.Tensor:
    """A copy; on the CPU outside of the heap, where it would lie between the arrays of the windows that come and go."""
    if not x.is_cpu:
        return x.clone()
    memory = mmap.mmap(-1, x.nbytes)
    return torch.frombuffer(memory, dtype=x.dtype).view(x.shape).copy_(x)


def _read_tiles(
    container: Container, coder: Coder, indexes: Sequence[int], at_once: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Latents (1, M, h, w) of tiles, by their index. Those of one size are decoded together."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for index in indexes:
        tile = container.grid.box(index)
        sizes.setdefault((tile.height // STEP, tile.width // STEP), []).append(index)
    for size, alike in sizes.items():
        for begin in range(0, len(alike), at_once):
            some = alike[begin : begin + at_once]
            for index, y_hat in zip(some, coder.read_latents([_stream(container, i) for i in some], size), strict=True):
                if isinstance(y_hat, BitstreamError):
                    raise y_hat
                yield index, y_hat


def _joined_latents(grid: Grid, latents: Mapping[int, _Part], window: Box) -> torch.Tensor:
    """Latents (1, M, h, w) of a window, from those of its tiles."""
    joined: torch.Tensor | None = None
    for near in grid.meeting(window):
        box, y_hat = latents[near]
        part = grid.box(near).intersection(window)
        source, target = _latent_box(part, box), _latent_box(part, window)
        if joined is None:
            joined = y_hat.new_empty(1, y_hat.shape[1], window.height // LATENT, window.width // LATENT)
        joined[:, :, target.top : target.bottom, target.left : target.right] = y_hat[
            :, :, source.top : source.bottom, source.left : source.right
        ]
    assert joined is not None
    return joined


def _region(region: Sequence[int] | None, grid: Grid) -> Box:
    if region is None:
        return grid.whole
    numbers = len(region) == 4 and all(hasattr(side, "__index__") for side in region)
    box = Box(*map(int, region)) if numbers else Box(0, 0, 0, 0)
    if box.empty or box.intersection(grid.whole) != box:
        raise RequestError(
            f"region is {tuple(region)}, expected (left, top, right, bottom) inside of {grid.width}x{grid.height}"
        )
    return box


def _check_scale(scale: int) -> None:
    if not hasattr(scale, "__index__") or scale not in SCALES:
        raise RequestError(f"scale is {scale}, expected one of {', '.join(map(str, SCALES))}")


def decode_many(
    files: Iterable[FileSource],
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    batch: int = 8,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
) -> Iterator[Image.Image | LalicError]:
    """Decompress many files, each as `decode` takes it: yields its picture, or the error that `decode` would raise.

    batch: number of files that are read at a time. On a GPU those of one padded size are decoded together; this changes
    no symbol, and no pixel by more than the rounding of the synthesis transform. A damaged file affects no other. On a
    CPU they are decoded one by one. The other arguments are those of `decode`. Raises `ValueError` for a batch below
    one, `OSError` for a path that cannot be opened, after the files before it, and errors that are not about a file,
    such as too little memory.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    remaining = iter(files)
    problem: OSError | None = None
    while problem is None:
        read: list[FileSource] = []
        try:
            for file in itertools.islice(remaining, batch):
                read.append(contents(file))
        except OSError as error:
            problem = error
        if not read and problem is None:
            return
        yield from _decode_batch(read, model, device, max_pixels, graph)
    raise problem


@_coding()
def _decode_batch(
    files: Sequence[FileSource],
    model: LALIC | None,
    device: str | torch.device | None,
    max_pixels: int,
    graph: bool | None,
) -> list[Image.Image | LalicError]:
    results: list[Any] = [None] * len(files)
    groups: dict[tuple[int, int, int], list[tuple[int, Container]]] = {}
    models = {}
    for i, data in enumerate(files):
        try:
            container = parse(data, max_pixels, copy=False)
            matching = _matching_model(container, model, device)
        except LalicError as error:
            results[i] = error
            continue
        if len(container.grid) > 1:
            try:
                results[i] = decode(data, matching, max_pixels=max_pixels, graph=graph)
            except LalicError as error:
                results[i] = error
            continue
        models[id(matching)] = matching
        size = container.grid.padded
        groups.setdefault((id(matching), size.height, size.width), []).append((i, container))
    for (key, height, width), members in groups.items():
        with torch.inference_mode():
            pictures = models[key].decode_batch(
                [_stream(c, 0) for _, c in members], height, width, [c.quality for _, c in members], graph=graph
            )
        for (i, container), x in zip(members, pictures, strict=True):
            if isinstance(x, LalicError):
                results[i] = x
                continue
            try:
                picture = _with_alpha(images.from_tensor(x), container, 0).crop(container.grid.whole)
                metadata.attach(picture, container.metadata)
                results[i] = picture
            except LalicError as error:
                results[i] = error
    return results


def _stream(container: Container, index: int) -> Stream:
    stream, checksum = container.tiles[index]
    return Stream(bytes(stream), checksum)


def symbol_hashes(
    data: FileSource,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> dict[str, str]:
    """Hashes of a .lalic file's symbols and latents: {"symbols_sha256", "latents_sha256"}, 64 hex digits each.

    The first is over all symbols as little-endian int32 in coding order; the second over y_hat, symbols plus predicted
    means, as little-endian float32 (channel, row, column). Of several tiles each is the SHA-256 of the tiles' digests,
    32 bytes each. They are equal on two machines if and only if both decode the same bits. Arguments and errors are
    those of `decode`; no picture is made, so with max_pixels None a large one takes no more memory.
    """
    container = parse(data, max_pixels, copy=False)
    model = _matching_model(container, model, device)
    symbols, latents = [], []
    for index in range(len(container.grid)):
        tile = container.grid.box(index)
        with torch.inference_mode():
            decoded = model.read(_stream(container, index), tile.height, tile.width)
        symbols.append(decoded.symbols_sha256)
        y_hat = decoded.y_hat[0].float().cpu().contiguous().numpy().astype("<f4")
        latents.append(hashlib.sha256(y_hat.tobytes()).hexdigest())
    return {"symbols_sha256": _joined(symbols), "latents_sha256": _joined(latents)}


def _joined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _matching_model(container: Container, model: LALIC | None, device: str | torch.device | None) -> LALIC:
    """The model for the file, the given one or one that ships. Raises `ModelMismatchError` if it did not write it."""
    writer = f"{container.model_name!r} with hash {container.model_hash.hex()}"
    if model is None:
        if container.model_name not in weights.shipped():
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


def _batch(images: list[torch.Tensor]) -> torch.Tensor:
    """The images (1, C, H, W) as one tensor; a single one is not copied."""
    return images[0] if len(images) == 1 else torch.cat(images)


def pad(x: torch.Tensor, step: int) -> torch.Tensor:
    """(1, 3, H, W) with its last row and column repeated until both sides are multiples of `step`.

    x itself if they are.
    """
    height, width = x.shape[-2:]
    if height % step == width % step == 0:
        return x
    return torch.nn.functional.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
