"""Loading and saving pictures: what Pillow opens becomes 8-bit RGB in sRGB by these rules, or is refused.

    picture                                     what happens
    RGB, RGBX                                   unchanged
    grey (L), 1-bit, palette, HSV, YCbCr        converted to RGB, exactly except for the rounding of HSV and YCbCr
    CMYK, LAB, with an ICC profile              converted to sRGB through the profile
    CMYK without a profile                      Pillow's formula (no ink model: colours are approximate)
    LAB without a profile                       converted to sRGB from D50 L*a*b*
    alpha (RGBA, LA, a transparent palette      accepted if every pixel is opaque; else refused, unless `background`
      entry or colour), premultiplied or not      is a colour to blend with (in sRGB, as browsers do)
    16-bit grey (I;16, and I within 0..65535)   v -> round(v / 257), so 0 -> 0 and 65535 -> 255
    32-bit integers (I) outside 0..65535        refused: the range is unknown
    16-bit RGB, RGBA or grey with alpha (PNG)   opened by Pillow, which drops the low byte: at most 1 of 255 darker than
                                                  rounding
    floating point (F)                          refused: the range is unknown
    several frames (GIF, APNG, WebP, TIFF)      refused; a multi-picture JPEG (MPO, as phones write) and a layered PSD
                                                  give their main picture
    EPS                                         refused: opening one runs an interpreter
    EXIF orientation                            applied; an unreadable EXIF block is ignored with an `ImageWarning`
    ICC profile                                 pixels converted to sRGB (perceptual intent); unchanged if the profile
                                                  moves no colour by more than 1 of 255; a profile that is broken or
                                                  does not fit the picture is ignored with an `ImageWarning`
    other metadata, gamma and chromaticity      dropped
      chunks
    more pixels than `max_pixels`               refused before it is decoded
    no picture, truncated, damaged              refused

"Refused" raises `lalic.errors.ImageError`, one sentence. Any size from 1x1 up is accepted.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from lalic.container import MAX_PIXELS
from lalic.errors import ImageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Color",
    "ImageSource",
    "ImageWarning",
    "dump",
    "from_tensor",
    "load",
    "parse_color",
    "readable_extensions",
    "to_tensor",
]

ImageSource = str | os.PathLike | bytes | Image.Image
Color = str | tuple[int, int, int]

_MAIN_PICTURE_FIRST = {"MPO", "PSD"}
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_MODES_OF_RGB = {"RGBX", "P", "HSV", "YCbCr"}


class ImageWarning(UserWarning):
    """A part of a picture file was ignored, and colours or orientation may differ from what was meant."""


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
    if len(rgb) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in rgb):
        raise ImageError(f"background is {color!r}, expected an opaque colour, three integers from 0 to 255")
    return (rgb[0], rgb[1], rgb[2])


# Loading


def load(source: ImageSource, *, background: Color | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Load a picture from a path, from the bytes of a file, or from a `PIL.Image`, by the rules of this module.

    background: colour below transparent pixels; None: they are refused. max_pixels: limit on width * height. Returns a
    new `PIL.Image` of mode RGB in sRGB, without metadata. Raises `ImageError`; `OSError` if a path cannot be opened.
    """
    below = None if background is None else parse_color(background)
    if isinstance(source, Image.Image):
        return _convert(source, below, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _load_stream(io.BytesIO(source), below, max_pixels)
    with open(source, "rb") as stream:
        return _load_stream(stream, below, max_pixels)


def _load_stream(stream: IO[bytes], below: tuple[int, int, int] | None, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(stream)
    except UnidentifiedImageError:
        raise ImageError("this is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise ImageError(f"the picture is too large: the limit is {max_pixels} pixels") from None
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise _damaged(error) from error
    with image:
        return _convert(image, below, max_pixels)


def _damaged(error: Exception) -> ImageError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ImageError(f"the picture is damaged or truncated and cannot be decoded ({reason[:200]})")


def _convert(image: Image.Image, below: tuple[int, int, int] | None, max_pixels: int) -> Image.Image:
    if image.format == "EPS":
        raise ImageError("EPS files are refused, since opening one runs an interpreter")
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width}x{height}, expected at least 1x1")
    if width * height > max_pixels:
        raise ImageError(
            f"the picture is too large: {width}x{height} is {width * height} pixels, and the limit is {max_pixels}"
        )
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in _MAIN_PICTURE_FIRST:
            raise ImageError(f"the file holds {frames} frames, and a .lalic file holds one picture; extract one first")
        image.load()
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise _damaged(error) from error

    profile = image.info.get("icc_profile")
    image = _upright(image)
    image, alpha = _split_alpha(image, below is not None)
    image = _to_srgb(_to_8_bit(image), profile)
    if alpha is not None and below is not None:
        image = Image.composite(image, Image.new("RGB", image.size, below), alpha)
    image.info = {}  # of a copy; its profile must not be applied again
    return image


def _upright(image: Image.Image) -> Image.Image:
    """A copy of the picture, rotated by its EXIF orientation."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's EXIF reader raises many types for damaged data
        warnings.warn(f"the EXIF data is damaged ({error}); the picture is taken as stored", ImageWarning, stacklevel=4)
        return image.copy()


def _split_alpha(image: Image.Image, flatten: bool) -> tuple[Image.Image, Image.Image | None]:
    """The picture without transparency, and its alpha channel (mode L), None if every pixel is opaque."""
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image, None
    if image.mode.startswith("I"):
        values = np.asarray(image)  # 16-bit grey PNG: one value is the transparent one
        alpha = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
        colors = image
    else:
        if image.mode in ("RGBa", "La"):
            image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
        colors = image.convert("RGBA")
        alpha = colors.getchannel("A")
        # A grey picture stays grey, so that its grey ICC profile still fits.
        if image.mode in ("LA", "L", "1"):
            image.info.pop("transparency", None)
            colors = image.convert("L")
        else:
            colors = colors.convert("RGB")
    if alpha.getextrema()[0] == 255:
        return colors, None
    if not flatten:
        raise ImageError(
            "the picture has transparent pixels, which a .lalic file cannot hold; give a colour to put below them"
            " (--background white, or background='white')"
        )
    return colors, alpha


def _to_8_bit(image: Image.Image) -> Image.Image:
    """The picture in one of the modes of `_to_srgb`: RGB, L, CMYK or LAB."""
    mode = image.mode
    if mode in ("RGB", "L", "CMYK", "LAB"):
        return image
    if mode == "1":
        return image.convert("L")
    if mode in _MODES_OF_RGB:
        return image.convert("RGB")
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(f"the picture has integers from {low} to {high}, expected 16-bit grey, 0 to 65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if mode == "F":
        raise ImageError(
            "the picture has floating-point pixels, whose range is unknown; convert it to 8 or 16 bit first"
        )
    raise ImageError(f"the picture has Pillow's mode {mode}, which lalic does not read; convert it to RGB first")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB from mode RGB, L, CMYK or LAB, by the ICC profile if it is valid and fits the mode."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
            if mode == "RGB" and image.mode == "L":
                image = image.convert("RGB")
            if mode != image.mode:
                raise ImageCms.PyCMSError(f"a {space} profile on a picture of mode {image.mode}")
            transform = ImageCms.buildTransform(
                source, ImageCms.createProfile("sRGB"), image.mode, "RGB", ImageCms.Intent.PERCEPTUAL
            )
            if image.mode == "RGB" and _is_identity(transform):
                return image
            return transform.apply(image)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            warnings.warn(f"the ICC profile is ignored ({error})", ImageWarning, stacklevel=4)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    return image.convert("RGB")


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether an RGB transform moves no colour of a 17x17x17 lattice by more than 1 of 255."""
    values = np.linspace(0, 255, 17).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1).reshape(17, 17 * 17, 3)
    moved = np.asarray(transform.apply(Image.fromarray(lattice)))
    return int(np.abs(moved.astype(np.int16) - lattice).max()) <= 1


# Tensors


def to_tensor(image: Image.Image, device: torch.device | None = None) -> torch.Tensor:
    """An RGB picture as float32 (1, 3, H, W) in [0, 1], contiguous, on a device (None: the CPU).

    Bytes are copied to the device, and divided there. Raises `ImageError` for other modes.
    """
    import torch

    if image.mode != "RGB":
        raise ImageError(f"image has mode {image.mode}, expected RGB; lalic.images.load converts")
    device = torch.device("cpu") if device is None else device
    pixels = torch.empty((image.height, image.width, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
    pixels.numpy()[:] = np.asarray(image)
    planes = torch.empty((1, 3, image.height, image.width), device=device)
    planes.copy_(pixels.to(device, non_blocking=True).permute(2, 0, 1)[None])
    # A tensor as divisor: torch may divide by a number as a product with its reciprocal, which rounds twice.
    return planes.div_(torch.full((1,), 255.0, device=device))


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
        pixels = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(pixels)
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
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
# Formats that need an external program, or are no pictures: not searched for in folders.
_NOT_SEARCHED_FOR = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}


def readable_extensions() -> frozenset[str]:
    """Extensions, lower-case with their dot, of the files that `lalic compress FOLDER` reads."""
    Image.init()
    return frozenset(
        extension.lower()
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_SEARCHED_FOR
    )


def dump(image: Image.Image, extension: str) -> bytes:
    """The bytes of a picture file in the format of `extension` (such as ".png", in any case).

    PNG, TIFF, BMP and WebP are lossless; JPEG has quality 95 and 4:4:4; others have Pillow's defaults. Raises
    `ImageError` for an extension that Pillow cannot write, or a picture that the format cannot hold.
    """
    Image.init()
    name = Image.registered_extensions().get(extension.lower())
    if name is None or name not in Image.SAVE:
        raise ImageError(f"{extension or 'a name without extension'} is no picture format that Pillow writes, try .png")
    out = io.BytesIO()
    try:
        image.save(out, name, **_SAVE_OPTIONS.get(name, {}))
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"Pillow cannot write this picture as {name} ({error})") from error
    return out.getvalue()
