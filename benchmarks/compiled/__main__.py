"""`python -m benchmarks.compiled cuda 90 [op ...]`: a JSON line for every kernel and launch configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from benchmarks.compiled import OPS, core


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("backend", choices=("cuda", "hip"))
    parser.add_argument("architecture", help="compute capability without a point, as 90; or gfx942")
    parser.add_argument("op", nargs="*", help=f"only these of {', '.join(OPS)}")
    options = parser.parse_args(words)
    if unknown := set(options.op) - set(OPS):
        parser.error(f"no op is called {sorted(unknown)}")
    target = core.target_of(options.backend, options.architecture)
    for job in core.jobs_for(options.backend, options.architecture, options.op or OPS):
        print(json.dumps(core.describe(job, target)), flush=True)


if __name__ == "__main__":
    main()
