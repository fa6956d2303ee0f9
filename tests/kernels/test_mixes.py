"""Tests of the two mixes that are not in the contract suite: options, mixed dtypes, launch tables, work space."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from calls import Calls
from op_specs import CHANNEL_MIX, INTERPRETER, SPATIAL_MIX, Arguments, OpSpec
from test_contract import gradients, make, wide, worst
from torch import Tensor

import lalic_kernels
from lalic_kernels import installed
from lalic_kernels.mix import gpu, op, torch_path
from lalic_kernels.threads import run_each, workers

MIXES = pytest.mark.parametrize("spec", [CHANNEL_MIX, SPATIAL_MIX], ids=lambda spec: spec.name)
BACKENDS = [None, "torch", *(["triton"] if INTERPRETER else [])]
EPS32, EPS16 = torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps


@MIXES
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_residual(spec: OpSpec, backend: str | None) -> None:
    arguments = make(spec, list(spec.cases.values())[-1], torch.float32, "cpu")
    del arguments["residual"], arguments["gamma"]
    truth, true = gradients(spec.reference, wide(arguments))
    result, grads = gradients(functools.partial(spec.public, backend=backend), arguments)
    # Two products in a row, of up to 320 terms, and BiWKV's 32 roundings.
    assert worst(result, truth) <= 64 * EPS32 * truth.abs().max().item()
    scale = max(grad.abs().max().item() for grad in true.values())
    for name, grad in grads.items():
        assert worst(grad, true[name]) <= 256 * EPS32 * scale, name


@MIXES
def test_a_float32_residual_stays_float32_with_bfloat16(spec: OpSpec) -> None:
    arguments = make(spec, list(spec.cases.values())[-1], torch.bfloat16, "cpu")
    arguments["residual"] = arguments["residual"].float() * 1.001  # not a bfloat16 number
    result = spec.public(**arguments)
    assert result.dtype == torch.float32
    truth = spec.reference(**wide(arguments))
    # The mix has bfloat16's error, the residual none: without the mix the result is exact.
    assert worst(result, truth) <= 8 * EPS16 * (truth - arguments["residual"]).abs().max().item()
    without_mix = spec.public(**(arguments | {"gamma": torch.zeros_like(arguments["gamma"])}))
    assert torch.equal(without_mix, arguments["residual"])


@MIXES
def test_autocast_casts_as_linear_does(spec: OpSpec) -> None:
    arguments = make(spec, list(spec.cases.values())[-1], torch.float32, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = spec.public(**arguments)
        assert spec.public(**{n: a for n, a in arguments.items() if n not in ("residual", "gamma")}).dtype == (
            torch.bfloat16
        )
    assert result.dtype == torch.float32
    narrowed = {n: a.bfloat16() if a.dim() == 2 or n == "x" else a for n, a in arguments.items()}
    assert torch.equal(result, spec.public(**narrowed))


@MIXES
@pytest.mark.parametrize("given", ["x", "parameters", "all"])
def test_autocast_takes_the_other_16_bits(spec: OpSpec, given: str) -> None:
    """As F.linear does. What is not cast becomes float32 beside it, and so does the result."""
    arguments = make(spec, list(spec.cases.values())[-1], torch.float32, "cpu")
    narrow = {n for n in arguments if given == "all" or (n in ("x", "residual")) == (given == "x")}
    arguments = {n: a.bfloat16() if n in narrow else a for n, a in arguments.items()}
    with torch.autocast("cpu", dtype=torch.float16):
        result = spec.public(**arguments)
    assert result.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        expected = spec.public(**{n: a.float() for n, a in arguments.items()})
    assert worst(result, expected) <= 4 * torch.finfo(torch.float16).eps * expected.abs().max().item()


def test_a_width_beyond_the_table_uses_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETER:
        pytest.skip("needs the interpreter")
    arguments = make(CHANNEL_MIX, (1, 1, 3, 24, 4), torch.float32, "cpu")
    expected = lalic_kernels.channel_mix(**arguments, backend="torch")
    monkeypatch.setattr(gpu, "choose_channel", lambda *a: None)
    assert (
        gpu.channel_mix(*(arguments[n].flatten(0, -2) for n in ("x", "key", "receptance", "value")), None, None) is None
    )
    assert torch.equal(lalic_kernels.channel_mix(**arguments, backend="triton"), expected)


def test_two_powers_cover_the_channels() -> None:
    for channels in range(1, 700):
        main, rest = gpu.split(channels)
        assert main + rest >= channels and main >= 16 and rest in (0, 16, 32, 64, 128, 256, 512)
        assert main & (main - 1) == 0
    assert [gpu.split(c) for c in (96, 144, 192, 256, 320)] == [(64, 32), (128, 16), (128, 64), (256, 0), (256, 64)]


@pytest.mark.parametrize("arch", ["any", "cuda 90", "cuda 100", "hip gfx942"])
def test_every_width_has_a_launch_that_covers_it(arch: str) -> None:
    for channels in range(1, 520):
        for itemsize in (2, 4):
            choice = gpu.choose_channel(arch, channels, 4 * channels, itemsize)
            whole = channels * itemsize % 16 == 0
            assert (choice is not None) == (channels <= (512 if whole else 256)), channels
            if choice is not None:
                assert choice.main + choice.rest >= channels and channels % choice.vec == 0
            linear = gpu.choose_linear(arch, channels, itemsize)
            assert not linear.launch["HELD"] or linear.main + linear.rest >= channels
            for rows, planes in ((1, 1), (6144, 3), (98304, 3)):
                tiles, block_m = planes * -(-channels // linear.launch["BLOCK_N"]), linear.launch["BLOCK_M"]
                grid, per = gpu.output_groups(rows, tiles, block_m)
                assert grid[0] * block_m >= rows
                assert grid[1] * per >= tiles > (grid[1] - 1) * per


def test_two_products_for_one_sum_are_not_pipelined_on_blackwell() -> None:
    """Triton 3.6 to 3.8 do it wrongly. Two products: the parts of C where x is held, or those of float32."""
    for itemsize in (2, 4):
        for channels in range(8, 520, 8):
            for choice in (gpu.choose_linear("cuda 100", channels, itemsize),
                           gpu.choose_channel("cuda 100", channels, channels, itemsize)):  # fmt: skip
                if choice is not None and (itemsize == 4 or (choice.launch["HELD"] and choice.rest)):
                    assert choice.launch.num_stages == 1, (channels, itemsize)


def _largest(call: Callable[[], object]) -> int:
    """The number of elements of the largest result of all ATen calls."""
    sizes = []
    with torch.no_grad(), Calls(lambda func, args, result: sizes.append(getattr(result, "numel", int)())):
        call()
    return max(sizes)


def test_no_hidden_layer_of_the_whole_image(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward has a tensor larger than the image or a chunk's work space."""
    threads(1)  # `Calls` sees this thread
    arguments = make(CHANNEL_MIX, (1, 16, 64, 24, 8), torch.float32, "cpu")
    x, key, receptance, value, residual, gamma = arguments.values()
    monkeypatch.setitem(torch_path.CHUNK_BYTES, "cpu", 4 * 64 * key.shape[0])
    image, nothing = x.numel(), [x.new_empty(0)] * 3
    forward = (x, key, receptance, value, residual, gamma, False, "torch")
    assert _largest(lambda: op._channel_mix(*forward)) == image
    assert _largest(lambda: op._channel_mix_backward(x, key, receptance, value, gamma, *nothing, residual)) == image
    monkeypatch.setitem(torch_path.CHUNK_BYTES, "cpu", 1 << 40)
    assert _largest(lambda: op._channel_mix(*forward)) == 8 * image


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gated_result_takes_the_memory_of_r(dtype: torch.dtype, threads, monkeypatch) -> None:
    """Without gradients k, v, r and the result are all that the compiled spatial mix makes of the image's size."""
    threads(1)  # `Calls` sees this thread
    if not installed.NUMBA:
        pytest.skip("needs numba")
    arguments = make(SPATIAL_MIX, (1, 16, 64, 24), dtype, "cpu")
    monkeypatch.setitem(torch_path.CHUNK_BYTES, "cpu", 1)  # the least, 64 tokens
    image, made = arguments["x"].numel(), []

    def note(func: object, args: object, result: object) -> None:
        if isinstance(result, Tensor) and result.numel() == image:
            made.append(result)  # alive, so that no address comes twice

    with torch.no_grad():
        with Calls(note):
            result, *_ = op._spatial_mix(*arguments.values(), False, "cpu")
        kept, *_ = op._spatial_mix(*arguments.values(), True, "cpu")  # r stays
    assert torch.equal(result, kept)
    given = {t.untyped_storage().data_ptr() for t in arguments.values()}
    assert len({t.untyped_storage().data_ptr() for t in made} - given) == 4


@MIXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_results_change_no_gradient(spec: OpSpec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward with saved results is as close to float64's as one that computes them again."""
    arguments = make(spec, list(spec.cases.values())[-2], dtype, "cpu")
    arguments["residual"] = arguments["residual"].float()

    def results(function: Callable[..., Tensor], given: Arguments) -> list[Tensor]:
        result, grads = gradients(function, given, torch.ones_like(given["x"]))
        return [result, *grads.values()]

    def saving() -> tuple[list[Tensor], int]:
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            return results(spec.public, arguments), sum(saved)

    first, elements = saving()
    truth = results(spec.reference, wide(arguments))
    monkeypatch.setattr(op, "SAVED_BYTES", 0)
    again, elements_without = saving()
    tokens, width = arguments["x"][..., 0].numel(), arguments["x"].shape[3]
    per_token = arguments["key"].shape[0] + 2 * width if spec is CHANNEL_MIX else 4 * width
    assert elements - elements_without == tokens * per_token
    assert torch.equal(first[0], again[0])
    for one, other, true in zip(first, again, truth, strict=True):
        # Twice the error of the other path, and a few roundings in case that is exact by luck.
        assert worst(one, true) <= 2 * worst(other, true) + 8 * torch.finfo(dtype).eps * true.abs().max().item()


@MIXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_threads_share_the_tokens(spec: OpSpec, dtype: torch.dtype, training: bool, threads) -> None:
    """All tokens are done, with the bits of one thread, in slices of 32 tokens or more."""
    sizes = (2, 23, 29, 24, 4) if spec is CHANNEL_MIX else (2, 23, 29, 24)  # 1334 tokens
    arguments = make(spec, sizes, dtype, "cpu")
    arguments["x"].requires_grad_(training)
    results, slices = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torch_path.CHUNK_BYTES, "cpu", 1)  # chunks of 64 tokens, 21 of them
        patch.setattr(torch_path, "run_each", lambda work, items: (slices.append(items), run_each(work, items)))
        for number in (32, 1, 2, 5, 16):
            threads(number)
            with torch.inference_mode(not training):
                results.append(spec.public(**arguments).detach().clone())
    if workers() == 1:
        pytest.skip("this build of torch has no number of threads for each thread")
    assert {len(each) for each in slices} == {22, 25, 32}  # with more threads than chunks all work on one chunk
    if spec is CHANNEL_MIX:  # products of whole images, which the spatial mix has too, depend on threads at odd widths
        assert all(torch.equal(results[1], result) for result in results[2:])
    for each in slices:
        rows = [row for part in each for row in range(1334)[part]]
        assert rows == [*range(1334)] and min(part.stop - part.start for part in each) >= 32


