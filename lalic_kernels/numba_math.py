"""float32 arithmetic inside numba functions: on scalars, and on vectors of 16. Importing this module needs numba.

Arrays are float32, or uint16 that holds bfloat16. The choice is made when a function is compiled and costs no time.
Loops over the scalar functions vectorise.

numba does not vectorise a loop with several accumulators over many rows: the compiler cannot prove that so many
pointers do not overlap. Such loops use the vector functions. Each is one instruction on a machine with 512-bit
registers, two or four on others.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.extending import intrinsic, models, register_model

from lalic_kernels import code_cache

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_LN2_HI = f32(0.693359375)
_LN2_LO = f32(-2.12194440e-4)
_LOWEST = f32(-87.0)

# Options of njit. EXACT: each operation is rounded separately. numpy's error model does not test for a zero divisor.
EXACT: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, "nogil": True, "cache": True}
# For functions that only compiled code calls: without the wrapper and the cache file that a call from Python needs
# (such a call would crash), they take a third less time to compile.
EXACT_CALLEE: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, "no_cpython_wrapper": True}
# 'contract' allows a*b+c as one fused operation. Nothing else is relaxed: infinities and the order of sums stay.
OPTIONS, CALLEE = ({**options, "fastmath": {"contract"}} for options in (EXACT, EXACT_CALLEE))


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with options. cache: keep the compiled code on disk, where `lalic_kernels.code_cache` says."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(**options)(function)
        source = code_cache.source_hash(function.__module__) if cache else None
        if source is not None:
            compiled._cache = _Kept(function, source)
        return compiled

    return decorate


_VERSIONS = numba.__version__, llvmlite.__version__, sys.implementation.cache_tag, sys.hexversion


class _Kept(NullCache):  # type: ignore[misc]
    """The code of one function on disk. numba's own cache raises where files are damaged or a disk is full."""

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        self.prefix = f"{function.__module__}-{function.__qualname__}".replace(".", "-") + f".{source}"

    def _name(self, signature: Any, codegen: Any) -> str:
        key = repr((signature, codegen.magic_tuple(), _VERSIONS))
        return f"{self.prefix}.{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc"

    def load_overload(self, signature: Any, context: Any) -> Any:
        context.refresh()
        for data in code_cache.read(self._name(signature, context.codegen())):
            with contextlib.suppress(Exception):  # whatever numba raises for what it did not write
                return CompileResult._rebuild(context, *pickle.loads(data))
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        if not result.library.has_dynamic_globals:  # addresses in this process
            code_cache.write(self._name(signature, result.codegen), dumps(result._reduce()))


@njit(inline="always")
def exp(x):
    """exp for float32 in plain arithmetic, so that a loop over it vectorises; error 1e-7 relative, 0 below -87.

    NaN stays NaN, here and in the other functions, as in torch.
    """
    clipped = x if x > _LOWEST else _LOWEST
    n = np.floor(clipped * _LOG2E + f32(0.5))
    r = clipped - n * _LN2_HI
    r = r - n * _LN2_LO
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    y = p * r * r + r + f32(1.0)
    scale = view(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)), f32)
    return y * scale if x > _LOWEST else (f32(0.0) if x <= _LOWEST else x)


@njit(inline="always")
def exp_double(x):
    """exp for float64 up to 700 in plain arithmetic; error 1e-15 relative, 0 below -700."""
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.6931471803691238
    r = r - n * 1.9082149292705877e-10
    p = 1.0 / 6227020800.0  # 1 / 13!
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    y = p * r * r + r + 1.0
    scale = view(np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)), np.float64)
    return y * scale if x > -700.0 else 0.0


@njit(inline="always")
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    z = exp(-abs(x))
    return (f32(1.0) if x >= f32(0.0) else z) / (f32(1.0) + z)


@intrinsic
def view(typingctx: Any, x: Any, kind: Any) -> Any:
    """The bits of a number as another type of the same size, like x.view(kind), which takes longer to compile."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return kind.instance_type(x, kind), codegen


@intrinsic
def wide(typingctx: Any, x: Any) -> Any:
    """An array element, float32 or bfloat16, as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if x == types.float32:
            return args[0]
        word = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(word, ir.IntType(32)(16)), ir.FloatType())

    return types.float32(x), codegen


@intrinsic
def stored(typingctx: Any, row: Any, value: Any) -> Any:
    """A float32 value in the dtype of `row`: unchanged, or rounded to bfloat16 (nearest, ties to even, NaN stays)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[1] if row.dtype == types.float32 else _rounded(builder, args[1], ir.IntType(32), ir.IntType(16))

    return row.dtype(row, types.float32), codegen


def _rounded(builder: Any, value: Any, word: Any, half: Any) -> Any:
    """float32 rounded to bfloat16. word, half: 32-bit and 16-bit integers, scalars or vectors like the value."""

    def constant(number: int) -> Any:
        return ir.Constant(word, [number] * LANES if isinstance(word, ir.VectorType) else number)

    bits = builder.bitcast(value, word)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
    quiet_nan = builder.or_(bits, constant(0x400000))
    bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, rounded)
    return builder.trunc(builder.lshr(bits, constant(16)), half)


# Vectors of 16 float32 numbers.

LANES = 16
VECTOR_VALUE = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


class _Vector(types.Type):  # type: ignore[misc]
    """16 float32 values in registers."""

    def __init__(self) -> None:
        super().__init__(name="Vector16")


VECTOR = _Vector()


@register_model(_Vector)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR_VALUE)


def _words(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * LANES)


def _floats(value: float) -> ir.Constant:
    return ir.Constant(VECTOR_VALUE, [value] * LANES)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def emit_load(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """The instructions of `load`, for other intrinsics; kind is the array's numba type."""
    wide = kind.dtype == types.float32
    value = builder.load(_address(context, builder, kind, array, index, VECTOR_VALUE if wide else _HALVES))
    value.align = 4 if wide else 2
    if wide:
        return value
    return builder.bitcast(builder.shl(builder.zext(value, _WORDS), _words(16)), VECTOR_VALUE)


