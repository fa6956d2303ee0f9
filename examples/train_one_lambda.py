"""Train a model for one trade-off of rate and distortion, in a plain torch loop.

`python examples/train_one_lambda.py [FOLDER] [STEPS]`. The loop is that of the published training script and of
CompressAI's: one optimizer for the weights, one for the quantiles of the prior. `lalic train` does the same at many
qualities, resumes, and has the recipe of the weights that ship.
"""

from __future__ import annotations

import math
import random
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lalic
from lalic import images
from lalic.config import Config

LAMBDA = 0.013  # of 255^2 times the mean square error
PATCH, BATCH = 64, 4

torch.manual_seed(0)
random.seed(0)
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
paths = [p for p in folder.iterdir() if p.suffix.lower() in images.readable_extensions()] if folder else []
pictures = [images.load(path) for path in paths or [str(resources.files("lalic") / "assets" / "astronaut.png")]]

# A small model of one quality. `lalic.LALIC()` is the published one.
model = lalic.LALIC.from_config(
    Config("tiny", N=16, M=48, dims=(24, 32, 48, 48, 32, 24), depths=(1, 1, 1, 1), groups=(16, 32), context_depth=1)
).train()
quantiles = [p for name, p in model.named_parameters() if name.endswith("quantiles")]
weights = [p for name, p in model.named_parameters() if not name.endswith("quantiles") and p.requires_grad]
optimizer = torch.optim.Adam(weights, lr=1e-3)
aux_optimizer = torch.optim.Adam(quantiles, lr=1e-2)


def crop(picture: Image.Image) -> torch.Tensor:
    left, top = random.randint(0, picture.width - PATCH), random.randint(0, picture.height - PATCH)
    pixels = np.array(picture.crop((left, top, left + PATCH, top + PATCH)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


for step in range(steps):
    x = torch.stack([crop(random.choice(pictures)) for _ in range(BATCH)])
    out = model(x)
    bits = -sum(likelihoods.log2().sum() for likelihoods in out["likelihoods"].values())
    bpp = bits / (BATCH * PATCH * PATCH)
    mse = torch.nn.functional.mse_loss(out["x_hat"], x)
    loss = LAMBDA * 255**2 * mse + bpp

    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()

    aux_optimizer.zero_grad()
    model.aux_loss().backward()
    aux_optimizer.step()
    if step % 5 == 0 or step == steps - 1:
        psnr = -10 * math.log10(mse.item())
        print(f"step {step}: loss {loss.item():.3f}, {bpp.item():.3f} bits per pixel, PSNR {psnr:.2f} dB")

model.eval().update()  # coding tables of the prior, after training
torch.save(model.state_dict(), "one_lambda.pth")
model = lalic.load("one_lambda.pth")
data = lalic.encode(pictures[0], model)
print(f"a real file of {len(data)} bytes, decoded to {lalic.decode(data, model).size}")
