"""`train`, and the training loop: optimiser steps, moving average, log, checkpoints to resume from."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import Tensor, nn

from lalic.codec import resolve_device
from lalic.config import Config
from lalic.errors import CheckpointError, LalicError
from lalic.files import Name, check_folder, write_atomic
from lalic.memory import KEEP_MIB
from lalic.metrics import MIN_SIDE
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.noise import ALL, Share
from lalic.train.data import Crops
from lalic.train.distributed import mean_over, parallel, process_group
from lalic.train.objective import Objective, balances, draw_qualities, lambdas, psnr, rate_distortion
from lalic.train.optimisers import Soap
from lalic.train.recipe import Recipe, learning_rate
from lalic.train.start import BLOCKS, check_kernels, configuration, init_from, linear_start, start_gains, start_weights
from lalic_kernels.layers import derived

HELD_OUT_QUALITIES = (10.0, 30.0, 50.0, 70.0, 90.0)


def _weights(model: LALIC) -> list[Tensor]:
    """The parameters of the main optimiser and of the moving average: all with gradients but the prior's quantiles."""
    without = derived(model)
    named = model.named_parameters()
    return [p for n, p in named if not n.endswith("quantiles") and n not in without and p.requires_grad]


@dataclass(frozen=True)
class Run:
    """Result of a call of `train`.

    folder: of the run. weights: the file with the averaged weights. step: number of steps done. resumed_at: the step at
    which this call continued, None for a new run. last_row: the last row of the log that this call wrote; empty if
    there was nothing to do, and in all processes but the first.
    """

    folder: Path
    weights: Path
    step: int
    resumed_at: int | None
    last_row: dict[str, Any]