def emit_store(context: Any, builder: Any, kind: Any, array: Any, index: Any, value: Any) -> None:
    """The instructions of `store`, for other intrinsics; kind is the array's numba type."""
    wide = kind.dtype == types.float32
    if not wide:
        value = _rounded(builder, value, _WORDS, _HALVES)
    address = _address(context, builder, kind, array, index, VECTOR_VALUE if wide else _HALVES)
    builder.store(value, address).align = 4 if wide else 2


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Elements index .. index + 15 of a one-dimensional contiguous array: float32, or uint16 that holds bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit_load(context, builder, signature.args[0], *args)

    return VECTOR(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write elements index .. index + 15; a bfloat16 array gets them rounded to nearest, ties to even, NaN stays."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit_store(context, builder, signature.args[0], *args)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Prefetch the memory of element `index`. An index past the array's end is allowed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address, word = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer()), ir.IntType(32)
        function = builder.module.globals.get("llvm.prefetch.p0")
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [address.type, word, word, word])
            function = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(0), word(3), word(1)])  # for a read, high locality, data cache
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The instruction of `fma`, for other intrinsics."""
    name = f"llvm.fmuladd.v{LANES}f32"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(VECTOR_VALUE, [VECTOR_VALUE] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once if the machine has such an instruction."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit_fma(builder, *args)

    return VECTOR(VECTOR, VECTOR, VECTOR), codegen


def _elementwise(instruction: str) -> Any:
    def typed(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return VECTOR(VECTOR, VECTOR), codegen

    return typed


add, sub, mul, div = (intrinsic(_elementwise(name)) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """b where b > a, else a: the larger one, and a where one is NaN, like Python's max(a, b)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return VECTOR(VECTOR, VECTOR), codegen


@intrinsic
def where_above(typingctx: Any, a: Any, b: Any, this: Any, other: Any) -> Any:
    """`this` where a > b, `other` elsewhere and where a or b is NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return VECTOR(VECTOR, VECTOR, VECTOR, VECTOR), codegen


@intrinsic
def minus_abs(typingctx: Any, a: Any) -> Any:
    """-abs(a)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.or_(builder.bitcast(args[0], _WORDS), _words(0x80000000)), VECTOR_VALUE)

    return VECTOR(VECTOR), codegen


@intrinsic
def exp16(typingctx: Any, x: Any) -> Any:
    """exp of 16 numbers by the method of `exp`: error 1e-7 relative for x up to 88; 0 for x <= -87; NaN for NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = args[0]
        # A float32 of size 1.5 * 2**23 has no fraction bits, so this sum rounds x / log(2) to an integer n. 127 is the
        # exponent's bias: the lowest bits are then n + 127, and a left shift by 23 moves them into the exponent field.
        shift = _floats(1.5 * 2**23 + 127)
        moved = emit_fma(builder, x, _floats(1.4426950408889634), shift)
        scale = builder.bitcast(builder.shl(builder.bitcast(moved, _WORDS), _words(23)), VECTOR_VALUE)
        n = builder.fsub(moved, shift)
        r = emit_fma(builder, n, _floats(-0.693359375), x)
        r = emit_fma(builder, n, _floats(2.12194440e-4), r)
        p = _floats(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = emit_fma(builder, p, r, _floats(c))
        y = builder.fadd(emit_fma(builder, builder.fmul(p, r), r, r), _floats(1.0))
        above = builder.fcmp_unordered(">", x, _floats(-87.0))  # of NaN it selects y, which is NaN
        return builder.select(above, builder.fmul(y, scale), _floats(0.0))

    return VECTOR(VECTOR), codegen


@intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """A vector of 16 equal float32 numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(VECTOR_VALUE, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, ir.Constant(VECTOR_VALUE, ir.Undefined), _words(0))

    return VECTOR(types.float32), codegen


@intrinsic
def total(typingctx: Any, vector: Any) -> Any:
    """The sum of all 16, by adding halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, size = args[0], LANES
        while size > 1:
            size //= 2

            def half(start: int, value: Any = value, size: int = size) -> Any:
                lanes = ir.Constant(
                    ir.VectorType(ir.IntType(32), size), [ir.IntType(32)(start + n) for n in range(size)]
                )
                return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes)

            value = builder.fadd(half(0), half(size))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(VECTOR), codegen
