"""Rate and distortion of a model: `python examples/evaluate_checkpoint.py [CHECKPOINT] [PICTURES]`.

CHECKPOINT is a .pth or .safetensors file, "-" for the model that ships; PICTURES a folder. Every point is a real file.
Prints a table, and draws curves into the folder `evaluation`.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

import lalic.eval
from lalic.eval import report

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "-"
pictures = sys.argv[2] if len(sys.argv) > 2 else str(resources.files("lalic") / "assets" / "astronaut.png")

checkpoints = () if checkpoint == "-" else (checkpoint,)
results = lalic.eval.evaluate([pictures], ["lalic", "jpeg:10,30,60,90", "webp:5,30,60,90"], checkpoints=checkpoints)
print(report.text(results))
for path in report.write(results, Path("evaluation")):
    print(path)