@MIXES
def test_a_result_without_gradient_gives_its_arguments_none(spec: OpSpec) -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    arguments = make(spec, list(spec.cases.values())[-1], torch.float32, "cpu")
    x = arguments.pop("x").requires_grad_()
    (Stop.apply(spec.public(x, **arguments)).sum() + (2 * x).sum()).backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))


def test_float16_beside_float32_saves_nothing() -> None:
    arguments = make(CHANNEL_MIX, (1, 3, 3, 24, 4), torch.float32, "cpu")
    arguments["residual"] = arguments["residual"].half()
    result, *saved = torch.ops.lalic_kernels.channel_mix(*arguments.values(), True, "cpu")
    assert result.dtype == torch.float16 and not any(t.numel() for t in saved)


def test_the_size_of_saved_results_is_bounded() -> None:
    x = torch.empty(2, 8, 8, 4, requires_grad=True)
    assert op.saves_activations("cpu", x, op.SAVED_BYTES // (4 * 128))
    assert not op.saves_activations("cpu", x, op.SAVED_BYTES // (4 * 128) + 1)
    assert not any(op.saves_activations(chosen, x, 1) for chosen in ("triton", "torch", "reference"))
    assert not op.saves_activations("cpu", x.detach(), 1) and op.saves_activations("cpu", x.detach(), 1, None, x)
    assert not op.saves_activations("cpu", x.half(), 1)
    with torch.no_grad():
        assert not op.saves_activations("cpu", x, 1)


@MIXES
def test_chunks_add_up(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (2, 9, 17, 6, 2) if spec is CHANNEL_MIX else (2, 9, 17, 6)
    arguments = make(spec, sizes, torch.float32, "cpu")

    def results() -> list[Tensor]:
        result, grads = gradients(lambda **a: spec.public(**a).square(), arguments)
        return [result, *grads.values()]

    whole = results()
    monkeypatch.setitem(torch_path.CHUNK_BYTES, "cpu", 1)  # the minimum: 64 tokens at a time
    for one, other in zip(whole, results(), strict=True):
        # The same sums of 306 terms, in five parts.
        assert (one - other).abs().max() <= 32 * EPS32 * one.abs().max()
