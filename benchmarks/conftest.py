"""Options of `pytest benchmarks`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import Setting


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where operations run")
    parser.addoption("--quick", action="store_true", help="tiny inputs, to see that everything runs")


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> Setting:
    device = torch.device(request.config.getoption("device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("device is 'cuda', but torch finds no CUDA device")
    return Setting(device, quick=request.config.getoption("quick"))
