"""The packages in a zip file, as zipapp and Spark's --py-files have them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import importlib, lalic
assert ".zip" in lalic.__file__ and importlib.import_module("lalic_kernels.biwkv.gpu").TABLE
from PIL import Image
print(lalic.decode(lalic.encode(Image.new("RGB", (64, 64)))).size)
"""


@pytest.mark.slow
def test_packages_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lalic.zip", "w") as archive:
        for package in ("lalic", "lalic_kernels"):
            for path in (ROOT / package).rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(ROOT))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(tmp_path / "lalic.zip"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", CODE]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "(64, 64)\n"
