"""Opening and saving pictures: what Pillow opens becomes 8-bit RGB or grey in sRGB by these rules, or is refused.

    picture                                     what happens
    RGB, RGBX                                   unchanged
    grey (L), 1-bit                             stays grey; so does a palette that holds greys alone. RGB stays RGB,
                                                  whatever its pixels are
    palette, HSV, YCbCr                         converted to RGB, exactly except for the rounding of HSV and YCbCr
    CMYK, LAB, with an ICC profile              converted to sRGB through the profile
    CMYK without a profile                      Pillow's formula (no ink model: colours are approximate)
    LAB without a profile                       converted to sRGB from D50 L*a*b*
    alpha (RGBA, LA, a transparent palette      an alpha channel beside the picture, premultiplied or not; none if every
      entry or colour)                            pixel is opaque. With `background` the picture is blended with this
                                                  colour instead (in sRGB, as browsers do)
    fully transparent pixels                    their hidden colour is replaced by a smooth one
    alpha of BMP and TGA that is 0 everywhere   ignored with an `ImageWarning`
    16-bit grey (I;16, and I within 0..65535)   v -> round(v / 257), so 0 -> 0 and 65535 -> 255; of a TIFF also 12 bits,
                                                  and white being 0
    32-bit integers (I) outside 0..65535        refused: the range is unknown
    16-bit RGB, RGBA, CMYK, grey with alpha     rounded in the same way if in a PNG or TIFF file; Pillow's 8 bits, which
                                                  may be the high bytes, of other formats, of a TIFF with compressed
                                                  planes or premultiplied alpha, and of a `PIL.Image`
    16 bits of a TIFF in separate planes,       refused: Pillow does not read them
      not compressed
    floating point (F)                          refused: the range is unknown
    several frames (GIF, APNG, WebP, TIFF)      refused; a multi-picture JPEG (MPO, as phones write) and a layered PSD
                                                  give their main picture
    EPS                                         refused: opening one runs an interpreter
    orientation in EXIF, or else in XMP         applied, and reset to 1 in both; a broken EXIF block is dropped with an
                                                  `ImageWarning`
    ICC profile                                 pixels converted to sRGB (perceptual intent), grey ones by the curve of
                                                  the profile's greys; unchanged if the profile moves no colour by more
                                                  than 1 of 255; a profile that is broken or does not fit the picture is
                                                  ignored with an `ImageWarning`
    colours named by code points (PNG's cICP,   taken as sRGB, with an `ImageWarning` if they are others
      AVIF's and HEIF's nclx), no profile
    EXIF, XMP, text, resolution                 kept (`lalic.metadata`), unless `strip`
    other metadata, gamma and chromaticity      dropped
      chunks
    more pixels than `max_pixels`               refused before it is decoded
    more than `MAX_PIXELS`, if `max_pixels`     read strip by strip through libvips (`lalic.strips`)
      allows it
    no picture, truncated, damaged              refused

"Refused" raises `lalic.errors.ImageError`, one sentence. Any size from 1x1 up is accepted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageColor, UnidentifiedImageError

from lalic import metadata
from lalic.alpha import fill_transparent, strips
from lalic.container import MAGIC, MAX_PIXELS, too_large
from lalic.errors import ImageError, ImageWarning, LalicError, is_out_of_memory
from lalic.files import LFS_POINTER, LFS_WORDS, PACKAGES
from lalic.png import prepared
from lalic.strips import StripImage, needs_strips, open_strips

if TYPE_CHECKING:
    import torch

__all__ = [
    "Color",
    "ImageSource",
    "ImageWarning",
    "Picture",
    "dump",
    "from_tensor",
    "load",
    "open_picture",
    "parse_color",
    "readable_extensions",
    "save",
    "to_tensor",
]

ImageSource = str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray
Color = str | tuple[int, int, int]

_MAIN_PICTURE_FIRST = {"MPO", "PSD"}
_ALPHA_MAY_BE_UNUSED = {"BMP", "DIB", "TGA"}  # formats of which many writers leave the fourth byte of a pixel 0
_KNOWN_BY_THEIR_START = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000")
_MODES_OF_RGB = {"RGBX", "P", "HSV", "YCbCr"}


def parse_color(color: Color) -> tuple[int, int, int]:
    """(r, g, b), 0..255, of a colour name ("white", "#ffcc00", "rgb(1,2,3)": `PIL.ImageColor`) or of three integers.

    Raises `ImageError` for anything else, also for a transparent colour.
    """
    rgb: tuple[int, ...]
    if isinstance(color, str):
        try:
            rgb = ImageColor.getrgb(color)
        except ValueError:
            raise ImageError(
                f"background is {color!r}, expected a colour such as white, #ffcc00 or rgb(255,204,0)"
            ) from None
        if len(rgb) == 4 and rgb[3] == 255:
            rgb = rgb[:3]
    else:
        rgb = color
    channels = isinstance(rgb, tuple | list) and len(rgb) == 3 and all(isinstance(c, Integral) for c in rgb)
    if not channels or not all(0 <= c <= 255 for c in rgb):
        raise ImageError(f"background is {color!r}, expected an opaque colour, three integers from 0 to 255")
    return (int(rgb[0]), int(rgb[1]), int(rgb[2]))


# Loading


@dataclass
class Picture:
    """A picture as it is compressed.

    image: mode RGB or L, in sRGB, upright, without `info`; a `StripImage` above `MAX_PIXELS`. alpha: mode L of the same
    size, None if every pixel is opaque. metadata: contents of the boxes of `lalic.metadata` by their letter.
    """

    image: Image.Image | StripImage
    alpha: Image.Image | StripImage | None = None
    metadata: dict[str, bytes] = field(default_factory=dict)


def open_picture(
    source: ImageSource, *, background: Color | None = None, strip: bool = False, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Open a picture by the rules of this module.

    source: a path, the bytes of a file, an open binary file, which is read to its end, or a `PIL.Image`. Or pixels in
    sRGB: an array uint8 (H, W), (H, W, 3) or (H, W, 4), or a tensor (C, H, W), uint8 or floating point in [0, 1].
    background: colour to blend transparent pixels with; None: the alpha channel is kept. strip: drop all metadata.
    max_pixels: limit on width * height. Nothing in the result is shared with `source`. Raises `ImageError`; `OSError`
    if a path cannot be opened.
    """
    picture = _read(source, background, strip, max_pixels)
    if isinstance(picture.alpha, Image.Image) and isinstance(picture.image, Image.Image):
        fill_transparent(picture.image, picture.alpha)
    return picture


