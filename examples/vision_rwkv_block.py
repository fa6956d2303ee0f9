"""BiWKV inside blocks of Vision-RWKV: a small classifier learns how a crop is turned.

`python examples/vision_rwkv_block.py [STEPS]`. The blocks have the published parameter names, so that they take the
published weights of a layer; the operation runs on a CPU or on a GPU, without nvcc.
"""

from __future__ import annotations

import sys
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import nn

import lalic
from lalic_kernels.layers import RWKVBlock

PATCH, SIDE, CHANNELS, BATCH = 4, 48, 48, 32

torch.manual_seed(0)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
device = "cuda" if torch.cuda.is_available() else "cpu"


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, PATCH, PATCH)
        self.positions = nn.Parameter(torch.zeros(1, SIDE // PATCH, SIDE // PATCH, CHANNELS))
        self.blocks = nn.Sequential(*(RWKVBlock(CHANNELS, form="vision", first=number == 0) for number in range(2)))
        self.head = nn.Linear(CHANNELS, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1) + self.positions  # (B, H, W, C)
        return self.head(self.blocks(x).mean((1, 2)))


with Image.open(resources.files(lalic) / "assets" / "astronaut.png") as picture:
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float().to(device) / 255


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    turns = torch.randint(4, (BATCH,))
    corners = torch.randint(512 - SIDE, (BATCH, 2)).tolist()
    crops = [pixels[:, top : top + SIDE, left : left + SIDE] for top, left in corners]
    x = torch.stack([torch.rot90(crop, int(turn), (1, 2)) for crop, turn in zip(crops, turns, strict=True)])
    return x, turns.to(device)


model = Classifier(4).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for step in range(steps):
    x, turns = batch()
    scores = model(x)
    loss = nn.functional.cross_entropy(scores, turns)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == steps - 1:
        right = (scores.argmax(1) == turns).float().mean().item()
        print(f"step {step}: loss {loss.item():.3f}, {right:.0%} right")
