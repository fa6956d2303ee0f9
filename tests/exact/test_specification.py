"""docs/exact-arithmetic.md and the code have the same numbers, and the text is enough to write a second decoder.

The functions in this file are written from the text, with numpy scalars and Python integers, not with the package's
code. Their results equal the reference's and, if numba is installed, those of the compiled loops; test_paths.py
compares the other paths.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import torch
from exact_inputs import Cpu, Source

from lalic_kernels import exact
from lalic_kernels.exact import numbers, op, reference

TEXT = (Path(__file__).parents[2] / "docs" / "exact-arithmetic.md").read_text(encoding="utf-8")
f32, f64 = np.float32, np.float64


def words(start: str, digits: int, count: int) -> list[int]:
    """The first `count` hexadecimal words with `digits` digits after `start`."""
    assert TEXT.count(start) == 1, start
    result = re.findall(rf"\b[0-9a-f]{{{digits}}}\b", TEXT[TEXT.index(start) :])[:count]
    assert len(result) == count
    return [int(word, 16) for word in result]


def single(bits: int) -> np.float32:
    return f32(struct.unpack("<f", struct.pack("<I", bits))[0])


def double(bits: int) -> np.float64:
    return f64(struct.unpack("<d", struct.pack("<Q", bits))[0])


def bits(x: np.float32) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def settle(x: np.float32) -> np.float32:
    if abs(x) < 2.0**-60:
        return f32(0)
    return f32(min(max(x, f32(-(2.0**60))), f32(2.0**60)))


def quantise(values: list, minimum: int = -60, shift: int = 12, bound: int = 8191) -> tuple[list[int], int]:
    m = max(bits(x) & 0x7FFFFFFF for x in values)
    e = min(max((m >> 23) - 127, minimum), 60)
    scale = f32(2.0 ** (shift - e))
    return [int(np.rint(min(max(f32(x * scale), f32(-bound)), f32(bound)))) for x in values], e


def test_the_version_and_the_numbers() -> None:
    assert TEXT.startswith(f"# Exact arithmetic, version {numbers.VERSION}\n")
    assert [single(w) for w in words("P0..P5 =", 8, 6)] == [f32(c) for c in numbers.EXP_POLYNOMIAL]
    assert [double(w) for w in words("1/11!..1/2! =", 16, 10)] == list(numbers.EXP64_POLYNOMIAL)
    assert words("The number of the following 63 floats", 8, 63) == list(numbers.THRESHOLD_BITS)
    for name, value in (("L", numbers.LOG2E), ("A", numbers.LN2_HIGH), ("B", numbers.LN2_LOW)):
        assert single(int(re.search(rf" {name} += 0x([0-9a-f]{{8}})", TEXT)[1], 16)) == f32(value)
    for name, value in (("L", numbers.LOG2E_64), ("A", numbers.LN2_HIGH_64), ("B", numbers.LN2_LOW_64)):
        assert double(int(re.search(rf" {name} = ([0-9a-f]{{16}})", TEXT)[1], 16)) == value
    assert f"{numbers.ROOT_GUESS:#x}" in TEXT


def test_linear_by_the_text() -> None:
    x = Source(31).wild
    rows, weight, bias = x(4, 19), x(6, 19), x(6)
    prepared = exact.prepare_linear(weight, bias)
    result = exact.linear(rows, prepared)
    assert torch.equal(result, reference.linear(rows, prepared))
    for r in range(4):
        qx, ex = quantise(list(rows[r].numpy()))
        for o in range(6):
            qw, ew = quantise(list(weight[o].numpy()))
            total = sum(a * b for a, b in zip(qx, qw, strict=True))
            with np.errstate(over="ignore", under="ignore"):
                y = f32(f32(f32(total) * f32(2.0 ** (ex - 12))) * f32(2.0 ** (ew - 12)))
                y = settle(f32(y + settle(f32(bias[o]))))
            assert bits(y) == bits(result[r, o].item()), (r, o)


def test_layer_norm_by_the_text() -> None:
    x = Source(32).normal
    rows, weight, bias = x(5, 23), x(23), x(23)
    rows[1] *= 2.0**-50
    result = reference.layer_norm(rows, weight, bias, 1e-5)
    if op.installed.NUMBA:
        assert torch.equal(result, Cpu().layer_norm(rows, weight, bias))
    for r in range(5):
        q, e = quantise(list(rows[r].numpy()), -40, 16, 2**17)
        s, t, count = sum(q), sum(v * v for v in q), 23
        h = f32(2.0 ** (16 - e))
        d = f32(f32(count * t - s * s) + f32(f32(f32(f32(1e-5) * f32(count**2)) * h) * h))
        g, a = single(0x5F375A86 - (bits(d) >> 1)), f32(f32(0.5) * d)
        for _ in range(3):
            g = f32(g * f32(f32(1.5) - f32(f32(a * g) * g)))
        for c in range(count):
            w, b = settle(f32(weight[c])), settle(f32(bias[c]))
            y = settle(f32(f32(f32(f32(count * q[c] - s) * g) * w) + b))
            assert bits(y) == bits(result[r, c].item()), (r, c)


def exp64(x: np.float64) -> np.float64:
    n = np.rint(x * double(0x3FF71547652B82FE))
    r = x - n * double(0x3FE62E4000000000)
    r = r - n * double(0x3EB7F7D1CF79ABCA)
    first, *rest = (double(w) for w in words("1/11!..1/2! =", 16, 10))
    p = first
    for c in rest:
        p = p * r
        p = p + c
    return (((p * (r * r)) + r) + f64(1)) * f64(2.0 ** int(n))


def test_biwkv_by_the_text() -> None:
    x, tokens = Source(33).normal, 135
    w, u, k, v = x(2), x(2), x(1, tokens, 2) * 20, x(1, tokens, 2)
    result = reference.biwkv(w, u, k, v)
    if op.installed.NUMBA:
        assert torch.equal(reference.gate(k, result), Cpu().gated_biwkv(w, u, k, v, k))
    limit = f64(256) / f64(tokens)
    for c in range(2):
        clipped = min(max(f64(w[c]), -limit), limit)
        decay, jump, boost = exp64(-clipped), exp64(-(clipped * f64(64))), exp64(f64(u[c]))
        keys, values = k[0, :, c].numpy().astype(f64), [f64(settle(f32(a))) for a in v[0, :, c]]
        p = [exp64(max(a - keys.max(), f64(-300))) for a in keys]
        z = [a * b for a, b in zip(p, values, strict=True)]
        chunks = [range(i, min(i + 64, tokens)) for i in range(0, tokens, 64)]

        def side(x: list, order: int, decay=decay, jump=jump, chunks=chunks) -> list:
            result, entering = [f64(0)] * tokens, f64(0)
            for chunk in chunks[::order]:
                running, chunk_sum = entering, f64(0)
                for t in chunk[::order]:
                    result[t], running = running, running * decay + x[t]
                    chunk_sum = chunk_sum * decay + x[t]
                entering = entering * jump + chunk_sum
            return result

        lz, lp, rz, rp = side(z, 1), side(p, 1), side(z, -1), side(p, -1)
        for t in range(tokens):
            o = boost * p[t]
            y = settle(f32(((lz[t] + rz[t]) + o * values[t]) / ((lp[t] + rp[t]) + o)))
            assert bits(y) == bits(result[0, t, c].item()), (t, c)


def test_sigmoid_by_the_text() -> None:
    x = Source(34).wild(300)
    result = reference.sigmoid(x)
    if op.installed.NUMBA:
        assert torch.equal(result, Cpu().sigmoid(x))
    low, *rest = (single(w) for w in words("P0..P5 =", 8, 6))
    for i in range(300):
        a = -min(abs(f32(x[i])), f32(41.5))
        n = f32(np.rint(f32(a * single(0x3FB8AA3B))))
        r = f32(a - f32(n * single(0x3F318000)))
        r = f32(r - f32(n * single(0xB95E8083)))
        p = low
        for c in rest:
            p = f32(f32(p * r) + c)
        with np.errstate(under="ignore"):
            z = f32(f32(f32(f32(p * f32(r * r)) + r) + f32(1)) * f32(2.0 ** int(n)))
        y = f32((f32(1) if x[i] >= 0 else z) / f32(f32(1) + z))
        assert bits(y) == bits(result[i].item()), i
    assert torch.isfinite(result).all()