def train(
    data: Name | Sequence[Name],
    out: Name,
    recipe: Recipe | None = None,
    model: Name | Config = "slim",
    *,
    qualities: int | None = None,
    init: Name | None = None,
    device: str | torch.device | None = None,
    save_every: int = 500,
    log_every: int = 100,
    compiled: bool = False,
    tensorboard: bool = False,
    keep_mib: int = KEEP_MIB,
    log: Callable[[str], None] | None = print,
) -> Run:
    """Train a model. Called again with the same arguments, continue a run that was stopped, with the same result.

    data: folders, tar files or pictures. out: folder of the run. recipe: None for `Recipe()`; `lalic.train.preset` has
    others. model: "slim", "full", "init" or a JSON file (`lalic.train.start.configuration`), or a configuration.
    qualities: anchors of the gains, 0 for one lambda, None as the configuration. init: checkpoint to start from, which
    was trained with the recipe's lambda. device: None for the CPU; each process of torchrun takes one GPU. save_every,
    log_every: steps between checkpoints and between rows of the log. compiled: use `torch.compile`. tensorboard: write
    its files too. keep_mib: MiB of decoded pictures that each process keeps; others are decoded again. log: called with
    each row as text; None for no output.

    A picture that cannot be read is replaced by another one, and an ``ImageWarning`` names it.

    Raises ``LalicError`` for arguments that do not fit, ``ImageError`` for data without pictures, ``CheckpointError``
    for weights that do not fit and for a folder with a run of another model or recipe, ``FloatingPointError`` if the
    loss is not finite.

        >>> train("photos/", "run", preset("slim", steps=100_000)).weights
    """
    recipe = recipe if recipe is not None else Recipe()
    show = log if log is not None else lambda message: None
    folder = Path(out)
    check_folder(folder)
    for name, value, least in (("save_every", save_every, 1), ("log_every", log_every, 1), ("keep_mib", keep_mib, 0)):
        if value < least:
            raise LalicError(f"{name}: expected at least {least}, got {value}")
    config = model if isinstance(model, Config) else configuration(model, init)
    if qualities is not None:
        try:
            config = replace(config, qualities=qualities)
        except ValueError as error:
            raise LalicError(str(error)) from None
    if recipe.start == "linear":
        if init is not None:
            raise LalicError("start: expected random beside init, whose weights are not fresh, got linear")
        check_kernels(config)
    sources = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    with process_group(resolve_device(device)) as (share, process_device):
        torch.manual_seed(recipe.seed)
        network = LALIC.from_config(config)
        crops = Crops(sources, recipe.patch, recipe.batch, recipe.seed, shrink=recipe.shrink, keep_mib=keep_mib)
        start_weights(network)
        start_gains(network, recipe)
        if init is not None:
            init_from(network, init)
        elif recipe.start == "linear" and not (folder / "last.pt").exists():
            count = -(-BLOCKS * 16**2 // recipe.patch**2)
            linear_start(network, crops.first(count), recipe.lmbda)
        options: dict[str, Any] = {"compiled": compiled, "tensorboard": tensorboard, "show": show}
        trainer = Trainer(network, crops, recipe, folder, process_device, share=share, **options)
        resumed_at = trainer.step if trainer.resume() else None
        if share.number == 0:
            resumed = "" if resumed_at is None else f", resumed at step {resumed_at}"
            show(f"{network.config.name}: {len(crops)} pictures, {recipe.steps} steps{resumed}; {recipe}")
        trainer.run(every=log_every, save_every=save_every)
        if share.number == 0:
            show(f"weights: {folder / 'weights.safetensors'}")
    return Run(folder, folder / "weights.safetensors", trainer.step, resumed_at, trainer.last_row)


# The loop


class Trainer:
    """One run in a folder.

    The folder has ``last.pt`` to resume from, ``plateau.pt`` to continue from with more steps, ``weights.safetensors``
    to use, and ``log.csv``. Every process of a run has a Trainer; the first process writes.

    Args:
        share: this process's part of every batch. compiled: use `torch.compile` for the model and its loss.
        tensorboard: write its files too. show: called with each row of the log as text.
    """

    def __init__(
        self,
        model: LALIC,
        crops: Crops,
        recipe: Recipe,
        folder: Path,
        device: str | torch.device = "cpu",
        *,
        share: Share = ALL,
        compiled: bool = False,
        tensorboard: bool = False,
        show: Callable[[str], None] = print,
    ):
        least = (4 if recipe.large else 1) * share.parts
        if recipe.batch % least:
            quarter = ", a quarter as many in large crops" if recipe.large else ""
            raise LalicError(
                f"batch is {recipe.batch}, expected a multiple of {least}, shared by {share.parts} processes{quarter}"
            )
        self.device, self.share = torch.device(device), share
        model = model.to(self.device)
        model.share = share
        self.model, self.crops, self.recipe, self.folder = model, crops, recipe, folder
        quantiles = [p for n, p in model.named_parameters() if n.endswith("quantiles")]
        self.weights = _weights(model)
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "soap":
            self.optimizer = Soap(self.weights, recipe.lr, products=torch.bfloat16 if recipe.bf16 else None)
        else:
            self.optimizer = torch.optim.Adam(self.weights, recipe.lr)
        self.auxiliary = torch.optim.Adam(quantiles, lr=recipe.auxiliary_lr)
        objective: nn.Module = Objective(model, recipe.metric, recipe.bf16)
        if compiled:
            objective = cast(nn.Module, torch.compile(objective))
        self.objective = parallel(objective, share, self.device)
        self.average = [p.detach().clone() for p in self.weights]
        self.step = 0
        self._cutter = ThreadPoolExecutor(1)
        self._cut: dict[int, Future[Tensor]] = {}  # by step
        self._tensorboard, self._show = tensorboard, show
        self.last_row: dict[str, Any] = {}

    def update(self) -> dict[str, float]:
        """Do one optimiser step. Returns loss, rate and distortion of this process's part of the batch.

        Raises ``FloatingPointError`` if loss or gradient is not finite; the weights are then unchanged.
        """
        self.model.train()
        # Noise and qualities depend on the step only, so that a resumed run draws the same.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        x = self._batch().to(self.device, self.weights[0].dtype)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        parts = self.objective(x, *self._qualities(x.shape[0]))
        self.optimizer.zero_grad(set_to_none=True)
        self.auxiliary.zero_grad(set_to_none=True)
        (parts["loss"] + parts["aux"]).backward()
        parts["gradient"] = torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        # One transfer for all numbers: on a GPU each transfer waits for the whole step.
        numbers = dict(zip(parts, torch.stack([v.detach().double() for v in parts.values()]).tolist(), strict=True))
        if not all(math.isfinite(numbers[name]) for name in ("loss", "gradient")):
            raise FloatingPointError(
                f"loss {numbers['loss']}, gradient norm {numbers['gradient']} at step {self.step}: lower the learning "
                "rate, or start from trained weights"
            )
        self.optimizer.step()
        self.auxiliary.step()
        with torch.no_grad():
            # A smaller decay at first, so that the average forgets the random start.
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)
        self.step += 1
        return {**numbers, "psnr": psnr(numbers["mse"])}

    def _batch(self) -> Tensor:
        """This step's pictures. A thread begins to cut those of the next step."""
        for step in (self.step, self.step + 1):
            if step not in self._cut:
                large = self.recipe.large_crops(step)
                self._cut[step] = self._cutter.submit(self.crops.part, step, self.share, large)
        return self._cut.pop(self.step).result()

    def _qualities(self, count: int) -> tuple[Tensor | None, float | Tensor, float | Tensor]:
        """(qualities, lambdas, factors of the loss) of this process's samples; (None, lambda, 1) without gains."""
        if self.model.gains is None:
            return None, self.recipe.lmbda, 1.0
        qualities = draw_qualities(self.recipe, self.step, count * self.share.parts)
        quality = qualities[count * self.share.number :][:count].to(self.device)
        weights = lambdas(self.recipe, quality)
        return quality, weights, balances(self.recipe, weights)

    def averaged(self) -> LALIC:
        """A copy of the model with the averaged weights and new coding tables, in eval mode."""
        model = LALIC.from_config(self.model.config).to(self.device)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            torch._foreach_copy_(_weights(model), self.average)
        model.update(force=True)
        return model.eval()

    def evaluate(self, pictures: list[Tensor]) -> dict[str, float]:
        """Mean ``loss``, ``bpp`` (bits per pixel, estimated) and ``psnr`` (dB) of the averaged weights over pictures.

        pictures: (1, 3, H, W) each. With gains: means over `HELD_OUT_QUALITIES`, and ``bpp_q``, ``psnr_q`` at each.
        """
        model, recipe = self.averaged(), self.recipe
        figures: dict[str, float] = {}
        every: list[dict[str, float]] = []
        for quality in (None,) if model.gains is None else HELD_OUT_QUALITIES:
            weights = lambdas(recipe, torch.tensor([quality])) if quality else torch.tensor([recipe.lmbda])
            factors = balances(recipe, weights).to(self.device) if quality else 1.0
            found = []
            for picture in pictures:
                x = picture.to(self.device)
                with torch.no_grad():
                    out = model(x, quality)
                    out["x_hat"].clamp_(0, 1)
                    parts = rate_distortion(out, x, weights.to(self.device), factors, recipe.metric)
                found.append(
                    {"loss": float(parts["loss"]), "bpp": float(parts["bpp"]), "psnr": psnr(float(parts["mse"]))}
                )
            if quality:
                figures |= {f"{name}_{quality:g}": value for name, value in _means(found).items() if name != "loss"}
            every += found
        return _means(every) | figures

    def save(self) -> None:
        """Write the run's files, each whole or not at all, so that a run that is killed can be resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": asdict(self.recipe),
            "config": asdict(self.model.config),
            "step": self.step,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "average": self.average,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        if self.recipe.schedule != "cosine" and self.step == self.recipe.decay_start:
            write_atomic(self.folder / "plateau.pt", buffer.getvalue())
        checkpoints.save_weights(self.averaged(), self.folder / "weights.safetensors")
        write_atomic(self.folder / "last.pt", buffer.getvalue())

    def resume(self) -> bool:
        """Continue from ``last.pt`` if it exists, or from ``plateau.pt`` if only that one fits the recipe.

        ``steps`` and ``decay`` may differ from the saved recipe while the decay of the learning rate has not begun, as
        nothing has depended on them yet; a cosine begins to decay after the warm-up. ``plateau.pt`` is saved when the
        decay begins, so that a finished run can continue with more steps. Returns whether it continues. Raises
        ``CheckpointError`` for a run of another model or recipe.
        """
        wrong: dict[str, Any] = {}
        for path in (self.folder / "last.pt", self.folder / "plateau.pt"):
            if not path.exists():
                continue
            state = checkpoints.read(path)
            if (config := dict(state["config"]) | {"name": ""}) != asdict(self.model.config) | {"name": ""}:
                wanted = asdict(self.model.config)
                changed = {k: (v, wanted.get(k)) for k, v in config.items() if k != "name" and wanted.get(k) != v}
                raise CheckpointError(f"{self.folder}: is a run of another model (saved, given): {changed}")
            names = {f.name for f in fields(Recipe)}
            saved, given = Recipe(**{k: v for k, v in state["recipe"].items() if k in names}), self.recipe
            if state["step"] <= min(saved.decay_start, given.decay_start):
                saved = replace(saved, steps=given.steps, decay=given.decay)
            if saved == given:
                self._restore(state)
                return True
            wrong |= {k: (v, getattr(given, k)) for k, v in asdict(saved).items() if getattr(given, k) != v}
        if wrong:
            raise CheckpointError(f"{self.folder}: was made with another recipe (saved, given): {wrong}")
        return False

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.average = [t.to(self.device, copy=True) for t in state["average"]]
        self.step = state["step"]

    def run(self, *, every: int = 100, save_every: int = 500, held_out: int = 8) -> None:
        """Train to ``recipe.steps``. every, save_every: steps between rows of the log, and between checkpoints.

        held_out: number of held-out pictures to evaluate at each row of the log beside which a checkpoint is written.
        """
        first = self.share.number == 0
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = Log(self.folder, self._columns(), self.step, self._tensorboard, self._show)
        least = MIN_SIDE if self.recipe.metric == "ms-ssim" else 1
        pictures = [x for x in self.crops.held_out(held_out) if min(x.shape[2:]) >= least]
        start, begun, images = time.monotonic(), self.step, 0
        found: list[dict[str, float]] = []
        while self.step < self.recipe.steps:
            images += self.recipe.crops(self.step)
            found.append(self.update())
            saves = self.step % save_every == 0 or self.step in (self.recipe.steps, self.recipe.decay_start)
            if self.step % every == 0 or self.step == self.recipe.steps:
                means = mean_over(_means(found), self.share, self.device)
                found = []
                if first:
                    spent = time.monotonic() - start
                    row: dict[str, Any] = {"step": self.step, **{k: round(v, 5) for k, v in means.items()}}
                    row["images_per_s"] = round(images / spent, 2)
                    row["minutes_left"] = round(spent / (self.step - begun) * (self.recipe.steps - self.step) / 60, 1)
                    if saves and pictures:
                        row |= {f"held_out_{k}": round(v, 5) for k, v in self.evaluate(pictures).items()}
                    log.add(row)
                    self.last_row = row
            if first and saves:  # after the log, as a resumed run removes rows but cannot add them
                self.save()
        if first and not (self.folder / "last.pt").exists():
            self.save()

    def _columns(self) -> list[str]:
        columns = ["step", "loss", "bpp", "mse", "psnr", "gradient", "aux", "images_per_s"]
        columns += ["ms_ssim"] if self.recipe.metric == "ms-ssim" else []
        columns += [f"held_out_{name}" for name in ("loss", "bpp", "psnr")]
        if self.model.gains is not None:
            columns += [f"held_out_{name}_{q:g}" for q in HELD_OUT_QUALITIES for name in ("bpp", "psnr")]
        return columns


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each entry over rows with the same entries."""
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


# The log


class Log:
    """The log of a run: rows in ``log.csv``, as text, and for TensorBoard.

    Args:
        folder: of the run. columns: of ``log.csv``, ``step`` first. step: rows of a log that exists are removed after
            this step, as a run that was killed may have logged more than it saved. tensorboard: also write
            ``folder/tensorboard``. show: called with each row as text.

    Raises ``LalicError`` if tensorboard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        columns: list[str],
        step: int = 0,
        tensorboard: bool = False,
        show: Callable[[str], None] = print,
    ):
        self.path, self.columns, self._show = folder / "log.csv", columns, show
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise LalicError("tensorboard: this needs the package tensorboard (pip install tensorboard)") from None
            self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]
        rows = csv.DictReader(self.path.read_text().splitlines()) if self.path.exists() else ()
        kept = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= step]
        text = io.StringIO(newline="")
        writer = self._writer_to(text)
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(self.path, text.getvalue().encode())

    def _writer_to(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, which has ``step``. Entries without a column are only shown as text."""
        self._show("  ".join(f"{name} {value}" for name, value in row.items()))
        with self.path.open("a", newline="") as file:
            self._writer_to(file).writerow(row)
        if self._writer is not None:
            for name, value in row.items():
                if name in self.columns and name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()
