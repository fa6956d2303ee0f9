import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # fake_model, shared with tests/cli

from fake_model import FakeModel


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()
