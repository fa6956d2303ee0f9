"""The model against the published implementation's outputs, and against itself: state dict, forward, streams."""

from __future__ import annotations

import copy
import gzip
import importlib
from pathlib import Path

import pytest
import shapes
import torch
from shapes import EACH_SHAPE, small

import lalic
from lalic.coder import Stream
from lalic.coder.host import symbols_of
from lalic.config import FULL, SLIM, Config
from lalic.errors import BitstreamError, CheckpointError
from lalic.model import LALIC
from lalic.nn import checkpoints

GOLDEN = Path(__file__).parent.parent / "golden"
CTOR = {"N": 12, "M": 32, "dims": [16, 24, 32, 32, 32, 24], "depths": [1, 1, 1, 1], "groups": [2, 2, 4, 8, 16]}
# float32 sums in another order, through a dozen layers: 3e-7 as measured; users of checkpoints are promised 1e-4.
TOLERANCE = 1e-4


golden = pytest.fixture(scope="module")(shapes.golden)
weights = pytest.fixture(scope="module")(shapes.published_weights)
model = pytest.fixture(scope="module")(shapes.published_model)


def test_full_state_dict_is_the_published_one():
    with torch.device("meta"):
        ours = LALIC().state_dict()
    lines = gzip.decompress((GOLDEN / "published_keys.txt.gz").read_bytes()).decode().splitlines()
    theirs = [line.split(" ") for line in lines]
    assert list(ours) == [name for name, *_ in theirs]
    for name, dtype, shape in theirs:
        assert str(ours[name].dtype) == f"torch.{dtype}", name
        assert ",".join(map(str, ours[name].shape)) == shape, name


def test_slim_is_small():
    count = sum(p.numel() for n, p in lalic.slim(pretrained=False).named_parameters() if "conv5x5_reparam" not in n)
    assert count <= 12_000_000  # of two bytes each in the file that ships


@pytest.mark.parametrize("size", ["64", "128"])
def test_forward_matches_published(golden, model, size):
    with torch.no_grad():
        out = model(golden[f"{size}/x"])
    assert (out["x_hat"][:, :, ::2, ::2] - golden[f"{size}/x_hat"]).abs().max() < TOLERANCE
    for name in ("y", "z"):
        assert (out["likelihoods"][name] - golden[f"{size}/likelihoods/{name}"]).abs().max() < TOLERANCE


# Exact arithmetic has factors of 13 bits: relative errors of some 1e-4, at latents up to 20; of a thousand symbols and
# scales a few may be so close to an edge that they are rounded the other way.
@pytest.mark.parametrize(("entropy", "tolerance", "few"), [("float", TOLERANCE, 0.0), ("exact", 1e-2, 0.01)])
@pytest.mark.parametrize("size", ["64", "128"])
def test_symbols_and_sizes_match_published(golden, weights, size, entropy, tolerance, few):
    x = golden[f"{size}/x"]
    model = LALIC.from_state_dict(weights)
    model.entropy = entropy
    (z, _), passes, y_hat = symbols_of(model, model.latents(x), None)
    for got, name in zip(zip(*passes, strict=True), ("symbols", "indexes"), strict=True):
        away = (torch.cat([t[0] for t in got]) - golden[f"{size}/{name}"].int()).abs()
        assert away.max() <= (few > 0) and (away != 0).float().mean() <= few, name
    assert torch.equal(z[0], golden[f"{size}/z_symbols"].int())
    assert (y_hat - golden[f"{size}/y_hat"]).abs().max() < tolerance
    lengths = [len(s[0]) for s in model.compress(x)["strings"]]
    published = golden[f"{size}/string_lengths"].tolist()
    assert len(lengths) == len(published) == 11
    # Half a percent, and four bytes for a stream's lane; the published coder flushes 4 to 8 bytes a stream itself.
    assert sum(lengths) <= sum(published) * 1.005 + 4 * 11


