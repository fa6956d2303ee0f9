"""Entropy coding with groups of interleaved rANS states and fixed integer distributions. README.md defines the stream.

>>> import numpy as np
>>> from lalic_kernels import rans
>>> tables = rans.CodingTables(cdf=[[0, 20000, 60000, 65535, 65536]], lengths=[5], offsets=[-1])
>>> symbols, indexes = np.array([0, -1, 1, 9]), np.zeros(4, int)
>>> data = rans.encode([(symbols, indexes)], tables)
>>> decoder = rans.Decoder(data, tables)
>>> decoder.decode(indexes).tolist()
[0, -1, 1, 9]
>>> decoder.finish()
"""

from lalic_kernels.rans.checksum import symbol_checksum
from lalic_kernels.rans.layout import RansError
from lalic_kernels.rans.op import Decoder, available_backends, encode, ideal_bits
from lalic_kernels.rans.tables import CodingTables
from lalic_kernels.rans.view import OutputView

__all__ = [
    "CodingTables",
    "Decoder",
    "OutputView",
    "RansError",
    "available_backends",
    "encode",
    "ideal_bits",
    "symbol_checksum",
]
