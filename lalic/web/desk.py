"""Pictures that browsers have opened: each is coded at a quality, matched by another codec, and measured, in steps.

    Desk.open(data) -> key          a photo, or a .lalic file, is decoded
    Desk.code(key, Request, report) -> Results, growing: lalic's match, the other codec's, the bit map
    Desk.curve(key, report)         -> points of both codecs, growing

One coding runs at a time, as each uses all cores. A new request ends an older one of its picture at the next tile or
step: the older call raises `Superseded`. What can be kept is kept for the next request: latents, what each quality of a
codec gives, the newest results.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lalic import codec, images, search
from lalic.container import MAGIC, parse
from lalic.errors import LalicError
from lalic.eval.bits import bit_map
from lalic.eval.codecs import Codec, Coded, LalicCodec, NotInstalled, Quality
from lalic.eval.codecs.pillow import PillowCodec
from lalic.eval.side_by_side import Known, Match, coded_at, nearest
from lalic.memory import give_back
from lalic.metrics import psnr
from lalic.model import LALIC

__all__ = [
    "AIMS",
    "MAX_PIXELS",
    "Closed",
    "Desk",
    "Opened",
    "Report",
    "Request",
    "Results",
    "Superseded",
    "opponents",
    "sample",
]

MAX_PIXELS = 1 << 26  # of a picture, unless the command says otherwise
CURVE_PIXELS = 1 << 21  # of a picture whose curve is made unasked: some seconds
KEPT_BYTES = 1 << 29  # of all pictures together, with what is kept for their next requests
KEPT_LATENTS = 1 << 25  # pixels of a picture whose latents are kept
LARGE = codec.ONE_TILE  # pixels of a picture after whose coding free memory goes back to the system
PIXEL_BYTES = 4  # of a pixel in Pillow, and of its share of the latents
AIMS = {"quality": "Quality", "bpp": "Bits per pixel", "psnr": "PSNR", "size": "File size"}
OFFERED = ("jpeg", "webp", "avif", "avif-psnr", "jxl", "heic")

Points = dict[str, list[tuple[float, float]]]  # (bits per pixel, PSNR), by the title of a codec
Report = Callable[[str, float | None], None]  # what is being done, and the share that is done


_CLOSED = object()
_warnings_lock = threading.Lock()


class Superseded(Exception):
    """A newer request for the same picture has come."""


class Closed(LalicError):
    """The picture is not open any more."""


@dataclass(frozen=True)
class Request:
    """What to make of a picture.

    aim: of `AIMS`, what `value` is: 1 to 100, bits per pixel, dB, or kB of 1000 bytes. other: name of a codec of
    `opponents`, None for none. match: "bpp" or "psnr", what the other codec has in common with lalic.
    """

    aim: str = "quality"
    value: float = 50
    other: str | None = "jpeg"
    match: str = "bpp"


@dataclass(frozen=True)
class Results:
    """What has been made for a request so far. bits: of each 16x16 pixels."""

    request: Request
    ours: Match
    theirs: Match | None = None
    bits: NDArray[np.float32] | None = None

    @property
    def matches(self) -> list[Match]:
        return [self.ours] if self.theirs is None else [self.ours, self.theirs]


@dataclass
class Opened:
    """An open picture.

    name: of its file, without extension. picture: RGB. notes: sentences about it. file: if a .lalic file was opened,
    its bytes; then there is no original, and nothing to compare. prepared: the picture as lalic codes it, None for a
    .lalic file. known: what is known of codecs, by their names.
    newest: lalic's matches that are kept. addresses: of its files for browsers. results: what was made last.
    """

    name: str
    picture: Image.Image
    notes: list[str] = field(default_factory=list)
    file: bytes | None = None
    decode_seconds: float = 0.0
    prepared: _Watched | None = None
    known: dict[str, Known] = field(default_factory=dict)
    newest: OrderedDict[Quality, Match] = field(default_factory=OrderedDict)
    addresses: dict[str, str] = field(default_factory=dict)
    wanted: object = None
    results: Results | None = None
    identity: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def pixels(self) -> int:
        return self.picture.width * self.picture.height

    @property
    def large(self) -> bool:
        """Whether free memory goes back to the system after work with it."""
        return self.pixels > LARGE

    @property
    def kept_bytes(self) -> int:
        """Of the picture, its results and its latents."""
        pictures = 1 + len(self.newest) + (self.results is not None and self.results.theirs is not None)
        latents = self.prepared is not None and self.prepared.keeps
        return PIXEL_BYTES * self.pixels * (pictures + latents)


def opponents() -> list[str]:
    """Names of the codecs to compare with that are installed."""
    return [name for name in OFFERED if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        PillowCodec(name)
    except NotInstalled:
        return False
    return True


# Codecs that say what they do


def _silent(text: str, share: float | None = None) -> None:
    pass


class _Watched(codec.Prepared):
    """A picture whose latents are kept, up to a size, and whose encoding is reported, tile by tile.

    Attributes: report; analysis_seconds, of all latents; reused, whether the last use found them kept.
    """

    def __init__(self, picture: Image.Image, model: LALIC) -> None:
        super().__init__(images.Picture(picture), model)  # which is not copied
        self.keeps = picture.width * picture.height <= KEPT_LATENTS
        self.report: Report = _silent
        self.analysis_seconds, self.reused = 0.0, False
        self._kept: list[torch.Tensor] | None = None

    def latents(self) -> Iterator[torch.Tensor]:
        self.reused = self._kept is not None
        if self._kept is not None:
            yield from self._kept
            return
        found, seconds, start = [], 0.0, time.perf_counter()
        for y in super().latents():
            seconds += time.perf_counter() - start
            if self.keeps:
                found.append(y)
            yield y
            start = time.perf_counter()
        self.analysis_seconds = seconds
        self._kept = found or None

    def encode(self, quality: float | None = None, **options: Any) -> bytes:
        self.report("Encoding", 0)
        return super().encode(quality, **options, progress=lambda done, count: self.report("Encoding", done / count))


class _Lalic(LalicCodec):
    """lalic, of one open picture. The time of the analysis counts, even where its result was kept."""

    def __init__(self, model: LALIC, prepared: _Watched | None, report: Report) -> None:
        super().__init__(model)
        self.prepared, self.report = prepared, report

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        prepared = _reporting(self.prepared, self.report)
        start = time.perf_counter()
        data = prepared.encode(quality)
        middle = time.perf_counter()
        decoded = _decoded(data, self.model, self.report)
        end = time.perf_counter()
        self.report("Measuring", None)
        analysis = prepared.analysis_seconds if prepared.reused else 0.0
        return Coded(decoded, len(data), middle - start + analysis, end - middle, data)


def _reporting(prepared: _Watched | None, report: Report) -> _Watched:
    """A prepared picture, whose steps go to `report` from now on."""
    assert prepared is not None
    prepared.report = report
    return prepared


def _decoded(data: bytes, model: LALIC, report: Report, max_pixels: int | None = None) -> Image.Image:
    """The picture of a .lalic file in its mode, decoded tile by tile."""
    container = parse(data, max_pixels)
    done, count = 0, container.width * container.height
    report("Decoding", 0)
    picture: Image.Image | None = None
    for box, pixels in codec.decode_parts(data, model, max_pixels=count):
        part = Image.fromarray(pixels)
        if picture is None:
            size = container.width, container.height
            picture = part if part.size == size else Image.new(part.mode, size)
        if picture is not part:
            picture.paste(part, (box.left, box.top))
        done += box.width * box.height
        report("Decoding", done / count)
    assert picture is not None
    return picture


class _Other(PillowCodec):
    """Another codec, each step of whose search is reported."""

    def __init__(self, name: str, report: Report) -> None:
        super().__init__(name)
        self.report, self.tried = report, 0

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        self.report(f"Matching {self.title}", self.tried / (self.tried + 2))
        self.tried += 1
        return super().code(picture, quality)


# The desk


class Desk:
    """The open pictures of all browsers. Thread-safe.

    model: what codes. max_pixels: of a picture. The least recently used pictures are closed when all have together more
    than `KEPT_BYTES`.

    The process keeps freed memory (`lalic.memory.keep_memory`), which makes small pictures fast. After each step with a
    picture above `LARGE` what is free goes back to the system: a server would hold the peak of its largest picture.
    """

    def __init__(self, model: LALIC, max_pixels: int = MAX_PIXELS) -> None:
        self.model, self.max_pixels = model, max_pixels
        self.has_qualities = codec.coded_quality(model, None) is not None
        self._open: OrderedDict[str, Opened] = OrderedDict()
        self._lock, self._coding = threading.Lock(), threading.Lock()

    def open(self, data: bytes, name: str, report: Report = _silent) -> str:
        """Open a picture or a .lalic file of these bytes, and return its key. name: of the file, for people.

        Raises `LalicError` for what is neither, or too large.
        """
        stem = name.rpartition(".")[0] or name or "picture"
        if data.startswith(MAGIC):
            with self._turn(report):
                start = time.perf_counter()
                picture = _decoded(data, self.model, report, self.max_pixels)
                opened = Opened(stem, _on_white(picture), file=data, decode_seconds=time.perf_counter() - start)
                if picture.mode in ("RGBA", "LA"):
                    opened.notes.append("Transparent pixels are shown on white")
        else:
            report("Opening", None)
            with _warnings_lock, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", images.ImageWarning)
                loaded = images.open_picture(data, strip=True, max_pixels=self.max_pixels)
                transparent = loaded.alpha is not None
                shown = None if transparent or not isinstance(loaded.image, Image.Image) else loaded.image
                if shown is None:
                    caught.clear()  # the same ones come again
                    shown = images.load(data, background="white", max_pixels=self.max_pixels)
            opened = Opened(stem, shown if shown.mode == "RGB" else shown.convert("RGB"))
            opened.prepared = _Watched(opened.picture, self.model)
            opened.notes = [_capital(str(each.message)) for each in caught if each.category is images.ImageWarning]
            if transparent:
                opened.notes.append(
                    "Transparent pixels are on white here, so that codecs are comparable; lalic compress keeps them"
                )
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._open[key] = opened
        self._make_room()
        if opened.large:
            give_back()
        return key

    def _make_room(self) -> None:
        """Close pictures until the others have at most `KEPT_BYTES`, or one is left."""
        with self._lock:
            while len(self._open) > 1 and sum(each.kept_bytes for each in self._open.values()) > KEPT_BYTES:
                self._open.popitem(last=False)

    def get(self, key: str | None) -> Opened:
        """The open picture of a key. Raises `Closed`."""
        if key is None:
            raise Closed("no picture is open; drop one")
        with self._lock:
            if key not in self._open:
                raise Closed("this picture was closed to make room for others; open it again")
            self._open.move_to_end(key)
            return self._open[key]

    def close(self, key: str | None) -> list[str]:
        """Forget a picture. Returns the addresses of its files."""
        with self._lock:
            opened = self._open.pop(key, None) if key is not None else None
        if opened is None:
            return []
        opened.wanted = _CLOSED
        return list(opened.addresses.values())

    def want(self, key: str | None, request: Request) -> None:
        """End what is being made for other requests of a picture."""
        with self._lock:
            opened = self._open.get(key) if key is not None else None
        if opened is not None:
            opened.wanted = request

    def stop(self, key: str | None) -> None:
        """End what is being made of a picture."""
        with self._lock:
            opened = self._open.get(key) if key is not None else None
        if opened is not None:
            opened.wanted = None

    def code(self, key: str | None, request: Request, report: Report = _silent) -> Iterator[Results]:
        """Code a picture: yields results that grow. Raises `LalicError`, and `Superseded` for a newer request."""
        opened = self.get(key)
        opened.wanted = request
        watched = _watched(opened, request, report)
        with self._turn(watched, opened):
            opened.results = results = Results(request, self._ours(opened, request, watched))
        yield results
        if request.other is not None:
            known = opened.known.setdefault(request.other, {})
            target = results.ours.value(request.match)
            with self._turn(watched, opened):
                theirs = nearest(_Other(request.other, watched), opened.picture, request.match, target, known)
            opened.results = results = replace(results, theirs=theirs)
            yield results
        with self._turn(watched, opened):
            watched("Counting bits", 0)
            bits = bit_map(
                _reporting(opened.prepared, watched),
                results.ours.quality,
                lambda done, count: watched("Counting bits", done / count),
            )
        self._make_room()
        yield replace(results, bits=bits)

    @contextlib.contextmanager
    def _turn(self, report: Report, opened: Opened | None = None) -> Iterator[None]:
        """Wait until no other coding runs. opened: what is coded, None if that is not known yet."""
        while not self._coding.acquire(timeout=0.2):
            report("Waiting for another picture", None)
        try:
            yield
        finally:
            if opened is not None and opened.large:
                give_back()
            self._coding.release()

    def _ours(self, opened: Opened, request: Request, report: Report) -> Match:
        """lalic's match for a request."""
        ours = _Lalic(self.model, opened.prepared, report)
        quality = codec.coded_quality(self.model, request.value) if self._is_quality(request) else None
        if quality is None and request.aim != "quality":
            prepared = _reporting(opened.prepared, report)
            if request.aim == "psnr":
                quality = search.encode_to_psnr(prepared, request.value).quality
            elif request.aim == "bpp":
                quality = search.encode_to_bpp(prepared, request.value).quality
            else:
                quality = search.encode_to_size(prepared, request.value).quality
        if quality not in opened.newest:
            opened.newest[quality] = match = coded_at(ours, opened.picture, quality)
            opened.known.setdefault("lalic", {})[quality] = match.bpp, match.psnr
        opened.newest.move_to_end(quality)
        while len(opened.newest) > 1 and PIXEL_BYTES * len(opened.newest) * opened.pixels > KEPT_BYTES // 16:
            opened.newest.popitem(last=False)
        return opened.newest[quality]

    def _is_quality(self, request: Request) -> bool:
        return self.has_qualities and request.aim == "quality"

    def curve(self, key: str | None, request: Request, report: Report = _silent) -> Iterator[Points]:
        """Measure points of both codecs: yields all that is known, at first and after each. Ends like `code`."""
        opened = self.get(key)
        watched = _watched(opened, request, report)
        ours = _Lalic(self.model, opened.prepared, _silent)
        codecs: list[Codec] = [ours]
        if request.other is not None:
            codecs.append(PillowCodec(request.other))
        missing = [
            (each, quality)
            for each in codecs
            for quality in each.qualities
            if quality not in opened.known.get(each.name, {})
        ]
        yield _points(opened, codecs)
        for each, quality in missing:
            with self._turn(watched, opened):
                watched("Drawing the curve", None)
                coded = each.code(opened.picture, quality)
                point = 8 * coded.size / opened.pixels, psnr(opened.picture, coded.picture)
                opened.known.setdefault(each.name, {})[quality] = point
            yield _points(opened, codecs)


def _points(opened: Opened, codecs: Sequence[Codec]) -> Points:
    """(bits per pixel, PSNR) of all that is known of codecs, in order, by their titles."""
    return {each.title: sorted(opened.known.get(each.name, {}).values()) for each in codecs}


def _watched(opened: Opened, request: Request, report: Report) -> Report:
    """`report`, which raises `Superseded` when the picture is wanted otherwise.

    Results hold it, so it does not hold the picture: in a circle both would stay until Python looks for circles.
    """
    reference = weakref.ref(opened)

    def call(text: str, share: float | None = None) -> None:
        now = reference()
        if now is None or now.wanted != request:
            raise Superseded
        report(text, share)

    return call


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _on_white(picture: Image.Image) -> Image.Image:
    """RGB, with white below transparent pixels."""
    if picture.mode == "RGB":
        return picture
    if picture.mode not in ("RGBA", "LA"):
        return picture.convert("RGB")
    result = Image.new("RGB", picture.size, "white")
    result.paste(picture.convert("RGB"), mask=picture.getchannel("A"))
    return result


def sample() -> bytes:
    """The photo that ships."""
    return resources.files("lalic").joinpath("assets", "astronaut.png").read_bytes()