def load(source: ImageSource, *, background: Color | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as `open_picture` gives it, but always a `PIL.Image` of mode RGB without metadata.

    Transparent pixels raise `ImageError` unless there is a `background`.
    """
    picture = _read(source, background, True, max_pixels)
    if picture.alpha is not None:
        raise ImageError(
            "the picture has transparent pixels; give a colour to put below them"
            " (--background white, or background='white')"
        )
    if isinstance(picture.image, StripImage):
        raise ImageError(f"the picture is too large to be held whole: the limit is {MAX_PIXELS} pixels")
    return picture.image if picture.image.mode == "RGB" else picture.image.convert("RGB")


def _read(source: ImageSource, background: Color | None, strip: bool, max_pixels: int) -> Picture:
    below = None if background is None else parse_color(background)
    if not isinstance(max_pixels, Real):
        raise TypeError(f"max_pixels is {max_pixels!r}, expected a number")
    if isinstance(source, Image.Image):
        with _damage_in_one_sentence():
            return _convert(source, None, below, strip, max_pixels)
    file: IO[bytes]
    torch = sys.modules.get("torch")  # which this module does not load
    if isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor)):
        with _damage_in_one_sentence():
            return _convert(_from_array(source), None, below, strip, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        file = io.BytesIO(bytes(source))
    elif hasattr(source, "read") and not isinstance(source, type):
        contents = source.read()
        if not isinstance(contents, bytes):
            raise TypeError("image is a text file, expected one that is opened in binary mode")
        source = contents
        file = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        file = open(source, "rb")  # noqa: SIM115
        if not file.seekable():  # a pipe, such as /dev/stdin or what a shell makes of <(command)
            with file:
                source = file.read()
            file = io.BytesIO(source)
    else:  # among them integers, which `open` would take for file descriptors
        raise TypeError(
            f"image is of type {type(source).__name__}, expected a path, the bytes of a picture file, a binary file, "
            "a PIL.Image, an array or a tensor"
        )
    with file, _pillow_limit(max_pixels), _damage_in_one_sentence():
        stream, long_profile, cicp = prepared(file)
        image = _open(stream, max_pixels)
        if long_profile is not None:
            image.info["icc_profile"] = long_profile
        _warn_of_other_colors(image, cicp or _nclx(image, stream))
        if max_pixels >= image.width * image.height and needs_strips(*image.size):
            _check_kind(image)
            # Of a PNG, Pillow would load all pixels to look for EXIF or text behind them.
            orientation = 1 if image.format == "PNG" and "exif" not in image.info else metadata.orientation(image)
            picture = Picture(*open_strips(source, below, orientation or 1))
            if not strip:
                picture.metadata = metadata.collect(image, orientation, loaded=False)
                if picture.image.mode == "RGB" and (name := _converted_from(image)) is not None:
                    metadata.note_conversion(picture.metadata, name)
            return picture
        return _convert(image, stream, below, strip, max_pixels)


def _from_array(array: Any) -> Image.Image:
    """A picture from an array (H, W) or (H, W, C) of uint8, or a tensor (C, H, W) or (1, C, H, W): uint8, or floating
    point in [0, 1], which is rounded. C: 1, 3 or 4. Raises ``ImageError`` for others.
    """
    pixels, form = array, "an array uint8 (H, W), (H, W, 3) or (H, W, 4)"
    if not isinstance(array, np.ndarray):
        form = "a tensor (3, H, W), or 1 or 4 channels, perhaps a batch of 1: uint8, or floating point in [0, 1]"
        if array.layout != sys.modules["torch"].strided or array.is_meta or array.is_quantized:
            raise ImageError(f"image: expected {form}, got one that is sparse, quantized or without data")
        pixels = array.detach().cpu()
        if pixels.ndim == 4 and pixels.shape[0] == 1:
            pixels = pixels[0]
        if pixels.is_floating_point() and pixels.numel():
            low, high = (float(value) for value in pixels.float().aminmax())
            if not (low >= -0.01 and high <= 1.01):
                raise ImageError(f"image: expected {form}, got values from {low:g} to {high:g}")
            pixels = (pixels.float() * 255).round().clamp(0, 255).byte()
        pixels = pixels.movedim(0, -1).numpy() if pixels.ndim == 3 else pixels.numpy()
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ImageError(f"image: expected {form}, got {array.dtype} of shape {tuple(array.shape)}")
    if 0 in pixels.shape:
        raise ImageError(f"image: expected {form}, got no pixels, shape {tuple(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels))


_limits: list[int] = []  # of the calls that run now
_limits_lock = threading.Lock()
_users_limit: int | None = None


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Raise Pillow's limit on pixels, which is one for the process, to the largest `max_pixels` in use."""
    global _users_limit

    def apply() -> None:
        if _users_limit is not None:
            Image.MAX_IMAGE_PIXELS = max(_users_limit, *_limits, 0)

    with _limits_lock:
        if not _limits:
            _users_limit = Image.MAX_IMAGE_PIXELS
        _limits.append(max_pixels)
        apply()
    try:
        yield
    finally:
        with _limits_lock:
            _limits.remove(max_pixels)
            apply()


def _open(stream: IO[bytes], max_pixels: int) -> Image.Image:
    if stream.read(len(MAGIC)) == MAGIC:  # which Pillow would open after `import lalic.pillow`
        raise ImageError("this is not a picture to compress, but a .lalic file; lalic decompress reads it")
    stream.seek(0)
    start = stream.read(32)
    package = next((package for pattern, package in _NEED_A_PACKAGE if pattern.match(start)), "")
    if package:
        _register_packages()
    stream.seek(0)
    try:
        return Image.open(stream)
    except UnidentifiedImageError:
        if package and package not in _register_packages():
            raise ImageError(
                f"this is a picture of a format that Pillow reads with the package {package}: pip install {package}"
            ) from None
        for name in _KNOWN_BY_THEIR_START:
            if name in Image.OPEN and (accept := Image.OPEN[name][1]) is not None and accept(start) is True:
                raise ImageError(
                    f"the picture is damaged or truncated, or of a rare kind: it begins like {name}, and Pillow "
                    "cannot read it"
                ) from None
        if start.startswith(LFS_POINTER):
            raise ImageError(f"this is not a picture, but {LFS_WORDS}") from None
        raise ImageError("this is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise ImageError(too_large(max_pixels)) from None


_NEED_A_PACKAGE = (
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), PACKAGES[".heic"]),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", re.DOTALL), PACKAGES[".jxl"]),
)


