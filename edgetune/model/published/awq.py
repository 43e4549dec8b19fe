"""AWQ, as AutoAWQ writes it for its ``gemm`` kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgetune.escapes import short
from edgetune.model.published.assembly import HALVES, WEIGHT, Assembly, group_size
from edgetune.tensors.packed.kinds import AwqTensor

_IN_WORD: Final = 8


def awq_fault(settings: Mapping[str, object]) -> str | None:
    """Return what of an AWQ checkpoint's settings is not read."""
    known = (settings.get(name) for name in ("version", "checkpoint_format", "format"))
    order = str(next((x for x in known if x), "gemm")).lower()
    if order != "gemm":
        return f"in the order {short(order)}; read is gemm"
    bits = settings.get("bits", settings.get("w_bit", 4))
    return None if bits == 4 else f"in {short(bits)} bits; read are 4"


def assemble_awq(
    assembly: Assembly,
    settings: Mapping[str, object],
    config: Mapping[str, object],  # noqa: ARG001
) -> None:
    """Put all matrices together."""
    said = settings.get("group_size", settings.get("q_group_size"))
    for module in assembly.with_end(".qweight"):
        _put(assembly, module, said)


def _put(assembly: Assembly, module: str, said: object) -> None:
    name = f"{module}{WEIGHT}"
    codes = assembly.part(f"{module}.qweight", name, dtypes=("int32",))
    scales = assembly.part(f"{module}.scales", name, dtypes=(*HALVES, "float32"))
    if codes is None or scales is None:
        return
    if len(codes.shape) != 2 or len(scales.shape) != 2:
        assembly.problems.append(f"{codes.name}: is {codes.shape}, expected a matrix")
        return
    (inputs, words), (groups, outputs) = codes.shape, scales.shape
    size = group_size(inputs, groups, said)
    if outputs != words * _IN_WORD or size is None:
        assembly.problems.append(
            f"{scales.name}: is {scales.shape}, which fits no groups of {name}"
        )
        return
    zeros = assembly.part(f"{module}.qzeros", name, dtypes=("int32",), shape=(groups, words))
    if zeros is None:
        return
    assembly.put(
        AwqTensor(
            codes.file, name, assembly.dtype_by(scales), (outputs, inputs), codes.start, codes.end,
            codes=codes, zeros=zeros, scales=scales, group=size,
        )
    )  # fmt: skip
