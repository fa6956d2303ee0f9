"""Rate and distortion of real files: `python -m benchmarks.rate FOLDER [--checkpoint FILE] [--precision P] [--save]`.

Each picture of the folder goes to a .lalic file and back; bits per pixel count the whole file, PSNR is taken on the
8-bit result. Beside it stands the smallest JPEG (Pillow; 4:4:4 or 4:2:0) of at least the same PSNR.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import lalic
from benchmarks import report
from lalic import demo, images
from lalic.container import parse
from lalic.nn.precision import PRECISIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a picture and the means; with --save append them to the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate", description="Bits per pixel and PSNR of files.")
    parser.add_argument("folder", type=Path, help="pictures, in name order")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the slim ones that ship)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="float32", help="of the transforms")
    parser.add_argument("--name", help="what to call the set of pictures (default: the folder's name)")
    parser.add_argument("--save", action="store_true", help="append a record to the results")
    arguments = parser.parse_args(argv)
    paths = sorted(p for p in arguments.folder.glob("*") if p.suffix.lower() in images.readable_extensions())
    if not paths:
        parser.error(f"no pictures in {arguments.folder}")
    model = lalic.slim() if arguments.checkpoint is None else lalic.load_checkpoint(arguments.checkpoint)
    model.set_precision(arguments.precision)

    record = report.environment(torch.device("cpu"))
    print(report.header(record))
    rows = []
    for path in paths:
        picture = images.load(path)
        data = lalic.encode(picture, model)
        psnr = demo.psnr(picture, lalic.decode(data, model))
        pixels = picture.width * picture.height
        jpeg = demo.jpeg_of_equal_psnr(picture, psnr)
        row = {"picture": path.stem, "bits_per_pixel": 8 * len(data) / pixels, "psnr": psnr}
        row["jpeg_bits_per_pixel"] = None if jpeg is None else 8 * len(jpeg.data) / pixels
        rows.append(row)
        print("  ".join(f"{v:.4f}" if isinstance(v, float) else f"{v}" for v in row.values()), flush=True)
    container = parse(data)
    record |= {"pictures": arguments.name or arguments.folder.name, "precision": arguments.precision, "rate": rows}
    record |= {"model": container.model_name, "weights": container.model_hash.hex()}
    for name in ("bits_per_pixel", "psnr", "jpeg_bits_per_pixel"):
        values = [float(row[name]) for row in rows if row[name] is not None]
        record[f"mean_{name}"] = sum(values) / len(values) if values else None
    print({k: v for k, v in record.items() if k.startswith("mean_")})
    if arguments.save:
        print(f"added to {report.append(record)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