@functools.cache
def _register_packages() -> list[str]:
    """Let Pillow use the packages of `lalic.files.PACKAGES`. Returns those that are installed."""
    found = []
    for package, name in (("pillow-heif", "pillow_heif"), ("pillow-jxl-plugin", "pillow_jxl")):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)  # pillow_jxl registers itself
            if hasattr(module, "register_heif_opener"):
                module.register_heif_opener()
            found.append(package)
    return found


_NCLX = re.compile(rb"colrnclx(....)", re.DOTALL)  # in an AVIF or HEIF file: a box with code points
_LIKE_SRGB = ({1, 2, 5, 6}, {1, 2, 6, 13, 14, 15})  # of primaries and transfer functions; 2 is "unspecified"
_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_TRANSFERS = {4: "gamma 2.2", 5: "gamma 2.8", 8: "linear light", 16: "PQ", 18: "HLG"}


def _nclx(image: Image.Image, stream: IO[bytes]) -> tuple[int, int] | None:
    """Code points of an AVIF or HEIF file, as of `lalic.png.Prepared.cicp`."""
    if image.format not in ("AVIF", "HEIF"):
        return None
    before = stream.tell()
    stream.seek(0)
    found = _NCLX.search(stream.read(1 << 16))
    stream.seek(before)
    return struct.unpack(">HH", found[1]) if found else None


