"""Which kernels the machine has: MLX runs on Apple's graphics processor, or on a CPU in tests."""

from __future__ import annotations

import mlx.core as mx

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def multiplies_quantized() -> bool:
    """Return whether products with quantized matrices need no dense copy.

    On CPU ``mx.quantized_matmul`` of bfloat16 is 11 % off for 4 bits and 20 times slower than
    dequantizing first (MLX 0.32). Not yet seen on a Mac: Metal's kernels sum in float32.
    """
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def compiles() -> bool:
    """Return whether ``mx.compile`` works without a compiler on the machine.

    On a processor it calls one at run time, for some seconds a block. Not yet seen on a Mac:
    there it makes Metal kernels.
    """
    return bool(mx.metal.is_available())
