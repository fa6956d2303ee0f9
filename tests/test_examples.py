"""The examples run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
WRITES = {  # files that a script says it writes
    "compress_folder.py": "compressed/astronaut.lalic",
    "evaluate_checkpoint.py": "evaluation/psnr.png",
    "train_one_lambda.py": "one_lambda.pth",
}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(name: str, tmp_path: Path) -> None:
    if name == "evaluate_checkpoint.py":
        pytest.importorskip("bjontegaard", reason="needs bjontegaard")
        pytest.importorskip("matplotlib", reason="needs matplotlib")
    done = run([sys.executable, str(EXAMPLES / name)], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    if name in WRITES:
        assert (tmp_path / WRITES[name]).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nbmake", reason="needs nbmake")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    # results.ipynb looks for the repository above the folder that it runs in, others write files there.
    notebook = EXAMPLES / name
    if name != "results.ipynb":
        notebook = tmp_path / name
        notebook.write_text((EXAMPLES / name).read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = run([*command, "--nbmake", "--nbmake-timeout=600", str(notebook)], notebook.parent)
    assert done.returncode == 0, done.stdout[-3000:]


def test_notebooks_are_committed_without_results() -> None:
    for name in NOTEBOOKS:
        assert '"outputs": []' in (EXAMPLES / name).read_text()
        assert not re.search(r'"execution_count": \d', (EXAMPLES / name).read_text())


def test_the_list_of_examples_is_whole() -> None:
    listed = set(re.findall(r"`(\w+\.(?:py|ipynb))`", (EXAMPLES / "README.md").read_text()))
    assert listed == {*SCRIPTS, *NOTEBOOKS}
