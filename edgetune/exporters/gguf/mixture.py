"""Which number format each tensor of a file gets: llama.cpp's mixtures, tensor by tensor.

The rules are those of its ``llama-quantize`` without an importance matrix: attention's values and
the MLP's last product get two bits more in the layers that matter most, so does the output, or
the embedding in its place. A row that is not whole blocks falls back to a format in which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from edgetune.model.gguf_names import STREAM_ENTRIES, STREAM_EXITS, TABLE_PROJECTION
from edgetune.shape import ModelShape
from edgetune.tensors.gguf.types import BY_NAME, TensorType

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a quantization is called in a file, and the format of most of its matrices."""

    file_type: int
    main: str
    more_bits: bool = False
    """Some layers get Q6_K."""
    fused: str | None = None
    """Of queries, keys and values in one matrix, if not the main format."""


MIXTURES: Final[Mapping[Quantization, Mixture]] = {
    "f32": Mixture(0, "F32"),
    "f16": Mixture(1, "F16"),
    "bf16": Mixture(32, "BF16"),
    "q8_0": Mixture(7, "Q8_0"),
    "q4_0": Mixture(2, "Q4_0"),
    "q4_k_m": Mixture(15, "Q4_K", more_bits=True, fused="Q5_K"),
    "q5_k_m": Mixture(17, "Q5_K", more_bits=True, fused="Q6_K"),
    "q6_k": Mixture(18, "Q6_K"),
}
"""By the name that users type; the numbers are those of ``general.file_type``."""

DEFAULTS: Final[Mapping[str, Quantization]] = {
    "gguf": "f16",
    "ollama": "q4_k_m",
    "lmstudio": "q4_k_m",
}
"""What is written where the user does not say, by export: these clients run on small machines."""

_PLAIN: Final = frozenset({"F32", "F16", "BF16"})
_FALLBACKS: Final[Mapping[str, str]] = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "Q4_0": "F16",
    "Q5_0": "F16",
    "Q5_1": "F16",
    "Q8_0": "F16",
}
"""What a format gives way to where a row is not whole blocks."""


_BESIDE_STREAM: Final = frozenset({TABLE_PROJECTION, STREAM_ENTRIES, STREAM_EXITS})
_OF_STREAMS: Final = (
    "altup_router.weight", "altup_predict_coef.weight", "altup_correct_coef.weight",
)  # fmt: skip
"""What mixes the streams of Gemma 3n: a few numbers a layer."""
_MANY_BITS: Final = 8
"""Of models with so many experts, attention's few weights get more bits."""
_FEW_WEIGHTS: Final[Mapping[str, Mapping[str, str]]] = {
    "attn_v": dict.fromkeys(("Q4_0", "Q4_K", "Q5_K", "Q6_K"), "Q8_0"),
    "attn_k": dict.fromkeys(("Q4_0", "Q4_K", "Q5_K", "Q6_K"), "Q8_0"),
    "attn_output": {"Q4_K": "Q5_K"},
}
"""The formats that these get in place of the main one."""


def tensor_type(
    name: str,
    size: tuple[int, ...],
    shape: ModelShape,
    quantization: Quantization,
    *,
    output: str,
) -> TensorType:
    """Return the format of a tensor by its name in the file; ``output`` is the one that makes logits."""
    plain = name == "position_embd.weight" or name.endswith(
        ("shortconv.conv.weight", "ssm_conv1d.weight", "ssm_norm.weight", "ffn_gate_inp.weight",
         *_OF_STREAMS)
    )  # fmt: skip
    matrix = len(size) == 2 and name.endswith(".weight") and not plain
    if not matrix:
        return BY_NAME["F32"]
    wanted = _wanted(name, size[-1], shape, MIXTURES[quantization], output)
    while size[-1] % BY_NAME[wanted].block:
        wanted = _FALLBACKS[wanted]
    return BY_NAME[wanted]


def _wanted(name: str, inputs: int, shape: ModelShape, mixture: Mixture, output: str) -> str:
    main = mixture.main
    if main in _PLAIN:
        return main
    if name in _BESIDE_STREAM or ".laurel_" in name:
        return "BF16" if shape.dtype == "bfloat16" else "F16"
    if name == output:
        return "Q8_0" if main == "Q8_0" or inputs % BY_NAME[main].block else "Q6_K"
    if not name.startswith("blk."):
        return main
    _, layer, part, *_ = name.split(".")
    experts = shape.blocks[int(layer)].experts
    if experts is not None and experts.number == _MANY_BITS and part in _FEW_WEIGHTS:
        return _FEW_WEIGHTS[part].get(main, main)
    if mixture.more_bits and part in ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp"):
        return "Q6_K" if more_bits(int(layer), shape.layers) else main
    if part == "attn_qkv" and mixture.fused is not None:
        return mixture.fused
    return main


def more_bits(layer: int, layers: int) -> bool:
    """Return whether a layer is among the first, the last or every third one."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
