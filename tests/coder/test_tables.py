"""The integer distributions: the Gaussian tables and the prior's rows equal the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lalic.coder.tables import (
    GAUSSIAN_FILE,
    GAUSSIAN_SHA256,
    bottleneck_cdfs,
    gaussian_tables,
    pack_rows,
    pmf_to_quantized_cdf,
    unpack_rows,
)
from lalic_kernels import rans
from scripts import make_gaussian_tables

GOLDEN = Path(__file__).parents[1] / "golden" / "entropy.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as stored:
        return dict(stored)


def plain_prior(golden):
    """The factorised prior's cumulative logits, written out from its definition."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        for layer in range(5):
            matrix, bias = (torch.from_numpy(golden[f"bottleneck._{name}{layer}"]) for name in ("matrix", "bias"))
            x = torch.nn.functional.softplus(matrix) @ x + bias
            if layer < 4:
                x = x + torch.tanh(torch.from_numpy(golden[f"bottleneck._factor{layer}"])) * torch.tanh(x)
        return x

    return logits


def test_gaussian_table_is_the_published_one():
    tables = gaussian_tables()
    matrix = tables.padded()
    assert (matrix.shape, matrix.dtype) == ((64, 3133), np.int32)
    assert hashlib.sha256(matrix.astype("<i4").tobytes()).hexdigest() == GAUSSIAN_SHA256
    assert GAUSSIAN_SHA256 == "482d4620b3eb5802ce87f395fc613344f81fa5e5bfeeedae43cb3416ad9eb947"
    assert matrix[0, :6].tolist() == [0, 1, 65534, 65535, 65536, 0]
    assert tables.lengths.tolist() == (3 - 2 * tables.offsets).tolist()  # rows reach from -c to c, and the escape
    assert (tables.offsets[0], tables.offsets[63]) == (-1, -1565)
    assert gaussian_tables() is tables


def test_gaussian_file_is_small_and_damage_is_noticed(monkeypatch):
    from lalic.coder import tables

    path = Path(tables.__file__).with_name(GAUSSIAN_FILE)
    assert path.stat().st_size < 80_000
    monkeypatch.setattr(tables, "matrix_sha256", lambda matrix: "another")
    with pytest.raises(ValueError, match="damaged"):
        tables.gaussian_tables.__wrapped__()


