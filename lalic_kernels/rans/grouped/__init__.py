"""rANS whose lanes stand in groups of a warp: the streams of files since format version 2 (../README.md)."""

from lalic_kernels.rans.grouped.op import Decoder, choose, encode, encode_with
from lalic_kernels.rans.grouped.place import Place

__all__ = ["Decoder", "Place", "choose", "encode", "encode_with"]
