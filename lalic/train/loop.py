"""The training loop: one optimiser step after another, a moving average, checkpoints that resume."""

from __future__ import annotations

import io
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lalic.errors import CheckpointError, LalicError
from lalic.files import write_atomic
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.ms_ssim import MIN_SIDE
from lalic.nn.noise import ALL, Share
from lalic.train.data import Crops
from lalic.train.log import Log
from lalic.train.objective import Objective, check_patch, rate_distortion
from lalic.train.processes import mean_over, parallel
from lalic.train.qualities import balances, draw_qualities, lambdas
from lalic.train.recipe import Recipe, learning_rate
from lalic.train.soap import Soap

HELD_OUT_QUALITIES = (10.0, 30.0, 50.0, 70.0, 90.0)


def _weights(model: LALIC) -> list[Tensor]:
    """What the main optimiser trains and the moving average follows: all but the prior's quantiles."""
    return [p for n, p in model.named_parameters() if not n.endswith("quantiles") and p.requires_grad]


class Trainer:
    """One run in a folder.

    ``last.pt`` is there to resume from, ``plateau.pt`` to give a run more steps than it had, ``weights.safetensors`` to
    use, ``log.csv`` to look at. Every process of a run makes a Trainer; the first one writes.

    Args:
        share: this process's part of every batch (`lalic.train.processes`). compiled: run the model and its loss
            through `torch.compile`. tensorboard: write its files too.
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
    ):
        least = (4 if recipe.large else 1) * share[1]
        if recipe.batch % least:
            quarter = ", a quarter as many in large crops" if recipe.large else ""
            raise LalicError(
                f"batch is {recipe.batch}, expected a multiple of {least}, shared by {share[1]} processes{quarter}"
            )
        check_patch(recipe.metric, recipe.patch)
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
        self._next: tuple[int, Future[Tensor]] | None = None
        self._log: Log | None = None
        self._tensorboard = tensorboard

    def update(self) -> dict[str, float]:
        """One optimiser step; this process's figures.

        Raises ``FloatingPointError`` when loss or gradient is not finite; the weights then stay as they were.
        """
        self.model.train()
        # Noise and qualities depend on the step alone: a resumed run draws what the uninterrupted one drew.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        x = self._batch().to(self.device, self.weights[0].dtype)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        parts = self.objective(x, *self._qualities(x.shape[0]))
        self.optimizer.zero_grad(set_to_none=True)
        self.auxiliary.zero_grad(set_to_none=True)
        (parts["loss"] + parts["aux"]).backward()
        parts["gradient"] = torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        # One transfer for all figures: on a GPU every one of them waits for the whole step.
        numbers = dict(zip(parts, torch.stack([v.detach().double() for v in parts.values()]).tolist(), strict=True))
        if not all(math.isfinite(numbers[name]) for name in ("loss", "gradient")):
            raise FloatingPointError(
                f"loss {numbers['loss']}, gradient norm {numbers['gradient']} at step {self.step}: lower the learning "
                "rate, or start from trained weights"
            )
        self.optimizer.step()
        self.auxiliary.step()
        with torch.no_grad():
            # A young average would hang on to the random start: it follows quickly first.
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)
        self.step += 1
        return {**numbers, "psnr": -10 * math.log10(max(numbers["mse"], 1e-10))}

    def _batch(self) -> Tensor:
        """This step's pictures; the next step's are cut meanwhile."""
        if self._next is None or self._next[0] != self.step:
            self._next = self._cut(self.step)
        x = self._next[1].result()
        self._next = self._cut(self.step + 1)
        return x

    def _cut(self, step: int) -> tuple[int, Future[Tensor]]:
        return step, self._cutter.submit(self.crops.part, step, self.share, self.recipe.large_crops(step))

    def _qualities(self, count: int) -> tuple[Tensor | None, float | Tensor, float | Tensor]:
        """(quality, lambda, factor of the loss) of each of this process's samples; (None, lambda, 1) without gains."""
        if self.model.gains is None:
            return None, self.recipe.lmbda, 1.0
        everyone = draw_qualities(self.recipe, self.step, count * self.share[1])
        quality = everyone[count * self.share[0] :][:count].to(self.device)
        weights = lambdas(self.recipe, quality)
        return quality, weights, balances(self.recipe, weights)

    def averaged(self) -> LALIC:
        """A copy of the model with the averaged weights and fresh coding tables, in eval mode."""
        model = LALIC.from_config(self.model.config).to(self.device)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            torch._foreach_copy_(_weights(model), self.average)
        model.update(force=True)
        return model.eval()

    def evaluate(self, pictures: list[Tensor]) -> dict[str, float]:
        """Mean loss, bits a pixel (estimated) and PSNR of the averaged weights over pictures.

        With gains the means of `HELD_OUT_QUALITIES`, and ``bpp_q`` and ``psnr_q`` at each of them.
        """
        model, recipe = self.averaged(), self.recipe
        qualities = (None,) if model.gains is None else HELD_OUT_QUALITIES
        found: dict[str, float] = {"loss": 0.0, "bpp": 0.0, "psnr": 0.0}
        for quality in qualities:
            weights = lambdas(recipe, torch.tensor([quality])) if quality else torch.tensor([recipe.lmbda])
            factors = balances(recipe, weights).to(self.device) if quality else 1.0
            sums = {"loss": 0.0, "bpp": 0.0, "psnr": 0.0}
            for picture in pictures:
                x = picture.to(self.device)
                with torch.no_grad():
                    out = model(x, quality)
                    out["x_hat"].clamp_(0, 1)
                    parts = rate_distortion(out, x, weights.to(self.device), factors, recipe.metric)
                sums["loss"] += float(parts["loss"])
                sums["bpp"] += float(parts["bpp"])
                sums["psnr"] -= 10 * math.log10(max(float(parts["mse"]), 1e-10))
            for name in sums:
                found[name] += sums[name] / len(pictures) / len(qualities)
            if quality:
                found |= {f"{name}_{quality:g}": sums[name] / len(pictures) for name in ("bpp", "psnr")}
        return found

    def save(self) -> None:
        """Write the run's files, each whole or not at all: a run that is killed meanwhile resumes from older ones."""
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
        """Continue from ``last.pt`` if it is there; from ``plateau.pt`` if only that one fits the recipe.

        Another number of steps, or another share of them that decays, is another end of the same run, as long as the
        learning rate does not yet depend on it: before the decay has begun, which a cosine does after its warm-up.
        ``plateau.pt`` is kept from that moment, so that a run that has ended can be given more steps. Raises
        ``CheckpointError`` if another recipe made it.
        """
        wrong: dict[str, Any] = {}
        for path in (self.folder / "last.pt", self.folder / "plateau.pt"):
            if not path.exists():
                continue
            state = checkpoints.read(path)
            if (config := dict(state["config"]) | {"name": ""}) != asdict(self.model.config) | {"name": ""}:
                own = asdict(self.model.config)
                changed = {k: (v, own.get(k)) for k, v in config.items() if k != "name" and own.get(k) != v}
                raise CheckpointError(f"{self.folder}: is a run of another model (there, here): {changed}")
            known = {f.name for f in fields(Recipe)}
            theirs, here = Recipe(**{k: v for k, v in state["recipe"].items() if k in known}), self.recipe
            if state["step"] <= min(theirs.decay_start, here.decay_start):
                theirs = replace(theirs, steps=here.steps, decay=here.decay)
            if theirs == here:
                self._restore(state)
                return True
            mine = asdict(here)
            wrong |= {k: (v, mine[k]) for k, v in asdict(theirs).items() if mine[k] != v}
        if wrong:
            raise CheckpointError(f"{self.folder}: was made with another recipe (there, here): {wrong}")
        return False

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        self.average = [t.to(self.device, copy=True) for t in state["average"]]
        self.step = state["step"]

    def run(self, *, every: int = 100, save_every: int = 500, held_out: int = 8) -> None:
        """Train to ``recipe.steps``, printing and logging every ``every`` steps, saving every ``save_every``."""
        first = self.share[0] == 0
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._log = Log(self.folder, self._columns(), self._tensorboard)
            self._log.rewind(self.step)
        least = MIN_SIDE if self.recipe.metric == "ms-ssim" else 1
        pictures = [x for x in self.crops.held_out(held_out) if min(x.shape[2:]) >= least]
        start, begun, kept, images = time.monotonic(), self.step, self.step, 0
        sums: dict[str, float] = {}
        count = 0
        while self.step < self.recipe.steps:
            if first and self.step == self.recipe.decay_start and kept < self.step:
                self.save()  # which keeps `plateau.pt`
                kept = self.step
            images += self.recipe.crops(self.step)
            for name, value in self.update().items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            saves = self.step % save_every == 0 or self.step == self.recipe.steps
            if first and saves:
                self.save()
                kept = self.step
            if self.step % every == 0 or self.step == self.recipe.steps:
                means = mean_over({k: v / count for k, v in sums.items()}, self.share, self.device)
                if self._log is not None:
                    spent = time.monotonic() - start
                    row: dict[str, Any] = {"step": self.step, **{k: round(v, 5) for k, v in means.items()}}
                    row["images_per_s"] = round(images / spent, 2)
                    row["minutes_left"] = round(spent / (self.step - begun) * (self.recipe.steps - self.step) / 60, 1)
                    if saves and pictures:
                        row |= {f"held_out_{k}": round(v, 5) for k, v in self.evaluate(pictures).items()}
                    self._log.add(row)
                sums, count = {}, 0
        if first and (kept < self.step or not (self.folder / "last.pt").exists()):
            self.save()

    def _columns(self) -> list[str]:
        columns = ["step", "loss", "bpp", "mse", "psnr", "gradient", "aux", "images_per_s"]
        columns += ["ms_ssim"] if self.recipe.metric == "ms-ssim" else []
        columns += [f"held_out_{name}" for name in ("loss", "bpp", "psnr")]
        if self.model.gains is not None:
            columns += [f"held_out_{name}_{q:g}" for q in HELD_OUT_QUALITIES for name in ("bpp", "psnr")]
        return columns
