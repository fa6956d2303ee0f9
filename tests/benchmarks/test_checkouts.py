"""Other people's checkouts are known by their files, run apart, and say why when they cannot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Setting
from benchmarks.paper import complexity, scaling
from benchmarks.peers import checkouts, worker

PYTHON = Path(sys.executable)
QUICK = Setting(torch.device("cpu"), quick=True)
SIZE = (64, 128)

# A codec in the calling form of the checkout that it pretends to be.
FAKE = """
import torch
class TCM(torch.nn.Module):
    def __init__(self, config, head_dim, drop_path_rate, N, M):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        print("words of its own")
    def update(self):
        pass
    def compress(self, x):
        self.x = x
        return {"strings": [[b"abcd"], [b"ab"]], "shape": x.shape[2:]}
    def decompress(self, strings, shape):
        return {"x_hat": self.x}
"""


def checkout(folder: Path, source: str) -> Path:
    (folder / "models").mkdir()
    (folder / "models" / "tcm.py").write_text(source)
    (folder / "models" / "__init__.py").write_text("from .tcm import TCM\n")
    return folder


@pytest.mark.parametrize(
    ("files", "name", "root"),
    [
        (("models/tcm.py",), "TCM", "."),
        (("models/flic.py", "models/tca.py"), "FTIC", "."),
        (("MLIC++/models/mlicpp.py", "README.md"), "MLIC++", "MLIC++"),
        (("models/mlicpp.py",), "MLIC++", "."),
        (("src/models/image_model.py", "src/layers/cuda_inference.py"), "DCVC-RT intra", "."),
        (("src/models/image_model.py", "src/models/video_model_ht.py"), "DCVC-UF intra", "."),
    ],
)
def test_a_checkout_is_known_by_its_files(tmp_path: Path, files: tuple[str, ...], name: str, root: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert checkouts.recognise(tmp_path) == (name, tmp_path / root)
    assert name in worker.NETWORKS


def test_rows_of_a_checkout(tmp_path: Path) -> None:
    rows = checkouts.measured(str(checkout(tmp_path, FAKE)), PYTHON, (64, 128), 2, QUICK)
    assert [(row["model"], row["direction"]) for row in rows] == [
        (f"TCM, N = {n}", direction) for n in (64, 128) for direction in ("encode", "decode")
    ]
    for row in rows:
        assert row["bits per pixel"] == 8 * 6 / (64 * 128) and row["seconds"] > 0 and row["repeats"] == 2
    assert "models" not in sys.modules or "TCM" not in vars(sys.modules["models"])


def test_rows_of_table_1(tmp_path: Path) -> None:
    options = argparse.Namespace(peers=[str(checkout(tmp_path, FAKE)), str(tmp_path / "models")], peer_python=PYTHON)
    small, large, nothing = complexity.peers(options, SIZE, QUICK)
    assert (small["model"], large["model"]) == ("TCM, N = 64", "TCM, N = 128")
    assert small["parameters"] == 3 and small["encode"]["seconds"] > 0 and small["decode"]["seconds"] > 0
    assert "operations" not in small  # it has no forward pass
    assert nothing["model"] == "models" and nothing["skipped"].startswith("the folder is no checkout")


def test_rows_of_figure_10(tmp_path: Path) -> None:
    """A network without memory, counted in a process of its own, by its convolution; then it runs."""
    source = FAKE.replace("torch.nn.Parameter(torch.zeros(3))", "torch.nn.Conv2d(3, N, 1)")
    source += "    def forward(self, x):\n        return self.weight(x)\n"
    paths, sizes = [str(checkout(tmp_path, source)), str(tmp_path / "models")], [(256, 256), (256, 320)]
    rows = [row for path in paths for row in checkouts.counted(path, PYTHON, sizes)]
    found = [(row["model"], row["pixels"], row["operations"]["layers"]) for row in rows[:4]]
    # Widths are filled up to multiples of 128.
    expected = [
        (f"TCM, N = {n}", 256 * w, 3 * n * 256 * filled) for n in (64, 128) for w, filled in ((256, 256), (320, 384))
    ]
    assert found == expected
    assert rows[4]["model"] == "models" and "is no checkout of" in rows[4]["skipped"]
    assert not scaling.fits(rows, scaling.COUNTS)  # two sizes make no line
    (row, _) = complexity.peers(argparse.Namespace(peers=paths[:1], peer_python=PYTHON), SIZE, QUICK)
    assert row["operations"]["layers"] == 3 * 64 * 256 * 256 and row["parameters"] == 64 * 4
    passed = checkouts.passed(paths[0], PYTHON, sizes, torch.device("cpu"), longest=60.0)
    assert [(row["model"], row["pixels"]) for row in passed] == [(row["model"], row["pixels"]) for row in rows[:4]]
    assert all(row["seconds"] > 0 and row["peak bytes"] is not None for row in passed)


def test_a_network_that_cannot_be_counted_says_why(tmp_path: Path) -> None:
    (row,) = checkouts.counted(str(checkout(tmp_path, FAKE)), PYTHON, [(64, 64)])
    assert row["model"] == "TCM, N = 64" and "forward" in row["skipped"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "does not import here: No module named 'a_module_that_is_not_there'"),
        (FAKE.replace('"x_hat": self.x', '"x_hat": self.x[..., 1:]'), "decodes to a picture of shape (1, 3, 64, 127)"),
        (FAKE.replace("return {\"x_hat\": self.x}", "raise KeyError"), "KeyError: no message"),
        (FAKE.replace("pass", "import os; os._exit(7)"), "ended with code 7: no message"),
    ],
)  # fmt: skip
def test_what_cannot_run_says_why(tmp_path: Path, source: str, reason: str) -> None:
    rows = checkouts.measured(str(checkout(tmp_path, source)), PYTHON, (64, 128), 1, QUICK)
    assert reason in rows[-1]["skipped"]


def test_what_needs_cuda_says_so() -> None:
    device = torch.device("cpu")
    for name in ("MLIC++", "DCVC-RT intra", "DCVC-UF intra"):
        with pytest.raises(worker.CannotRun, match="CUDA"):
            worker.codecs(name, device)


def test_a_folder_that_is_nothing(tmp_path: Path) -> None:
    (row,) = checkouts.measured(str(tmp_path), PYTHON, (64, 128), 1, QUICK)
    assert row["model"] == tmp_path.name and "is no checkout of TCM, FTIC, MLIC++" in row["skipped"]


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    (row,) = checkouts.measured(str(checkout(tmp_path, FAKE)), tmp_path / "python", (64, 128), 1, QUICK)
    assert row["skipped"] == "--peer-python does not start: No such file or directory"
