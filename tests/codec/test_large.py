"""Pictures in several tiles: what comes back, regions, reduced pictures. Tiles are made small for this."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import astronaut, noise, tiny

from lalic import codec, search
from lalic.coder.host import HostCoder
from lalic.container import parse
from lalic.errors import BitstreamError, RequestError
from lalic.tiles import SCALES

SIZE = (500, 300)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    monkeypatch.setattr(codec, "ONE_TILE", 128 * 128)
    monkeypatch.setattr(codec, "TILE", 128)
    monkeypatch.setattr(codec, "MARGIN", 64)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def coded() -> tuple[Image.Image, bytes]:
    picture = astronaut(0, 0, *SIZE)
    return picture, codec.encode(picture, tiny())


def test_a_picture_in_tiles_comes_back() -> None:
    picture, data = coded()
    container = parse(data)
    assert len(container.grid) == len(container.tiles) == 4 * 3
    decoded = codec.decode(data, tiny())
    assert decoded.size == SIZE and decoded.mode == "RGB"
    assert ((pixels(decoded) - pixels(picture)) ** 2).mean() < 80


def test_windows_make_no_seam_that_the_whole_picture_has_not(monkeypatch) -> None:
    picture, data = coded()
    tiled = codec.decode(data, tiny())
    monkeypatch.setattr(codec, "ONE_TILE", 10**9)
    whole = codec.encode(picture, tiny())
    assert len(parse(whole).grid) == 1
    errors = [(pixels(codec.decode(x, tiny())) - pixels(picture)) ** 2 for x in (whole, data)]
    border = np.zeros(SIZE[::-1], bool)
    for side in (128, 256, 384):
        border[side - 8 : side + 8] = border[:, side - 8 : side + 8] = True
    for part in (border, ~border):
        assert errors[1][part].mean() < 1.05 * errors[0][part].mean()
    assert np.array_equal(pixels(codec.decode(data, tiny())), pixels(tiled)), "the file says how it is divided"


@pytest.mark.parametrize(
    "region", [(0, 0, 500, 300), (0, 0, 1, 1), (499, 299, 500, 300), (120, 100, 140, 130), (128, 128, 256, 256)]
)
def test_a_region_is_that_part_of_the_whole(region, monkeypatch) -> None:
    _, data = coded()
    whole = codec.decode(data, tiny())
    read = []
    original = HostCoder.read
    monkeypatch.setattr(HostCoder, "read", lambda self, *a: read.append(a) or original(self, *a))
    part = codec.decode(data, tiny(), region=region)
    assert np.array_equal(pixels(part), pixels(whole.crop(region)))
    if region == (0, 0, 1, 1):
        assert len(read) == 4, "a tile and the three whose latents its window shares"


@pytest.mark.parametrize("scale", SCALES)
def test_a_reduced_picture_is_the_whole_averaged(scale) -> None:
    _, data = coded()
    whole, reduced = codec.decode(data, tiny()), codec.decode(data, tiny(), scale=scale)
    assert np.array_equal(pixels(reduced), pixels(whole.reduce(scale)))


def test_region_and_scale_of_one_tile(monkeypatch) -> None:
    monkeypatch.setattr(codec, "ONE_TILE", 10**9)
    _, data = coded()
    whole = codec.decode(data, tiny())
    part = codec.decode(data, tiny(), region=(10, 20, 200, 99), scale=4)
    assert np.array_equal(pixels(part), pixels(whole.crop((10, 20, 200, 99)).reduce(4)))


@pytest.mark.parametrize(
    "region",
    [(0, 0, 501, 300), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 9, 5, 12), (0, 0, 5), (0, 0, 500, 301), (0.5, 0, 5, 5),
     (0, 0, 5.0, 5), (0, 0, "5", 5), (0, 0, None, 5), (0, 0, float("nan"), 5)],
)  # fmt: skip
def test_what_is_no_region(region) -> None:
    _, data = coded()
    with pytest.raises(RequestError, match=r"region is \(.*inside of 500x300"):
        codec.decode(data, tiny(), region=region)


@pytest.mark.parametrize("scale", [0, 3, 128, -1, 2.0, "2", None])
def test_what_is_no_scale(scale) -> None:
    _, data = coded()
    with pytest.raises(RequestError, match=f"scale is {scale}, expected one of 1, 2, 4, 8, 16, 32, 64"):
        codec.decode(data, tiny(), scale=scale)


class Batches(HostCoder):
    """As a coder of a GPU is asked: several windows and tiles of one size at once. Notes the shapes."""

    seen: set[tuple[object, ...]]

    def read_latents(self, streams, size):
        self.seen.add(("read", len(streams), *size))
        return super().read_latents(streams, size)

    def latents(self, x):
        self.seen.add(("latents", *x.shape))
        return super().latents(x)

    def synthesise(self, y_hat, qualities):
        self.seen.add(("synthesise", *y_hat.shape))
        return super().synthesise(y_hat, qualities)


def test_windows_of_all_large_pictures_are_batches_of_one_size(monkeypatch) -> None:
    """Files and pixels are those of window by window, and a GPU needs few graphs for pictures of many sizes."""
    model = tiny(qualities=3)
    pictures = [astronaut(0, 0, *size) for size in ((500, 300), (510, 266), (300, 460), (384, 384), (257, 512))]
    alone = [codec.encode(picture, model, quality=70) for picture in pictures]
    decoded = [pixels(codec.decode(data, model)) for data in alone]
    parts = [pixels(codec.decode(data, model, region=(100, 120, 250, 266))) for data in alone]
    Batches.seen = set()
    monkeypatch.setattr(type(model), "coder", lambda self, graph=None: Batches(self))
    monkeypatch.setattr(codec, "codes_on_gpu", lambda device: True)
    for picture, data, whole, part in zip(pictures, alone, decoded, parts, strict=True):
        assert codec.encode(picture, model, quality=70) == data
        assert np.array_equal(pixels(codec.decode(data, model)), whole)
        assert np.array_equal(pixels(codec.decode(data, model, region=(100, 120, 250, 266))), part)
    for what in ("latents", "synthesise"):
        shapes = {shape[1:] for shape in Batches.seen if shape[0] == what}
        assert len({shape[1:] for shape in shapes}) == 1, "one size of window"
        assert {shape[0] for shape in shapes} <= {1, 2, 3, 4}, "full batches, and what is left of a picture"
    reads = {shape[2:] for shape in Batches.seen if shape[0] == "read"}
    assert reads <= {(h, w) for h in (1, 2) for w in (1, 2)}, "tiles at the right and at the bottom are smaller"


@pytest.mark.parametrize("in_batches", [False, True])
def test_a_damaged_tile(in_batches, monkeypatch) -> None:
    """Found out before the picture gets memory, which a header alone does not get."""
    _, data = coded()
    tiles = list(parse(data).tiles)
    tiles[1] = tiles[1]._replace(checksum=tiles[1].checksum ^ 1)
    damaged = replace(parse(data), tiles=tuple(tiles)).pack()
    monkeypatch.setattr(codec, "codes_on_gpu", lambda device: in_batches)
    if in_batches:
        monkeypatch.setattr(type(tiny()), "coder", lambda self, graph=None: HostCoder(self))
    monkeypatch.setattr(Image, "new", None)
    with pytest.raises(BitstreamError, match="the decoded symbols"):
        codec.decode(damaged, tiny())


def test_bands_change_no_pixel(monkeypatch) -> None:
    """Latents of few tiles are held, whatever the order in which tiles are decoded."""
    _, data = coded()
    whole = codec.decode(data, tiny())
    monkeypatch.setattr(codec, "BAND", 2)
    held: list[int] = []
    area: list[int] = []

    def note(parts) -> None:
        held.append(len(parts))
        area.append(sum(part.box.width * part.box.height for part in parts))
        assert all(part.y_hat.shape[2:] == (part.box.height // 16, part.box.width // 16) for part in parts)

    joined = codec._joined_latents
    monkeypatch.setattr(codec, "_joined_latents", lambda g, latents, w: note(latents.values()) or joined(g, latents, w))
    assert np.array_equal(pixels(codec.decode(data, tiny())), pixels(whole))
    assert len(held) == 12 and max(held) <= 9 < 12
    assert max(area) <= 7 * 128 * 128, "of the row above, the last lines alone"
    parts = np.zeros((*SIZE[::-1], 3), np.uint8)
    for place, part in codec.decode_parts(data, tiny()):
        parts[place.top : place.bottom, place.left : place.right] = part
    assert np.array_equal(parts, np.asarray(whole))


@pytest.mark.parametrize(("many", "blocks"), [(12, 1), (13, 0)])
def test_many_windows_give_their_memory_back(many, blocks, monkeypatch) -> None:
    """Also when a decode is left before its end. The picture itself lies apart in any case."""
    _, data = coded()
    begun, ended = [], []

    @contextlib.contextmanager
    def apart() -> Iterator[None]:
        begun.append(1)
        try:
            yield
        finally:
            ended.append(1)

    monkeypatch.setattr(codec, "apart", apart)
    monkeypatch.setattr(codec, "MANY", many)
    codec.decode(data, tiny())
    assert len(begun) == len(ended) == blocks + 1
    parts = codec.decode_parts(data, tiny())
    next(parts)
    parts.close()
    assert len(begun) == len(ended) == 2 * blocks + 1
    codec.decode(data, tiny(), region=(0, 0, 100, 100))  # of one window
    assert len(begun) == len(ended) == 2 * blocks + 1


def test_a_region_across_tiles_is_reduced_as_a_whole() -> None:
    _, data = coded()
    whole = codec.decode(data, tiny())
    part = codec.decode(data, tiny(), region=(101, 55, 391, 211), scale=8)
    assert np.array_equal(pixels(part), pixels(whole.crop((101, 55, 391, 211)).reduce(8)))


def test_alpha_in_tiles() -> None:
    picture = astronaut(0, 0, *SIZE).convert("RGBA")
    alpha = Image.new("L", SIZE, 255)
    alpha.paste(Image.linear_gradient("L").resize((100, 90)), (60, 70))
    picture.putalpha(alpha)
    data = codec.encode(picture, tiny())
    files = parse(data).alpha
    assert files is not None and 0 < sum(map(bool, files)) < len(files) == 12, "opaque tiles take no bytes"
    decoded = codec.decode(data, tiny())
    assert decoded.mode == "RGBA" and decoded.getchannel("A").tobytes() == alpha.tobytes()
    part = codec.decode(data, tiny(), region=(100, 100, 300, 200))
    assert part.getchannel("A").tobytes() == alpha.crop((100, 100, 300, 200)).tobytes()


def test_grey_comes_back_grey() -> None:
    picture = astronaut(0, 0, *SIZE).convert("L")
    data = codec.encode(picture, tiny())
    decoded = codec.decode(data, tiny())
    assert decoded.mode == "L" and ((pixels(decoded) - pixels(picture)) ** 2).mean() < 120
    assert codec.decode(data, tiny(), scale=8).mode == "L"


def test_many_files_with_tiles_among_them(monkeypatch) -> None:
    _, data = coded()
    small = codec.encode(astronaut(0, 0, 100, 80), tiny())
    results = list(codec.decode_many([data, small, data[:-1], data], tiny()))
    assert np.array_equal(pixels(results[0]), pixels(codec.decode(data, tiny())))
    assert results[1].size == (100, 80) and results[3].size == SIZE
    assert isinstance(results[2], BitstreamError)


def test_many_files_with_bad_boxes_and_missing_ones_among_them(tmp_path) -> None:
    """What is wrong beside the streams is the error of its file too; a missing one comes after those before it."""
    clear = noise(size=(100, 80)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    good = codec.encode(clear, tiny())
    container = parse(good)
    bad = [
        replace(container, **change).pack()
        for change in ({"metadata": {"r": b"1234567"}}, {"metadata": {"t": b"[1]"}}, {"alpha": (b"RIFF no WebP",)})
    ]
    found = list(codec.decode_many([good, *bad, good], tiny()))
    assert [type(each) for each in found] == [Image.Image, *[BitstreamError] * 3, Image.Image]
    for error, data in zip(found[1:4], bad, strict=True):
        with pytest.raises(BitstreamError) as alone:
            codec.decode(data, tiny())
        assert str(error) == str(alone.value)
    (tmp_path / "a.lalic").write_bytes(good)
    read = codec.decode_many([tmp_path / "a.lalic", tmp_path / "none.lalic", good], tiny())
    assert next(read).size == (100, 80)
    with pytest.raises(FileNotFoundError):
        next(read)


def test_hashes_of_several_tiles() -> None:
    _, data = coded()
    hashes = codec.symbol_hashes(data, tiny())
    assert {len(value) for value in hashes.values()} == {64}
    assert hashes == codec.symbol_hashes(data, tiny())
    other = codec.symbol_hashes(codec.encode(astronaut(1, 0, *SIZE), tiny()), tiny())
    assert all(hashes[name] != other[name] for name in hashes)


def test_search_in_tiles() -> None:
    model = tiny(qualities=3)
    found = search.encode_to_bpp(astronaut(0, 0, *SIZE), 1.0, model)
    assert found.value == pytest.approx(1.0, rel=0.011) and len(parse(found.data).grid) == 12
