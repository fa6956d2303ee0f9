"""Real-world kinds of picture, made by Pillow and by hand: what goes in, and what has to come out.

`KINDS` is the table; `tests/codec/test_kinds.py` runs it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Kind:
    """One row. make: bytes of the file. mode, size, alpha, boxes: of what `open_picture` gives. pixels: expected of its
    image, None if not compared; error: largest difference to them. back: mode that a decoder gives. warning: of
    opening it. refused: by which message; then the other columns mean nothing."""

    name: str
    make: Callable[[], bytes]
    mode: str = "RGB"
    pixels: Callable[[], np.ndarray] | None = None
    error: int = 0
    size: tuple[int, int] = (WIDTH, HEIGHT)
    alpha: Callable[[], np.ndarray] | None = None
    boxes: str = ""
    warning: str | None = None
    refused: str | None = None

    @property
    def back(self) -> str:
        return self.mode if self.alpha is None else "RGBA"


# Pixels


def smooth(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Soft colours, uint8 (height, width, 3), which JPEG keeps within some levels and every gamut holds."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return np.stack([100 + 60 * x, 90 + 60 * y, 150 - 40 * x - 30 * y], axis=2).round().astype(np.uint8)


def grey() -> np.ndarray:
    return smooth()[..., 0]


def deep(channels: int) -> np.ndarray:
    """Noise of 16 bits."""
    return np.random.default_rng(5).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values / 257).astype(np.uint8)


def ramp() -> np.ndarray:
    """An alpha channel: 0 at the left, 255 at the right."""
    return np.broadcast_to(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, WIDTH))


def half() -> np.ndarray:
    return np.where(np.arange(WIDTH) < WIDTH // 2, 0, 255).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)


def bits() -> np.ndarray:
    return (np.indices((HEIGHT, WIDTH)).sum(axis=0) % 7 < 3) * np.uint8(255)


RGB = Image.fromarray(smooth())
GREY = Image.fromarray(grey())
PALETTE = RGB.quantize(8)


def with_alpha(alpha: np.ndarray, image: Image.Image = RGB) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    return image


# Files


def file(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(smooth() + np.uint8(20 * i)) for i in range(3)]
    return file(frames[0], kind, save_all=True, append_images=frames[1:])


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, extra: bytes = b"", interlace=0) -> bytes:
    """A PNG made by hand, for the kinds that Pillow does not write. rows: with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlace)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_png(channels: int, extra: bytes = b"") -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep(channels))
    return png(WIDTH, HEIGHT, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, extra)


def deep_tiff(channels: int, *, order: str = "<", photometric: int = 2, deflate: bool = False) -> bytes:
    """A TIFF of 16 bits a sample. photometric: 2 RGB, 5 CMYK; a fourth channel of RGB is alpha."""
    values = deep(channels).astype(f"{order}u2").tobytes()
    data = zlib.compress(values) if deflate else values
    entries = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, channels, None), (259, 3, 1, 8 if deflate else 1)]
    entries += [(262, 3, 1, photometric), (273, 4, 1, None), (277, 3, 1, channels), (278, 4, 1, HEIGHT)]
    entries += [(279, 4, 1, len(data))]
    if channels == 4 and photometric == 2:
        entries.append((338, 3, 1, 2))
    begin = 8 + 2 + 12 * len(entries) + 4
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        value = {258: begin, 273: begin + 2 * channels}.get(tag, value)
        short = kind == 3 and count == 1
        directory += struct.pack(order + ("HHIHH" if short else "HHII"), tag, kind, count, value, *[0] * short)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory + bytes(4) + struct.pack(order + channels * "H", *channels * [16]) + data


# Metadata


