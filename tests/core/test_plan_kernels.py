"""What a processor keeps of the kernels of its 16-bit products is in the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning import plan_of, processor, shape_of

from edgetune.memory import Platform, estimate
from edgetune.memory.costs.cpu import KERNEL, KERNELS


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mlx"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_counted_where_they_are_kept(kind: str, dtype: str) -> None:
    shape = shape_of("smollm2-135m")
    choice = replace(plan_of("smollm2-135m", processor()).choice, compute_dtype=dtype)

    narrow, wide = (
        estimate(shape, choice, Platform(kind=kind, multiplies_16bit=multiplies)).parts.runtime
        for multiplies in (True, False)
    )

    kept = kind == "cpu" and dtype == "bfloat16"
    assert narrow - wide == (KERNELS * KERNEL if kept else 0)
