"""Every path gives the reference's bits, fixed by golden hashes: compiled loops, threads, batches, extremes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import exact_inputs
import pytest
import torch
from exact_inputs import KINDS, Source, make_block, make_params
from torch import Tensor

from lalic_kernels import exact
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact import numbers, op, reference

GOLDEN = Path(__file__).with_name("golden.json")
NEEDS_NUMBA = pytest.mark.skipif(not op.NUMBA, reason="numba is not installed; the reference is used")


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, so that -0 and +0 differ."""
    if a.dtype == torch.float32:
        a, b = a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    return a.shape == b.shape and torch.equal(a, b)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


STEPS = {"reference": 36, "cpu": 30}  # number of results per path and kind


@pytest.mark.parametrize("path", ["reference", pytest.param("cpu", marks=NEEDS_NUMBA)])
def test_golden_hashes(path: str) -> None:
    """A change of the definition needs a new numbers.VERSION and a new golden file beside this one."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == exact.VERSION
    result = exact_inputs.all_hashes(path)
    assert len(result) == STEPS[path] * len(KINDS)
    assert [name for name in result if result[name] != golden["hashes"][name]] == []
    assert path != "reference" or result.keys() == golden["hashes"].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_finite_and_settled(kind: str) -> None:
    for name, x in exact_inputs.results(kind, "reference").items():
        if x.dtype == torch.float32:
            assert same(exact.settle(x), x), name
            assert torch.isfinite(x).all(), name


@pytest.mark.gpu
def test_golden_hashes_on_a_gpu() -> None:
    assert exact_inputs.all_hashes("reference", "cuda") == json.loads(GOLDEN.read_text())["hashes"]


@pytest.mark.parametrize("path", ["reference", pytest.param("cpu", marks=NEEDS_NUMBA)])
def test_flushing_subnormal_numbers_does_not_matter(path: str, two_threads: None) -> None:
    """Some machines do this. The switch belongs to the calling thread, so everything runs in it."""
    golden = json.loads(GOLDEN.read_text())["hashes"]
    torch.set_num_threads(1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush them")
    try:
        assert float(torch.tensor([2.0**-126]) * 0.5) == 0.0
        result = exact_inputs.all_hashes(path)
    finally:
        torch.set_flush_denormal(False)
    assert [name for name in result if result[name] != golden[name]] == []


def test_without_numba_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "NUMBA", False)
    assert op.describe("cpu") == "reference"
    x = Source(9).normal
    rows, weight = x(3, 4), exact.prepare_linear(x(2, 4))
    assert same(exact.linear(rows, weight), exact.linear(rows, weight, backend="reference"))
    with pytest.raises(BackendUnavailable, match="needs numba"):
        exact.linear(rows, weight, backend="cpu")


@NEEDS_NUMBA
def test_threads_do_not_matter(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every loop runs on two threads, however short it is."""
    cpu = importlib.import_module("lalic_kernels.exact.cpu")
    monkeypatch.setattr(cpu, "MIN_THREAD_NS", 0)
    x = Source(3).normal
    image = x(1, 24, 32, 96)
    weight, kernel = exact.prepare_linear(x(200, 96), x(200)), exact.prepare_conv(x(64, 96, 3, 3), padding=1)
    block, params = make_block(x, 96, 2), make_params(x, 96, 40, 80)
    result = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        result.append(
            [
                exact.linear(image, weight),
                exact.conv(image, kernel),
                exact.rwkv_block(image, block),
                exact.gaussian_head(image)[0],
                exact.entropy_params(image, params),
            ]
        )
    assert all(map(same, *result))
    assert same(result[1][2], exact.rwkv_block(image, block, backend="reference"))
    assert same(result[1][-1], exact.entropy_params(image, params, backend="reference"))


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=NEEDS_NUMBA)])
def test_a_batch_does_not_matter(backend: str) -> None:
    """Images with values of very different sizes in one batch: a scale over the whole batch would show."""
    x = Source(4).normal
    image = x(4, 6, 8, 40) * torch.tensor([1.0, 2.0**20, 2.0**-20, 3.0]).reshape(4, 1, 1, 1)
    vector, block = x(40), make_block(x, 40, 2)
    functions = [
        lambda a: exact.linear(a, block.key, backend=backend),
        lambda a: exact.conv(a, exact.prepare_conv(vector.expand(3, 5, 5, 40).permute(0, 3, 1, 2)), backend=backend),
        lambda a: exact.rwkv_block(a, block, backend=backend),
        lambda a: exact.entropy_params(a, make_params(Source(5).normal, 40, 9, 18), backend=backend),
    ]
    for function in functions:
        batched = function(image)
        for i in range(4):
            assert same(function(image[i : i + 1]), batched[i : i + 1])