def camera_exif(orientation: int = 1, *, order: str = "<", color_space: int = 1, thumbnail: bytes = b"") -> bytes:
    """EXIF as a camera writes it, without its prefix: make, model, date, a position, a maker note, a thumbnail."""

    def directory(entries: list[tuple[int, int, int, int | bytes]], at: int, link: int) -> bytes:
        fields, extra, free = b"", b"", at + 2 + 12 * len(entries) + 4
        for tag, kind, count, value in entries:
            if isinstance(value, bytes) and len(value) > 4:
                fields += struct.pack(order + "HHII", tag, kind, count, free + len(extra))
                extra += value
            elif isinstance(value, bytes):
                fields += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
            elif kind == 3:
                fields += struct.pack(order + "HHIHH", tag, kind, count, value, 0)
            else:
                fields += struct.pack(order + "HHII", tag, kind, count, value)
        link = free + len(extra) if link else 0
        return struct.pack(order + "H", len(entries)) + fields + struct.pack(order + "I", link) + extra

    def ascii_(tag: int, text: bytes) -> tuple[int, int, int, bytes]:
        return (tag, 2, len(text) + 1, text + b"\0")

    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    gps = [(1, 2, 2, b"N\0"), (2, 5, 3, struct.pack(order + "6I", 52, 1, 31, 1, 0, 1))]
    interop = [(1, 2, 4, b"R03\0" if color_space != 1 else b"R98\0")]

    def main(exif_at: int, gps_at: int) -> bytes:
        first = [ascii_(0x010F, b"Canon"), ascii_(0x0110, b"Canon EOS 5D"), (0x0112, 3, 1, orientation)]
        first += [ascii_(0x0132, b"2023:05:01 10:00:00"), (0x8769, 4, 1, exif_at), (0x8825, 4, 1, gps_at)]
        return directory(first, 8, 0)

    def inner(at: int, interop_at: int) -> bytes:
        note = b"maker note" * 3
        entries = [ascii_(0x9003, b"2023:05:01 09:59:59"), (0x927C, 7, len(note), note), (0xA001, 3, 1, color_space)]
        return directory([*entries, (0xA005, 4, 1, interop_at)], at, 0)

    exif_at = 8 + len(main(0, 0))
    interop_at = exif_at + len(inner(exif_at, 0))
    gps_at = interop_at + len(directory(interop, interop_at, 0))
    body = main(exif_at, gps_at) + inner(exif_at, interop_at) + directory(interop, interop_at, 0)
    body += directory(gps, gps_at, 0)
    if thumbnail:
        at = 8 + len(body)
        begin = at + 2 + 3 * 12 + 4
        body += directory([(0x0103, 3, 1, 6), (0x0201, 4, 1, begin), (0x0202, 4, 1, len(thumbnail))], at, 0) + thumbnail
        link = 8 + 2 + 12 * 6  # after the entries of the first directory
        body = body[: link - 8] + struct.pack(order + "I", at) + body[link - 4 :]
    return head + body


EXIF = b"Exif\0\0"


def xmp(orientation: int = 1) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}">'
        "<dc:rights>© A. Photographer</dc:rights></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


# ICC profiles

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3_PRIMARIES = np.array([[0.5151, 0.2412, -0.0011], [0.2920, 0.6922, 0.0419], [0.1571, 0.0666, 0.7841]])  # XYZ, D50
SRGB_PRIMARIES = np.array([[0.4360, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]])


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def wide_gamut_profile() -> bytes:
    """Display P3: the sRGB profile with other primaries."""
    data = bytearray(SRGB)
    for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3_PRIMARIES, strict=True):
        entry = data.index(name)
        offset = int.from_bytes(data[entry + 4 : entry + 8], "big")
        data[offset + 8 : offset + 20] = fixed(*primary)
    return bytes(data)


def p3_to_srgb(pixels: np.ndarray) -> np.ndarray:
    v = pixels / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    linear = (linear @ P3_PRIMARIES @ np.linalg.inv(SRGB_PRIMARIES)).clip(0, 1)
    return (255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).round()