def test_the_script_writes_what_ships_or_nothing(tmp_path, capsys, monkeypatch):
    matrix, lengths, offsets = make_gaussian_tables.compute_gaussian_rows()
    shipped = gaussian_tables()
    # erfc may differ in its last bit between machines, which changes some entries by one
    np.testing.assert_array_equal(lengths, shipped.lengths)
    np.testing.assert_array_equal(offsets, shipped.offsets)
    assert np.abs(matrix - shipped.padded()).max() <= 4
    monkeypatch.setattr(make_gaussian_tables, "compute_gaussian_rows", lambda: (shipped.padded(), lengths, offsets))
    assert make_gaussian_tables.main([str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as stored:
        np.testing.assert_array_equal(
            unpack_rows(stored["lower"], stored["lengths"].astype(np.int32)), shipped.padded()
        )
    wrong = shipped.padded()
    wrong[3, 2] += 1
    monkeypatch.setattr(make_gaussian_tables, "compute_gaussian_rows", lambda: (wrong, lengths, offsets))
    assert make_gaussian_tables.main([str(tmp_path / "b.npz")]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "b.npz").exists()


def test_rows_pack_and_unpack():
    matrix = np.array([[0, 5, 65536, 0], [0, 5, 7, 65536]], np.int32)
    lengths = np.array([3, 4], np.int32)
    assert pack_rows(matrix, lengths).tolist() == [0, 5, 0, 5, 7]
    np.testing.assert_array_equal(unpack_rows(pack_rows(matrix, lengths), lengths), matrix)


@pytest.mark.parametrize(
    ("pmf", "precision", "expected"),
    [
        ([0.25, 0.25, 0.5], 4, [0, 4, 8, 16]),
        # halves away from zero: 2, 3, 12, scaled by 16/17 to 1, 2, 11 (halves to even: 2, 2, 12)
        ([1.5 / 16, 2.5 / 16, 12 / 16], 4, [0, 1, 3, 16]),
        ([0.5 / 16, 15.5 / 16], 4, [0, 1, 16]),  # 1 and 16, scaled to 0 and 15: the empty one takes from the other
        ([0.75, 0.0, 0.25], 4, [0, 12, 13, 16]),  # the empty one takes from the rarest: the right neighbour's 4
        ([0.25, 0.75, 0.0], 4, [0, 3, 15, 16]),  # from the left: entries between move down
        ([0.0, 0.125, 0.875, 0.0], 3, [0, 1, 2, 7, 8]),  # a rarest one of width 1 gives nothing
        ([0.25, 0.25, 0.0, 0.5], 3, [0, 1, 3, 4, 8]),  # of two equally rare ones the first gives
        ([0.3, 0.3, 0.3], 4, [0, 5, 10, 16]),  # need not sum to one; the last takes the rounding
        ([1.0], 16, [0, 65536]),
    ],
)
def test_pmf_to_quantized_cdf_by_hand(pmf, precision, expected):
    assert pmf_to_quantized_cdf(pmf, precision).tolist() == expected
    assert pmf_to_quantized_cdf(torch.tensor(pmf), precision).dtype == np.int32


def test_pmf_to_quantized_cdf_leaves_no_interval_empty():
    rng = np.random.default_rng(0)
    for _ in range(40):
        pmf = rng.random(int(rng.integers(2, 500))) ** rng.integers(1, 60)
        cdf = pmf_to_quantized_cdf((pmf / pmf.sum()).astype(np.float32))
        assert (cdf[0], cdf[-1]) == (0, 65536)
        assert (np.diff(cdf) > 0).all()
    assert (np.diff(pmf_to_quantized_cdf([1.0] + [0.0] * 255, 8)) == 1).all()  # no capacity at all


@pytest.mark.parametrize(
    ("pmf", "precision"),
    [([], 16), ([0.0, 0.0], 16), ([-0.1, 1.1], 16), ([float("nan")], 16), ([[1.0]], 16), ([0.5] * 5, 2), ([1e30], 16)],
)
def test_pmf_to_quantized_cdf_refuses(pmf, precision):
    with pytest.raises(ValueError, match="pmf"):
        pmf_to_quantized_cdf(pmf, precision)


def test_bottleneck_rows_are_the_published_ones(golden):
    cdf, length, offset = bottleneck_cdfs(plain_prior(golden), torch.from_numpy(golden["bottleneck.quantiles"]))
    assert cdf.dtype == length.dtype == offset.dtype == torch.int32
    np.testing.assert_array_equal(length.numpy(), golden["tables._cdf_length"])
    np.testing.assert_array_equal(offset.numpy(), golden["tables._offset"])
    # tanh and softplus differ in their last bit between processors, which changes some entries by one.
    assert np.abs(cdf.numpy() - golden["tables._quantized_cdf"]).max() <= 1
    assert rans.CodingTables(cdf, length, offset).rows == 24


def test_bottleneck_escape_mass_is_the_longest_channels():
    """The upper tail begins at the end of the longest channel, not of the channel itself, as in the published code."""
    quantiles = torch.tensor([[[-2.0, 0.0, 2.0]], [[-20.0, 0.0, 20.0]]])
    cdf, length, offset = bottleneck_cdfs(lambda x: x, quantiles)
    assert (length.tolist(), offset.tolist()) == ([7, 43], [-2, -20])
    # channel 0's grid begins at -2, and, as channel 1 needs 41 samples, ends at 38
    lower_tail, upper_tail = torch.sigmoid(torch.tensor([-2.5, -38.5])).tolist()
    samples = torch.arange(-2.0, 3.0)
    mass = torch.sigmoid(samples + 0.5) - torch.sigmoid(samples - 0.5)
    expected = pmf_to_quantized_cdf(torch.cat([mass, torch.tensor([lower_tail + upper_tail])]))
    np.testing.assert_array_equal(cdf[0, :7].numpy(), expected)
    assert cdf[0, 7:].count_nonzero() == 0


def test_bottleneck_refuses_bad_quantiles():
    for quantiles in (
        torch.zeros(4, 3),
        torch.zeros(0, 1, 3),
        torch.full((1, 1, 3), float("nan")),
        torch.tensor([[[-9e4, 0, 9e4]]]),
    ):
        with pytest.raises(ValueError, match="quantiles"):
            bottleneck_cdfs(lambda x: x, quantiles)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_models_symbols_in_the_published_nesting(golden, backend):
    """Eleven strings, as compress() returns them: round trips, in all no longer than the published ones.

    Published strings are whole words of 4 bytes; one of ours may be a byte longer.
    """
    prior = rans.CodingTables(*(golden[f"tables._{name}"] for name in ("quantized_cdf", "cdf_length", "offset")))
    z = golden["z_symbols"]
    channels = np.broadcast_to(np.arange(z.shape[1])[None, :, None, None], z.shape)
    streams = [(golden[f"pass{i}_symbols"], golden[f"pass{i}_indexes"], gaussian_tables()) for i in range(10)]
    streams.append((z, channels, prior))
    overhead, saved = 0.0, 0
    for (symbols, indexes, tables), published in zip(streams, golden["string_bytes"].tolist(), strict=True):
        symbols, indexes = symbols.ravel(), indexes.ravel()
        data = rans.encode([(symbols, indexes)], tables, backend=backend)
        assert len(data) <= published + 1
        saved += published - len(data)
        overhead += len(data) - rans.ideal_bits(symbols, indexes, tables) / 8
        decoder = rans.Decoder(data, tables, backend=backend)
        np.testing.assert_array_equal(decoder.decode(indexes), symbols)
        decoder.finish()
    assert 0 < overhead < 64 and saved >= 0
