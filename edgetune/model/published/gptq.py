"""GPTQ, as AutoGPTQ, GPTQModel and transformers write it, in both versions of its zero points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgetune.escapes import short
from edgetune.model.published.assembly import HALVES, WEIGHT, Assembly, group_size
from edgetune.tensors.packed.kinds import GptqTensor

BITS: Final = (2, 3, 4, 8)
_WORD: Final = 32
_VERSIONS: Final = ("gptq", "gptq_v2")


def gptq_fault(settings: Mapping[str, object]) -> str | None:
    """Return what of a GPTQ checkpoint's settings is not read."""
    version = settings.get("checkpoint_format") or settings.get("format") or _VERSIONS[0]
    if version not in _VERSIONS or settings.get("is_marlin_format"):
        written = short(version) if version not in _VERSIONS else "marlin"
        return f"in the order {written}; read are {' and '.join(_VERSIONS)}"
    bits = settings.get("bits", 4)
    return None if bits in BITS else f"in {short(bits)} bits; read are {', '.join(map(str, BITS))}"


def assemble_gptq(
    assembly: Assembly,
    settings: Mapping[str, object],
    config: Mapping[str, object],  # noqa: ARG001
) -> None:
    """Put all matrices together."""
    version = settings.get("checkpoint_format") or settings.get("format")
    for module in assembly.with_end(".qweight"):
        _put(assembly, module, settings, less_one=version != _VERSIONS[1])


def _put(
    assembly: Assembly, module: str, settings: Mapping[str, object], *, less_one: bool
) -> None:
    name = f"{module}{WEIGHT}"
    codes = assembly.part(f"{module}.qweight", name, dtypes=("int32",))
    scales = assembly.part(f"{module}.scales", name, dtypes=(*HALVES, "float32"))
    if codes is None or scales is None:
        return
    if len(codes.shape) != 2 or len(scales.shape) != 2:
        assembly.problems.append(f"{codes.name}: is {codes.shape}, expected a matrix")
        return
    (words, outputs), groups = codes.shape, scales.shape[0]
    index = assembly.optional(f"{module}.g_idx", dtypes=("int32", "int64"))
    bits = _bits(words, None if index is None else index.shape, settings.get("bits", 4))
    if bits is None:
        assembly.problems.append(f"{codes.name}: is {codes.shape}, which fits no number of bits")
        return
    inputs = words * _WORD // bits
    columns = -(-outputs * bits // _WORD)
    zeros = assembly.part(f"{module}.qzeros", name, dtypes=("int32",), shape=(groups, columns))
    size = group_size(inputs, groups, settings.get("group_size"))
    if scales.shape[1] != outputs or (size is None and index is None):
        assembly.problems.append(
            f"{scales.name}: is {scales.shape}, which fits no groups of {name}"
        )
        return
    if zeros is None:
        return
    assembly.put(
        GptqTensor(
            codes.file, name, assembly.dtype_by(scales), (outputs, inputs), codes.start, codes.end,
            codes=codes, zeros=zeros, scales=scales, groups=index, group=size or inputs,
            bits=bits, less_one=less_one,
        )
    )  # fmt: skip


def _bits(words: int, index: tuple[int, ...] | None, said: object) -> int | None:
    """Return the bits of a code: layers can differ, which the number of inputs tells.

    >>> _bits(12, (96,), 8), _bits(12, None, 4), _bits(12, (97,), 4)
    (4, 4, None)
    """
    known = [bits for bits in BITS if index in (None, (words * _WORD // bits,))]
    fitting = [bits for bits in known if words * _WORD % bits == 0]
    if index is None:
        return next((bits for bits in fitting if bits == said), None)
    return fitting[0] if fitting else None
