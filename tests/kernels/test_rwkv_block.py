"""The whole block: against the reference in float64, the number of launches, the cache of inference."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from calls import Calls, computes
from op_specs import INTERPRETER, WHY_NO_INTERPRETER
from test_contract import awkward, gradients, wide, worst
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

import lalic_kernels
from lalic_kernels import BlockParameters
from lalic_kernels.block import gpu, op
from lalic_kernels.block.op import CACHE_SIZE, SHAPES
from lalic_kernels.block.reference import rwkv_block as reference
from lalic_kernels.mix import op as mix

EPS32 = torch.finfo(torch.float32).eps
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = pytest.mark.skipif(not INTERPRETER and DEVICE == "cpu", reason=WHY_NO_INTERPRETER or "no kernels")


def make(channels: int, rate: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> BlockParameters:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, pattern in SHAPES.items():
        shape = [{"C": channels, "F": rate * channels, "5": 5}[axis] for axis in pattern.split()]
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 2:
            value /= shape[1] ** 0.5
        elif len(shape) == 3:
            value /= 5
        elif name in ("norm1_weight", "norm2_weight", "gamma1", "gamma2"):
            value = 1 + value / 4
        tensors[name] = value.to(dtype).to(DEVICE)
    return BlockParameters(**tensors)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype).to(DEVICE)


def on_tensors(x: Tensor, backend: str | None = None, **named: Tensor) -> Tensor:
    return lalic_kernels.rwkv_block(x, BlockParameters(**named), backend=backend)


SIZES = [(1, 1, 1, 3), (2, 1, 17, 4), (1, 17, 1, 5), (1, 3, 17, 8), (2, 3, 3, 16)]


@pytest.mark.parametrize("shape", SIZES)
def test_values_and_gradients(shape: tuple[int, ...]) -> None:
    p, upstream = make(shape[-1], 4), image(*shape)
    given = {"x": image(*shape)} | dict(zip(SHAPES, p.tensors(), strict=True))
    truth, true_grads = gradients(lambda x, **named: reference(x, BlockParameters(**named)), wide(given), upstream)
    result, grads = gradients(on_tensors, given, upstream)
    # Two LayerNorms, six products of up to 64 terms and a sum of 25 terms in a row: with these weights the second half
    # amplifies the errors of the first a few times.
    assert result.is_contiguous()
    assert (result - truth).abs().max() <= 64 * EPS32 * truth.abs().max()
    for name, grad in grads.items():
        scale = max(true_grads[name].abs().max().item(), 1.0)
        assert worst(grad, true_grads[name]) <= 256 * EPS32 * scale, name


@pytest.mark.parametrize("shape", SIZES[1:])
def test_strides_and_paths_do_not_matter(shape: tuple[int, ...]) -> None:
    x, p = image(*shape), make(shape[-1], 2)
    truth = reference(x.double(), p.to(torch.float64))
    odd = BlockParameters(*(awkward(tensor) for tensor in p.tensors()))
    backends = [None, "torch", *(["triton"] if INTERPRETER or DEVICE == "cuda" else [])]
    for backend in backends:
        for given, parameters in ((x, p), (awkward(x), odd)):
            result = lalic_kernels.rwkv_block(given, parameters, backend=backend)
            assert result.is_contiguous()
            assert (result - truth).abs().max() <= 64 * EPS32 * truth.abs().max(), backend


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts all launches inside: Triton's, in the interpreter or on a GPU, and ATen's calls."""
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    counts: Counter[str] = Counter()
    calls = Calls(lambda func, args, result: counts.update([func._schema.name] * computes(func)))
    run, execute = JITFunction.run, GridExecutor.__call__

    def run_counted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts[self.__name__] += 1
        return run(self, *args, **kwargs)

    def execute_counted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts[self.fn.__name__] += 1
        with _disable_current_modes():  # the interpreter copies its arguments
            return execute(self, *args, **kwargs)

    with monkeypatch.context() as patch, calls:
        patch.setattr(JITFunction, "run", run_counted)
        patch.setattr(GridExecutor, "__call__", execute_counted)
        yield counts


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_at_most_eight_launches(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With library and ATen calls; the first call, which fills the cache, needs more."""
    p = make(16, 4)  # float32 parameters also for 16-bit data: they are cast once
    x = image(1, 5, 7, 16, dtype=dtype)
    with torch.no_grad(), counted(monkeypatch) as first:
        lalic_kernels.rwkv_block(x, p, backend="triton")
    assert first["aten::cat"] == 1 and first["factors_kernel"] == 1, "launches are not counted"
    with torch.no_grad(), counted(monkeypatch) as second:
        lalic_kernels.rwkv_block(x, p, backend="triton")
    assert second["shift_kernel"] == 2 and second["rows_linear_kernel"] == 2, second
    assert second["rows_kernel"] == second["channel_mix_kernel"] == 1, second
    assert second.total() <= 8, second


@KERNELS
def test_the_cache_follows_the_parameters() -> None:
    p, x = make(8, 2), image(1, 3, 4, 8)
    lalic_kernels.rwkv_block(x, p, backend="triton")
    assert len(list(p.cache)) == 2
    for name in SHAPES:
        before = lalic_kernels.rwkv_block(x, p, backend="triton")
        getattr(p, name).mul_(1.5).add_(0.125)
        after = lalic_kernels.rwkv_block(x, p, backend="triton")
        truth = reference(x.double(), p.to(torch.float64))
        # norm1_bias and norm2_bias change all values, decay the differences between tokens: far more than this.
        assert (after - truth).abs().max() <= 64 * EPS32 * truth.abs().max(), name
        assert not torch.equal(before, after), name
    for width in range(2, 20):
        lalic_kernels.rwkv_block(image(1, 1, width, 8), p, backend="triton")
    assert len(list(p.cache)) == CACHE_SIZE
    assert not list(copy.deepcopy(p).cache)


@KERNELS
def test_parameters_without_a_version_are_not_cached() -> None:
    with torch.inference_mode():
        p, x = make(8, 2), image(1, 3, 4, 8)
        lalic_kernels.rwkv_block(x, p, backend="triton")
        assert not list(p.cache)
        p.gamma2.zero_()
        truth = reference(x.double(), p.to(torch.float64))
        result = lalic_kernels.rwkv_block(x, p, backend="triton")
    assert (result - truth).abs().max() <= 64 * EPS32 * truth.abs().max()


@KERNELS
def test_with_gradients_the_registered_ops_run(monkeypatch: pytest.MonkeyPatch) -> None:
    p, x = make(8, 2), image(1, 3, 4, 8)
    expected = lalic_kernels.rwkv_block(x, p, backend="triton")
    monkeypatch.setattr(gpu, "rwkv_block", None)  # calling it would raise
    leaf = x.clone().requires_grad_()
    result = lalic_kernels.rwkv_block(leaf, p, backend="triton")
    assert result.requires_grad
    assert (result - expected).abs().max() <= 16 * EPS32 * expected.abs().max()  # the same kernels


def test_saves_four_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """When `saves_activations` is False, as on a GPU."""
    monkeypatch.setattr(mix, "SAVED_BYTES", 0)
    shape = (1, 6, 7, 16)
    p, x = make(16, 4), image(*shape).requires_grad_()
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    leaves = BlockParameters(*(tensor.requires_grad_() for tensor in p.tensors()))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lalic_kernels.rwkv_block(x, leaves)
    parameters = {tensor.data_ptr() for tensor in leaves.tensors()}
    images = [tensor for pointer, tensor in saved.items() if pointer not in parameters and tensor.numel()]
    assert sorted(tuple(tensor.shape) for tensor in images) == [shape] * 4


def test_compiles_without_graph_breaks() -> None:
    p, x = make(8, 2), image(1, 3, 4, 8)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: lalic_kernels.rwkv_block(x, p), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = lalic_kernels.rwkv_block(x, p)
        assert (compiled(x) - expected).abs().max() <= 16 * EPS32 * expected.abs().max()
    torch.compiler.reset()


@pytest.mark.parametrize("backend", [None, pytest.param("triton", marks=KERNELS)])
def test_what_sees_calls_sees_the_ops(backend: str | None) -> None:
    """Launches past torch's dispatcher would escape modes, transforms and tracers, also without gradients."""
    p, x = make(16, 4), image(2, 3, 4, 16)
    with torch.no_grad():
        expected = lalic_kernels.rwkv_block(x, p, backend=backend)
        with FlopCounterMode(display=False) as counter:
            lalic_kernels.rwkv_block(x, p, backend=backend)
        assert counter.get_total_flops() > 2 * x.numel() * 16 * (5 + 8)  # at least the nine matrices
        found = torch.vmap(lambda x: lalic_kernels.rwkv_block(x[None], p, backend=backend)[0])(x)
        torch.testing.assert_close(found, expected)  # its products may be others
        traced = torch.jit.trace(lambda x: lalic_kernels.rwkv_block(x, p, backend=backend), x)
        assert "lalic_kernels::spatial_mix" in str(traced.graph)
        torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize("backend", [None, "torch"])
def test_autocast_takes_the_other_16_bits(backend: str | None) -> None:
    p, x = make(16, 4), image(1, 5, 7, 16)
    truth = reference(x.double(), p.to(torch.float64))
    for block, given in ((p, x.bfloat16()), (p.to(torch.bfloat16), x.bfloat16())):
        with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.float16):
            result = lalic_kernels.rwkv_block(given, block, backend=backend)
        assert (result - truth).abs().max() <= 8 * 2**-8 * truth.abs().max()


