"""What stands between the channel mix's matrix products on CPUs, compiled by numba: passes over a stretch of tokens.

Arrays are float32, or uint16 that holds bfloat16; computed in float32 and rounded once.
"""

from __future__ import annotations

from numba import njit

from lalic_kernels.numba_math import OPTIONS, f32, sigmoid, stored, wide


@njit(**OPTIONS)
def square_relu(hidden, start, stop):
    """hidden[start:stop] = relu(hidden)^2, flat; a NaN stays one."""
    part = hidden[start:stop]
    for i in range(part.size):
        x = wide(part[i])
        p = f32(0.0) if x < f32(0.0) else x
        part[i] = stored(part, p * p)


@njit(**OPTIONS)
def finish(mixed, gate, residual, gamma, start, stop, out):
    """Rows start..stop of out = residual + gamma * sigmoid(gate) * mixed; without residual and gamma where it is None.

    All (rows, C) but gamma, (C,) float32.
    """
    for t in range(start, stop):
        m, g, to = mixed[t], gate[t], out[t]
        if residual is None:
            for c in range(m.size):
                to[c] = stored(out, sigmoid(wide(g[c])) * wide(m[c]))
        else:
            r = residual[t]
            for c in range(m.size):
                to[c] = stored(out, wide(r[c]) + gamma[c] * (sigmoid(wide(g[c])) * wide(m[c])))


@njit(**OPTIONS)
def squared(before, start, stop, out):
    """out[start:stop] = relu(before)^2, flat, as `square_relu` but to another place."""
    part, to = before[start:stop], out[start:stop]
    for i in range(part.size):
        x = wide(part[i])
        p = f32(0.0) if x < f32(0.0) else x
        to[i] = stored(out, p * p)


@njit(**OPTIONS)
def hidden_gradient(before, start, stop, grad):
    """grad[start:stop] *= 2 relu(before), flat: from the gradient of relu(before)^2 to that of before."""
    part, to = before[start:stop], grad[start:stop]
    for i in range(part.size):
        x = wide(part[i])
        p = f32(0.0) if x < f32(0.0) else x
        to[i] = stored(grad, wide(to[i]) * (p + p))


@njit(**OPTIONS)
def gate_gradient(grad, mixed, gate, gamma, start, stop, gated, of_gate):
    """Rows start..stop of gated = grad sigmoid(gate), and of the gradient of gate; gamma is a factor of that alone.

    All (rows, C) but gamma, (C,) float32, ones where there is none.
    """
    for t in range(start, stop):
        g, m, r, to, result = grad[t], mixed[t], gate[t], gated[t], of_gate[t]
        for c in range(m.size):
            s = sigmoid(wide(r[c]))
            upstream = wide(g[c]) * s
            to[c] = stored(gated, upstream)
            result[c] = stored(of_gate, gamma[c] * upstream * (f32(1.0) - s) * wide(m[c]))
