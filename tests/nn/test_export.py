"""The float model in torch.compile, torch.export with sizes that vary, and torch.jit.trace; its parts in ONNX."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from lalic.model import LALIC


def model() -> LALIC:
    torch.manual_seed(0)
    return LALIC(4, 16, (8, 8, 8, 16, 8, 8), (1, 1, 1, 1), (4, 12), context_depth=1, context_rate=2).eval()


class Reconstruction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = model()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(x)
        return out["x_hat"], out["likelihoods"]["y"]


def same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_compiles_as_one_graph() -> None:
    module, x = Reconstruction(), torch.rand(1, 3, 64, 128)
    same(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))
    torch.compiler.reset()


@pytest.mark.slow
@torch.no_grad()
def test_exports_with_batch_height_and_width_that_vary() -> None:
    module = Reconstruction()
    sizes = {0: Dim("b", min=1, max=8), 2: 64 * Dim("n", min=1, max=16), 3: 64 * Dim("m", min=1, max=16)}
    program = export(module, (torch.rand(2, 3, 128, 192),), dynamic_shapes={"x": sizes}).module()
    for shape in ((3, 3, 128, 128), (2, 3, 192, 128), (4, 3, 128, 256)):
        x = torch.rand(shape)
        same(program(x), module(x))


@torch.no_grad()
@pytest.mark.parametrize("part", ["g_s", "h_s", "g_a"])
def test_parts_export_with_sizes_that_vary(part: str) -> None:
    made = getattr(model(), part)
    channels, step = (3, 16) if part == "g_a" else (made[0].weight.shape[0], 1)
    sizes = {2: step * Dim("h", min=1, max=64), 3: step * Dim("w", min=1, max=64)}
    program = export(made, (torch.rand(1, channels, 3 * step, 4 * step),), dynamic_shapes=(sizes,)).module()
    x = torch.rand(1, channels, 5 * step, 2 * step)
    same((program(x),), (made(x),))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_traces() -> None:
    module, x = Reconstruction(), torch.rand(1, 3, 64, 128)
    expected = module(x)
    traced = torch.jit.trace(module, x)
    same(traced(x), expected)
    module.model.g_a[0].bias.add_(1)  # the trace has parameters, not what was cached of them
    same(traced(x), module(x))


@pytest.mark.slow
@torch.no_grad()
def test_synthesis_in_onnx(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    made, y_hat, file = model().g_s, torch.randn(1, 16, 2, 2), tmp_path / "g_s.onnx"
    torch.onnx.export(made, (y_hat,), file, dynamo=True)
    session = runtime.InferenceSession(file)
    (picture,) = session.run(None, {session.get_inputs()[0].name: y_hat.numpy()})
    same((torch.from_numpy(picture),), (made(y_hat),))
