"""Apple silicon, through MLX."""

from typing import Final

from edgetune.memory.costs.base import Costs

TWO_PAGES: Final = 8192
"""By up to as many bytes a buffer of MLX's cache may be larger than the array that takes it."""

MLX = Costs(
    libraries=400_000_000,
    lazy=True,
    reused=16 * TWO_PAGES,  # up to 115 kB were seen
    update_arrays=5,  # new ones: three to keep, two in between
    updated_at_once=None,
    file_codes={  # codes and scales, as measured
        "Q4_0": 2.2, "Q4_1": 2.4, "Q5_0": 3.2, "Q5_1": 3.4, "Q8_0": 1.2, "MXFP4": 2.2,
        "Q2_K": 1.6, "Q3_K": 2.5, "Q4_K": 1.5, "Q5_K": 2.5, "Q6_K": 2.4,
    },
)  # fmt: skip
