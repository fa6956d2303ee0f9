"""Integer distributions for entropy coding: the Gaussian tables that ship, and quantisation of a prior's distributions.

Encoder and decoder need equal integers, and erfc and exp differ in the last bit between machines. So the Gaussian
tables ship as data, a prior's tables are stored with its weights, and no float distribution is used at coding time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lalic_kernels.rans import CodingTables

GAUSSIAN_FILE = "gaussian_tables.npz"
# SHA-256 of the padded int32 matrix (64, 3133), little-endian, row by row.
GAUSSIAN_SHA256 = "482d4620b3eb5802ce87f395fc613344f81fa5e5bfeeedae43cb3416ad9eb947"


@functools.cache
def gaussian_tables() -> CodingTables:
    """The 64 zero-mean Gaussians of the published model: row i for lalic_kernels.scale_table()[i], symbols -c..c.

    Read from a data file that scripts/make_gaussian_tables.py made, never computed. Raises ValueError if the file has
    been changed.
    """
    data = resources.files(__package__).joinpath(GAUSSIAN_FILE)
    with data.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        lower, lengths, offsets = stored["lower"], stored["lengths"].astype(np.int32), stored["offsets"]
    matrix = unpack_rows(lower, lengths)
    if matrix_sha256(matrix) != GAUSSIAN_SHA256:
        raise ValueError(f"{GAUSSIAN_FILE} is damaged: its numbers are not those of the published Gaussian table")
    return CodingTables(matrix, lengths, offsets)


def pack_rows(matrix: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.uint16]:
    """Padded rows (R, Lmax) as one vector, without padding and without the last entry of each row, which is 65536."""
    return matrix[np.arange(matrix.shape[1]) < lengths[:, None] - 1].astype(np.uint16)


def unpack_rows(lower: NDArray[np.uint16], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Inverse of `pack_rows`: the int32 matrix (R, max(lengths)), with zeros after the end of each row."""
    matrix = np.zeros((len(lengths), int(lengths.max())), np.int32)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None] - 1] = lower
    matrix[np.arange(len(lengths)), lengths - 1] = 1 << 16
    return matrix


def matrix_sha256(matrix: NDArray[np.int32]) -> str:
    """Hex digest of an int32 matrix, row by row, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(matrix, "<i4").tobytes()).hexdigest()


def pmf_to_quantized_cdf(pmf: Any, precision: int = 16) -> NDArray[np.int32]:
    """Integer CDF (n + 1,) of a distribution (n,), from 0 to 2^precision, with no interval empty.

    The published steps, number for number (CompressAI, pmf_to_quantized_cdf): frequencies are p 2^precision rounded,
    halves away from zero; they are scaled to sum to 2^precision, rounding down; the last entry of the CDF is set to
    2^precision, so that the last interval takes what the rounding left; each empty interval, from the left, takes 1
    from the rarest one that has more than 1 (the first of equals), and the entries between the two move by one.

    pmf: floats, tensor or array; need not sum to 1. precision: 1..16 bits.
    Raises ValueError if pmf is not such a vector, has no mass, or more entries than 2^precision.
    """
    values = pmf.detach().cpu().numpy() if isinstance(pmf, Tensor) else np.asarray(pmf)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "fiu":
        raise ValueError(f"pmf must be a vector of numbers, but has shape {values.shape} and dtype {values.dtype}")
    if not 1 <= precision <= 16:
        raise ValueError(f"precision must be 1 to 16 bits, but is {precision}")
    total = 1 << precision
    if values.size > total:
        raise ValueError(f"pmf must have at most {total} entries for {precision} bits, but has {values.size}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("pmf must be finite and not negative")
    # p 2^16 is exact in float32 and so is adding one half in float64: this is rounding half away from zero
    freq = np.floor(values.astype(np.float64) * total + 0.5)
    mass = int(freq.sum())
    if mass == 0:
        raise ValueError(f"pmf must have mass, but all its entries round to 0 in {precision} bits")
    if freq.max() >= 2**40:  # the products below must stay within int64
        raise ValueError(f"pmf must hold probabilities, but its largest entry is {values.max()}")
    cdf = np.zeros(values.size + 1, np.int64)
    np.cumsum(freq.astype(np.int64) * total // mass, out=cdf[1:])
    cdf[-1] = total
    for empty in np.flatnonzero(np.diff(cdf) == 0).tolist():
        width = np.diff(cdf)
        if width[empty] > 0:
            continue
        donor = int(np.argmin(np.where(width > 1, width, total + 1)))
        if donor < empty:
            cdf[donor + 1 : empty + 1] -= 1
        else:
            cdf[empty + 1 : donor + 1] += 1
    return cdf.astype(np.int32)


def quantize_rows(pmf: NDArray, tail: NDArray, lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """Padded CDF rows (R, max(lengths) + 2): row r quantises pmf[r, :lengths[r]], then tail[r] for the escape."""
    matrix = np.zeros((len(lengths), int(lengths.max()) + 2), np.int32)
    for row, length in enumerate(lengths.tolist()):
        matrix[row, : length + 2] = pmf_to_quantized_cdf(np.append(pmf[row, :length], tail[row]))
    return matrix


def bottleneck_cdfs(logits_cumulative: Callable[[Tensor], Tensor], quantiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integer CDFs of a factorised prior, a row a channel, equal to those of the published EntropyBottleneck.update().

    logits_cumulative: the prior's cumulative logits F, (C, 1, n) -> (C, 1, n). quantiles: (C, 1, 3) lower quantile,
        median, upper quantile of each channel.
    Returns the int32 CPU tensors quantized_cdf (C, Lmax + 2), cdf_length (C,), offset (C,): symbol s of channel c
        (z minus the median, rounded) has position s - offset[c].

    The escape's mass takes the upper tail beyond the last sample of the *longest* channel, not of the channel itself.
    The published tables do so, and these must equal them.
    Raises ValueError if quantiles has another shape or is not finite.
    """
    if quantiles.dim() != 3 or tuple(quantiles.shape[1:]) != (1, 3) or quantiles.shape[0] == 0:
        raise ValueError(f"quantiles must have shape (C, 1, 3), but its shape is {tuple(quantiles.shape)}")
    if not bool(torch.isfinite(quantiles).all()):
        raise ValueError("quantiles must be finite")
    with torch.no_grad():
        quantiles = quantiles.detach()
        low, median, high = quantiles[:, 0, 0], quantiles[:, 0, 1], quantiles[:, 0, 2]
        below = torch.ceil(median - low).clamp(min=0)
        above = torch.ceil(high - median).clamp(min=0)
        longest = float((below + above).max()) + 1
        if longest + 1 > 1 << 16:
            raise ValueError(f"quantiles must span fewer than 65535 symbols, but one channel spans {longest:.0f}")
        steps = torch.arange(int(longest), dtype=quantiles.dtype, device=quantiles.device)
        samples = steps + (median - below)[:, None, None]
        lower, upper = logits_cumulative(samples - 0.5), logits_cumulative(samples + 0.5)
        pmf = (torch.sigmoid(upper) - torch.sigmoid(lower))[:, 0]
        tail = torch.sigmoid(lower[:, 0, 0]) + torch.sigmoid(-upper[:, 0, -1])
        lengths = (below + above + 1).cpu().to(torch.int64)
    matrix = quantize_rows(pmf.float().cpu().numpy(), tail.float().cpu().numpy(), lengths.numpy())
    return torch.from_numpy(matrix), (lengths + 2).to(torch.int32), (-below).cpu().to(torch.int32)
