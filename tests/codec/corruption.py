"""Makes bad .lalic files out of good ones, by accidental damage or on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lalic.container import Container, parse


def corrupted(files: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` pairs of (what was done, bytes), none equal to one of `files`. Checksums are not corrected."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        kind, data = _one(files, rng)
        if data not in files:
            made += 1
            yield kind, data


def _one(files: list[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    data = bytearray(files[rng.integers(len(files))])
    kind = ("flip", "burst", "truncate", "splice", "zeros", "insert", "delete", "swap")[rng.integers(8)]
    # Half of the damage is in the first 48 bytes, which have the header.
    at = int(rng.integers(min(48, len(data)) if rng.random() < 0.5 else len(data)))
    if kind == "flip":
        for position in [at, *rng.integers(len(data), size=rng.integers(4))]:
            data[position] ^= 1 << rng.integers(8)
    elif kind == "burst":
        data[at : at + int(rng.integers(1, 64))] = rng.bytes(min(int(rng.integers(1, 64)), len(data) - at))
    elif kind == "truncate":
        del data[at:]
    elif kind == "splice":
        other = files[rng.integers(len(files))]
        data[at:] = other[at if rng.random() < 0.5 else int(rng.integers(len(other))) :]
    elif kind == "zeros":
        length = min(int(rng.integers(1, 512)), len(data) - at)
        data[at : at + length] = bytes(length)
    elif kind == "insert":
        data[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == "delete":
        del data[at : at + int(rng.integers(1, 9))]
    else:
        half = len(data) // 2
        data = data[half:] + data[:half]
    return kind, bytes(data)


def resealed(files: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` pairs of (what was done, bytes) with correct header and data checksums, so that they reach the model."""
    rng = np.random.default_rng(seed)
    containers = [parse(data) for data in files]
    made = 0
    while made < count:
        fields = dict(vars(containers[rng.integers(len(containers))]))
        other = containers[rng.integers(len(containers))]
        kind = ("flip", "begin", "shorten", "lengthen", "empty", "splice", "size", "checksum")[rng.integers(8)]
        stream = fields["stream"]
        if kind in ("flip", "begin"):
            flipped = bytearray(stream)
            for position in rng.integers(min(len(flipped), 16 if kind == "begin" else 2**28), size=rng.integers(1, 4)):
                flipped[position] ^= 1 << rng.integers(8)
            fields["stream"] = bytes(flipped)
        elif kind == "checksum":
            fields["symbol_checksum"] ^= 1 << int(rng.integers(48))
        elif kind == "size":
            fields["width"], fields["height"] = (int(side) for side in rng.integers(1, 2048, 2))
            step = 64  # another size with as many blocks is another picture of the same symbols, not damage
            if -(-fields["width"] // step) == -(-other.width // step):
                continue
        else:
            fields["stream"] = {
                "shorten": stream[: rng.integers(len(stream))],
                "lengthen": stream + rng.bytes(int(rng.integers(1, 9))),
                "empty": b"",
                "splice": other.stream,
            }[kind]
        container = Container(**fields)
        if container not in containers:
            made += 1
            yield kind, container.pack()


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header, with correct checksums."""
    return Container(**{**vars(parse(data)), "width": width, "height": height}).pack()
