"""Whole runs in other processes: one that is killed, two that train together, and the command."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from child import QUALITIES, recipe_for
from tiny_run import tiny_model

import lalic
from lalic.cli import main
from lalic.config import SLIM
from lalic.errors import LalicError
from lalic.nn import checkpoints
from lalic.nn.noise import Share
from lalic.train import Recipe, train
from lalic.train.data import Crops
from lalic.train.loop import Log, Trainer

CHILD = Path(__file__).with_name("child.py")
ROOT = CHILD.parents[2]
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
SMALL = {
    "N": 3, "M": 8, "dims": [48, 9, 8, 8, 6, 5], "depths": [1, 0, 0, 0], "groups": [3, 5], "aggregation_widths": [6],
    "context_width": 9,
}  # fmt: skip
ENVIRONMENT = {**ALONE, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


def start(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *launcher, str(CHILD), *map(str, words)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes]) -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out.decode()[-3000:]


def whole_run(pictures: Path, folder: Path, steps: int, dtype: torch.dtype = torch.float32) -> Trainer:
    recipe = recipe_for(steps)
    crops = Crops([pictures], recipe.patch, recipe.batch, recipe.seed)
    trainer = Trainer(tiny_model(QUALITIES).to(dtype), crops, recipe, folder)
    trainer.run(every=2, save_every=10, held_out=1)
    return trainer


def test_a_killed_process_resumed_equals_one_that_was_not(pictures, tmp_path, one_thread):
    steps, last = 60, tmp_path / "parts" / "last.pt"
    process = start(tmp_path / "parts", pictures, steps, "float32")
    deadline = time.monotonic() + 240
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # some steps after the checkpoint
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    killed_at = checkpoints.read(last)["step"]
    assert 0 < killed_at < steps
    finish(start(tmp_path / "parts", pictures, steps, "float32"))

    whole = whole_run(pictures, tmp_path / "whole", steps)
    found = checkpoints.read(last)
    assert found["step"] == steps
    for name, value in whole.model.state_dict().items():
        assert torch.equal(found["state_dict"][name], value), name
    assert all(torch.equal(a, b) for a, b in zip(found["average"], whole.average, strict=True))
    weights = [(tmp_path / part / "weights.safetensors").read_bytes() for part in ("whole", "parts")]
    assert weights[0] == weights[1]
    rows = [list(csv.DictReader((tmp_path / part / "log.csv").open())) for part in ("whole", "parts")]
    for row in [*rows[0], *rows[1]]:
        del row["images_per_s"]
    assert rows[0] == rows[1] and len(rows[0]) == steps // 2


def test_two_processes_equal_one_with_the_whole_batch(pictures, tmp_path, one_thread):
    """In float64, where only the order of sums differs: 1e-9 after six steps of a size of 1e-3."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    finish(start(tmp_path / "two", pictures, 6, "float64", launcher=launcher))
    one = whole_run(pictures, tmp_path / "one", 6, torch.float64)
    found = checkpoints.read(tmp_path / "two" / "last.pt")
    before = tiny_model(QUALITIES).double().state_dict()
    moved = 0.0
    for name, value in one.model.state_dict().items():
        if value.is_floating_point() and value.numel():
            torch.testing.assert_close(found["state_dict"][name], value, rtol=0, atol=1e-9, msg=name)
            moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-3
    rows = [list(csv.DictReader((tmp_path / part / "log.csv").open())) for part in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        for name in ("loss", "bpp", "mse", "aux", "gradient"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=2e-5)  # logged to five places


def test_a_batch_must_be_shared_evenly(pictures, tmp_path):
    recipe = recipe_for(2)
    crops = Crops([pictures], 64, 4, 1)
    with pytest.raises(LalicError, match=r"multiple of 3, shared by 3 processes$"):
        Trainer(tiny_model(), crops, recipe, tmp_path, share=Share(0, 3))
    with pytest.raises(LalicError, match="multiple of 8, shared by 2 processes, a quarter as many in large crops"):
        Trainer(tiny_model(), crops, replace(recipe, batch=4, large=2), tmp_path, share=Share(0, 2))


def test_the_command_trains_resumes_and_starts_from_weights(pictures, tmp_path, capsys, one_thread):
    words = ["train", str(pictures), "--batch", "2", "--patch", "64", "--threads", "1", "--log-every", "1"]
    first = [*words, "-o", str(tmp_path / "a"), "--qualities", "0", "--schedule", "trapezoid", "--decay", "0.5"]
    assert main([*first, "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "step 2 " in out and "weights: " in out and "minutes_left" in out
    assert main([*first, "--steps", "3"]) == 0  # in the warm-up, so that the end may change
    assert "resumed at step 2" in capsys.readouterr().out
    weights = str(tmp_path / "a" / "weights.safetensors")
    second = [*words, "-o", str(tmp_path / "b"), "--init", weights, "--qualities", "2", "--steps", "1"]
    assert main([*second, "--optimizer", "soap", "--bf16"]) == 0
    model = lalic.load_checkpoint(tmp_path / "b" / "weights.safetensors")
    assert model.config.name == "slim" and model.config.qualities == 2
    columns = (tmp_path / "b" / "log.csv").read_text().splitlines()[0].split(",")
    assert {"held_out_bpp_50", "held_out_psnr_90"} <= set(columns)


def test_train_from_python_resumes(pictures, tmp_path, capsys, one_thread):
    """Plain arguments, a `Run` as result, and `log` gets all messages."""
    heard: list[str] = []
    recipe = Recipe(batch=2, patch=64, steps=1, schedule="trapezoid", decay=0.5)
    model = replace(SLIM, **{key: tuple(v) if isinstance(v, list) else v for key, v in SMALL.items()})
    first = train(pictures, tmp_path / "a", recipe, model, qualities=0, log_every=1, log=heard.append)
    assert (first.step, first.resumed_at, first.weights) == (1, None, tmp_path / "a" / "weights.safetensors")
    assert first.last_row["step"] == 1 and first.last_row["held_out_bpp"] > 0
    assert heard[0].startswith("custom: 4 pictures, 1 steps; Recipe(") and heard[-1].startswith("weights: ")
    assert lalic.load_checkpoint(first.weights).config.qualities == 0
    second = train([pictures], str(tmp_path / "a"), replace(recipe, steps=2), model, qualities=0, log=None)
    assert (second.step, second.resumed_at) == (2, 1) and second.last_row["step"] == 2
    third = train(pictures, tmp_path / "a", replace(recipe, steps=2), model, qualities=0, log=None)
    assert (third.step, third.resumed_at, third.last_row) == (2, 2, {})
    assert capsys.readouterr().out == ""
    for changes, message in (
        ({"model": "large"}, "model: expected slim, full, init or a JSON file, got 'large'"),
        ({"model": "init"}, "model is init, .* expected one to start from"),
        ({"log_every": 0}, "log_every: expected at least 1, got 0"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ):
        with pytest.raises(LalicError, match=message):
            train(pictures, tmp_path / "b", **changes)
    assert not (tmp_path / "b").exists()


def test_the_command_takes_other_shapes_and_starts_them_linearly(pictures, tmp_path, capsys, one_thread):
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SMALL))
    words = ["train", str(pictures), "--patch", "64", "--preset", "slim", "--batch", "4", "--threads", "1"]
    words += ["-o", str(tmp_path / "a"), "--model", str(shape), "--steps", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("custom: 4 pictures, 1 steps; Recipe(")
    state = checkpoints.read(tmp_path / "a" / "last.pt")
    assert state["recipe"]["start"] == "linear" and state["config"]["kernels"] == (4, 2, 2, 1)
    # Rows of a principal component analysis of 4x4 blocks are orthogonal; one step of SOAP only measures.
    rows = state["state_dict"]["g_a.0.weight"].flatten(1)
    assert torch.equal(rows @ rows.T > 1e-3 * (rows @ rows.T).max(), torch.eye(48, dtype=torch.bool))
    wrong = {
        "{": "is no JSON file (Expecting",
        "[" * 100_000: "is no JSON file (",
        "[1]": "is list, expected an object with some of N, M, dims",
        '{"kernel": 4}': "has kernel, expected an object with some of N, M, dims",
        '{"M": 9}': "M: expected dims[3] = 256",
        '{"M": 256.0}': "M: expected a whole number, got 256.0",
        '{"kernels": 4}': "kernels: expected whole numbers, got 4",
        '{"kernels": [true, 4, 4, 1]}': "kernels: expected whole numbers, got (True, 4, 4, 1)",
        '{"aggregation_widths": [0], "N": 1}': "aggregation_widths: expected positive numbers",
    }
    for text, reason in wrong.items():
        shape.write_text(text)
        assert main([*words[:-3], str(shape)]) == 2
        assert reason in capsys.readouterr().err
    assert main([*words[:-3], "absent.json"]) != 0
    assert "model: expected slim, full, init or a JSON file, got 'absent.json'" in capsys.readouterr().err


def test_a_start_that_cannot_be_is_refused_before_anything_is_done(tmp_path, capsys):
    words = ["train", str(tmp_path / "absent"), "-o", str(tmp_path / "a"), "--preset", "slim"]
    for more, reason in (
        (
            ["--model", "full"],
            "start: linear needs kernels that do not overlap (1, 2, 4, 8), but the model has (5, 3, 3",
        ),
        (["--init", str(tmp_path), "--start", "linear"], "start: expected random beside init"),
        (["--metric", "ms-ssim"], "--start: linear is for the metric mse"),
        (["-o", __file__], "test_runs.py: is a file, expected a folder"),
        (["--qualities", "1"], "qualities: expected 0 for no gains, or at least 2 anchors, got 1"),
        (["--batch", "6"], "--batch: expected a multiple of 4 with large crops (large 4), got 6"),
    ):
        assert main([*words, *more]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_log_is_rewound_to_the_checkpoint(tmp_path):
    log = Log(tmp_path, ["step", "loss"])
    for step in (2, 4, 6):
        log.add({"step": step, "loss": step / 2, "minutes_left": 1.0})
    with log.path.open("a") as file:
        file.write("8,")  # killed while writing
    log = Log(tmp_path, ["step", "loss"], 4)
    log.add({"step": 6, "loss": 9.0})
    assert log.path.read_text() == "step,loss\n2,1.0\n4,2.0\n6,9.0\n"


def test_tensorboard_is_written_or_missed(tmp_path, monkeypatch):
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(LalicError, match="needs the package tensorboard"):
            Log(tmp_path, ["step", "loss"], tensorboard=True)
        return
    log = Log(tmp_path, ["step", "loss"], tensorboard=True)
    log.add({"step": 2, "loss": 0.5})
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 1 and b"loss" in files[0].read_bytes()