def _warn_of_other_colors(image: Image.Image, cicp: tuple[int, int] | None) -> None:
    """Say that code points, which Pillow passes over, name other colours than sRGB's. A profile is read instead."""
    if cicp is None or "icc_profile" in image.info or all(c in like for c, like in zip(cicp, _LIKE_SRGB, strict=True)):
        return
    primaries, transfer = (
        names.get(code, f"code {code}") for code, names in zip(cicp, (_PRIMARIES, _TRANSFERS), strict=True)
    )
    warnings.warn(
        f"the colours are taken as sRGB, and the file names others (primaries {primaries}, transfer {transfer})",
        ImageWarning,
        stacklevel=4,
    )


@contextlib.contextmanager
def _damage_in_one_sentence() -> Iterator[None]:
    """Raise `ImageError` for whatever Pillow raises, when it decodes or converts a damaged picture."""
    try:
        yield
    except LalicError:
        raise
    except Exception as error:  # Pillow raises many types
        if is_out_of_memory(error):
            raise MemoryError from error
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(f"the picture is damaged or truncated and cannot be decoded ({reason[:200]})") from error


def _check_kind(image: Image.Image) -> None:
    """Raise `ImageError` for what is refused whatever its pixels are."""
    if image.format == "EPS":
        raise ImageError("EPS files are refused, since opening one runs an interpreter")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _MAIN_PICTURE_FIRST:
        raise ImageError(f"the file holds {frames} frames, and a .lalic file holds one picture; extract one first")


