"""`lalic web` before it serves: what is missing or taken is one sentence. Other commands do not load its library."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from tiny import noise

from lalic import cli
from lalic.web import cli as page


@pytest.mark.parametrize("name", ["gradio", "uvicorn"])
def test_a_missing_extra_is_one_sentence(monkeypatch, capfd, name):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda wanted: None if wanted == name else object())
    assert cli.main(["web"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err == f'lalic: lalic web needs {name}, which is not installed (pip install "lalic[web]")\n'


@pytest.mark.parametrize(
    "words", [["--port", "x"], ["--port", "70000"], ["--port", "-1"], ["--max-pixels", "0"], ["a.png"]]
)
def test_a_wrong_request_is_one_sentence(capfd, words):
    assert cli.main(["web", *words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1


def test_a_place_that_is_taken_is_one_sentence(monkeypatch, capfd):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["web", "--port", str(port), "--no-browser"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"lalic: the page cannot be served at 127.0.0.1:{port} (") and "--port" in err
    assert cli.main(["web", "--host", "203.0.113.7", "--no-browser"]) == 2
    assert "203.0.113.7" in capfd.readouterr().err
    assert cli.main(["web", "--device", "tpu"]) == 2
    assert "expected cpu, cuda or cuda:N" in capfd.readouterr().err


def test_other_commands_do_not_load_it(tmp_path):
    noise().save(tmp_path / "a.png")
    check = (
        "import sys; from lalic.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 9 * bool({'gradio', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, "compress", "a.png"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
