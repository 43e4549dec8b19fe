"""compressed-tensors: llm-compressor's files of whole numbers, eight-bit and four-bit floats."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgetune.escapes import short
from edgetune.model.published.assembly import HALVES, WEIGHT, Assembly, group_size
from edgetune.model.published.fp8 import Block, block_of, put_scaled
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import Fp4Tensor, IntegerTensor

BITS: Final = (4, 8)
_FORMATS: Final = (
    "dense", "float-quantized", "int-quantized", "mixed-precision", "mxfp4-pack-quantized",
    "naive-quantized", "nvfp4-pack-quantized", "pack-quantized",
)  # fmt: skip
_WORD: Final = 32
_PACKED: Final = ".weight_packed"
_UNUSED: Final = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale",
    ".output_zero_point", ".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point", ".q_scale", ".kv_scale",
    ".weight_zero_point", ".weight_shape",
)  # fmt: skip
"""Of activations and cached keys; and what symmetric weights have, but do not need."""


def compressed_tensors_fault(settings: Mapping[str, object]) -> str | None:
    """Return what of such a checkpoint's settings is not read."""
    written = [settings.get("format"), *(group.get("format") for group in _groups(settings))]
    for found in written:
        if found is not None and found not in _FORMATS:
            return f"in the format {short(found)}; read are {', '.join(_FORMATS)}"
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        return f"with sparse weights ({short(sparsity.get('format'))})"
    transform = settings.get("transform_config")
    if isinstance(transform, dict) and transform.get("config_groups"):
        return "with rotations of activations (transform_config)"
    return None


def assemble_compressed_tensors(
    assembly: Assembly,
    settings: Mapping[str, object],
    config: Mapping[str, object],  # noqa: ARG001
) -> None:
    """Put all matrices together; tensors tell which kind each is."""
    found = (group.get("weights") for group in _groups(settings))
    weights = [each for each in found if isinstance(each, dict)]
    sizes = [size for each in weights if (size := each.get("group_size"))]
    blocks = [block for each in weights if (block := block_of(each.get("block_structure")))]
    for module in assembly.with_end(_PACKED):
        packed = assembly.tensors[f"{module}{_PACKED}"]
        if packed.dtype == "uint8":
            _put_fp4(assembly, module)
        else:
            _put_integers(assembly, module, sizes)
    for name, stored in list(assembly.tensors.items()):
        if name.endswith(WEIGHT) and stored.dtype.startswith(("float8", "int8")):
            _put_eight(assembly, name, stored, blocks[0] if blocks else None)
    assembly.drop(*_UNUSED)


def _groups(settings: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict):
            yield group


def _put_eight(assembly: Assembly, name: str, stored: StoredTensor, block: Block | None) -> None:
    whole = stored.dtype == "int8"
    zeros = assembly.optional(f"{name}_zero_point", dtypes=("int8",)) if whole else None
    label = "8-bit whole numbers" if whole else "FP8"
    put_scaled(assembly, name, stored, block, zeros=zeros, label=label)


def _put_fp4(assembly: Assembly, module: str) -> None:
    name = f"{module}{WEIGHT}"
    codes = assembly.tensors[f"{module}{_PACKED}"]
    scales = assembly.part(f"{name}_scale", name, dtypes=("float8_e4m3fn", "uint8"))
    if scales is None:
        return
    if len(codes.shape) != 2:
        assembly.problems.append(f"{codes.name}: is {codes.shape}, expected a matrix")
        return
    rows, inputs = codes.shape[0], codes.shape[1] * 2
    group = 32 if scales.dtype == "uint8" else 16
    if inputs % group or scales.shape != (rows, inputs // group):
        assembly.problems.append(
            f"{scales.name}: is {scales.shape}, expected {(rows, inputs // group)}"
        )
        return
    total = None
    if group == 16:
        total = assembly.part(f"{name}_global_scale", name, dtypes=("float32",), nbytes=4)
        if total is None:
            return
    assembly.put(
        Fp4Tensor(
            codes.file, name, assembly.dtype, (rows, inputs), codes.start, codes.end,
            codes=codes, scales=scales, group=group, total=total,
        )
    )  # fmt: skip


def _put_integers(assembly: Assembly, module: str, sizes: list[int]) -> None:
    name = f"{module}{WEIGHT}"
    codes = assembly.part(f"{module}{_PACKED}", name, dtypes=("int32",))
    scales = assembly.part(f"{name}_scale", name, dtypes=(*HALVES, "float32"))
    told = assembly.part(f"{name}_shape", name, dtypes=("int64", "int32"), shape=(2,))
    if codes is None or scales is None or told is None:
        return
    outputs, inputs = _shape(assembly, told)
    fitting = [bits for bits in BITS if codes.shape == (outputs, -(-inputs * bits // _WORD))]
    if not fitting or inputs < 1:
        assembly.problems.append(
            f"{codes.name}: is {codes.shape}, which is no {outputs} x {inputs} codes of "
            f"{' or '.join(map(str, BITS))} bits"
        )
        return
    bits, groups = fitting[0], scales.shape[-1] if len(scales.shape) == 2 else 0
    known = [group_size(inputs, groups, size) for size in (*sizes, None)]
    size = next((x for x in known if x is not None), None)
    if size is None or scales.shape[0] != outputs:
        assembly.problems.append(
            f"{scales.name}: is {scales.shape}, which fits no groups of {name}"
        )
        return
    rows = -(-outputs * bits // _WORD)
    zeros = assembly.optional(f"{name}_zero_point", dtypes=("int32",), shape=(rows, groups))
    index = assembly.optional(f"{name}_g_idx", dtypes=("int32", "int64"), shape=(inputs,))
    assembly.put(
        IntegerTensor(
            codes.file, name, assembly.dtype_by(scales), (outputs, inputs), codes.start, codes.end,
            codes=codes, scales=scales, zeros=zeros, groups=index, bits=bits, group=size,
            label="compressed-tensors' whole numbers",
        )
    )  # fmt: skip
    assembly.tensors.pop(told.name, None)


def _shape(assembly: Assembly, told: StoredTensor) -> tuple[int, int]:
    width = "q" if told.dtype == "int64" else "i"
    outputs, inputs = struct.unpack(f"<2{width}", assembly.small(told))
    return outputs, inputs
