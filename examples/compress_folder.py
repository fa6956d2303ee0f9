"""Compress a folder of pictures: `python examples/compress_folder.py [FOLDER] [OUTPUT]`."""

from __future__ import annotations

import sys
from importlib import resources

from lalic.batch import compress_files

source = sys.argv[1] if len(sys.argv) > 1 else str(resources.files("lalic") / "assets")
output = sys.argv[2] if len(sys.argv) > 2 else "compressed"

outcomes = compress_files([source], output, quality=50, overwrite=True)
for outcome in outcomes:
    if outcome.error is None:
        bpp = 8 * outcome.size / (outcome.width * outcome.height)
        print(f"{outcome.target}: {outcome.width}x{outcome.height}, {outcome.size} bytes, {bpp:.3f} bits per pixel")
    else:
        print(f"{outcome.source}: {outcome.error}", file=sys.stderr)
sys.exit(any(outcome.error is not None for outcome in outcomes))
