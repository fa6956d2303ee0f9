"""Every path gives the reference's bits, fixed by golden hashes: compiled loops, threads, batches, extremes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_inputs
import pytest
import torch
from exact_inputs import KINDS, Source, make_block, make_params
from torch import Tensor

from lalic_kernels import exact, installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact import numbers, op, reference

GOLDEN = Path(__file__).with_name("golden.json")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the kernels
NEEDS_NUMBA = pytest.mark.skipif(not op.installed.NUMBA, reason="numba is not installed; the reference is used")
NEEDS_TRITON = [
    pytest.mark.skipif(
        not installed.TRITON or (DEVICE == "cpu" and not installed.interpreting()),
        reason="needs triton, and a GPU or the interpreter",
    ),
    # The interpreter uses numpy, which warns of overflows that the definition settles.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
FAST = [pytest.param("cpu", marks=NEEDS_NUMBA), pytest.param("triton", marks=NEEDS_TRITON)]
FAST_PATHS = pytest.mark.parametrize("path", FAST)
EVERY_PATH = pytest.mark.parametrize("path", ["reference", *FAST])


def source(seed: int, path: str) -> Source:
    return Source(seed, DEVICE if path == "triton" else "cpu")


def steps(path: str) -> Any:
    return {"cpu": exact_inputs.Cpu, "triton": exact_inputs.Gpu}[path]()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, so that -0 and +0 differ."""
    if a.dtype == torch.float32:
        a, b = a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)
    return a.shape == b.shape and torch.equal(a, b)


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
@pytest.mark.parametrize("path", ["reference", "triton"])
def test_golden_hashes_on_a_gpu(path: str) -> None:
    golden, result = json.loads(GOLDEN.read_text())["hashes"], exact_inputs.all_hashes(path, "cuda")
    assert [name for name in result if result[name] != golden[name]] == []
    assert path != "reference" or result.keys() == golden.keys()


@pytest.mark.parametrize("path", ["reference", pytest.param("cpu", marks=NEEDS_NUMBA)])
def test_flushing_subnormal_numbers_does_not_matter(path: str, threads: Callable[[int], None]) -> None:
    """Some machines do this. The switch belongs to the calling thread, so everything runs in it."""
    golden = json.loads(GOLDEN.read_text())["hashes"]
    threads(1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush them")
    try:
        assert float(torch.tensor([2.0**-126]) * 0.5) == 0.0
        result = exact_inputs.all_hashes(path)
    finally:
        torch.set_flush_denormal(False)
    assert [name for name in result if result[name] != golden[name]] == []


def test_without_numba_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op.installed, "NUMBA", False)
    assert op.describe("cpu") == "reference"
    x = Source(9).normal
    rows, weight = x(3, 4), exact.prepare_linear(x(2, 4))
    assert same(exact.linear(rows, weight), exact.linear(rows, weight, backend="reference"))
    with pytest.raises(BackendUnavailable, match="needs numba"):
        exact.linear(rows, weight, backend="cpu")


