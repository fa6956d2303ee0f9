"""Count the files and functions of both packages that a warm `lalic.encode` and `lalic.decode` enter.

python scripts/files_entered.py [-v]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import lalic
import lalic_kernels


def entered(call: Callable[[], Any]) -> Counter[str]:
    """Number of functions of both packages that a call enters, by file."""
    roots = tuple(str(Path(module.__file__ or "").parent) for module in (lalic, lalic_kernels))
    seen: set[Any] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(roots):
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    top = Path(roots[0]).parent
    return Counter(str(Path(code.co_filename).relative_to(top)) for code in seen)


def main() -> None:
    """Print the counts; -v names the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="name the files")
    verbose = parser.parse_args().verbose
    with resources.as_file(resources.files(lalic).joinpath("assets/astronaut.png")) as picture:
        data = lalic.encode(picture)
        lalic.decode(data)
        for name, call in (("encode", lambda: lalic.encode(picture)), ("decode", lambda: lalic.decode(data))):
            files = entered(call)
            print(f"{name}: {len(files)} files, {files.total()} functions")
            if verbose:
                for file, count in sorted(files.items()):
                    print(f"  {count:4d}  {file}")


if __name__ == "__main__":
    main()
