"""Write the held-out pictures of training as files: `python scripts/held_out.py DATA... -o FOLDER`.

DATA: the arguments of `lalic train`. The files are for choosing weights, with commands that take folders:

    lalic eval FOLDER --codecs lalic --checkpoint ONE.safetensors OTHER.safetensors -q 10 30 50 70 90
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lalic.errors import LalicError, sentence
from lalic.train.data import Crops


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures as numbered PNG files. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", nargs="+", help="folders, tar files or pictures that a run is given")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder to write to")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    sources = Crops(args.data, 64, 1, 0).held_out_sources()
    written = 0
    for number, source in enumerate(sources):
        try:
            picture = source.open()
        except (LalicError, OSError) as error:  # training leaves it out too
            print(f"{source.name} is left out: {sentence(error)}", file=sys.stderr)
            continue
        picture.save(args.output / f"{number:03d}-{Path(source.name).stem}.png")
        written += 1
    print(f"{args.output}: {written} pictures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
