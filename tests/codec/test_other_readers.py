"""Pictures that other programs read, and Pillow refuses or reads as something else."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from kinds import SRGB, chunk, smooth
from PIL import Image, PngImagePlugin, features

import lalic
from lalic.errors import CheckpointError, ImageError, ImageWarning
from lalic.images import open_picture
from lalic.nn import checkpoints

RGB = smooth()
MIB = 1 << 20


def png(*chunks: bytes, late: tuple[bytes, ...] = ()) -> bytes:
    """A PNG of `RGB` with more chunks, before its pixels and behind them."""
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "PNG")
    data = out.getvalue()
    return data[:33] + b"".join(chunks) + data[33:-12] + b"".join(late) + data[-12:]


def packed(size: int, word: bytes = b"a") -> bytes:
    return zlib.compress(word * size)


def ztxt(size: int, key: bytes = b"key") -> bytes:
    return chunk(b"zTXt", key + b"\0\0" + packed(size))


def reads(data: bytes, **expected: int) -> None:
    """The picture is there, and boxes of these sizes."""
    picture = open_picture(data)
    assert np.array_equal(np.asarray(picture.image), RGB)
    assert {letter: len(contents) for letter, contents in picture.metadata.items()} == expected


def test_long_texts_of_a_png_are_kept():
    text = len('{"key": ""}') + 2 * MIB
    reads(png(ztxt(2 * MIB)), t=text)
    reads(png(late=(ztxt(2 * MIB),)), t=text)
    reads(png(chunk(b"iTXt", b"key\0\1\0en\0Wort\0" + packed(2 * MIB))), t=text)
    reads(png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed(2 * MIB))), x=2 * MIB)
    reads(png(ztxt(MIB)), t=text - MIB)  # which Pillow takes itself


def test_a_text_that_is_a_bomb_is_left_out_and_the_picture_read():
    for bomb in (ztxt(100 * MIB), chunk(b"iTXt", b"key\0\1\0\0\0" + packed(100 * MIB))):
        for data in (png(bomb), png(late=(bomb,))):
            with pytest.warns(ImageWarning, match=r"a text is dropped \(it has more than 16777216 bytes\)"):
                reads(data)


def test_many_texts_are_bounded_together():
    many = [ztxt(MIB, b"key %d" % i) for i in range(70)]
    with pytest.warns(ImageWarning, match=r"texts are dropped: the limit is 67108864"):
        open_picture(png(*many), strip=True)


@pytest.mark.parametrize("contents", [b"", b"no end", b"name\0", b"name\0\7" + packed(9)], ids=range(4))
def test_a_profile_chunk_that_is_none(contents):
    with pytest.warns(ImageWarning, match=r"the ICC profile is ignored \(it is damaged\)"):
        reads(png(chunk(b"iCCP", contents)))


@pytest.mark.parametrize("kind", [b"iCCP", b"tEXt", b"pHYs", b"tIME", b"prVt"])
def test_a_wrong_checksum_beside_the_picture_does_not_lose_it(kind):
    damaged = chunk(kind, bytes(20))[:-1] + b"?"
    with pytest.warns(ImageWarning, match=f"the chunk {kind.decode()} is left out"):
        reads(png(damaged))
    with pytest.warns(ImageWarning, match=f"the chunk {kind.decode()} is left out"):
        reads(png(late=(damaged,)))
    with pytest.raises(ImageError, match="damaged"):
        open_picture(png().replace(b"IDAT", b"IDAT" + b"?", 1))


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"pHYs"])
def test_a_chunk_that_is_too_short_does_not_lose_the_picture(kind):
    with pytest.warns(ImageWarning, match=f"the chunk {kind.decode()} is left out"):
        reads(png(chunk(kind, b"")))


def test_a_text_chunk_that_is_none():
    with pytest.warns(ImageWarning, match=r"a text is dropped \(it is damaged\)"):
        reads(png(chunk(b"zTXt", b"key\0\7" + packed(9))))


def test_a_long_profile_is_used():
    """As for prints: above 1 MiB. Here one that swaps nothing is padded, and a grey one does not fit."""
    reads(png(chunk(b"iCCP", b"name\0\0" + zlib.compress(SRGB + bytes(2 * MIB)))))
    grey = SRGB[:16] + b"GRAY" + SRGB[20:] + bytes(2 * MIB)
    with pytest.warns(ImageWarning, match="ICC profile is ignored"):
        reads(png(chunk(b"iCCP", b"name\0\0" + zlib.compress(grey))))
    with pytest.warns(ImageWarning, match="more than 16777216 bytes"):
        reads(png(chunk(b"iCCP", b"name\0\0" + packed(17 * MIB))))


def test_a_file_without_such_chunks_is_not_copied():
    from lalic.png import prepared

    stream = io.BytesIO(png(ztxt(99)))
    assert prepared(stream).stream is stream and stream.tell() == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_one_level_of_a_grey_png_of_few_bits_is_transparent(bits):
    levels = np.arange(64).reshape(4, 16) % (1 << bits)
    rows = levels.reshape(4, -1, 8 // bits)
    rows = (rows << (8 - bits * np.arange(1, 8 // bits + 1))).sum(axis=2).astype(np.uint8)
    for clear in range(1 << bits if bits < 8 else 64):
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 4, bits, 0, 0, 0, 0))
        data += chunk(b"tRNS", struct.pack(">H", clear))
        data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))) + chunk(b"IEND", b"")
        picture = open_picture(data)
        assert picture.image.mode == "L"
        assert np.array_equal(np.asarray(picture.alpha) == 0, levels == clear)


def planar_tiff(samples: np.ndarray) -> bytes:
    """A TIFF of uint8 or uint16 (3, H, W), plane by plane."""
    bits = 8 * samples.itemsize
    planes, height, width = samples.shape
    size = samples[0].nbytes
    at = 8 + samples.nbytes
    lists = struct.pack("<3H", *[bits] * 3) + struct.pack("<3I", *(8 + i * size for i in range(3)))
    lists += struct.pack("<3I", *[size] * 3)
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, at + 6),
        (277, 3, 1, planes), (278, 3, 1, height), (279, 4, 3, at + 18), (284, 3, 1, 2),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", at + len(lists)) + samples.tobytes() + lists + directory + bytes(4)


def test_deep_planes_of_a_tiff_are_refused_and_not_taken_for_bytes():
    planes = np.ascontiguousarray(np.moveaxis(RGB, 2, 0))
    assert np.array_equal(np.asarray(open_picture(planar_tiff(planes)).image), RGB)
    with pytest.raises(ImageError, match="16 bits a sample in separate planes"):
        open_picture(planar_tiff(planes.astype("<u2") * 257))


def bmp_with_alpha(alpha: np.ndarray) -> bytes:
    """A BMP of version 5, whose masks name an alpha channel."""
    pixels = np.dstack([RGB[:, :, ::-1], alpha]).tobytes()
    height, width = alpha.shape
    header = struct.pack("<IiiHHIIiiII", 124, width, -height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(64)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def tga_with_alpha(alpha: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.dstack([RGB, alpha])).save(out, "TGA")
    return out.getvalue()


@pytest.mark.parametrize("make", [bmp_with_alpha, tga_with_alpha])
def test_alpha_that_is_0_everywhere_does_not_blank_the_picture(make):
    unused = np.zeros(RGB.shape[:2], np.uint8)
    with pytest.warns(ImageWarning, match="alpha is ignored"):
        picture = open_picture(make(unused))
    assert picture.alpha is None and np.array_equal(np.asarray(picture.image), RGB)
    used = unused.copy()
    used[3, 4] = 1
    assert np.array_equal(np.asarray(open_picture(make(used)).alpha), used)


@pytest.mark.parametrize(
    ("primaries", "transfer", "words"),
    [(9, 16, "BT.2020, transfer PQ"), (12, 13, "Display P3"), (1, 8, "linear light"), (1, 13, None), (2, 2, None)],
)
def test_colours_that_code_points_name(primaries, transfer, words):
    """Pillow passes over them: what is not like sRGB is said."""
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "AVIF", quality=100, subsampling="4:4:4")
    at = out.getvalue().index(b"colrnclx") + 8
    avif = out.getvalue()[:at] + struct.pack(">HH", primaries, transfer) + out.getvalue()[at + 4 :]
    named = chunk(b"cICP", bytes([primaries, transfer, 0, 1]))
    for data in (png(named), avif):
        if words is None:
            open_picture(data)
        else:
            with pytest.warns(ImageWarning, match=f"taken as sRGB, and the file names others .*{words}"):
                open_picture(data)
    reads(png(named, chunk(b"iCCP", b"name\0\0" + zlib.compress(SRGB))))  # a profile is read instead


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "AVIF", "WEBP", "JPEG2000"])
def test_a_damaged_picture_is_not_said_to_be_no_picture(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, kind)
    for length in (18, 30):
        with pytest.raises(ImageError, match="damaged or truncated"):
            open_picture(out.getvalue()[:length])


def test_pointers_of_git_lfs_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    with pytest.raises(ImageError, match=r"not a picture, but a pointer of Git LFS .*git lfs pull"):
        open_picture(pointer)
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(CheckpointError, match=r"no checkpoint, but a pointer of Git LFS"):
            lalic.load(tmp_path / name)


def test_safetensors_under_the_name_of_a_pickle(tmp_path):
    tensors = {"a.weight": torch.arange(4.0)}
    checkpoints.save_tensors(tensors, tmp_path / "a.safetensors")
    os.rename(tmp_path / "a.safetensors", tmp_path / "a.pth")
    assert torch.equal(checkpoints.read(tmp_path / "a.pth")["a.weight"], tensors["a.weight"])


@pytest.mark.parametrize("make", [lambda x: x.to_sparse(), lambda x: x.to("meta")], ids=["sparse", "meta"])
def test_a_tensor_without_pixels_is_no_damaged_picture(make):
    with pytest.raises(ImageError, match="sparse, quantized or without data"):
        open_picture(make(torch.rand(3, 8, 8)))


def test_limits_of_pillow_are_those_that_are_read_around():
    assert PngImagePlugin.MAX_TEXT_CHUNK == MIB and PngImagePlugin.MAX_TEXT_MEMORY == 64 * MIB
