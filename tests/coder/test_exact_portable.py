"""A file decodes to the same symbols and means with any instructions and threads; floats do not."""

from __future__ import annotations

import pytest
import torch
from shapes import golden, published_model
from tiny import astronaut

import lalic
from benchmarks import portability
from lalic import images
from lalic.model import LALIC


def published() -> tuple[LALIC, list[torch.Tensor]]:
    x = golden()["128/x"]
    return published_model(), [x, x.flip(2), x.flip(3), x.transpose(2, 3)]


def slim() -> tuple[LALIC, list[torch.Tensor]]:
    x = images.to_tensor(astronaut())
    return lalic.slim(), [x[:, :, 64 * i : 64 * i + 64, 128 : 128 + 128] for i in range(4)]


def settings_here() -> list[dict[str, str]]:
    """The settings whose instructions this processor has: at least three."""
    found = [setting for setting in portability.FEW if portability.runs_here(setting)]
    assert len(found) >= 3
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{model: (the encoder's hashes, [the hashes of each setting's process])}."""
    folder = tmp_path_factory.mktemp("portable")
    expected = {}
    with torch.inference_mode():
        for make in (slim, published):
            model, pictures = make()
            named = ((str(i), x.contiguous()) for i, x in enumerate(pictures))
            expected[make.__name__] = portability.prepare(folder / make.__name__, model, named)
    got = [portability.in_another_process(folder, setting) for setting in settings_here()]
    return {name: (hashes, [one[name] for one in got]) for name, hashes in expected.items()}


@pytest.mark.parametrize("name", ["slim", "published"])
def test_symbols_and_means_are_the_encoders_under_every_setting(results, name: str) -> None:
    expected, found = results[name]
    assert len({tuple(hashes) for hashes in expected["exact"].values()}) == 4  # four different pictures
    for setting, got in zip(settings_here(), found, strict=True):
        assert got["exact"] == expected["exact"], setting
        assert got["batch"]["exact"] == {picture: latents for picture, (_, latents) in expected["exact"].items()}, (
            setting
        )


def test_the_float_model_fails_the_same_test(results) -> None:
    """Otherwise the settings would have no effect."""
    differs = [got["float"] != expected["float"] for expected, found in results.values() for got in found]
    in_batches = [
        got["batch"]["float"] != {picture: latents for picture, (_, latents) in expected["float"].items()}
        for expected, found in results.values()
        for got in found
    ]
    assert any(differs) and any(in_batches)