def test_large_keys_and_negative_decays_in_float32_follow_float64(weights, golden, monkeypatch):
    """Values that a trained model may have: negative decays, keys beyond 100, two pictures at once."""
    hard = dict(weights)
    for name, value in weights.items():
        if name.endswith("att.decay"):
            hard[name] = -value.abs() - 0.5
        elif name.endswith("att.key.weight"):
            hard[name] = value * 60
    x = torch.cat([golden["128/x"], golden["128/x"].flip(2)])
    model = LALIC.from_state_dict(hard)
    largest, path = [], importlib.import_module("lalic_kernels.mix.torch_path")
    inner = path.biwkv

    def watched(decay, boost, kvr, *others, **options):
        largest.append(float(kvr[0].abs().max()))
        return inner(decay, boost, kvr, *others, **options)

    monkeypatch.setattr(path, "biwkv", watched)
    with torch.no_grad():
        out, exact = model(x), copy.deepcopy(model).double()(x.double())
    assert max(largest) > 100
    # Keys of 100 carry an absolute error of 1e-5, which their exponentials turn into a relative one; then a few layers.
    assert (out["x_hat"] - exact["x_hat"]).abs().max() < TOLERANCE
    for name in ("y", "z"):
        assert (out["likelihoods"][name] - exact["likelihoods"][name]).abs().max() < TOLERANCE


def test_published_nesting_and_round_trip(model, golden):
    x = torch.cat([golden["64/x"], golden["64/x"].flip(3)])
    out = model.compress(x)
    assert [len(s) for s in out["strings"]] == [2] * 11
    assert out["shape"]["hyper"] == (1, 1)
    assert out["shape"]["y"] == [(g, 4, 4) for g in CTOR["groups"]]
    x_hat = model.decompress(out["strings"], out["shape"])["x_hat"]
    assert torch.equal(x_hat, model.g_s(out["y_hat"]).clamp(0, 1))
    assert x_hat.min() >= 0 and x_hat.max() <= 1


@EACH_SHAPE
def test_sections_round_trip_and_refusal(shape):
    model = small(shape)
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    sections = model.encode(x)
    x_hat = model.decode(sections, 64, 128)
    assert torch.equal(x_hat, model.g_s(model.compress(x)["y_hat"]).clamp(0, 1))
    with pytest.raises(BitstreamError, match="not the encoder's"):
        model.decode(Stream(sections.data, sections.checksum ^ 1), 64, 128)
    with pytest.raises(BitstreamError, match="cannot be decoded"):
        model.decode(Stream(sections.data[:-3], sections.checksum), 64, 128)
    with pytest.raises(ValueError, match="height, width"):
        model.decode(sections, 64, 100)


@EACH_SHAPE
def test_forward_in_eval_equals_compress(shape):
    model = small(shape)
    model.entropy = "float"
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        out = model(x)
    assert torch.allclose(out["x_hat"], model.g_s(model.compress(x)["y_hat"]), atol=1e-5)
    assert out["likelihoods"]["y"].shape == (2, 11, 4, 4)
    assert out["likelihoods"]["z"].shape == (2, 5, 1, 1)


def test_state_dict_round_trips_with_published_names(model, weights, golden, tmp_path):
    renamed = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (("_matrix", "matrices."), ("_bias", "biases."), ("_factor", "factors.")):
            name = name.replace(f"entropy_bottleneck.{ours}", f"entropy_bottleneck.{theirs}")
        renamed[f"module.{name}"] = value
    torch.save({"epoch": 3, "state_dict": renamed, "loss": 1.0}, tmp_path / "published.pth")
    again = lalic.load_checkpoint(tmp_path / "published.pth")
    assert again.weights_hash() == model.weights_hash()
    # The format of torch before 1.6, which cannot be mapped into memory.
    torch.save(renamed, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert lalic.load_checkpoint(tmp_path / "old.pth").weights_hash() == model.weights_hash()
    checkpoints.save_weights(small(), tmp_path / "tiny.safetensors")
    assert lalic.load_checkpoint(tmp_path / "tiny.safetensors").config == small().config
    again = LALIC(**CTOR)
    again.load_state_dict(weights)
    again.update()
    assert again.weights_hash() == model.weights_hash()


def test_stale_folded_kernels_are_ignored(weights, model):
    full = dict(model.state_dict())
    stale = {n: torch.randn_like(v) if "conv5x5_reparam" in n else v for n, v in full.items()}
    again = LALIC.from_state_dict(stale)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), full.values(), strict=True))
    again.g_a[1].att.omni_shift.alpha.data += 1
    key = "g_a.1.att.omni_shift.conv5x5_reparam.weight"
    assert not torch.equal(again.state_dict()[key], full[key])