def _check_planes(image: Any) -> None:
    """Raise `ImageError` for samples of 16 bits in separate planes, of which Pillow would make bytes one by one."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS_A_SAMPLE, (1,))) > 8 and any(t[0] == "raw" for t in image.tile):
        raise ImageError(
            "the TIFF holds 16 bits a sample in separate planes, which Pillow does not read; store it interleaved, or "
            "compressed"
        )


def _convert(
    source: Image.Image, stream: IO[bytes] | None, below: tuple[int, int, int] | None, strip: bool, max_pixels: int
) -> Picture:
    """stream: what `source` was opened from, None if it is the caller's own image, which must not change.

    A large picture is in memory twice at most, beside the caller's own: each step frees what it replaces.
    """
    width, height = source.size
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width}x{height}, expected at least 1x1")
    if width * height > max_pixels:
        raise ImageError(too_large(max_pixels, width, height))
    own = source if stream is None else None
    image = source

    def replace(new: Image.Image) -> Image.Image:
        if new is not image and image is not own:
            image.close()
        return new

    _check_kind(source)
    _check_planes(source)
    tags = getattr(source, "tag_v2", {})
    turned = tags.get(metadata.ORIENTATION)  # Pillow turns a TIFF when it loads it
    pixels = _load_pixels(source, stream)
    profile = source.info.get("icc_profile")
    if profile is None and "icc_profile" in source.info:  # of a PNG, where it cannot be decompressed
        warnings.warn("the ICC profile is ignored (it is damaged)", ImageWarning, stacklevel=4)
    orientation = 1 if turned else metadata.orientation(source)
    boxes = {} if strip else metadata.collect(source, turned or orientation)
    image = replace(pixels)
    if orientation in _TURNS:
        image = replace(image.transpose(_TURNS[orientation]))
    colors, alpha = _split_alpha(image)
    if alpha is not None and source.format in _ALPHA_MAY_BE_UNUSED and alpha.getextrema()[1] == 0:
        warnings.warn("alpha is ignored (it is 0 in every pixel, as where it is not used)", ImageWarning, stacklevel=4)
        alpha = None
    image = replace(colors)
    image = replace(_to_8_bit(image, tags))
    converted, name = _to_srgb(image, profile, image is not own)
    image = replace(converted)
    if name is not None and not strip:
        metadata.note_conversion(boxes, name)
    if image is own:
        image = image.copy()
    elif type(image) is not Image.Image:  # the classes of file formats hold texts and EXIF themselves
        image = image._new(image.im)  # the same pixels: a copy would be as large as the picture
    image.info = {}
    if alpha is not None and below is not None:
        if image.mode == "L" and len(set(below)) > 1:
            image = replace(image.convert("RGB"))
        _flatten(image, alpha, below)
        alpha = None
    return Picture(image, alpha, boxes)


_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# 16 bits: Pillow keeps the high byte of each sample, by what it calls a raw mode; another raw mode gives the low byte.

_BOTH_BYTES_OF_LA = "LA;16B"  # PNG; as raw mode RGBA it gives four bytes: high and low of grey, high and low of alpha
_LEVELS_OF = {"1": 1, "L;2": 3, "L;4": 15}  # the highest value of grey
_LOW_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _load_pixels(source: Image.Image, stream: IO[bytes] | None) -> Image.Image:
    """The loaded picture, samples of 16 bits being rounded to 8 where Pillow would drop the low byte."""
    raw = {_raw_mode(tile) for tile in getattr(source, "tile", ())}
    raw_mode = str(raw.pop()) if len(raw) == 1 and source.format in ("PNG", "TIFF") and stream is not None else ""
    if raw_mode == _BOTH_BYTES_OF_LA:
        _set_raw_mode(source, "RGBA")
        source.load()
        return _mapped(source, "LA", lambda strip: _rounded(strip[..., ::2] * np.uint16(256) + strip[..., 1::2]))
    source.load()
    clear = source.info.get("transparency")
    if source.format == "PNG" and raw_mode in _LEVELS_OF and isinstance(clear, int) and source.mode in ("1", "L"):
        # The file says it in bits, and Pillow passes it on, but for pixels it makes 0 to 255 of them.
        source.info["transparency"] = min(255, clear * 255 // _LEVELS_OF[raw_mode])
    mode, _, order = raw_mode.partition(";16")
    if mode in ("RGB", "RGBX", "RGBA", "CMYK") and order in _LOW_BYTE and stream is not None:
        stream.seek(0)
        low = Image.open(stream)
        _set_raw_mode(low, f"{mode};16{_LOW_BYTE[order]}")
        low.load()
        _round_in_place(source, low)
        low.close()
    return source


def _raw_mode(tile: Any) -> Any:
    return tile.args[0] if isinstance(tile.args, tuple) else tile.args


def _set_raw_mode(image: Any, raw_mode: str) -> None:
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]


def _round_in_place(high: Image.Image, low: Image.Image) -> None:
    """Round samples of 16 bits, given by their high and low bytes, to 8 bits in `high`."""
    clear = high.info.pop("transparency", None)  # of a PNG: the colour, in 16 bits, that is transparent
    alpha = None if clear is None else Image.new("L", high.size)
    for box in strips(high.size):
        values = np.asarray(high.crop(box)) * np.uint16(256) + np.asarray(low.crop(box))
        high.paste(_image(high.mode, _rounded(values)), box)
        if alpha is not None:
            alpha.paste(_image("L", (values != np.array(clear)).any(axis=2) * np.uint8(255)), box)
    if alpha is not None:
        high.putalpha(alpha)


def _rounded(values: np.ndarray, largest: int = 65535) -> np.ndarray:
    """round(255 v / largest) of integers 0 to `largest`, which is odd."""
    return ((values.astype(np.int32) * 255 + largest // 2) // largest).astype(np.uint8)


def _mapped(image: Image.Image, mode: str, function: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """An image of `mode` whose uint8 pixels are `function` of the array of pixels, strip by strip."""
    out = Image.new(mode, image.size)
    for box in strips(image.size):
        out.paste(_image(mode, function(np.asarray(image.crop(box)))), box)
    return out


def _image(mode: str, pixels: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


# Alpha, modes and profiles


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The picture without transparency, and its alpha channel (mode L), None if every pixel is opaque."""
    mode = image.mode
    if not image.has_transparency_data:
        return image, None
    if mode.startswith("I"):
        clear = image.info["transparency"]  # 16-bit grey PNG: one value is the transparent one
        alpha = _mapped(image, "L", lambda strip: (strip != clear) * np.uint8(255))
        return image, _unless_opaque(alpha)
    if mode in ("RGB", "L", "1"):  # one colour is the transparent one
        return image, _unless_opaque(image.convert("RGBA").getchannel("A"))
    straight = image if mode in ("RGBA", "LA") else image.convert("LA" if mode == "La" else "RGBA")
    alpha = straight.getchannel("A")
    colors = straight.convert("L" if _is_grey(image) else "RGB")
    if straight is not image:
        straight.close()
    return colors, _unless_opaque(alpha)


