"""CompressAI's own tools with LALIC: its registry, zoo, optimisers, losses, eval_model, update_model. Offline."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import astronaut, save, tiny

from lalic.config import SLIM
from lalic.images import to_tensor
from lalic.model import LALIC


def test_without_the_package_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lalic.compressai", raising=False)
    monkeypatch.setitem(sys.modules, "compressai", None)
    with pytest.raises(
        ImportError, match=r"^lalic.compressai needs CompressAI \(.*\): pip install lalic\[compressai\]$"
    ):
        importlib.import_module("lalic.compressai")


@pytest.fixture
def ours() -> Any:
    pytest.importorskip("compressai", reason="compressai is not installed")
    return importlib.import_module("lalic.compressai")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture, large enough for MS-SSIM, with sides that the model's multiples fit."""
    folder = tmp_path_factory.mktemp("photos")
    for split in ("train", "test"):
        (folder / split).mkdir()
        astronaut(100, 40, 192, 192).save(folder / split / "a.png")
    return folder


def run_tool(ours: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[float]]:
    ours.main(arguments)
    return json.loads(capsys.readouterr().out)["results"]


@pytest.mark.slow
def test_registered_under_the_published_name(ours: Any) -> None:
    from compressai.registry import MODELS
    from compressai.zoo import image_models, models
    from compressai.zoo.image import model_architectures

    assert MODELS["LALIC"] is LALIC and ours.image_models is image_models
    for name in ("LALIC", "lalic-slim"):
        assert image_models[name] is models[name] and model_architectures[name] is LALIC
    model = image_models["lalic-slim"](quality=3)  # as examples/train.py makes it
    assert model.training and model.config.dims == SLIM.dims and model.config.qualities == 0
    shipped = image_models["lalic-slim"](quality=25, metric="mse", pretrained=True, progress=False)
    assert shipped.default_quality == 25 and not shipped.training
    with torch.device("meta"):
        assert image_models["LALIC"](quality=3).config.name == "full"
    with pytest.raises(RuntimeError, match="no weights of the published size"):
        image_models["LALIC"](quality=3, pretrained=True)
    with pytest.raises(ValueError, match='metric: expected "mse"'):
        image_models["lalic-slim"](quality=3, metric="ms-ssim")
    with pytest.raises(ValueError, match="quality is 101"):
        image_models["lalic-slim"](quality=101, pretrained=True)


@pytest.mark.slow
def test_eval_model(ours: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(save(tmp_path / "tiny.pth", tiny()))
    real = run_tool(ours, capsys, "eval_model", "checkpoint", str(photos / "test"), "-a", "LALIC", "-p", checkpoint)
    x = to_tensor(astronaut(100, 40, 192, 192))
    with torch.no_grad():
        packed = tiny().compress(x)
        bpp = 8 * sum(len(s[0]) for s in packed["strings"]) / 192**2
        x_hat = tiny().decompress(packed["strings"], packed["shape"])["x_hat"]
        bits = sum(-float(t.log2().sum()) for t in tiny()(x)["likelihoods"].values())
    mse = (x.mul(255).round() - x_hat.mul(255).round()).square().mean()
    assert real["bpp"] == [pytest.approx(bpp)]
    assert real["psnr-rgb"] == [pytest.approx(20 * math.log10(255) - 10 * math.log10(mse), abs=0.01)]
    common = ("eval_model", "checkpoint", str(photos / "test"), "-a", "LALIC", "-p", checkpoint)
    estimated = run_tool(ours, capsys, *common, "--entropy-estimation")
    assert estimated["bpp"][0] == pytest.approx(bits / 192**2, rel=1e-3)
    half = run_tool(ours, capsys, *common, "--half")
    assert half["bpp"][0] == pytest.approx(bpp, rel=0.02)
    assert half["psnr-rgb"][0] == pytest.approx(real["psnr-rgb"][0], abs=0.3)


@pytest.mark.slow
def test_eval_model_of_the_weights_that_ship(ours: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("eval_model", "pretrained", str(photos / "test"), "-a", "lalic-slim", "-q", "20,60")
    found = run_tool(ours, capsys, *arguments)
    assert found["bpp"][0] < found["bpp"][1] and found["psnr-rgb"][0] + 2 < found["psnr-rgb"][1]


@pytest.mark.slow
def test_update_model(ours: Any, tmp_path: Path) -> None:
    model = tiny()
    save(tmp_path / "tiny.pth", model)
    ours.main(["update_model", str(tmp_path / "tiny.pth"), "-a", "LALIC", "-n", "made", "-d", str(tmp_path / "out")])
    (made,) = (tmp_path / "out").iterdir()
    assert LALIC.from_state_dict(torch.load(made, weights_only=True)).weights_hash() == model.weights_hash()


@pytest.mark.slow
def test_a_registry_that_was_copied_before(ours: Any) -> None:
    updater = importlib.import_module("compressai.utils.update_model.__main__")
    updater.models.pop("LALIC", None)
    importlib.reload(ours)
    assert updater.models["LALIC"] is LALIC


@pytest.mark.slow
def test_training_as_its_example_does(ours: Any, photos: Path) -> None:
    from compressai.datasets import ImageFolder
    from compressai.losses import RateDistortionLoss
    from compressai.optimizers import net_aux_optimizer
    from torch.utils.data import DataLoader
    from torchvision import transforms

    torch.manual_seed(0)
    crop = transforms.Compose([transforms.RandomCrop((64, 64)), transforms.ToTensor()])
    batches = DataLoader(ImageFolder(photos, split="train", transform=crop), batch_size=1)
    net = ours.image_models["LALIC"](
        quality=3, N=3, M=48, dims=(24, 48, 48, 48, 6, 5), depths=(1, 0, 0, 0), groups=(16, 32)
    )
    optimizers = net_aux_optimizer(net, {"net": {"type": "Adam", "lr": 1e-3}, "aux": {"type": "Adam", "lr": 1e-1}})
    criterion, losses, auxiliary = RateDistortionLoss(lmbda=0.01), [], []
    for _ in range(12):
        for x in batches:
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            out = criterion(net(x), x)
            out["loss"].backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizers["net"].step()
            aux = net.aux_loss()
            aux.backward()
            optimizers["aux"].step()
            losses.append(float(out["loss"].detach()))
            auxiliary.append(float(aux.detach()))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]) and auxiliary[-1] < auxiliary[0]
    again = type(net)(N=3, M=48, dims=(24, 48, 48, 48, 6, 5), depths=(1, 0, 0, 0), groups=(16, 32))
    again.load_state_dict(torch.nn.DataParallel(net).state_dict())
    states = net_aux_optimizer(again, {"net": {"type": "Adam", "lr": 1e-3}, "aux": {"type": "Adam", "lr": 1e-1}})
    for name, optimizer in states.items():
        optimizer.load_state_dict(optimizers[name].state_dict())


@pytest.mark.slow
def test_the_command(ours: Any) -> None:
    command = [sys.executable, "-m", "lalic.compressai"]
    done = subprocess.run([*command, "train"], capture_output=True, text=True)
    assert done.returncode == 1 and "usage: python -m lalic.compressai {eval_model,update_model}" in done.stderr
    done = subprocess.run([*command, "eval_model", "checkpoint", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "lalic-slim" in done.stdout