def test_loading_runs_no_code_and_explains(tmp_path, weights):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": weights, "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        lalic.load_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(CheckpointError, match="no such file"):
        lalic.load_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="cannot be read"):
        lalic.load_checkpoint(tmp_path / "noise.pth")
    missing = {n: v for n, v in weights.items() if n != "g_s.0.weight"}
    with pytest.raises(CheckpointError, match=r"g_s\.0\.weight"):
        LALIC.from_state_dict(missing)
    with pytest.raises(CheckpointError, match="not a LALIC state dict"):
        LALIC.from_state_dict({"conv.weight": torch.zeros(3)})


def test_bad_arguments_name_themselves():
    with pytest.raises(ValueError, match="groups"):
        LALIC(4, 8, (4, 4, 4, 8, 4, 4), (0, 0, 0, 0), (3, 3))
    with pytest.raises(ValueError, match=r"dims\[3\]"):
        LALIC(4, 9, (4, 4, 4, 8, 4, 4), (0, 0, 0, 0), (4, 5))
    with pytest.raises(ValueError, match="depths"):
        LALIC(4, 8, (4, 4, 4, 8, 4, 4), (0, 0, 0), (4, 4))
    for width in (-1, 8):
        with pytest.raises(ValueError, match="context_width"):
            LALIC(4, 8, (4, 4, 4, 8, 4, 4), (0, 0, 0, 0), (4, 4), context_width=width)
    for kernels in ((4, 2, 2), (4, 4, 2, 1), (7, 2, 2, 1), (0, 2, 2, 4)):
        with pytest.raises(ValueError, match="kernels: expected"):
            LALIC(4, 8, (4, 4, 4, 8, 4, 4), (0, 0, 0, 0), (4, 4), kernels=kernels)
    for widths in ((7,), (8, 0), (12, 10)):
        with pytest.raises(ValueError, match="aggregation_widths: expected positive numbers, the smallest 2 N = 8"):
            LALIC(4, 8, (4, 4, 4, 8, 4, 4), (0, 0, 0, 0), (4, 4), aggregation_widths=widths)
    model = small()
    for bad in (torch.rand(1, 3, 64, 100), torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64)):
        with pytest.raises(ValueError, match="x: expected"):
            model(bad)
    with pytest.raises(ValueError, match="floating"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="cannot be coded"):
        model.compress(torch.full((1, 3, 64, 64), float("nan")))
    with pytest.raises(ValueError, match="strings"):
        model.decompress([[b""]], {"hyper": (1, 1)})
    fresh = LALIC(3, 11, (4, 6, 8, 11, 6, 5), (1, 0, 1, 1), (3, 1, 7)).eval()
    with pytest.raises(ValueError, match=r"update\(\)"):
        fresh.compress(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        SLIM,
        Config("custom", 12, 32, (16, 24, 32, 32, 32, 24), (1, 1, 1, 1), (2, 2, 4, 8, 16)),
        Config("custom", 1, 7, (4, 6, 8, 7, 6, 5), (0, 2, 1, 0), (1, 1, 5), 3, 2),
        Config("custom", 40, 24, (8, 8, 8, 24, 8, 8), (1, 1, 1, 1), (24,)),
        Config("custom", 6, 32, (16, 24, 32, 32, 32, 24), (1, 1, 0, 1), (2, 6, 8, 16), 1, 2, 3, 20),
        Config("custom", 6, 32, (16, 24, 32, 32, 32, 24), (1, 0, 2, 1), (2, 30), 1, 2, 3, 20, (8, 2, 1, 1), (13, 12)),
        Config("custom", 128, 32, (16, 24, 32, 32, 32, 24), (1, 1, 1, 1), (2, 30), 1, 2, 0, 0, (1, 3, 2, 4)),
    ],
)
def test_configuration_is_read_off_the_shapes(config):
    with torch.device("meta"):
        state = LALIC.from_config(config).state_dict()
    found = checkpoints.infer_config(state)
    with torch.device("meta"):
        again = LALIC.from_config(found).state_dict()
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in state.items()}
    assert found.name == config.name
