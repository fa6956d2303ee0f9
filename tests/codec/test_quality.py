"""Files at a given quality, and the search for the quality of a size or a PSNR."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import tiny

from lalic import codec, search
from lalic.container import parse
from lalic.errors import BitstreamError, LalicError
from lalic.metrics import psnr
from lalic.model import LALIC

GAINED = {"qualities": 3}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth picture with some noise: the size of its files changes evenly with the quality."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((130, 90), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (90, 130, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def test_the_header_says_the_quality_in_hundredths(picture):
    model = tiny(**GAINED)
    for given, kept in ((1, 1.0), (33.336, 33.34), (100.0, 100.0), (None, 50.0)):
        data = codec.encode(picture, model, quality=given)
        assert parse(data).quality == kept
        assert data == codec.encode(picture, model, quality=kept)
        expected = codec.Prepared(picture, model).encode(kept)
        assert data == expected


def test_a_file_decodes_at_its_own_quality(picture):
    model = tiny(**GAINED)
    files = [codec.encode(picture, model, quality=q) for q in (1, 20, 100)]
    values = [psnr(picture, codec.decode(data, model)) for data in files]
    assert values == sorted(values) and values[2] > values[0] + 6
    assert codec.symbol_hashes(files[0], model) != codec.symbol_hashes(files[1], model)


@pytest.mark.parametrize("quality", [0, 0.99, 100.004, -1, float("nan")])
def test_a_quality_out_of_range_is_refused(picture, quality):
    with pytest.raises(LalicError, match="expected 1 to 100"):
        codec.encode(picture, tiny(**GAINED), quality=quality)


def test_a_model_of_one_quality_says_so(picture):
    with pytest.raises(LalicError, match="trained for one quality"):
        codec.encode(picture, tiny(), quality=50)
    with pytest.raises(LalicError, match="cannot meet a target"):
        search.encode_to_bpp(picture, 1.0, tiny())
    assert parse(codec.encode(picture, tiny())).quality is None


def test_a_file_with_the_other_kind_of_header_is_refused(picture):
    for model, quality, message in ((tiny(**GAINED), None, "names no quality"), (tiny(), 50.0, "names quality 50")):
        container = parse(codec.encode(picture, model))
        with pytest.raises(BitstreamError, match=message):
            codec.decode(replace(container, quality=quality).pack(), model)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_size_is_met(picture, share, monkeypatch):
    model, analysed, latents = tiny(**GAINED), [], LALIC.latents
    monkeypatch.setattr(LALIC, "latents", lambda self, x: analysed.append(1) or latents(self, x))
    ends = [8 * len(codec.encode(picture, model, quality=q)) / (130 * 90) for q in (1, 100)]
    target = ends[0] * (ends[1] / ends[0]) ** share
    analysed.clear()
    found = search.encode_to_bpp(picture, target, model)
    assert abs(found.value / target - 1) <= search.BPP_TOLERANCE
    assert found.value == 8 * len(found.data) / (130 * 90)
    assert found.quality == parse(found.data).quality
    assert len(analysed) == 1
    in_bytes = search.encode_to_size(picture, target * 130 * 90 / 8000, model)
    assert in_bytes.data == found.data and in_bytes.value == len(found.data) / 1000


@pytest.mark.parametrize("target", [18.5, 22.0, 24.4])
def test_a_psnr_is_met(picture, target):
    found = search.encode_to_psnr(picture, target, tiny(**GAINED))
    assert abs(found.value - target) <= search.PSNR_TOLERANCE
    assert psnr(picture, codec.decode(found.data, tiny(**GAINED))) == found.value


def test_tolerance_can_be_chosen(picture):
    found = search.encode_to_psnr(picture, 22.0, tiny(**GAINED), tolerance=0.005)
    assert abs(found.value - 22.0) <= 0.005


def test_a_prepared_picture_comes_alone(picture):
    prepared = codec.Prepared(picture, tiny(**GAINED))
    for model, options, name in ((tiny(**GAINED), {}, "model"), (None, {"background": "white"}, "background")):
        with pytest.raises(TypeError, match=f"^{name}: expected none beside a Prepared"):
            search.encode_to_bpp(prepared, 1.0, model, **options)


def test_out_of_reach_says_what_is_in_reach(picture):
    model = tiny(**GAINED)
    low, high = (8 * len(codec.encode(picture, model, quality=q)) / (130 * 90) for q in (1, 100))
    for target in (low / 2, high * 2):
        with pytest.raises(LalicError) as caught:
            search.encode_to_bpp(picture, target, model)
        assert f"{low:.4g} to {high:.4g} bits per pixel" in str(caught.value)
    with pytest.raises(LalicError, match=r"the target is 1000 kB, but .* kB for this picture"):
        search.encode_to_size(picture, 1000, model)
    with pytest.raises(LalicError, match="dB for this picture"):
        search.encode_to_psnr(picture, 99.0, model)
    with pytest.raises(LalicError, match="more than 0"):
        search.encode_to_bpp(picture, 0.0, model)
