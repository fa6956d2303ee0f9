"""The training loop: rate-distortion loss, Adam, schedule, moving average, checkpoints that resume."""

from __future__ import annotations

import csv
import io
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lalic.errors import CheckpointError
from lalic.files import write_atomic
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.training.data import Crops


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on besides the pictures; saved with it, and compared when it is resumed.

    Attributes:
        lmbda: weight of the distortion, ``lmbda * 255^2 * MSE + bits per pixel``.
        steps, batch, patch: updates, crops an update, side of a crop in pixels.
        lr: Adam's peak learning rate, reached after ``warmup`` steps and lowered to a hundredth along a cosine.
        auxiliary_lr: Adam's learning rate for the prior's quantiles, which are tens of units from where they start.
        clip: largest gradient norm. ema: decay of the moving average that is evaluated and shipped.
        bf16: matrix products and convolutions in bfloat16. seed: of weights, crops and noise.
    """

    lmbda: float = 0.013
    steps: int = 10000
    batch: int = 8
    patch: int = 128
    lr: float = 5e-4
    warmup: int = 200
    auxiliary_lr: float = 1e-2
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    seed: int = 1


def rate_distortion(out: dict[str, Any], x: Tensor, lmbda: float) -> dict[str, Tensor]:
    """``loss``, ``bpp`` (bits a pixel) and ``mse`` (of values in [0, 1]) of a forward pass over pictures x."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    bpp = -torch.stack([torch.log2(p).sum() for p in out["likelihoods"].values()]).sum() / pixels
    mse = torch.mean((out["x_hat"].float() - x) ** 2)
    return {"loss": lmbda * 255**2 * mse + bpp, "bpp": bpp, "mse": mse}


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of update ``step`` (from 0)."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    along = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, along))))


def start_weights(model: LALIC) -> None:
    """Let a fresh model's first output be mid-grey instead of black: a thousand steps of finding the mean saved."""
    with torch.no_grad():
        cast(nn.ConvTranspose2d, model.g_s[-1]).bias.fill_(0.5)  # type: ignore[union-attr]


def _weights(model: LALIC) -> list[Tensor]:
    """What the main optimiser trains and the moving average follows: all but the prior's quantiles."""
    return [p for n, p in model.named_parameters() if not n.endswith("quantiles") and p.requires_grad]


class Trainer:
    """One run in a folder: ``last.pt`` to resume from, ``weights.safetensors`` to use, ``log.csv`` to look at."""

    def __init__(self, model: LALIC, crops: Crops, recipe: Recipe, folder: Path, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        model = model.to(self.device)
        self.model, self.crops, self.recipe, self.folder = model, crops, recipe, folder
        quantiles = [p for n, p in model.named_parameters() if n.endswith("quantiles")]
        self.weights = _weights(model)
        self.optimizer = torch.optim.Adam(self.weights, lr=recipe.lr)
        self.auxiliary = torch.optim.Adam(quantiles, lr=recipe.auxiliary_lr)
        self.average = [p.detach().clone() for p in self.weights]
        self.step = 0

    def update(self) -> dict[str, float]:
        """One optimiser step. Raises ``FloatingPointError`` when the loss is not finite."""
        self.model.train()
        # Noise depends on the step alone, so that a resumed run draws what the uninterrupted one drew.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        x = self.crops[self.step].to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            out = self.model(x)
        parts = rate_distortion(out, x, self.recipe.lmbda)
        loss = float(parts["loss"].detach())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {self.step}: lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        self.optimizer.step()
        self.auxiliary.zero_grad(set_to_none=True)
        auxiliary = self.model.aux_loss()
        auxiliary.backward()
        self.auxiliary.step()
        with torch.no_grad():
            # A young average would hang on to the random start: it follows quickly first.
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)
        self.step += 1
        numbers = {k: float(v.detach()) for k, v in parts.items()}
        return {**numbers, "psnr": -10 * math.log10(max(numbers["mse"], 1e-10)), "aux": float(auxiliary.detach())}

    def averaged(self) -> LALIC:
        """A copy of the model with the averaged weights and fresh coding tables, in eval mode."""
        model = LALIC.from_config(self.model.config).to(self.device)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            torch._foreach_copy_(_weights(model), self.average)
        model.update(force=True)
        return model.eval()

    def evaluate(self, pictures: list[Tensor]) -> dict[str, float]:
        """Mean loss, bits a pixel (estimated) and PSNR of the averaged weights over pictures."""
        model, sums = self.averaged(), {"loss": 0.0, "bpp": 0.0, "psnr": 0.0}
        for picture in pictures:
            x = picture.to(self.device)
            with torch.no_grad():
                out = model(x)
                out["x_hat"].clamp_(0, 1)
                parts = rate_distortion(out, x, self.recipe.lmbda)
            sums["loss"] += float(parts["loss"])
            sums["bpp"] += float(parts["bpp"])
            sums["psnr"] -= 10 * math.log10(max(float(parts["mse"]), 1e-10))
        return {k: v / len(pictures) for k, v in sums.items()}

    def save(self) -> None:
        """Write ``last.pt`` and ``weights.safetensors``, each to a temporary name that is then renamed."""
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
        write_atomic(self.folder / "last.pt", buffer.getvalue())
        checkpoints.save_weights(self.averaged(), self.folder / "weights.safetensors")

    def resume(self) -> bool:
        """Continue from ``last.pt`` if it is there. Raises ``CheckpointError`` if another recipe made it."""
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        state = checkpoints.read(path)
        mine = asdict(self.recipe)
        other = {k: (v, mine[k]) for k, v in state["recipe"].items() if mine.get(k) != v}
        if other:
            raise CheckpointError(f"{path}: was made with another recipe (there, here): {other}")
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.average = [t.to(self.device, copy=True) for t in state["average"]]
        self.step = state["step"]
        return True

    def run(self, *, every: int = 100, save_every: int = 500, held_out: int = 8) -> None:
        """Train to ``recipe.steps``, printing and logging every ``every`` steps, saving every ``save_every``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = self.crops.held_out(held_out)
        start, first = time.monotonic(), self.step
        sums: dict[str, float] = {}
        while self.step < self.recipe.steps:
            for name, value in self.update().items():
                sums[name] = sums.get(name, 0.0) + value / every
            if self.step % every == 0:
                speed = (self.step - first) * self.recipe.batch / (time.monotonic() - start)
                row: dict[str, Any] = {"step": self.step, **{k: round(v, 5) for k, v in sums.items()}}
                row["images_per_s"] = round(speed, 2)
                sums = {}
                if self.step % save_every == 0 or self.step == self.recipe.steps:
                    self.save()
                    row |= {f"held_out_{k}": round(v, 5) for k, v in self.evaluate(pictures).items()}
                print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
                self._log(row)
        self.save()

    def _log(self, row: dict[str, Any]) -> None:
        path = self.folder / "log.csv"
        columns = ["step", "loss", "bpp", "mse", "psnr", "aux", "images_per_s"]
        columns += ["held_out_loss", "held_out_bpp", "held_out_psnr"]
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if new:
                writer.writeheader()
            writer.writerow(row)
