"""Metadata of pictures: from a picture file to boxes of a .lalic file, and into the picture file that is written.

    box  contents                                                           written by `lalic.images.dump` to
    e    EXIF: the TIFF structure from its byte order on, turned upright    PNG, JPEG, WebP, AVIF; TIFF: tags
    x    XMP: a packet, turned upright                                      PNG, JPEG, WebP, AVIF, TIFF
    t    text: JSON in UTF-8, one object of strings (PNG text chunks by     PNG; of JPEG, JPEG 2000 and
         keyword; the comment of a JPEG or GIF as "comment")                GIF the comment
    r    resolution: across, then down; two unsigned big-endian integers    PNG, JPEG, TIFF, BMP
         of 4 bytes, in 1/10000 pixel per inch, above 0
    c    colour: a sentence in UTF-8 that names the ICC profile which the   none; a PNG says that it is in sRGB
         pixels were converted from

Of EXIF nothing moves, so maker notes stay readable: the orientation becomes 1, the colour space sRGB if the pixels
were converted, and the thumbnail, which shows the picture as it lay before, is cut out. Not kept: a damaged EXIF block,
maker notes of a TIFF, extended XMP of a JPEG, IPTC, and a box of more than 16 MB.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from PIL import ExifTags, Image, PngImagePlugin

from lalic.container import MAX_METADATA
from lalic.errors import BitstreamError, ImageWarning

__all__ = [
    "ORIENTATION",
    "attach",
    "collect",
    "describe",
    "note_conversion",
    "orientation",
    "parse_resolution",
    "save_options",
]

ORIENTATION = 0x0112
_X_RESOLUTION = 0x011A
_COLOR_SPACE, _INTEROP_INDEX, _MAKER_NOTE = 0xA001, 0x0001, 0x927C
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202
_STRIP_OFFSET, _STRIP_LENGTH = 0x0111, 0x0117
# Tags of a TIFF that speak of the picture and not of how the file stores it; the sub-IFDs EXIF and GPS are among them.
_ABOUT_THE_PICTURE = {
    0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298, 0x8769, 0x8825,
    0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,
}  # fmt: skip
_TIFF_XMP = 700
_EXIF_PREFIX = b"Exif\0\0"
_HEX_EXIF = "Raw profile type exif"  # how ImageMagick writes EXIF to a PNG
_PNG_XMP = "XML:com.adobe.xmp"
_XMP_ORIENTATION = rb"""((?<!/)tiff:Orientation\s*(?:=\s*["']|>)\s*)([1-8])"""
_MAX_TEXTS = 2**16  # in one picture
_JPEG_SEGMENT = 65533  # bytes of contents
_JPEG_XMP = _JPEG_SEGMENT - 29
_MAX_WORDS = 200  # characters that `describe` gives of a text
# Keys of `Image.info` to which Pillow gives a meaning: a text of this name is no text there.
_NOT_TEXT = {
    "adobe", "adobe_transform", "aspect", "background", "bbox", "bits", "blend", "chromaticity", "comment",
    "compression", "default_image", "disposal", "dpi", "duration", "exif", "extension", "gamma", "icc_profile",
    "interlace", "jfif", "jfif_density", "jfif_unit", "jfif_version", "loop", "mp", "mpoffset", "photoshop",
    "progression", "progressive", "resolution", "sizes", "srgb", "timestamp", "transparency", "version", "xmp",
    _PNG_XMP,
}  # fmt: skip


def _warn(message: str) -> None:
    warnings.warn(message, ImageWarning, stacklevel=4)


# Out of a picture


def orientation(image: Image.Image) -> int | None:
    """The orientation of a loaded picture, 1 to 8: of EXIF, else of XMP, else 1.

    None, with an `ImageWarning`, if the EXIF data is damaged.
    """
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception as error:  # Pillow's EXIF reader raises many types for damaged data
        _warn(f"the EXIF data is damaged ({error}); the picture is taken as stored")
        return None
    if value is None and (found := re.search(_XMP_ORIENTATION, _xmp(image))):
        value = int(found[2])
    return value if value in range(1, 9) else 1


def collect(image: Image.Image, orientation: int | None = 1, *, loaded: bool = True) -> dict[str, bytes]:
    """The boxes of a picture that `Image.open` gave, by their letter: those that it has something for.

    image: not turned yet. orientation: how it will be turned, None if its EXIF data is damaged. loaded: False if its
    pixels are not loaded, and shall not be for the text that lies behind them in a PNG.
    """
    boxes = {
        "e": b"" if orientation is None else _exif(image),
        "x": re.sub(_XMP_ORIENTATION, rb"\g<1>1", _xmp(image)),
        "t": _text_box(image, loaded),
        "r": _resolution(image, orientation in (5, 6, 7, 8)),
    }
    for letter, contents in boxes.items():
        if len(contents) > MAX_METADATA:
            _warn(f"{_NAMES[letter]} of {len(contents)} bytes is dropped; the limit is {MAX_METADATA}")
    return {letter: contents for letter, contents in boxes.items() if 0 < len(contents) <= MAX_METADATA}


_NAMES = {"e": "EXIF data", "x": "XMP data", "t": "text", "r": "resolution", "c": "colour"}


def note_conversion(boxes: dict[str, bytes], profile: str) -> None:
    """Say in the boxes of a picture that its pixels were converted to sRGB from the ICC profile of this name."""
    name = _printable(profile) or "a profile without a name"
    boxes["c"] = f"converted to sRGB from {name}".encode()
    if "e" in boxes:
        boxes["e"] = _in_srgb(boxes["e"])


def _exif(image: Image.Image) -> bytes:
    try:
        exif = image.info.get("exif")
        if exif is None and _HEX_EXIF in image.info:
            exif = bytes.fromhex("".join(image.info[_HEX_EXIF].split("\n")[3:]))
        if exif is None and hasattr(image, "tag_v2"):
            tags = _about_the_picture(image.getexif())
            exif = tags.tobytes() if len(tags) else b""
        return _upright(re.sub(b"^(Exif\0\0)+", b"", exif)) if exif else b""
    except Exception as error:  # also from Pillow's EXIF reader, which raises many types for damaged data
        _warn(f"the EXIF data is damaged ({error}); it is dropped")
        return b""


def _about_the_picture(tags: Image.Exif) -> Image.Exif:
    """The tags of one TIFF structure that can go into another one: no layout of pixels, no offsets."""
    kept = Image.Exif()
    for tag in _ABOUT_THE_PICTURE & set(tags):
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            offsets = (_MAKER_NOTE, ExifTags.IFD.Interop)
            kept[tag] = {key: value for key, value in tags.get_ifd(tag).items() if key not in offsets}
        else:
            kept[tag] = tags[tag]
    return kept


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("xmp") or image.info.get(_PNG_XMP) or b""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "replace")
    return xmp if isinstance(xmp, bytes) else b""


def _text_box(image: Image.Image, loaded: bool) -> bytes:
    texts = _texts(image, loaded)
    if len(texts) > _MAX_TEXTS:
        _warn(f"{len(texts)} texts are dropped; the limit is {_MAX_TEXTS}")
        return b""
    return json.dumps(texts, ensure_ascii=False).encode("utf-8", "replace") if texts else b""


def _texts(image: Image.Image, loaded: bool = True) -> dict[str, str]:
    """Texts by their keyword: of a PNG its text chunks; of another image the strings in its `info`, and its comment."""
    texts = getattr(image, "text", None) if loaded else None
    if not isinstance(texts, dict):
        texts = {key: text for key, text in image.info.items() if key not in _NOT_TEXT}
    found = {
        key: str(text)
        for key, text in texts.items()
        if isinstance(key, str) and isinstance(text, str) and key != _PNG_XMP and not key.startswith("Raw profile type")
    }
    comment = image.info.get("comment")
    if isinstance(comment, bytes) and comment:
        try:
            found["comment"] = comment.decode()
        except UnicodeDecodeError:
            found["comment"] = comment.decode("latin-1")
    return found


def _resolution(image: Image.Image, turned: bool) -> bytes:
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        return b""  # Pillow has it from EXIF, which is kept, or has made it up
    if hasattr(image, "tag_v2") and _X_RESOLUTION not in image.tag_v2:
        return b""  # Pillow has made it up
    try:
        across, down = (round(10000 * float(dpi)) for dpi in image.info["dpi"])
        if across > 0 and down > 0:
            return struct.pack(">II", *((down, across) if turned else (across, down)))
    except (KeyError, TypeError, ValueError, ArithmeticError, struct.error):
        pass  # no resolution, or no sensible one
    return b""


# EXIF in place


class _Entry(NamedTuple):
    at: int  # where its 12 bytes begin
    tag: int
    value: int  # as an unsigned integer of 4 bytes: an offset, or the value of a LONG


class _Tiff:
    """The TIFF structure of EXIF data. Methods raise `ValueError` where it points beyond its end."""

    def __init__(self, exif: bytes) -> None:
        self.data = bytearray(exif)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
        if order is None:
            raise ValueError("it does not begin with a byte order")
        self.order = order
        self.first = self._read("I", 4)

    def _read(self, kind: str, at: int) -> int:
        try:
            return struct.unpack_from(self.order + kind, self.data, at)[0]
        except struct.error:
            raise ValueError("it is truncated") from None

    def _end(self, directory: int) -> int:
        """Where the offset of the next directory is."""
        return directory + 2 + 12 * self._read("H", directory)

    def entries(self, directory: int) -> Iterator[_Entry]:
        for at in range(directory + 2, self._end(directory), 12):
            yield _Entry(at, self._read("H", at), self._read("I", at + 8))

    def directories(self, parent: int, tag: int) -> Iterator[int]:
        """Offsets of the sub-directories that an entry points to."""
        return (entry.value for entry in self.entries(parent) if entry.tag == tag)

    def set_short(self, entry: _Entry, value: int) -> None:
        struct.pack_into(self.order + "HHIHH", self.data, entry.at, entry.tag, 3, 1, value, 0)

    def cut_thumbnail(self) -> None:
        """Drop the second directory with the JPEG file or the pixels that it points to."""
        link = self._end(self.first)
        try:
            following = self._read("I", link)
            tags = {entry.tag: entry.value for entry in self.entries(following)} if following else {}
        except ValueError:  # some writers leave the link out, and other data lies there
            return
        self.data[link : link + 4] = bytes(4)
        begin, length = tags.get(_THUMBNAIL_OFFSET, 0), tags.get(_THUMBNAIL_LENGTH, 0)
        if self.data[begin : begin + 2] == b"\xff\xd8":  # else the offset is wrong
            self._cut(begin, length)
        # Pixels without compression: one strip, which lies behind all else that the directories hold.
        begin, length = tags.get(_STRIP_OFFSET, 0), tags.get(_STRIP_LENGTH, 0)
        if following < begin and begin + length == len(self.data):
            self._cut(begin, length)

    def _cut(self, begin: int, length: int) -> None:
        end = min(begin + length, len(self.data))
        self.data[begin:end] = bytes(end - begin)
        if end == len(self.data):
            del self.data[begin:]


def _upright(exif: bytes) -> bytes:
    tiff = _Tiff(exif)
    for entry in tiff.entries(tiff.first):
        if entry.tag == ORIENTATION:
            tiff.set_short(entry, 1)
    tiff.cut_thumbnail()
    return bytes(tiff.data)


def _in_srgb(exif: bytes) -> bytes:
    """EXIF data that names the colour space sRGB where it named another one."""
    tiff = _Tiff(exif)
    try:
        for directory in tiff.directories(tiff.first, ExifTags.IFD.Exif):
            for entry in tiff.entries(directory):
                if entry.tag == _COLOR_SPACE:
                    tiff.set_short(entry, 1)
            for interop in tiff.directories(directory, ExifTags.IFD.Interop):
                for entry in tiff.entries(interop):
                    if entry.tag == _INTEROP_INDEX and tiff.data[entry.at + 8 : entry.at + 11] == b"R03":
                        tiff.data[entry.at + 8 : entry.at + 11] = b"R98"
    except ValueError:
        pass  # a sub-directory beyond the end, which nobody can read
    return bytes(tiff.data)


# Into a picture


def attach(image: Image.Image, metadata: Mapping[str, bytes]) -> None:
    """Put boxes into `image.info` where Pillow's users look: "exif", "xmp", "dpi", "comment", and texts by keyword.

    All texts are also in the attribute `text`, as of a PNG file that Pillow opened. Raises `BitstreamError` for an
    invalid box.
    """
    if "e" in metadata:
        image.info["exif"] = _EXIF_PREFIX + metadata["e"]
    if "x" in metadata:
        image.info["xmp"] = metadata["x"]
    if "r" in metadata:
        image.info["dpi"] = parse_resolution(metadata["r"])
    if "t" in metadata:
        texts = _parse_text(metadata["t"])
        if "comment" in texts:
            image.info["comment"] = texts["comment"].encode()
        image.info.update({key: text for key, text in texts.items() if key not in _NOT_TEXT})
        image.text = texts  # type: ignore[attr-defined]


def parse_resolution(contents: bytes) -> tuple[float, float]:
    """Pixels an inch across and down, from the box of a file. Raises `BitstreamError` for an invalid one."""
    if len(contents) != 8 or not all(values := struct.unpack(">II", contents)):
        raise BitstreamError("the box 'r' is invalid: it is not two integers of 4 bytes above 0")
    return (values[0] / 10000, values[1] / 10000)


def _parse_text(contents: bytes) -> dict[str, str]:
    try:
        texts = json.loads(contents.decode())
        "".join([*texts.keys(), *texts.values()]).encode()  # strings, and none with half a character
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BitstreamError("the box 't' is invalid: it is not a JSON object of strings") from None
    if len(texts) > _MAX_TEXTS:
        raise BitstreamError(f"the box 't' is invalid: it has {len(texts)} texts, expected at most {_MAX_TEXTS}")
    return texts


def save_options(image: Image.Image, format: str) -> dict[str, Any]:
    """Arguments of `image.save` that write the metadata in `image.info`, as far as Pillow's `format` can hold it.

    Metadata too large for the format is dropped with an `ImageWarning`.
    """
    info = image.info
    exif, xmp, dpi = info.get("exif", b""), info.get("xmp", b""), info.get("dpi")
    if format == "PNG":
        return {"pnginfo": _png_chunks(image, xmp)} | _given(exif=exif, dpi=dpi)
    texts = _texts(image)
    comment = texts.get("comment", texts.get("Comment", "")).encode()
    if format == "JPEG":
        return _given(
            exif=_at_most(_JPEG_SEGMENT, exif, "EXIF data"),
            xmp=_at_most(_JPEG_XMP, xmp, "XMP data"),
            comment=_at_most(_JPEG_SEGMENT, comment, "the comment"),
            dpi=dpi if dpi and max(dpi) < 2**16 else None,
        )
    if format in ("GIF", "JPEG2000"):
        return _given(comment=comment)
    if format == "BMP":
        return _given(dpi=dpi)
    if format in ("WEBP", "AVIF"):
        return _given(exif=exif, xmp=xmp)
    if format == "TIFF":
        return _given(exif=_tiff_tags(exif, xmp), dpi=dpi)
    return {}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


def _at_most(limit: int, contents: bytes, name: str) -> bytes:
    if len(contents) <= limit:
        return contents
    _warn(f"{name} of {len(contents)} bytes does not fit into a JPEG file, which holds {limit}; it is dropped")
    return b""


def _png_chunks(image: Image.Image, xmp: bytes) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")  # perceptual intent
    for key, text in _texts(image).items():
        keyword = "Comment" if key == "comment" else key
        if re.fullmatch(r"[ -~\xa1-\xff]{1,79}", keyword) and "\0" not in text:
            chunks.add_text(keyword, text)
        else:
            _warn(f"the text {_printable(key)!r} is dropped, as a PNG file cannot hold it")
    if xmp:
        chunks.add_itxt(_PNG_XMP, xmp)
    return chunks


def _tiff_tags(exif: bytes, xmp: bytes) -> bytes:
    """EXIF data of the tags that go into a TIFF file, XMP being one of them."""

    def with_xmp(tags: Image.Exif) -> bytes:
        if xmp:
            tags[_TIFF_XMP] = xmp
        return tags.tobytes() if len(tags) else b""

    tags = Image.Exif()
    try:
        tags.load(exif)
        return with_xmp(_about_the_picture(tags))
    except Exception as error:  # Pillow's EXIF reader and writer raise many types for damaged data
        _warn(f"the EXIF data is damaged ({error}); it is dropped")
        return with_xmp(Image.Exif())


# For people


def describe(metadata: Mapping[str, bytes]) -> dict[str, Any]:
    """What boxes hold, for people and as JSON: only what is there.

    exif_bytes, camera, date, gps (True or False: is a position in it); xmp_bytes; text (its first 200 characters, by
    keyword); resolution; colour. Raises `BitstreamError` for an invalid box.
    """
    words: dict[str, Any] = {}
    if "e" in metadata:
        words |= {"exif_bytes": len(metadata["e"])} | _describe_exif(metadata["e"])
    if "x" in metadata:
        words["xmp_bytes"] = len(metadata["x"])
    if "t" in metadata:
        words["text"] = {_printable(key): _printable(text) for key, text in _parse_text(metadata["t"]).items()}
    if "r" in metadata:
        words["resolution"] = "{:g} x {:g} dpi".format(*parse_resolution(metadata["r"]))
    if "c" in metadata:
        words["colour"] = _printable(metadata["c"].decode("utf-8", "replace"))
    return words


def _describe_exif(contents: bytes) -> dict[str, Any]:
    try:
        exif = Image.Exif()
        exif.load(contents)
        maker, model = (_printable(str(exif.get(tag, ""))) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        date = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
        position = exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # Pillow's EXIF reader raises many types for damaged data, and a reader need not care
        return {}
    camera = model if model.startswith(maker) else f"{maker} {model}".strip()
    gps = ExifTags.GPS.GPSLatitude in position
    return _given(camera=camera, date=_printable(str(date or ""))) | {"gps": gps}


def _printable(text: str) -> str:
    """A text in one line without control characters, shortened."""
    cut = text[: 2 * _MAX_WORDS]
    return " ".join("".join(c if c.isprintable() else " " for c in cut).split())[:_MAX_WORDS]