@NEEDS_NUMBA
def test_blocks_on_both_paths() -> None:
    x = Source(5).normal
    block, image = make_block(x, 48, 3), x(2, 6, 10, 48)
    assert same(exact.rwkv_block(image, block, backend="cpu"), exact.rwkv_block(image, block, backend="reference"))
    params = make_params(x, 48, 33, 66)
    partial_sums, none = x(2, 6, 10, 33), image[..., :0]
    for tokens, partial in ((image, None), (image, partial_sums), (none, None), (none, partial_sums)):
        result = [exact.entropy_params(tokens, params, partial=partial, backend=name) for name in ("cpu", "reference")]
        assert same(*result)


@NEEDS_NUMBA
def test_blocks_refuse_what_is_not_finite() -> None:
    """The compiled blocks check their inputs, not their intermediate results."""
    x = Source(12).normal
    params = make_params(x, 48, 33, 66)
    good, partial_sums = x(2, 70, 48), x(2, 70, 33)
    for value in (float("nan"), float("inf"), -float("inf")):
        for tensor in (good, partial_sums):
            bad = tensor.clone()
            bad[1, 69, 32] = value
            with pytest.raises(ValueError, match="must be finite"):
                if tensor is good:
                    exact.entropy_params(bad, params, backend="cpu")
                else:
                    exact.entropy_params(good, params, partial=bad, backend="cpu")
            with pytest.raises(ValueError, match="must be finite"):
                exact.entropy_params(good[..., :0], params, partial=bad[..., :33], backend="cpu")


@NEEDS_NUMBA
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_extreme_numbers(kind: str) -> None:
    """Infinite intermediate results, zeros, numbers of every size, also in weights."""
    x = getattr(Source(13), kind)
    params = make_params(x, 7, 9, 18)
    tokens, partial_sums = x(1, 130, 7), x(1, 130, 9)
    result = [exact.entropy_params(tokens, params, partial=partial_sums, backend=name) for name in ("cpu", "reference")]
    assert same(*result)
    block = make_block(x, 9, 2)
    image = x(2, 5, 14, 9)
    assert same(exact.rwkv_block(image, block, backend="cpu"), exact.rwkv_block(image, block, backend="reference"))


@NEEDS_NUMBA
def test_head_at_the_thresholds() -> None:
    thresholds, infinity = torch.tensor(numbers.THRESHOLDS), torch.tensor(float("inf"))
    scales = torch.cat([thresholds, *(torch.nextafter(thresholds, sign * infinity) for sign in (1, -1)), -thresholds])
    scales = torch.cat((scales, torch.tensor([0.0, -0.0, 1e30, -1e30]))).reshape(2, 4, 32)
    parameters = torch.cat((scales, Source(14).normal(2, 4, 32)), dim=2)
    for x in (parameters, parameters[:, :, 4:60], parameters.transpose(0, 1)):
        (index, mean), (expected, means) = (exact.gaussian_head(x, backend=name) for name in ("cpu", "reference"))
        assert index.dtype == torch.int32 and torch.equal(index, expected) and same(mean, means)
    assert [part.shape for part in exact.gaussian_head(parameters[:0], backend="cpu")] == 2 * [(0, 4, 32)]


@NEEDS_NUMBA
def test_sums_larger_than_one_strip() -> None:
    """Rows are multiplied in strips; the last one is shorter."""
    x = Source(6).normal
    weight, rows = exact.prepare_linear(x(2300, 8)), x(1100, 8)
    assert same(exact.linear(rows, weight, backend="cpu"), exact.linear(rows, weight, backend="reference"))


@NEEDS_NUMBA
def test_pointwise_over_all_exponents() -> None:
    """Every 32771st float32, and all small multiples of a sixteenth, with ties of exp's rounding among them."""
    x, steps = exact_inputs.every_exponent(), exact_inputs.Cpu()
    assert same(steps.sigmoid(x), reference.sigmoid(x))
    assert same(steps.squared_relu(x), reference.squared_relu(x))
    assert same(steps.gate(x, x.flip(0)), reference.gate(x, x.flip(0)))