def profile(space: bytes, device_class: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.1 with a description and these tags."""
    text = b"a test\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(12 + 67)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": white, **tags}
    table, contents, begin = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", begin + len(contents), len(data))
        contents += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", begin + len(contents), bytes(4), 0x02100000, device_class, space, pcs)
    header += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + contents


def grey_profile() -> bytes:
    """Grey with gamma 1: linear light."""
    return profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, 256)})


def ink_profile() -> bytes:
    """CMYK in which the lightness is 100 (1 - (C + M + Y) / 3) (1 - K), and all is grey."""
    identity = bytes(range(256))
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    lightness = (1 - corners[:, :3].mean(axis=1)) * (1 - corners[:, 3])
    lab = np.stack([255 * lightness, 0 * lightness + 128, 0 * lightness + 128], axis=1).round().astype(np.uint8)
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": lut + 4 * identity + lab.tobytes() + 3 * identity})


def cmyk(ink: np.ndarray | None = None) -> Image.Image:
    """By default black ink alone."""
    if ink is None:
        ink = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        ink[..., 3] = grey()
    return Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes())


def print_of_cmyk() -> np.ndarray:
    """sRGB of `cmyk()` under `ink_profile`."""
    lightness = 100 * (1 - grey() / 255.0)
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    values = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.repeat(values.round()[:, :, None], 3, axis=2)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    linear = values / 255
    return (255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).round()


def turned(pixels: np.ndarray) -> np.ndarray:
    """By EXIF orientation 6: the stored first row is shown at the right."""
    return np.rot90(pixels, -1)


def grey_palette() -> Image.Image:
    image = Image.fromarray(grey() // 16, "P")
    image.putpalette([level for i in range(16) for level in 3 * [17 * i]])
    return image


def phone() -> bytes:
    exif = EXIF + camera_exif(6, thumbnail=file(RGB.resize((16, 12)), "JPEG"))
    return file(RGB, "JPEG", quality=95, subsampling=0, exif=exif, xmp=xmp(6), dpi=(72, 72))


KINDS = [
    Kind("phone JPEG, EXIF orientation 6", phone, pixels=lambda: turned(smooth()), error=4, size=(HEIGHT, WIDTH),
         boxes="exr"),
    Kind("phone JPEG of two pictures (MPO)",
         lambda: file(RGB, "MPO", quality=95, subsampling=0, save_all=True, append_images=[GREY.convert("RGB")]),
         pixels=smooth, error=4),
    Kind("scan, JPEG with 300 dpi and a comment",
         lambda: file(RGB, "JPEG", quality=95, subsampling=0, dpi=(300, 300), comment=b"page 3"), pixels=smooth,
         error=4, boxes="tr"),
    Kind("grey JPEG", lambda: file(GREY, "JPEG", quality=95), "L", grey, 3),
    Kind("wide-gamut JPEG (Display P3)",
         lambda: file(RGB, "JPEG", quality=95, subsampling=0, icc_profile=wide_gamut_profile(),
                      exif=EXIF + camera_exif(color_space=0xFFFF)),
         pixels=lambda: p3_to_srgb(smooth()), error=5, boxes="ec"),
    Kind("PNG with an sRGB profile", lambda: file(RGB, "PNG", icc_profile=SRGB), pixels=smooth),
    Kind("grey PNG with a grey profile", lambda: file(GREY, "PNG", icc_profile=grey_profile()), "L",
         lambda: linear_to_srgb(grey()), 1, boxes="c"),
    Kind("CMYK JPEG without a profile", lambda: file(cmyk(), "JPEG", quality=95),
         pixels=lambda: 255 - np.repeat(grey()[:, :, None], 3, axis=2), error=3),
    Kind("CMYK TIFF with a profile", lambda: file(cmyk(), "TIFF", icc_profile=ink_profile()), pixels=print_of_cmyk,
         error=2, boxes="c"),
    Kind("logo, RGBA PNG", lambda: file(with_alpha(half()), "PNG"), pixels=smooth, alpha=half),
    Kind("RGBA PNG, half transparent, with text and XMP",
         lambda: file(with_alpha(ramp()), "PNG", pnginfo=png_text(), dpi=(96, 96)), pixels=smooth, alpha=ramp,
         boxes="xtr"),
    Kind("RGBA PNG, every pixel opaque", lambda: file(with_alpha(np.full((HEIGHT, WIDTH), 255, np.uint8)), "PNG"),
         pixels=smooth),
    Kind("grey PNG with alpha (LA)", lambda: file(with_alpha(ramp(), GREY), "PNG"), "L", grey, alpha=ramp),
    Kind("WebP with alpha", lambda: file(with_alpha(half()), "WEBP", lossless=True), pixels=smooth, alpha=half),
    Kind("palette PNG", lambda: file(PALETTE, "PNG"), pixels=lambda: np.asarray(PALETTE.convert("RGB"))),
    Kind("palette PNG with transparency", lambda: file(PALETTE, "PNG", transparency=3),
         pixels=lambda: np.asarray(PALETTE.convert("RGB")), alpha=lambda: (np.asarray(PALETTE) != 3) * np.uint8(255)),
    Kind("palette PNG of greys", lambda: file(grey_palette(), "PNG"), "L", lambda: 17 * (grey() // 16)),
    Kind("GIF, one frame with transparency", lambda: file(PALETTE, "GIF", transparency=3, comment=b"made by hand"),
         pixels=lambda: np.asarray(PALETTE.convert("RGB")), alpha=lambda: (np.asarray(PALETTE) != 3) * np.uint8(255),
         boxes="t"),
    Kind("1-bit PNG", lambda: file(Image.fromarray(bits()).convert("1"), "PNG"), "L", bits),
    Kind("fax, 1-bit TIFF", lambda: file(Image.fromarray(bits()).convert("1"), "TIFF", compression="group4",
                                         dpi=(204, 98)), "L", bits, boxes="r"),
    Kind("16-bit grey PNG", lambda: deep_png(1), "L", lambda: rounded(deep(1)[..., 0])),
    Kind("16-bit grey PNG with alpha", lambda: deep_png(2), "L", lambda: rounded(deep(2)[..., 0]),
         alpha=lambda: rounded(deep(2)[..., 1])),
    Kind("16-bit RGB PNG", lambda: deep_png(3), pixels=lambda: rounded(deep(3))),
    Kind("16-bit RGB PNG, one colour transparent",
         lambda: deep_png(3, chunk(b"tRNS", deep(3)[4, 5].astype(">u2").tobytes())),
         pixels=lambda: rounded(deep(3)), alpha=lambda: (deep(3) != deep(3)[4, 5]).any(axis=2) * np.uint8(255)),
    Kind("16-bit RGBA PNG", lambda: deep_png(4), pixels=lambda: rounded(deep(4)[..., :3]),
         alpha=lambda: rounded(deep(4)[..., 3])),
    Kind("16-bit grey TIFF", lambda: file(Image.fromarray(deep(1)[..., 0]), "TIFF"), "L",
         lambda: rounded(deep(1)[..., 0])),
    Kind("16-bit RGB TIFF", lambda: deep_tiff(3), pixels=lambda: rounded(deep(3))),
    Kind("16-bit RGB TIFF, big-endian, compressed", lambda: deep_tiff(3, order=">", deflate=True),
         pixels=lambda: rounded(deep(3))),
    Kind("16-bit RGBA TIFF", lambda: deep_tiff(4, order=">"), pixels=lambda: rounded(deep(4)[..., :3]),
         alpha=lambda: rounded(deep(4)[..., 3])),
    Kind("16-bit CMYK TIFF", lambda: deep_tiff(4, photometric=5),
         pixels=lambda: np.asarray(cmyk(rounded(deep(4))).convert("RGB"))),
    Kind("TIFF with EXIF, turned", lambda: file(RGB, "TIFF", exif=EXIF + camera_exif(6), dpi=(300, 150)),
         pixels=lambda: turned(smooth()), size=(HEIGHT, WIDTH), boxes="er"),
    Kind("broken EXIF", lambda: file(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x63damaged"), pixels=smooth,
         warning="EXIF data is damaged"),
    Kind("broken ICC profile", lambda: file(RGB, "PNG", icc_profile=SRGB[:300]), pixels=smooth,
         warning="ICC profile is ignored"),
    Kind("1x1", lambda: file(RGB.crop((0, 0, 1, 1)), "PNG"), pixels=lambda: smooth()[:1, :1], size=(1, 1)),
    Kind("1x20000", lambda: file(Image.new("RGB", (1, 20000), (9, 99, 199)), "PNG"), size=(1, 20000),
         pixels=lambda: np.full((20000, 1, 3), (9, 99, 199))),
    Kind("BMP", lambda: file(RGB, "BMP", dpi=(96, 96)), pixels=smooth, boxes="r"),
    Kind("JPEG 2000", lambda: file(RGB, "JPEG2000", comment=b"made by hand"), pixels=smooth, boxes="t"),
    Kind("animated WebP", lambda: animated("WEBP"), refused="3 frames"),
    Kind("animated GIF", lambda: animated("GIF"), refused="3 frames"),
    Kind("animated PNG", lambda: animated("PNG"), refused="3 frames"),
    Kind("TIFF of three pages", lambda: animated("TIFF"), refused="3 frames"),
    Kind("truncated JPEG", lambda: file(RGB, "JPEG")[:-200], refused="damaged or truncated"),
    Kind("HDR float TIFF", lambda: file(Image.fromarray(grey() / np.float32(100)), "TIFF"), refused="floating-point"),
    Kind("no picture", lambda: b"%PDF-1.4 and no more", refused="not a picture"),
]  # fmt: skip


def png_text():
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "A. Photographer")
    info.add_itxt("Title", "Ein Bild: ü 图")
    info.add_text("parameters", "steps: 20", zip=True)
    info.add_itxt("XML:com.adobe.xmp", xmp())
    return info
