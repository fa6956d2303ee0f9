"""Measure: `python -m benchmarks.run [NAME ...] [--device cpu|cuda] [--threads N] [--quick] [--save]`.

Every result is verified before it is timed; an entry with a wrong result is not timed at all, and the exit code is 1.
So it is where an entry fails; the others are still measured, and with --save each is a record of its own, appended at
once. Each entry runs in a fresh process, because what the memory allocator has seen before changes what a fresh output
costs; on a CPU the operations are measured in two states of the allocator (`benchmarks.measure.MEMORY`).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence

from benchmarks import records, report
from benchmarks.measure import MEMORY, Setting, WrongResult, can_set_memory, in_fresh_process
from benchmarks.registry import ENTRIES, measure_entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entries named and print a table. Returns 0, or 1 if a result was wrong; usage errors exit with 2."""
    parser = records.parser("run", "Verify, then time.", quick="tiny inputs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ENTRIES)} (default: all operations)")
    parser.add_argument("--memory", choices=MEMORY, help="state of the CPU's allocator (default: as each entry says)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in ENTRIES]
    if unknown:
        parser.error(f"there is no entry {unknown[0]!r}, expected some of {', '.join(ENTRIES)}")
    if options.memory not in (None, "default") and not can_set_memory(options.device):
        parser.error(f"--memory {options.memory}: only glibc's allocator can be told so, and only for the CPU")
    operations = [name for name, e in ENTRIES.items() if options.device in e.devices and not e.by_name]
    names = options.names or operations
    for name in names:
        if options.device not in ENTRIES[name].devices:
            parser.error(f"{name} does not run on {options.device}")
    # What disturbs the machine disturbs both sides of a ratio, so a busy one is not refused here.
    device = records.check(parser, options, timed=False)

    record = records.environment(device)
    failed = False
    for name in dict.fromkeys(names):
        for memory in _states(name, options.memory, options.device):
            try:
                setting = Setting(device, options.quick, memory)
                rows = in_fresh_process(measure_entry, name, setting, memory=memory)
            except WrongResult as error:
                failed = True
                print(f"{name}: not timed, {error}", file=sys.stderr)
                break
            except Exception:  # such as too little memory, or a launch that a GPU refuses
                failed = True
                print(f"{name}: not timed\n{traceback.format_exc()}", file=sys.stderr)
                break
            report.show(record | {"rows": rows})
            records.keep(record | {"rows": rows}, options)  # at once: what is cut short keeps what it has
    return int(failed)


def _states(name: str, chosen: str | None, device: str) -> Iterator[str]:
    """States of the allocator to measure an entry in; the default one where it cannot be told."""
    if chosen is not None:
        yield chosen
    elif not can_set_memory(device):
        yield "default"
    else:
        yield from ENTRIES[name].memory


if __name__ == "__main__":
    sys.exit(main())
