"""benchmarks.shipped: what is measured, and the documents that follow from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import rd, shipped
from lalic import cli

README = Path(__file__).parents[2] / "README.md"


def test_rates_are_measured_and_written_to_the_readme(tmp_path, monkeypatch) -> None:
    """An old README gets the rates of the records; only sets with a folder are measured."""
    new = README.read_text()
    old = new.replace(shipped.row("WebP"), "| WebP | +1 % | +2 % | +3 % | +4 % |")
    assert old != new
    (tmp_path / "README.md").write_text(old)
    measured: list[list[str]] = []
    monkeypatch.setattr(shipped, "ROOT", tmp_path)
    monkeypatch.setattr(rd, "main", lambda words: measured.append(words) or 0)
    monkeypatch.setattr(shipped, "draw", lambda folder: (tmp_path / "drawn").write_text(str(folder)))
    assert shipped.main(["--kodak", "k", "--held-out", "h", "--save", "--results", "r"]) == 0
    assert [(words[0], words[words.index("--name") + 1]) for words in measured] == [("k", "Kodak"), ("h", "held-out")]
    assert all(words[-3:] == ["--save", "--results", "r"] for words in measured)
    assert ["--published" in words for words in measured] == [True, False]
    assert (tmp_path / "README.md").read_text() == new
    assert (tmp_path / "drawn").read_text() == str(tmp_path / "docs" / "figures")


def test_a_measurement_that_fails_leaves_the_documents(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shipped, "ROOT", tmp_path)  # where there is no README
    monkeypatch.setattr(rd, "main", lambda words: 1)
    assert shipped.main(["--kodak", "k"]) == 1


def test_figures_of_the_readme(tmp_path, monkeypatch) -> None:
    def draw(record, stem: Path) -> None:
        assert record["pictures"] == "Kodak"
        for name in ("psnr.png", "psnr.svg", "ms-ssim.png"):
            stem.with_name(f"{stem.name}-{name}").write_text(name)

    def compare(words: list[str]) -> int:
        Path(words[words.index("-o") + 1] + ".png").write_text(" ".join(words[:1] + words[2:-3]))
        return 0

    monkeypatch.setattr(rd, "draw", draw)
    monkeypatch.setattr(cli, "main", compare)
    shipped.draw(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "kodak-psnr.png": "psnr.png", "astronaut.png": "compare lalic jpeg webp --target 0.3 --crop 130,40,176,208"
    }  # fmt: skip
    monkeypatch.setattr(cli, "main", lambda words: 3)
    with pytest.raises(SystemExit):
        shipped.draw(tmp_path)
