"""Programs that lalic is called from: their default dtype and device, inference mode, models without memory."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import lalic
import lalic_kernels
from lalic.coder.engines import exact_entropy
from lalic.config import SLIM
from lalic.nn.checkpoints import matters

PACKAGES = Path(lalic.__file__).parent, Path(lalic_kernels.__file__).parent
FACTORIES = {"empty", "zeros", "ones", "full", "arange", "linspace", "eye", "rand", "randn", "tensor", "as_tensor"}
# Constructors of modules, which follow the defaults as torch's layers do, and training.
FOLLOW_DEFAULTS = ("nn/bottleneck.py", "nn/context.py", "nn/gains.py", "lalic_kernels/layers.py", "lalic/train/")


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_programs_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    picture = Image.linear_gradient("L").resize((72, 64)).convert("RGB")
    data = lalic.encode(picture, model=lalic.slim())
    expected = lalic.decode(data).tobytes()
    x = torch.rand(1, 3, 64, 64)
    torch.set_default_dtype(dtype)
    model = lalic.slim()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert lalic.encode(picture, model=model) == data
    assert lalic.decode(data, model=model).tobytes() == expected
    model.update(force=True)  # the prior's tables are made in float32 too
    assert lalic.encode(picture, model=model) == data
    out = model.train()(x, quality=40)
    (out["x_hat"].sum() + model.aux_loss()).backward()
    assert out["x_hat"].dtype == torch.float32


def test_a_programs_default_device_changes_nothing() -> None:
    picture = Image.new("RGB", (64, 64), (9, 99, 199))
    data = lalic.encode(picture)
    torch.set_default_device("meta")
    model = lalic.slim()
    assert model.device.type == "cpu"
    assert lalic.encode(picture, model=model) == data
    assert lalic.decode(data, model=model).size == (64, 64)


def test_every_tensor_is_made_with_a_dtype_and_a_device() -> None:
    found = []
    for path in (p for package in PACKAGES for p in package.rglob("*.py")):
        if any(part in path.as_posix() for part in FOLLOW_DEFAULTS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("torch.") in FACTORIES:
                missing = {"dtype", "device"} - {keyword.arg for keyword in node.keywords}
                if missing and "torch." in ast.unparse(node.func) and not _inside_device(path, node.lineno):
                    found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}: {sorted(missing)}")
    assert not found


def _inside_device(path: Path, line: int) -> bool:
    """Whether a call stands in a block `with torch.device(...)`, whose tensors get a dtype afterwards."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "torch.device" in ast.unparse(n.items[0])]
    return any(n.lineno <= line <= (n.end_lineno or 0) for n in blocks)


def test_a_model_made_in_inference_mode_keeps_what_it_prepares() -> None:
    with torch.inference_mode():
        models = [lalic.slim(), lalic.LALIC.from_config(SLIM), lalic.slim().double().float()]
    for model in models:
        assert not any(p.is_inference() for p in [*model.parameters(), *model.buffers()])
        model.update()
        assert exact_entropy(model.latent_codec) is exact_entropy(model.latent_codec)
        assert model.decoding.look(model) is model.decoding.look(model)


def test_a_model_without_memory_takes_weights_by_assignment() -> None:
    full = lalic.slim()
    state = full.state_dict()
    for given in (state, {name: value for name, value in state.items() if matters(name)}):
        with torch.device("meta"):
            model = lalic.slim(pretrained=False)
        model.load_state_dict(given, assign=True)
        assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
        model.eval().update()
        x = torch.rand(1, 3, 64, 64)
        assert model.compress(x)["strings"] == full.compress(x)["strings"]
