"""Folders that mlx-lm quantized: codes in 32-bit words, and scales, under the names of the checkpoint.

A weight is ``code * scale + bias`` with a scale and a bias for a group of inputs, or a float of four
or eight bits times its group's scale. mlx-lm has the experts of a block in one tensor (``switch_mlp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from edgetune.escapes import short
from edgetune.model.published.assembly import HALVES, WEIGHT, Assembly
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import Fp4Tensor, IntegerTensor, PackedTensor, ScaledTensor

_WORD: Final = 32
_BITS: Final = (2, 3, 4, 5, 6, 8)
_FLOATS: Final[Mapping[str, tuple[int, int]]] = {
    "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32),
}  # fmt: skip
"""Bits and group of the modes whose codes are floats."""

_AS_PUBLISHED: Final = frozenset({
    "cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "helium",
    "hunyuan_v1_dense", "lfm2", "llama", "ministral3", "mistral", "mixtral", "nemotron", "olmo2", "olmo3",
    "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "stablelm", "starcoder2",
})  # fmt: skip
"""Model types of which mlx-lm changes no number, and no name but those of experts."""

_KERNEL: Final = ".conv.conv.weight"
"""Of LFM2's convolutions: MLX has the one channel that each of them sees behind, not before them."""

_STACKS: Final = ".switch_mlp."
Tensor = TypeVar("Tensor", bound=StoredTensor)

_MIXTRAL: Final = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def mlx_fault(config: Mapping[str, object]) -> str | None:
    """Return why a folder of mlx-lm's is not read."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type in _AS_PUBLISHED:
        return None  # what is no type is told by another check
    return f"as a {short(model_type)} model, whose tensors mlx-lm changes or renames"


def assemble_mlx(
    assembly: Assembly, settings: Mapping[str, object], config: Mapping[str, object]
) -> None:
    """Put all matrices together."""
    for module in assembly.with_end(".scales"):
        own = settings.get(module)
        _put(assembly, module, own if isinstance(own, dict) else settings)  # nothing is inherited
    _unstack(assembly, mixtral=config.get("model_type") == "mixtral")
    for module in assembly.with_end(_KERNEL):
        _as_published(assembly, f"{module}{_KERNEL}")


def _put(assembly: Assembly, module: str, how: Mapping[str, Any]) -> None:
    name = f"{module}{WEIGHT}"
    codes = assembly.part(name, name, dtypes=("uint32",))
    scales = assembly.part(f"{module}.scales", name)
    if codes is None or scales is None:
        return
    mode = how.get("mode") or "affine"
    bits, group = how.get("bits", 4), how.get("group_size", 64)
    known = isinstance(mode, str) and mode in ("affine", *_FLOATS)
    if known and mode != "affine":
        bits, group = _FLOATS[mode]
    if not known or bits not in _BITS or type(group) is not int or group < 1:
        told = f"mode {short(mode)}, {short(bits)} bits, groups of {short(group)}"
        assembly.problems.append(f"{name}: in {told}, which is not known")
        return
    if len(codes.shape) < 2:
        assembly.problems.append(f"{name}: is {codes.shape}, expected a matrix")
        return
    inputs = codes.shape[-1] * _WORD // bits
    grid = (*codes.shape[:-1], inputs // group)
    if scales.shape != grid or codes.shape[-1] * _WORD % bits or inputs % group:
        assembly.problems.append(
            f"{scales.name}: is {scales.shape}, expected {grid} for {bits} bits in groups of {group}"
        )
        return
    tensor = _matrix(assembly, name, codes, scales, mode, bits, group)
    if tensor is not None:
        assembly.put(tensor)


def _matrix(
    assembly: Assembly,
    name: str,
    codes: StoredTensor,
    scales: StoredTensor,
    mode: str,
    bits: int,
    group: int,
) -> PackedTensor | None:
    shape = (*codes.shape[:-1], codes.shape[-1] * _WORD // bits)
    place = (codes.start, codes.end)
    if mode == "affine":
        biases = assembly.part(
            f"{name.removesuffix(WEIGHT)}.biases", name, dtypes=(scales.dtype,), shape=scales.shape
        )
        wrong = scales.dtype not in (*HALVES, "float32")
        if biases is None or wrong:
            assembly.problems += [f"{scales.name}: is {scales.dtype}"] * wrong
            return None
        return IntegerTensor(
            codes.file, name, assembly.dtype_by(scales), shape, *place, codes=codes,
            scales=scales, biases=biases, bits=bits, group=group, label="MLX's whole numbers",
        )  # fmt: skip
    if scales.dtype != "uint8":
        assembly.problems.append(f"{scales.name}: is {scales.dtype}, expected uint8")
        return None
    if mode == "mxfp8":
        return ScaledTensor(
            codes.file, name, assembly.dtype, shape, *place, kind="float8_e4m3fn",
            scales=scales, block=(1, group), height=shape[-2], label="MX FP8",
        )  # fmt: skip
    return Fp4Tensor(
        codes.file, name, assembly.dtype, shape, *place, codes=codes, scales=scales, group=group
    )


def _unstack(assembly: Assembly, *, mixtral: bool) -> None:
    """Have a matrix for each expert in the place of a stack of them."""
    for name in [name for name in assembly.tensors if _STACKS in name]:
        stack = assembly.tensors.pop(name)
        block, _, rest = name.partition(_STACKS)
        role, _, part = rest.partition(".")
        role = _MIXTRAL.get(role, role) if mixtral else role
        for number in range(stack.shape[0] if len(stack.shape) == 3 else 0):
            full = f"{block}.experts.{number}.{role}.{part}"
            assembly.tensors[full] = replace(_matrix_of(stack, number), name=full)


def _as_published(assembly: Assembly, name: str) -> None:
    """Have a kernel (channels, taps, 1) as (channels, 1, taps): its numbers lie the same way."""
    kernel = assembly.tensors[name]
    if len(kernel.shape) == 3 and kernel.shape[2] == 1:
        channels, taps, _ = kernel.shape
        assembly.tensors[name] = replace(kernel, shape=(channels, 1, taps))


def _matrix_of(stack: StoredTensor, number: int) -> StoredTensor:
    """Return one of the matrices of a stack."""
    match stack:
        case IntegerTensor():
            return replace(
                _slice(stack, number),
                codes=_slice(stack.codes, number),
                scales=_slice(stack.scales, number),
                biases=None if stack.biases is None else _slice(stack.biases, number),
            )
        case Fp4Tensor():
            return replace(
                _slice(stack, number),
                codes=_slice(stack.codes, number),
                scales=_slice(stack.scales, number),
            )
        case ScaledTensor():
            return stack.rows_from(number * stack.height, stack.shape[1:])
    return _slice(stack, number)


def _slice(stack: Tensor, number: int) -> Tensor:
    """Return one of the equal parts of a tensor's first axis."""
    size = (stack.end - stack.start) // stack.shape[0]
    start = stack.start + number * size
    return replace(stack, shape=stack.shape[1:], start=start, end=start + size)
