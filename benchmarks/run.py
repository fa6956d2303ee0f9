"""Measure: `python -m benchmarks.run [NAME ...] [--device cpu|cuda] [--threads N] [--quick] [--save]`.

Every result is verified before it is timed; an entry with a wrong result is not timed at all, and the exit code is 1.
Each entry runs in a fresh process, because what the memory allocator has seen before changes what a fresh output costs;
on a CPU the operations are measured in two states of the allocator (`benchmarks.measure.MEMORY`).
"""

from __future__ import annotations

import sys
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

    record = records.environment(device) | {"rows": []}
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
            report.show(record | {"rows": rows})
            record["rows"] += rows
    if options.save and failed:
        print("nothing is saved, because a result was wrong", file=sys.stderr)
    else:
        records.keep(record, options)
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
