"""Native code for CPUs, in C++ (`source`), compiled at first use; torch does the same where that cannot be.

Products with packed weights for generation, and in `training` what a training step does between its products.
"""

from .linear import PackedEmbedding, PackedLinear, product
from .native import library
from .packing import Arena, Kind, Packed, pack, pack_blocks, packed_bytes, unpack

__all__ = [
    "Arena", "Kind", "Packed", "PackedEmbedding", "PackedLinear", "library", "pack", "pack_blocks", "packed_bytes", "product", "unpack",
]  # fmt: skip
