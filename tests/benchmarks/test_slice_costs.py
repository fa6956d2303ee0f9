"""The full model computes at 768x512 what has to be computed, and lalic/coder/README.md says what was counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import records, slices
from benchmarks.counting import operations
from lalic.config import FULL
from lalic.nn.context import channel_ramp

ROOT = Path(__file__).parents[2]

POSITIONS = (slices.HEIGHT // 16) * (slices.WIDTH // 16)
PARTS = (
    "aggregation", "channel contexts", "channel part of the first products", "hyper part of the first products",
    "spatial contexts",
)  # fmt: skip


def by_hand() -> dict[str, int]:
    """Multiply-adds of the slices' parts, from the architecture."""
    M, groups = FULL.M, FULL.groups
    found = dict.fromkeys(PARTS, 0)
    for k, g in enumerate(groups):
        cin = 2 * g + (2 * g if k else 0) + M
        ramp = channel_ramp(cin, 2 * g, 2 * FULL.N)[1:]
        found["hyper part of the first products"] += POSITIONS * M * ramp[0]
        found["spatial contexts"] += POSITIONS // 2 * 12 * g * 2 * g
        if k:
            block = (5 + 2 * FULL.context_rate) * M * M + 50 * M
            ends = 9 * sum(groups[:k]) * M + M * 2 * g
            found["channel contexts"] += POSITIONS * (FULL.context_depth * block + ends)
            found["channel part of the first products"] += POSITIONS * 2 * g * ramp[0]
        found["aggregation"] += POSITIONS // 2 * 2 * g * ramp[0]  # spatial columns of the first mix, for others alone
        found["aggregation"] += POSITIONS * (ramp[0] * ramp[1] + ramp[1] * ramp[2] + 5 * sum(c * c for c in ramp))
    return found


@pytest.mark.parametrize(("what", "at_most", "published"), [("decompress", 141.2, 147.2), ("forward", 235.0, 256.6)])
def test_multiply_adds_of_the_full_model(what: str, at_most: float, published: float) -> None:
    ours = slices.count(what)
    for part, (macs, calls) in ours["parts"].items():
        print(f"{what}: {part}: {macs / 1e9:.3f} GMAC, {calls} calls")
    print(f"{what}: {ours['macs'] / 1e9:.2f} GMAC, {ours['calls']} calls")
    assert ours["macs"] <= at_most * 1e9
    assert {part: ours["parts"][part][0] for part in PARTS} == by_hand()
    theirs = slices.count(what, slices.PUBLISHED if what == "decompress" else slices.PUBLISHED_FORWARD)
    assert round(theirs["macs"] / 1e9, 1) == published  # the way of counting is the published count's


def test_each_thing_kept_counts() -> None:
    """Without it there is more to multiply or more to call, and nothing else changes."""
    kept = slices.count("slices")
    for variant in slices.VARIANTS:
        if variant != "all kept":
            without = slices.count("slices", variant)
            assert without["macs"] >= kept["macs"] and without["calls"] > kept["calls"], variant
    more = slices.count("slices", "spatial context on the full grid, 25 taps")["parts"]["spatial contexts"][0]
    assert more * 12 == kept["parts"]["spatial contexts"][0] * 50


@pytest.mark.parametrize("variant", [*slices.VARIANTS, slices.PUBLISHED_FORWARD])
def test_variants_compute_the_same(variant: str) -> None:
    """What is timed without a cache gives what is timed with it."""
    torch.manual_seed(0)
    model = slices.LALIC(3, 11, (4, 6, 8, 11, 6, 5), (1, 0, 1, 1), (3, 1, 7)).eval()
    params = torch.randn(2, 11, 4, 6)
    with torch.no_grad():
        expected = slices.loop_of(slices.PUBLISHED)(model.latent_codec.y, params, slices.means_only)
        got = slices.loop_of(variant)(model.latent_codec.y, params, slices.means_only)
    assert (got - expected).abs().max() <= 1e-5 * max(float(expected.abs().max()), 1.0)  # float32, sums in other orders


def test_an_op_without_a_formula_is_an_error() -> None:
    x, weight = torch.empty(1, 2, 2, 3, device="meta"), torch.empty(3, 5, 5, device="meta")
    with pytest.raises(ValueError, match="no rule counts lalic_kernels::token_shift_backward"):
        operations.count(lambda: torch.ops.lalic_kernels.token_shift_backward(x, weight, x, "torch"))


def test_the_document_has_the_records_figures() -> None:
    last = [record for record in records.load() if record.get("op") == "slices"][-1]
    text = (ROOT / "lalic" / "coder" / "README.md").read_text(encoding="utf-8")
    for line in slices.table(last["counted"]):
        assert line in text.splitlines(), line
    assert last["commit"] and not last["dirty"]
    counted = {(row["what"], row["variant"]): row["macs"] for row in last["counted"]}
    assert counted[("decompress", "all kept")] == slices.count("decompress")["macs"]