@NEEDS_NUMBA
def test_threads_do_not_matter(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every loop runs on two threads, however short it is."""
    cpu = importlib.import_module("lalic_kernels.exact.cpu")
    monkeypatch.setattr(cpu, "MIN_THREAD_NS", 0)
    x = Source(3).normal
    image = x(1, 24, 32, 96)
    weight, kernel = exact.prepare_linear(x(200, 96), x(200)), exact.prepare_conv(x(64, 96, 3, 3), padding=1)
    block, params = make_block(x, 96, 2), make_params(x, 96, 40, 80)
    result = []
    for number in (1, 2):
        threads(number)
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


@FAST_PATHS
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks(path: str, batch: int) -> None:
    """Images with values of very different sizes: the fused loops and launches equal the composition."""
    x = source(21, path).normal
    factors = torch.tensor([1.0, 2.0**20, 2.0**-20])[:batch].reshape(-1, 1, 1, 1)
    block, image = make_block(x, 37, 2), x(batch, 5, 7, 37)
    image *= factors.to(image.device)
    result = exact.rwkv_block(image, block, backend=path)
    assert same(exact.rwkv_block(image, block, backend="reference"), result)
    assert same(exact.rwkv_block(image[-1:], block, backend=path), result[-1:])
    params, part = make_params(x, 37, 33, 70), x(batch, 5, 7, 33)
    for tokens in (image, image[..., :0]):
        for partial in (None, part):
            one, other = (exact.entropy_params(tokens, params, partial=partial, backend=b) for b in ("reference", path))
            assert same(one, other)


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


@FAST_PATHS
def test_head_at_the_thresholds(path: str) -> None:
    thresholds, infinity = torch.tensor(numbers.THRESHOLDS), torch.tensor(float("inf"))
    scales = torch.cat([thresholds, *(torch.nextafter(thresholds, sign * infinity) for sign in (1, -1)), -thresholds])
    scales = torch.cat((scales, torch.tensor([0.0, -0.0, 1e30, -1e30]))).reshape(2, 4, 32)
    means = source(14, path).normal(2, 4, 32)
    parameters = torch.cat((scales.to(means.device), means), dim=2)
    for x in (parameters, parameters[:, :, 4:60], parameters.transpose(0, 1)):
        (index, mean), (expected, means) = (exact.gaussian_head(x, backend=name) for name in (path, "reference"))
        assert index.dtype == torch.int32 and torch.equal(index, expected) and same(mean, means)
    assert [part.shape for part in exact.gaussian_head(parameters[:0], backend=path)] == 2 * [(0, 4, 32)]


@NEEDS_NUMBA
def test_sums_larger_than_one_strip() -> None:
    """Rows are multiplied in strips; the last one is shorter."""
    x = Source(6).normal
    weight, rows = exact.prepare_linear(x(2300, 8)), x(1100, 8)
    assert same(exact.linear(rows, weight, backend="cpu"), exact.linear(rows, weight, backend="reference"))


@FAST_PATHS
def test_pointwise_over_all_exponents(path: str) -> None:
    """Every 32771st float32, and all small multiples of a sixteenth, with ties of exp's rounding among them."""
    x = exact_inputs.every_exponent(DEVICE if path == "triton" else "cpu")
    x = torch.nn.functional.pad(x, (0, -len(x) % 32)).reshape(-1, 32)
    assert same(steps(path).sigmoid(x), reference.sigmoid(x))
    if path == "cpu":
        assert same(steps(path).squared_relu(x), reference.squared_relu(x))
        assert same(steps(path).gate(x, x.flip(0)), reference.gate(x, x.flip(0)))


@FAST_PATHS
@pytest.mark.parametrize("width", [1, 2, 127, 129, 4096])
def test_layer_norm_of_extremes(path: str, width: int) -> None:
    rows, weight, bias = exact_inputs.norm_extremes(source(20, path), width)
    assert same(steps(path).layer_norm(rows, weight, bias), reference.layer_norm(rows, weight, bias))


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


@EVERY_PATH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(path: str, value: float) -> None:
    """In the last channel of the last position. The compiled blocks check their inputs, not intermediate results."""
    x = source(7, path).normal
    good = x(*((1, 4, 6, 8) if path == "triton" else (2, 7, 10, 8)))  # the interpreter is slow
    bad = good.clone()
    bad[-1, -1, -1, -1] = value
    block, params, kernel = make_block(x, 8, 2), make_params(x, 8, 8, 18), exact.prepare_conv(x(3, 8, 3, 3))
    for function in (
        lambda: exact.linear(bad, block.key, backend=path),
        lambda: exact.conv(bad, kernel, backend=path),
        lambda: exact.rwkv_block(bad, block, backend=path),
        lambda: exact.entropy_params(bad, params, backend=path),
        lambda: exact.entropy_params(good, params, partial=bad, backend=path),
        lambda: exact.entropy_params(good[..., :0], params, partial=bad, backend=path),
        lambda: exact.gaussian_head(bad, backend=path),
        lambda: exact.gaussian_head(bad.flip(3), backend=path),
    ):
        with pytest.raises(exact.NotFinite, match="must be finite"):
            function()


@EVERY_PATH
def test_float64_is_refused_and_empty_inputs_have_empty_results(path: str) -> None:
    x = source(8, path).normal
    weight, block, params = exact.prepare_linear(x(3, 4)), make_block(x, 4, 2), make_params(x, 4, 3, 6)
    for function in (
        lambda: exact.linear(x(2, 4).double(), weight, backend=path),
        lambda: exact.rwkv_block(x(1, 2, 2, 4).double(), block, backend=path),
        lambda: exact.entropy_params(x(2, 4).double(), params, backend=path),
        lambda: exact.gaussian_head(x(2, 4).double(), backend=path),
    ):
        with pytest.raises(TypeError, match="must be float32"):
            function()
    with pytest.raises(ValueError, match="1 to 4096 channels, but has 4097"):
        exact.rwkv_block(x(1, 1, 1, 4097), block, backend=path)
    assert exact.linear(x(0, 4), weight, backend=path).shape == (0, 3)
    assert exact.rwkv_block(x(0, 2, 2, 4), block, backend=path).shape == (0, 2, 2, 4)
    assert exact.entropy_params(x(0, 4), params, backend=path).shape == (0, 3)
    assert exact.gaussian_head(x(0, 4), backend=path)[1].shape == (0, 2)
    if path != "reference":
        with pytest.raises(BackendUnavailable):
            exact.linear(x(2, 4).to("meta"), weight, backend=path)
    assert path != "triton" or op.backend_of("cuda") == "triton"


def test_other_bad_arguments() -> None:
    x = Source(8).normal
    with pytest.raises(ValueError, match="eps must"):
        reference.layer_norm(x(2, 4), x(4), x(4), 0.0)
    with pytest.raises(ValueError, match="backend must"):
        exact.linear(x(2, 4), exact.prepare_linear(x(3, 4)), backend="best")
    assert reference.biwkv(x(4), x(4), x(2, 0, 4), x(2, 0, 4)).shape == (2, 0, 4)