def _unless_opaque(alpha: Image.Image) -> Image.Image | None:
    return None if alpha.getextrema()[0] == 255 else alpha


def _flatten(image: Image.Image, alpha: Image.Image, below: tuple[int, int, int]) -> None:
    """Blend the image in place with the colour below it, which is grey if the image is."""
    for box in strips(image.size):
        blended = Image.new(image.mode, (box.width, box.height), below if image.mode == "RGB" else below[0])
        blended.paste(image.crop(box), mask=alpha.crop(box))
        image.paste(blended, box)


def _is_grey(image: Image.Image) -> bool:
    """Whether the mode says that a picture is grey, or each entry of its palette."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [0, 0, 255]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La")


def _to_8_bit(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """The picture in one of the modes of `_to_srgb`: RGB, L, CMYK or LAB. tags: of a TIFF."""
    mode = image.mode
    if mode in ("RGB", "L", "CMYK", "LAB"):
        return image
    if _is_grey(image):
        return image.convert("L")
    if mode in _MODES_OF_RGB:
        return image.convert("RGB")
    if mode == "I" or mode.startswith("I;16"):
        largest = 4095 if tags.get(_BITS_A_SAMPLE) == (12,) else 65535
        grey = _mapped(image, "L", lambda values: _rounded_grey(values, largest))
        # Of 8 bits and fewer, Pillow has turned them already.
        return ImageChops.invert(grey) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey
    if mode == "F":
        raise ImageError(
            "the picture has floating-point pixels, whose range is unknown; convert it to 8 or 16 bit first"
        )
    raise ImageError(f"the picture has Pillow's mode {mode}, which lalic does not read; convert it to RGB first")


_BITS_A_SAMPLE, _PHOTOMETRIC, _PLANES, _WHITE_IS_ZERO = 258, 262, 284, 0


def _rounded_grey(values: np.ndarray, largest: int) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"the picture has integers from {low} to {high}, expected 16-bit grey, 0 to 65535")
    return _rounded(values, largest)


def _to_srgb(image: Image.Image, profile: bytes | None, in_place: bool) -> tuple[Image.Image, str | None]:
    """RGB or L in sRGB from mode RGB, L, CMYK or LAB, by the ICC profile if it is valid and fits the mode.

    in_place: the image may change. Also returns the name of the profile if it changed pixels, else None.
    """
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
            if mode is None or (mode != image.mode and (mode, image.mode) != ("RGB", "L")):
                raise ImageCms.PyCMSError(f"a {space} profile on a picture of mode {image.mode}")
            transform = ImageCms.buildTransform(
                source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL
            )
            name = ImageCms.getProfileDescription(source)
            if image.mode == "L":
                curve = np.asarray(transform.apply(_image("L", _LEVELS).convert(mode)).convert("L"))
                changes = np.abs(curve.astype(np.int16) - _LEVELS).max() > 1
                return (image.point(curve.ravel().tolist()), name) if changes else (image, None)
            if mode == "RGB" and _is_identity(transform):
                return image, None
            if mode == "RGB" and in_place:
                transform.apply_in_place(image)
                return image, name
            return transform.apply(image), name
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            warnings.warn(f"the ICC profile is ignored ({error})", ImageWarning, stacklevel=4)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image), None
    return (image.convert("RGB") if image.mode == "CMYK" else image), None


def _converted_from(image: Image.Image) -> str | None:
    """The name of an image's ICC profile if libvips moves colours by it, else None."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info.get("icc_profile") or b""))
        if profile.profile.xcolor_space.strip() == "RGB" and _is_identity(
            ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        ):
            return None
        return ImageCms.getProfileDescription(profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


_LEVELS = np.arange(256, dtype=np.uint8)[None]


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether an RGB transform moves no colour of a 17x17x17 lattice by more than 1 of 255."""
    values = np.linspace(0, 255, 17).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1).reshape(17, 17 * 17, 3)
    moved = np.asarray(transform.apply(Image.fromarray(lattice)))
    return int(np.abs(moved.astype(np.int16) - lattice).max()) <= 1


# Tensors


def to_tensor(
    image: Image.Image, device: torch.device | None = None, memory_format: torch.memory_format | None = None
) -> torch.Tensor:
    """An RGB picture as float32 (1, 3, H, W) in [0, 1] on a device (None: the CPU). memory_format: None: contiguous.

    Bytes are copied to the device, and divided there. Raises `ImageError` for other modes.
    """
    import torch

    if image.mode != "RGB":
        raise ImageError(f"image has mode {image.mode}, expected RGB; lalic.images.load converts")
    device = torch.device("cpu") if device is None else device
    pixels = torch.empty(
        (image.height, image.width, 3), dtype=torch.uint8, pin_memory=device.type == "cuda", device="cpu"
    )
    pixels.numpy()[:] = np.asarray(image)
    planes = torch.empty(
        (1, 3, image.height, image.width),
        device=device, dtype=torch.float32, memory_format=memory_format or torch.contiguous_format,
    )  # fmt: skip
    planes.copy_(pixels.to(device, non_blocking=True).permute(2, 0, 1)[None])
    # A tensor as divisor: torch may divide by a number as a product with its reciprocal, which rounds twice.
    return planes.div_(torch.full((1,), 255.0, device=device, dtype=torch.float32))


def from_tensor(tensor: torch.Tensor) -> Image.Image:
    """The RGB picture of a float tensor (1, 3, H, W): clamped to [0, 1], times 255, rounded half up.

    Raises `ValueError` for another shape or values that are not finite.
    """
    if tensor.ndim != 4 or tensor.shape[0] != 1 or tensor.shape[1] != 3:
        raise ValueError(f"tensor has shape {tuple(tensor.shape)}, expected (1, 3, H, W)")
    import torch

    height, width = tensor.shape[2:]
    pixels = pixels_of(tensor)
    if tensor.is_cuda:  # one copy, of bytes
        pixels = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True, device="cpu").copy_(pixels)
    values = pixels.numpy()
    if values[-1]:
        raise ValueError("tensor has values that are not finite, expected numbers in [0, 1]")
    return Image.fromarray(values[:-1].reshape(height, width, 3))


def pixels_of(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes (3 H W + 1,) on the tensor's device: its pixels (H, W, 3), then 1 if a value is not finite, else 0."""
    import torch

    x = tensor.detach()[0].float()
    out = torch.empty(x.numel() + 1, dtype=torch.uint8, device=x.device)
    # As numbers below 256 are converted, digits after the point are cut off.
    out[:-1].view(*x.shape[1:], 3).copy_(x.clamp(0, 1).mul_(255).add_(0.5).permute(1, 2, 0))
    out[-1] = torch.stack(x.aminmax()).isfinite().all().logical_not()
    return out


# Saving

_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0, "optimize": True},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours below transparent pixels too
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_WITHOUT_ALPHA = {"BMP", "DIB", "EPS", "JPEG", "MPO", "PCX", "PPM"}  # of some Pillow would drop it without a word
_ICONS = {"ICNS", "ICO"}  # of which Pillow would write other sizes
# Formats that need an external program, are no pictures, or are compressed already: not searched for in folders.
_NOT_SEARCHED_FOR = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF", "LALIC"}