def test_autocast_narrows_only_the_products() -> None:
    p, x = make(16, 4), image(1, 5, 7, 16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        result = lalic_kernels.rwkv_block(x, p)
    assert result.dtype == torch.float32
    truth = reference(x.double(), p.to(torch.float64))
    # bfloat16 has 8 bits; eight products and roundings in a row.
    assert (result - truth).abs().max() <= 8 * 2**-8 * truth.abs().max()
    assert (result - truth).abs().max() >= 2**-14 * truth.abs().max()  # they were narrowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("shape", SIZES[1:])
def test_autocast_leaves_no_cast_between_shift_and_mix(
    shape: tuple[int, ...], backend: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shifts round their results: the bits are those of a cast afterwards, also for gradients."""
    given = {"x": image(*shape)} | dict(zip(SHAPES, make(shape[-1], 4).tensors(), strict=True))

    def function(**a: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype=dtype):
            return on_tensors(**a, backend=backend)

    dtypes = []

    def recorded(x: Tensor, *parameters: Tensor, **options) -> Tensor:
        dtypes.append((x.dtype, options["dtype"]))
        return lalic_kernels.norm_shift(x, *parameters, **options)

    def cast_afterwards(x: Tensor, *parameters: Tensor, **options) -> Tensor:
        return lalic_kernels.norm_shift(x, *parameters, **(options | {"dtype": None}))

    monkeypatch.setattr(op, "norm_shift", recorded)
    result, grads = gradients(function, given)
    assert dtypes == [(torch.float32, dtype)] * 2
    monkeypatch.setattr(op, "norm_shift", cast_afterwards)
    expected, expected_grads = gradients(function, given)
    assert torch.equal(result, expected)
    for name, grad in grads.items():
        assert torch.equal(grad, expected_grads[name]), name


def test_bad_arguments_raise_a_message() -> None:
    p, x = make(8, 2), image(1, 3, 4, 8)
    tensors = dict(zip(SHAPES, p.tensors(), strict=True))
    for changes, error, message in (
        ({"key": tensors["key"][1:]}, ValueError, r"key must have shape \(C, C\) with C = 8"),
        ({"shift2": 3.0}, TypeError, "shift2 must be a tensor"),
        ({"channel_value": tensors["channel_value"].t()}, ValueError, r"channel_value must have shape \(C, F\)"),
        ({"gamma1": tensors["gamma1"].int()}, TypeError, "gamma1 must be float16"),
        ({"decay": tensors["decay"].to("meta")}, ValueError, "decay must be on"),
        ({"eps": -1.0}, ValueError, "eps must be at least 0"),
    ):
        with pytest.raises(error, match=message):
            BlockParameters(**(tensors | changes))
    with pytest.raises(TypeError, match="parameters must be BlockParameters, but is a dict"):
        lalic_kernels.rwkv_block(x, tensors)
    with pytest.raises(ValueError, match=r"x must have shape \(B, H, W, C\) with C = 8"):
        lalic_kernels.rwkv_block(x[..., 1:], p)
    with pytest.raises(TypeError, match="parameters must be float32 beside x, but is float16"):
        lalic_kernels.rwkv_block(x, p.to(torch.float16))
    with pytest.raises(ValueError, match="backend must be None or one of"):
        lalic_kernels.rwkv_block(x, p, backend="cuda")
