"""Files at a chosen quality, and the quality that a size or a PSNR calls for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fake_model import FakeGained, FakeModel
from PIL import Image
from shapes import SHAPES

from lalic import codec, search
from lalic.container import parse
from lalic.errors import BitstreamError, LalicError
from lalic.metrics import psnr
from lalic.model import LALIC


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth, with some noise: its files shrink evenly with the quality."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((130, 90), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (90, 130, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def test_the_header_says_the_quality_in_hundredths(picture):
    model = FakeGained()
    for given, kept in ((1, 1.0), (33.336, 33.34), (100.0, 100.0), (None, 50.0)):
        data = codec.encode(picture, model, quality=given)
        assert parse(data).quality == kept
        assert data == codec.encode(picture, model, quality=kept)
        expected = codec.Prepared(picture, model).encode(kept)
        assert data == expected


def test_a_file_decodes_at_its_own_quality(picture):
    model = FakeGained()
    errors = [psnr(picture, codec.decode(codec.encode(picture, model, quality=q), model)) for q in (1, 20, 100)]
    assert errors == sorted(errors) and errors[2] > errors[0] + 20


@pytest.mark.parametrize("quality", [0, 0.99, 100.004, -1, float("nan")])
def test_a_quality_out_of_range_is_refused(picture, quality):
    with pytest.raises(LalicError, match="expected 1 to 100"):
        codec.encode(picture, FakeGained(), quality=quality)


def test_a_model_of_one_quality_says_so(picture):
    with pytest.raises(LalicError, match="trained for one quality"):
        codec.encode(picture, FakeModel(), quality=50)
    with pytest.raises(LalicError, match="cannot meet a target"):
        search.encode_to_bpp(picture, 1.0, FakeModel())
    assert parse(codec.encode(picture, FakeModel())).quality is None


def test_a_file_with_the_other_kind_of_header_is_refused(picture):
    with pytest.raises(BitstreamError, match="names no quality"):
        codec.decode(codec.encode(picture, FakeModel()), FakeGained())
    with pytest.raises(BitstreamError, match="names quality 50"):
        codec.decode(codec.encode(picture, FakeGained()), FakeModel())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_size_is_met(picture, share):
    model = FakeGained()
    ends = [parse(codec.encode(picture, model, quality=q)).bits_per_pixel for q in (1, 100)]
    target = ends[0] * (ends[1] / ends[0]) ** share
    before = model.analysed
    found = search.encode_to_bpp(picture, target, model)
    assert abs(found.value / target - 1) <= search.BPP_TOLERANCE
    assert found.value == parse(found.data).bits_per_pixel == 8 * len(found.data) / (130 * 90)
    assert found.quality == parse(found.data).quality
    assert model.analysed == before + 1


@pytest.mark.parametrize("target", [20.0, 31.5, 41.0])
def test_a_psnr_is_met(picture, target):
    found = search.encode_to_psnr(picture, target, FakeGained())
    assert abs(found.value - target) <= search.PSNR_TOLERANCE
    assert psnr(picture, codec.decode(found.data, FakeGained())) == found.value


def test_tolerance_can_be_chosen(picture):
    found = search.encode_to_psnr(picture, 31.5, FakeGained(), tolerance=0.005)
    assert abs(found.value - 31.5) <= 0.005


def test_out_of_reach_says_what_is_in_reach(picture):
    model = FakeGained()
    low, high = (parse(codec.encode(picture, model, quality=q)).bits_per_pixel for q in (1, 100))
    for target in (low / 2, high * 2):
        with pytest.raises(LalicError) as caught:
            search.encode_to_bpp(picture, target, model)
        assert f"{low:.4g} to {high:.4g} bits per pixel" in str(caught.value)
    with pytest.raises(LalicError, match="dB for this picture"):
        search.encode_to_psnr(picture, 99.0, model)
    with pytest.raises(LalicError, match="more than 0"):
        search.encode_to_bpp(picture, 0.0, model)


def test_the_real_model_meets_both(picture):
    """Untrained: its sizes rise with the quality all the same, as the steps get finer."""
    import torch

    torch.manual_seed(0)
    model = LALIC(3, 11, (4, 6, 8, 11, 6, 5), (1, 0, 1, 1), (3, 1, 7), qualities=3, **SHAPES["patches"])
    model.gains.start(torch.tensor([2.0, 20.0, 200.0]))
    model.update()
    model.eval()
    ends = [parse(codec.encode(picture, model, quality=q)).bits_per_pixel for q in (1, 100)]
    target = (ends[0] * ends[1]) ** 0.5
    found = search.encode_to_bpp(picture, target, model)
    assert abs(found.value / target - 1) <= search.BPP_TOLERANCE
    out = io.BytesIO(found.data).getvalue()
    assert codec.decode(out, model).size == picture.size
    assert codec.symbol_hashes(out, model) != codec.symbol_hashes(codec.encode(picture, model, quality=1), model)