@NEEDS_NUMBA
@pytest.mark.parametrize("width", [1, 2, 127, 129, 4096])
def test_layer_norm_of_extremes(width: int) -> None:
    rows, weight, bias = exact_inputs.norm_extremes(Source(20), width)
    assert same(exact_inputs.Cpu().layer_norm(rows, weight, bias), reference.layer_norm(rows, weight, bias))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_reference_refuses_what_is_not_finite(value: float) -> None:
    x = Source(7).normal
    good = x(1, 4, 6, 8)
    bad = good.clone()
    bad[0, 3, 5, 7] = value
    vector, shift = x(8), exact.prepare_depthwise(x(8, 5, 5))
    tokens, wrong = good.flatten(1, 2), bad.flatten(1, 2)
    for function, *arguments in (
        (reference.depthwise, bad, shift),
        (reference.layer_norm, bad, vector, vector),
        (reference.exp, bad),
        (reference.sigmoid, bad),
        (reference.squared_relu, bad),
        (reference.gate, bad, good),
        (reference.gate, good, bad),
        (reference.residual, bad, good),
        (reference.residual, good, bad, vector),
        (reference.biwkv, vector, vector, wrong, tokens),
        (reference.biwkv, vector, vector, tokens, wrong),
        (reference.biwkv, vector, vector, tokens, tokens, wrong),
        (reference.biwkv, vector * value, vector, tokens, tokens),
        (reference.biwkv, vector, vector * value, tokens, tokens),
        (reference.scale_index, bad),
    ):
        with pytest.raises(numbers.NotFinite, match="must be finite"):
            function(*arguments)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=NEEDS_NUMBA)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(backend: str, value: float) -> None:
    x = Source(7).normal
    bad = x(1, 4, 6, 8)
    bad[0, 3, 5, 7] = value
    block, params = make_block(x, 8, 2), make_params(x, 8, 9, 18)
    for function in (
        lambda: exact.linear(bad, block.key, backend=backend),
        lambda: exact.conv(bad, exact.prepare_conv(x(3, 8, 3, 3)), backend=backend),
        lambda: exact.rwkv_block(bad, block, backend=backend),
        lambda: exact.entropy_params(bad, params, backend=backend),
        lambda: exact.gaussian_head(bad, backend=backend),
        lambda: exact.gaussian_head(bad.flip(3), backend=backend),
    ):
        with pytest.raises(exact.NotFinite, match="must be finite"):
            function()


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=NEEDS_NUMBA)])
def test_float64_is_refused_and_empty_inputs_have_empty_results(backend: str) -> None:
    x = Source(8).normal
    weight, block, params = exact.prepare_linear(x(3, 4)), make_block(x, 4, 2), make_params(x, 4, 3, 6)
    for function in (
        lambda: exact.linear(x(2, 4).double(), weight, backend=backend),
        lambda: exact.rwkv_block(x(1, 2, 2, 4).double(), block, backend=backend),
        lambda: exact.entropy_params(x(2, 4).double(), params, backend=backend),
        lambda: exact.gaussian_head(x(2, 4).double(), backend=backend),
    ):
        with pytest.raises(TypeError, match="must be float32"):
            function()
    with pytest.raises(ValueError, match="eps must"):
        reference.layer_norm(x(2, 4), x(4), x(4), 0.0)
    with pytest.raises(ValueError, match="1 to 4096 channels, but has 4097"):
        exact.rwkv_block(x(1, 1, 1, 4097), block, backend=backend)
    assert exact.linear(x(0, 4), weight, backend=backend).shape == (0, 3)
    assert exact.entropy_params(x(0, 4), params, backend=backend).shape == (0, 3)
    assert exact.gaussian_head(x(0, 4), backend=backend)[1].shape == (0, 2)
    assert reference.biwkv(x(4), x(4), x(2, 0, 4), x(2, 0, 4)).shape == (2, 0, 4)
    with pytest.raises(ValueError, match="backend must"):
        exact.linear(x(2, 4), weight, backend="best")
    with pytest.raises(BackendUnavailable):
        exact.linear(x(2, 4).to("meta"), weight, backend="cpu")
