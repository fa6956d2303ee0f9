"""Figure 10 by counting: counts against counts by hand, lines against lines, and what cannot run says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_records import check_scaling
from torch import nn

from benchmarks.counting import memory, operations
from benchmarks.paper import scaling
from lalic.config import FULL, SLIM
from lalic.model import LALIC
from lalic.nn.transforms import analysis


def counts(model: nn.Module, *sizes: tuple[int, int]) -> list[dict[str, int]]:
    return list(operations.operations(model, model, sizes))


def test_layers_of_the_analysis_by_hand() -> None:
    """Full model, 768x512: a block's products and shifts by its tokens, and the four convolutions."""
    with torch.device("meta"):
        transform = analysis(FULL).eval()
    (found,) = counts(transform, (512, 768))
    blocks = products = convolutions = 0
    before, tokens = 3, 512 * 768
    for channels, depth, kernel in ((96, 2, 5), (144, 4, 3), (256, 6, 3), (320, 0, 3)):
        tokens //= 4
        convolutions += tokens * before * channels * kernel**2
        # Key, value, receptance, output; then key and value of the hidden layer (rate 4) and receptance; two shifts.
        products += depth * tokens * channels * (4 * channels + 9 * channels)
        blocks += depth * tokens * channels * (4 * channels + 9 * channels + 50)
        before = channels
    assert found["layers"] == blocks + convolutions
    assert found["thop"] == convolutions + products  # hooks see linear layers, but not the shifts' folded kernels
    # Ours count a norm (eight an element) with each shift, BiWKV and its gate (33); gates and residuals inside the
    # fused products are left out.
    tokens = 512 * 768
    more = sum(
        depth * tokens // 4 ** (i + 1) * c * (2 * 8 + 33) for i, (c, depth) in enumerate(((96, 2), (144, 4), (256, 6)))
    )
    assert found["formulas"] == 2 * found["layers"] + more


def test_thop_counts_a_transposed_convolution_by_its_outputs() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1), nn.Conv2d(5, 2, 1))
    (found,) = counts(model, (8, 8))
    assert found["thop"] == 16 * 16 * 5 * 3 * 9 + 16 * 16 * 2 * 5
    assert found["layers"] == 8 * 8 * 5 * 3 * 9 + 16 * 16 * 2 * 5


def test_ours_are_linear_in_pixels() -> None:
    """Twice the height, twice the work, but for what is once a picture."""
    with torch.device("meta"):
        model = LALIC.from_config(SLIM).eval()
    small, large = counts(model, (256, 256), (512, 256))
    for kind in small:
        # The parameters of the prior are made once: far below a thousandth.
        assert 1.999 < large[kind] / small[kind] <= 2


def test_held_bytes_grow_by_pixels() -> None:
    small, large = memory.held(SLIM, ((512, 512), (1024, 1024)))
    weights = sum(p.numel() * 4 for p in LALIC.from_config(SLIM).parameters())
    assert weights < small["weights"] < 2 * weights
    ratio = (large["peak"] - large["weights"]) / (small["peak"] - small["weights"])
    assert 3.8 < ratio < 4.1  # states of chunks make up the difference


def test_the_line() -> None:
    assert scaling.line([1, 2], [3, 4]) is None
    exact = scaling.line([1, 2, 4], [5, 7, 11])
    assert exact["r2"] == pytest.approx(1, abs=1e-12) and exact["points"] == 3
    assert (exact["slope"], exact["intercept"]) == (pytest.approx(2), pytest.approx(3))
    assert exact["worst"] == pytest.approx(0, abs=1e-12)
    # By hand: the line through (0, 1), (1, 2), (2, 1) is constant, 4 / 3, so it explains nothing.
    flat = scaling.line([0, 1, 2], [1, 2, 1])
    assert (flat["r2"], flat["worst"]) == (pytest.approx(0, abs=1e-12), pytest.approx(1 / 3))


class _Turns(nn.Module):
    """As CompressAI's prior: the order of dimensions is a tensor, and a convolution follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        order = torch.cat((torch.tensor([1, 0], dtype=torch.long), torch.arange(2, x.ndim, dtype=torch.long)))
        turned = x.permute(*order).contiguous()
        assert turned.shape[:2] == (3, 1)
        return self.conv(turned.permute(*order)) + torch.tensor(0.5) * torch.arange(4.0)[:, None, None]


def test_tensors_that_address_others_are_real() -> None:
    model = _Turns()
    (found,) = counts(model, (8, 16))
    # A convolution's multiply-adds; then a product of four numbers and a sum.
    assert found["layers"] == 8 * 16 * 12 and found["complete"] == 2 * 8 * 16 * 12 + 4 + 4 * 8 * 16


def test_the_command_counts_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "CONFIGS", {"slim": SLIM})
    assert scaling.main(["--largest", "512", "--save", "--results", str(tmp_path)]) == 0
    (record,) = map(json.loads, (tmp_path / "static.jsonl").read_text().splitlines())
    check_scaling(record)
    printed = capsys.readouterr().out
    assert "LALIC slim, 512 x 512" in printed and "R²" in printed


def test_measuring_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, slim alone; the limits are those of a small machine, and a pass takes 1000 bytes a pixel."""
    sizes = [(64, 64), (64, 128), (128, 128), (8192, 8192)]
    taken = iter([1000 * height * width for height, width in [*sizes[:3], sizes[0]]])

    def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
        call()
        return next(taken)

    monkeypatch.setattr(memory, "free_bytes", lambda device: 600 << 20)
    monkeypatch.setattr(memory, "peak_bytes", peak_bytes)
    rows = scaling._measured("slim", sizes, torch.device("cpu"), 60.0)
    assert all(row["seconds"] > 0 for row in rows[:3])
    last = rows[-1]
    assert "GiB" in last["skipped"] and "peak bytes" not in last
    assert last["extrapolated bytes"] == pytest.approx(1000 * 8192**2)
    rows = scaling._measured("slim", sizes[:2], torch.device("cpu"), 1e-9)
    assert "would take" in rows[1]["skipped"]


@pytest.mark.gpu
def test_measuring_on_a_gpu() -> None:
    rows = scaling._measured("slim", [(64, 64), (128, 128)], torch.device("cuda"), 60.0)
    assert rows[1]["peak bytes"] > rows[0]["peak bytes"] > 0


def test_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    for words in (["--measure", "--save", "--results", str(tmp_path)], ["--largest", "300"]):
        with pytest.raises(SystemExit) as stop:
            scaling.main(words)
        assert stop.value.code == 2
