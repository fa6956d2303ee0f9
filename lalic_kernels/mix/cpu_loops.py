"""The channel mix's elementwise steps between its matrix products on CPUs, compiled by numba.

Arrays are float32, or uint16 that holds bfloat16; computed in float32 and rounded once. NaN stays NaN.
"""

from __future__ import annotations

from lalic_kernels.numba_math import OPTIONS, f32, njit, sigmoid, stored, wide


@njit(**OPTIONS)
def square_relu(hidden, start, stop):
    """hidden[start:stop] = relu(hidden)^2, flat."""
    part = hidden[start:stop]
    for i in range(part.size):
        x = wide(part[i])
        p = f32(0.0) if x < f32(0.0) else x
        part[i] = stored(part, p * p)


@njit(**OPTIONS)
def finish(mixed, gate, residual, gamma, start, stop, out):
    """Rows start..stop of out = residual + gamma * sigmoid(gate) * mixed, or sigmoid(gate) * mixed for residual None.

    gamma (C,) float32; all others (rows, C).
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
    """out[start:stop] = relu(before)^2, flat."""
    part, to = before[start:stop], out[start:stop]
    for i in range(part.size):
        x = wide(part[i])
        p = f32(0.0) if x < f32(0.0) else x
        to[i] = stored(out, p * p)


@njit(**OPTIONS)
def hidden_gradient(before, start, stop, grad):
    """grad[start:stop] *= 2 relu(before), flat: turns the gradient of relu(before)^2 into that of before."""
    part, to = before[start:stop], grad[start:stop]
    for i in range(part.size):
        x = wide(part[i])
        p = f32(0.0) if x < f32(0.0) else x
        to[i] = stored(grad, wide(to[i]) * (p + p))


@njit(**OPTIONS)
def gate_gradient(grad, mixed, gate, gamma, start, stop, gated, grad_gate):
    """Rows start..stop of gated = grad sigmoid(gate), and of grad_gate = gamma gated (1 - sigmoid(gate)) mixed.

    gamma (C,) float32, ones for none; all others (rows, C).
    """
    for t in range(start, stop):
        g, m, r, to, result = grad[t], mixed[t], gate[t], gated[t], grad_gate[t]
        for c in range(m.size):
            s = sigmoid(wide(r[c]))
            upstream = wide(g[c]) * s
            to[c] = stored(gated, upstream)
            result[c] = stored(grad_gate, gamma[c] * upstream * (f32(1.0) - s) * wide(m[c]))
