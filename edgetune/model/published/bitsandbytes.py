"""bitsandbytes: NF4 and FP4 with their ``quant_state``, and eight bits with a scale a row (``SCB``)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from typing import Any, Final

from edgetune.files import parsed_json
from edgetune.model.config import is_number
from edgetune.model.published.assembly import WEIGHT, Assembly
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import BlockwiseTensor, NestedScales, ScaledTensor

_STATE: Final = ".quant_state.bitsandbytes__"
_KINDS: Final = ("nf4", "fp4")
_FLOATS: Final = ("float32", "float16", "bfloat16")
_EIGHT: Final = 1 / 127
"""Of a row's largest magnitude, which is what is stored."""


def assemble_bitsandbytes(
    assembly: Assembly,
    settings: Mapping[str, object],  # noqa: ARG001
    config: Mapping[str, object],  # noqa: ARG001
) -> None:
    """Put all matrices together, of whichever kind."""
    for kind in _KINDS:
        for name in assembly.with_end(f"{_STATE}{kind}"):
            _put_four(assembly, name, kind)
    for name, stored in list(assembly.tensors.items()):
        if name.endswith(WEIGHT) and stored.dtype == "int8":
            _put_eight(assembly, name, stored)
        elif name.endswith(WEIGHT) and stored.dtype == "uint8":
            assembly.problems.append(
                f"{name}{_STATE}nf4: missing, {name} cannot be read without it"
            )


def _put_four(assembly: Assembly, name: str, kind: str) -> None:
    told = assembly.tensors.pop(f"{name}{_STATE}{kind}")
    state = _state(assembly, told)
    if state is None:
        return
    shape, block = tuple(state["shape"]), state["blocksize"]
    count = prod(shape)
    blocks = -(-count // block)
    codes = assembly.part(name, name, nbytes=-(-count // 2))
    table = assembly.part(f"{name}.quant_map", name, dtypes=("float32",), shape=(16,))
    nested = "nested_blocksize" in state
    kinds = ("uint8",) if nested else ("float32",)
    scales = assembly.part(f"{name}.absmax", name, dtypes=kinds, shape=(blocks,))
    inner = _nested(assembly, name, state, blocks) if nested else None
    if codes is None or table is None or scales is None or (nested and inner is None):
        return
    tensor = BlockwiseTensor(
        codes.file, name, state["dtype"], shape, codes.start, codes.end, kind=kind,
        scales=scales, table=_float32s(assembly.small(table)), block=block, nested=inner,
    )  # fmt: skip
    assembly.put(tensor)
    assembly.tensors.pop(table.name)


def _nested(
    assembly: Assembly, name: str, state: Mapping[str, Any], blocks: int
) -> NestedScales | None:
    group = state["nested_blocksize"]
    scales = assembly.part(
        f"{name}.nested_absmax", name, dtypes=("float32",), shape=(-(-blocks // group),)
    )
    table = assembly.part(f"{name}.nested_quant_map", name, dtypes=("float32",), shape=(256,))
    if scales is None or table is None:
        return None
    return NestedScales(scales=scales, table=table, group=group, offset=state["nested_offset"])


def _state(assembly: Assembly, told: StoredTensor) -> dict[str, Any] | None:
    """Return what is told of a matrix in JSON, if it can be meant."""
    try:
        found = parsed_json(assembly.small(told))
    except ValueError:
        found = None
    state = found if isinstance(found, dict) else {}
    shape, nested = state.get("shape"), "nested_blocksize" in state
    right = (
        isinstance(shape, list)
        and len(shape) == 2
        and all(_size(x) for x in (*shape, state.get("blocksize")))
        and state.get("dtype") in _FLOATS
        and (not nested or (_size(state["nested_blocksize"]) and _number(state)))
    )
    if not right:
        assembly.problems.append(
            f"{told.name}: does not tell shape, blocksize and number format of the matrix"
        )
        return None
    return state


def _number(state: Mapping[str, object]) -> bool:
    return is_number(state.get("nested_offset"))


def _size(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 40


def _float32s(content: bytes) -> tuple[float, ...]:
    """Return little-endian numbers, each as the shortest decimal number that rounds to it."""
    return struct.unpack(f"<{len(content) // 4}f", content)


def _put_eight(assembly: Assembly, name: str, stored: StoredTensor) -> None:
    if len(stored.shape) != 2:
        assembly.problems.append(f"{name}: is {stored.shape}, expected a matrix")
        return
    module, (outputs, inputs) = name.removesuffix(WEIGHT), stored.shape
    order = assembly.optional(f"{module}.weight_format")
    if order is not None:
        del assembly.tensors[order.name]
        if any(assembly.small(order)):
            assembly.problems.append(
                f"{order.name}: the codes are in an order of a graphics card, not row by row"
            )
    scales = assembly.part(f"{module}.SCB", name, dtypes=("float32",))
    if scales is None:
        return
    if scales.shape not in {(outputs,), (outputs, 1), (1, outputs)}:
        assembly.problems.append(f"{scales.name}: is {scales.shape}, expected {(outputs,)}")
        return
    assembly.put(
        ScaledTensor(
            stored.file, name, assembly.dtype, stored.shape, stored.start, stored.end,
            kind="int8", scales=scales, block=(1, inputs), factor=_EIGHT, height=outputs,
            label="bitsandbytes' 8 bits",
        )
    )  # fmt: skip
