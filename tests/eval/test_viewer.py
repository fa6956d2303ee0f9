"""The bit map, the curve, the table and the page of a comparison, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import astronaut, tiny

from lalic import codec
from lalic.coder.host import symbols_of
from lalic.coder.tables import gaussian_tables
from lalic.container import parse
from lalic.eval import compare, viewer
from lalic.eval.bits import bit_map, code_lengths, heat_map
from lalic.eval.codecs import LalicCodec, make
from lalic.eval.curve_figure import curve_figure
from lalic.eval.side_by_side import coded_at, remarks, shortfall, verdict
from lalic_kernels import rans

PHOTO = astronaut(150, 20, 192, 176)


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_the_bit_map_sums_to_the_stream(quality):
    picture = astronaut(0, 0, 300, 200)
    prepared = codec.Prepared(picture, tiny(qualities=3))
    bits = bit_map(prepared, quality)
    stream = 8 * parse(prepared.encode(quality)).stream_bytes
    assert bits.shape == (256 // 16, 320 // 16) and bits.dtype == np.float32 and (bits > 0).all()
    assert bits.sum() < stream < 1.02 * bits.sum() + 32 * 32  # the states of the lanes


def test_bits_are_where_the_detail_is():
    pixels = np.full((256, 256, 3), 128, np.uint8)
    pixels[64:128, 128:192] = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    bits = bit_map(codec.Prepared(Image.fromarray(pixels), tiny(qualities=3)), 80)
    inside = bits[4:8, 8:12]
    assert inside.max() == bits.max() and inside.mean() > 2 * (bits.sum() - inside.sum()) / (bits.size - inside.size)


def test_code_lengths_are_those_of_the_coder():
    model = tiny(qualities=3)
    with torch.inference_mode():
        coded = symbols_of(model, next(codec.Prepared(PHOTO, model).latents()), 60)
    symbols, rows = (x[0].numpy() for x in coded.passes[0])
    length = code_lengths(symbols, rows, gaussian_tables()).sum()
    assert 8 * len(rans.encode([(symbols, rows)], gaussian_tables())) == pytest.approx(length, rel=0.02, abs=40 * 32)
    far = np.array([0, 300, -5000], np.int32), np.zeros(3, np.int32)
    near, *escapes = code_lengths(*far, gaussian_tables())
    assert near < 3 < 20 < min(escapes) and escapes[1] == escapes[0] + 4  # one digit more


def test_a_heat_map_has_the_size_of_the_picture():
    bits = np.zeros((4, 8), np.float32)
    bits[1, 2] = 512.0
    picture, top = heat_map(bits, (100, 50))
    assert picture.size == (100, 50) and picture.mode == "RGB" and top > 0
    assert picture.getpixel((2 * 16 + 8, 24)) == (252, 255, 164) and picture.getpixel((0, 0)) == (0, 0, 4)
    assert heat_map(np.zeros((4, 4), np.float32), (5, 5))[1] == 1


def test_the_curve_is_an_svg():
    curves = {"lalic <b>": [(0.1, 27.0), (0.5, 33.0), (1.0, 36.0)], "JPEG": [(0.2, 24.0), (0.9, 33.0), (3.0, 41.0)]}
    for size in ((360, 240), (1200, 260)):
        text = curve_figure(curves, [(0.5, 33.0), (3.0, 41.0)], size)
        quoted = re.sub(r"(\w)=(lalic-curve|value|name|ours|theirs|img)\b", r'\1="\2"', text)
        figure = ElementTree.fromstring(quoted)
        assert len(figure.findall(".//polyline")) == 2
        assert len(figure.findall(".//circle")) == 6 + 1  # the second mark is outside
        assert "lalic <b>" in [each.text for each in figure.findall("text")]
    assert curve_figure({}) == curve_figure({"lalic": [(1.0, 30.0)]}) == ""
    assert curve_figure({"lalic": [(0.1, 30.0), (0.2, float("inf"))]}) == ""
    assert curve_figure({"lalic": [(0.1, 30.0), (0.2, 30.0)]}).count("circle") == 2  # of no height


def test_sentences_say_who_is_better_and_who_does_not_come_near():
    jpeg, webp = (coded_at(make(name), PHOTO, 50) for name in ("jpeg", "webp"))
    assert verdict(jpeg, jpeg, "bpp") == "JPEG 4:2:0 and JPEG 4:2:0 have the same PSNR at this size"
    assert "take the same size" in verdict(jpeg, jpeg, "psnr")
    assert re.fullmatch(r"WebP is \d+ % smaller than JPEG 4:2:0 at this PSNR", verdict(webp, jpeg, "psnr"))
    assert "larger than WebP" in verdict(jpeg, webp, "psnr")
    best = coded_at(make("jpeg"), PHOTO, 95)
    assert shortfall(best, "psnr", best.psnr + 0.01) is shortfall(jpeg, "psnr", 60) is None
    assert shortfall(best, "psnr", 60).startswith("JPEG 4:2:0 does not reach 60 dB for this picture; ")
    assert remarks([jpeg, webp], "bpp") == []  # given qualities, and no equal sizes
    assert len(remarks([jpeg, jpeg, best], "psnr")) == 2
    out_of_reach = remarks([best, best], "psnr", 60)
    assert len(out_of_reach) == 2 and all("does not reach 60 dB" in each for each in out_of_reach)


def test_the_table_escapes_and_leaves_out_what_nobody_has():
    match = coded_at(LalicCodec(tiny(), title="<lalic>"), astronaut(0, 0, 64, 64), None)
    table = viewer.figures_table([match], {"lalic": 'a"b'})
    assert "&lt;lalic&gt;" in table and 'href="a&quot;b"' in table
    assert "MS-SSIM" not in table and "Quality" not in table and "PSNR" in table
    assert [viewer.size_text(n) for n in (999, 1000, 12_345, 2_500_000)] == ["999 bytes", "1.0 kB", "12.3 kB", "2.5 MB"]


def test_a_page_holds_the_pictures_as_they_are():
    result = compare(PHOTO, ["jpeg", "webp"])
    text = viewer.page("a & <b>[[data]]</b>", result.picture, result.matches, "bpp", "machine")
    assert text.count("</script>") == 1 and "<title>a &amp; &lt;b&gt;[[data]]" in text
    assert not re.search(r'(src|href)="?http|url\(', text)
    data = json.loads(re.search(r"const shown = (.*);\n", text)[1])
    assert [view["title"] for view in data["views"]] == ["Original", "JPEG 4:2:0", "WebP"]
    for view, picture in zip(data["views"], (PHOTO, *(m.coded.picture for m in result.matches)), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(view["src"].split(",")[1])))
        assert np.array_equal(np.asarray(shown), np.asarray(picture))


@pytest.mark.parametrize(("size", "factor"), [((1, 1), 1), ((4096, 4096), 1), ((4097, 4096), 2), ((20000, 3), 2)])
def test_large_pictures_are_shown_reduced(size, factor):
    assert viewer.shown_factor(size) == factor
    with Image.open(io.BytesIO(viewer.shown_picture(Image.new("RGB", size)))) as shown:
        assert shown.size == (-(-size[0] // factor), -(-size[1] // factor))


def test_the_command_writes_a_page(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PHOTO.save("a.png")
    assert command("compare", "a.png", "jpeg:30", "webp", "--page").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a-compare.png", "a-compare.html"}
    (tmp_path / "a-compare.png").unlink()
    again = command("compare", "a.png", "jpeg:30", "webp", "--page")
    assert again.code == 2 and "a-compare.html exists already" in again.err
