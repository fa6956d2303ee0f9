"""`python -m benchmarks.compiled cuda 90 [op ...]`: a JSON line for every kernel and launch configuration."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence

from benchmarks.compiled import OPS, core


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("backend", choices=("cuda", "hip"))
    parser.add_argument("architecture", help="compute capability without a point, as 90; or gfx942")
    parser.add_argument("op", nargs="*", help=f"only these of {', '.join(OPS)}")
    parser.add_argument("--all", action="store_true", help="minor variants too (always for cuda 90)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every Nth job from the Ith on, for N processes")
    options = parser.parse_args(argv)
    first, step = (int(number) for number in options.part.split("/"))
    if unknown := set(options.op) - set(OPS):
        parser.error(f"no op is called {sorted(unknown)}")
    target = core.target_of(options.backend, options.architecture)
    jobs = core.jobs_for(options.backend, options.architecture, options.op or OPS, options.all)
    for job in itertools.islice(jobs, first, None, step):
        print(json.dumps(core.describe(job, target)), flush=True)


if __name__ == "__main__":
    main()
