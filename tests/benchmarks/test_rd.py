"""benchmarks.rd: a record holds what was measured, and its figures are drawn from it alone."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks import rd, records
from lalic.eval.codecs import make
from lalic.eval.measure import load, measure


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results that are nobody's, and a set of one picture."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    (tmp_path / "set").mkdir()
    small.resize((180, 170), Image.Resampling.BICUBIC).save(tmp_path / "set" / "one.png")
    append = records.append
    monkeypatch.setattr(records, "append", lambda record, _=None: append(record, tmp_path / "results"))
    return tmp_path / "results"


def test_a_record_and_its_figures(results, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    words = ["--codecs", "jpeg:20,40,60,80", "webp:20,60", "--published", "kodak", "--name", "noise"]
    assert rd.main([str(tmp_path / "set"), *words, "--save"]) == 0
    assert "JPEG 4:2:0" in capsys.readouterr().out
    (path,) = results.iterdir()
    record = json.loads(path.read_text())
    assert record["pictures"] == "noise" and record["picture_names"] == ["one"] and record["device"]
    jpeg, webp = record["rd"]
    wanted = measure(make("jpeg", (20, 40, 60, 80)), load([tmp_path / "set"]))
    for point, there in zip(wanted.points, jpeg["points"], strict=True):
        assert there["quality"] == point.label and there["each_psnr"] == [pytest.approx(point.psnr, rel=1e-5)]
        assert there["bits_per_pixel"] == pytest.approx(point.bpp, rel=1e-5)
        assert there["ms_ssim"] == pytest.approx(point.ms_ssim, rel=1e-5)
    assert len(webp["points"]) == 2 and "libwebp" in webp["version"]

    assert rd.newest("noise", results) == record
    later = record | {"date": "2999-01-01", "rd": [jpeg]}
    records.append(later)
    monkeypatch.setattr(rd, "newest", lambda name, newest=rd.newest: newest(name, results))
    assert rd.main(["--figure", str(tmp_path / "noise"), "--name", "noise"]) == 0
    assert capsys.readouterr().out.count("noise-") == 4
    text = " ".join(ElementTree.parse(tmp_path / "noise-psnr.svg").getroot().itertext())
    assert "JPEG 4:2:0" in text and "WebP" not in text and "2999-01-01" in text and "VTM-9.1 (published)" in text
    first = (tmp_path / "noise-psnr.svg").read_bytes()
    rd.draw(later, tmp_path / "noise")
    assert (tmp_path / "noise-psnr.svg").read_bytes() == first  # a figure that has not changed is not a difference


def test_what_it_refuses(results, capsys) -> None:
    for words, sentence in (([], "expected pictures"), (["--figure", "x"], "--name SET says which")):
        with pytest.raises(SystemExit) as stop:
            rd.main(words)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
    results.mkdir()
    with pytest.raises(SystemExit, match="no record with curves of 'moon'"):
        rd.newest("moon", results)


def test_a_busy_machine_gives_rates_without_times(results, tmp_path, monkeypatch) -> None:
    for busy in ("load 3.0", ""):
        monkeypatch.setattr(records, "busy", lambda device, busy=busy: busy)
        assert rd.main([str(tmp_path / "set"), "--codecs", "jpeg:20,40", "--save"]) == 0
    (path,) = results.iterdir()
    points = [json.loads(line)["rd"][0]["points"][0] for line in path.read_text().splitlines()]
    assert [point["encode_seconds"] is None for point in points] == [True, False]
    assert [point["decode_seconds"] is None for point in points] == [True, False]
    assert points[0]["bits_per_pixel"] == points[1]["bits_per_pixel"] > 0