def readable_extensions() -> frozenset[str]:
    """Extensions, lower-case with their dot, of the files that `lalic compress FOLDER` reads."""
    Image.init()
    _register_packages()
    return frozenset(
        extension.lower()
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_SEARCHED_FOR
    )


def dump(image: Image.Image, extension: str) -> bytes:
    """The bytes of a picture file in the format of `extension`, as `save` writes it."""
    out = io.BytesIO()
    save(image, extension, out)
    return out.getvalue()


def save(image: Image.Image, extension: str, out: IO[bytes]) -> None:
    """Write a picture file in the format of `extension` (such as ".png", in any case) to a stream that can seek.

    PNG, TIFF, BMP and WebP are lossless; JPEG has quality 95 and 4:4:4; others have Pillow's defaults. Metadata in
    `image.info` is written as far as the format can hold it (`lalic.metadata.save_options`). Raises `ImageError` for an
    extension that Pillow cannot write, or a picture that the format cannot hold.
    """
    Image.init()
    name = Image.registered_extensions().get(extension.lower())
    if name is None or name not in Image.SAVE or name == "LALIC":  # registered by `lalic.pillow`
        raise ImageError(f"{extension or 'a name without extension'} is no picture format that Pillow writes, try .png")
    if name in _ICONS:
        raise ImageError(f"{extension} files hold icons of fixed sizes, and not a picture of any size; try .png")
    if image.mode in ("RGBA", "LA") and name in _WITHOUT_ALPHA:
        raise ImageError(f"{extension} files hold no alpha channel, and the picture has one; try .png, .webp or .tif")
    options, boxes = _SAVE_OPTIONS.get(name, {}), metadata.save_options(image, name)
    info, image.info = image.info, {}  # else Pillow's writers take texts for options of theirs
    try:
        if _written(image, out, name, options | boxes, optional=bool(boxes)):
            return
        out.seek(0)
        out.truncate()
        _written(image, out, name, options)
    finally:
        image.info = info
    warnings.warn(f"Pillow cannot write the metadata as {name}; it is dropped", ImageWarning, stacklevel=2)


def _written(image: Image.Image, out: IO[bytes], name: str, options: dict[str, Any], optional: bool = False) -> bool:
    """Write a picture file. optional: return False instead of raising `ImageError`."""
    try:
        if name == "JPEG2000":  # whose encoder goes on without end where a stream fails, as on a full disk
            held = io.BytesIO()
            image.save(held, name, **options)
            out.write(held.getbuffer())
        else:
            image.save(out, name, **options)
        return True
    except Exception as error:  # Pillow's writers raise many types
        if is_out_of_memory(error):
            raise MemoryError from error
        if isinstance(error, OSError) and error.errno:  # the disk's, not the format's
            raise
        if optional:
            return False
        raise ImageError(f"Pillow cannot write this picture as {name} ({error})") from error
