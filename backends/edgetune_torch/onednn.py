"""How many kernels oneDNN keeps for 16-bit products on a processor."""

from __future__ import annotations

import os

from edgetune.memory.costs.cpu import KERNELS


def limit_kernels() -> None:
    """Keep memory from growing with the shapes of products.

    Both caches are read from the environment at the first such product, by oneDNN and by torch's
    layer over it, whose own cache only holds on to what oneDNN let go of. What the user set is
    overridden: plans count on it, and torch crashes if its cache is to hold nothing.
    """
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(KERNELS)
    os.environ["LRU_CACHE_CAPACITY"] = "1"
