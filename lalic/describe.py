"""What a .lalic file's header says, for people and for programs: the words of `lalic info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lalic.container import VERSION, Container

__all__ = ["describe", "in_words"]

_WORDS = """{file}
  format    version {format_version}, header and data checksums match
  model     {model}, hash {model_hash}
  picture   {width}x{height}{at_quality}
  size      {file_bytes} bytes, {bits_per_pixel:.4f} bits per pixel
  parts     streams {stream_bytes} bytes, header and checksums {overhead_bytes} bytes"""

_SYMBOLS = """
  symbols   sha256 {symbols_sha256}
  latents   sha256 {latents_sha256}"""


def describe(file: str, container: Container, hashes: Mapping[str, str]) -> dict[str, Any]:
    """One file as a dict that JSON takes. hashes: of `lalic.codec.symbol_hashes`, or empty."""
    return {
        "file": file,
        "format_version": VERSION,
        "model": container.model_name,
        "model_hash": container.model_hash.hex(),
        "width": container.width,
        "height": container.height,
        "quality": container.quality,
        "file_bytes": container.file_bytes,
        "stream_bytes": len(container.stream),
        "overhead_bytes": container.overhead_bytes,
        "bits_per_pixel": container.bits_per_pixel,
        "symbol_checksum": f"{container.symbol_checksum:012x}",
        **hashes,
    }


def in_words(entry: Mapping[str, Any]) -> str:
    """The same as lines of text."""
    at_quality = "" if entry["quality"] is None else f", quality {entry['quality']:g}"
    words = _WORDS + _SYMBOLS if "symbols_sha256" in entry else _WORDS
    return words.format(**entry, at_quality=at_quality)
