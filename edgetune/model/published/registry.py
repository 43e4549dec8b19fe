"""The ways of quantizing that are read, by the names that configs have for them, and the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.model.config import FloatName
from edgetune.model.published.assembly import Assembler, Assembly
from edgetune.model.published.awq import assemble_awq, awq_fault
from edgetune.model.published.bitsandbytes import assemble_bitsandbytes
from edgetune.model.published.compressed_tensors import (
    assemble_compressed_tensors,
    compressed_tensors_fault,
)
from edgetune.model.published.fp8 import assemble_fp8
from edgetune.model.published.gptq import assemble_gptq, gptq_fault
from edgetune.model.published.mlx import assemble_mlx, mlx_fault
from edgetune.tensors.header import StoredTensor

MLX: Final = "mlx"
_MXFP4: Final = "mxfp4"
"""gpt-oss's own: :mod:`edgetune.model.fused_experts` puts its matrices together."""

_READ: Final[Mapping[str, Assembler]] = {
    "fp8": assemble_fp8,
    "fbgemm_fp8": assemble_fp8,
    "bitsandbytes": assemble_bitsandbytes,
    "gptq": assemble_gptq,
    "awq": assemble_awq,
    "compressed-tensors": assemble_compressed_tensors,
    MLX: assemble_mlx,
}
_FAULTS: Final[Mapping[str, Callable[[Mapping[str, object]], str | None]]] = {
    "gptq": gptq_fault,
    "awq": awq_fault,
    "compressed-tensors": compressed_tensors_fault,
}
_NAMES: Final[Mapping[str, str]] = {
    "aqlm": "AQLM", "auto-round": "AutoRound's own format", "bitnet": "BitNet",
    "eetq": "EETQ", "exl2": "ExLlamaV2", "exl3": "ExLlamaV3", "fouroversix": "Four Over Six",
    "fp_quant": "FP-Quant", "gemma": "Gemma's quantized layers", "higgs": "HIGGS", "hqq": "HQQ",
    "metal": "Metal kernels", "modelopt": "NVIDIA ModelOpt", "mxfp8": "MX FP8",
    "nvfp4": "NV FP4", "quanto": "Quanto", "quark": "AMD Quark", "quip": "QuIP#",
    "sinq": "SINQ", "spqr": "SpQR", "torchao": "torchao", "vptq": "VPTQ",
}  # fmt: skip
"""What other ways of quantizing are called."""

_PARTS: Final = (
    ".qweight", ".quant_map", ".SCB", ".weight_shape", ".weight_packed", ".scales", ".weight_scale",
    ".weight_scale_inv",
)  # fmt: skip
"""What names of tensors end with that only quantized checkpoints have."""

_WORDS: Final = "FP8, bitsandbytes, GPTQ, AWQ, compressed-tensors and MLX"
_FLOATS: Final = ("float32", "float16", "bfloat16")


def refuse_unread(config: Mapping[str, object]) -> None:
    """Refuse a model that is published in a format which is not read here.

    Raises:
        ModelError: naming the format.
    """
    method, settings = _how(config)
    if method is None or (method, config.get("model_type")) == (_MXFP4, "gpt_oss"):
        return
    if method not in _READ:
        known = _NAMES.get(method.lower())
        named = (
            f"with {known}" if known else f"by {short(method)}" if method else "in an unknown way"
        )
        raise ModelError(_refusal(f"{named}, which is not read here"))
    fault = mlx_fault(config) if method == MLX else None
    if method in _FAULTS:
        fault = _FAULTS[method](settings)
    if fault is not None:
        raise ModelError(_refusal(f"by {method} {fault}"))


def untold(config: Mapping[str, object], strange: Iterable[str]) -> str:
    """Return what to add about names that nobody expects: a config may not tell of a quantization."""
    method, _ = _how(config)
    if method is not None or not any(name.endswith(_PARTS) for name in strange):
        return ""
    return (
        "\nThey are those of a quantized model, and config.json does not say how it was quantized: it "
        "has no quantization_config. Fetch or copy the model again, with its own config.json."
    )


def assembled(
    config: Mapping[str, object], stored: Mapping[str, StoredTensor]
) -> Mapping[str, StoredTensor]:
    """Return the tensors of a folder, those of a quantized matrix as one.

    Raises:
        ModelError: naming the tensors that are missing or do not fit.
    """
    method, settings = _how(config)
    if method is None or method not in _READ:
        return stored
    assembly = Assembly(stored, _dtype(config))
    _READ[method](assembly, settings, config)
    return assembly.finish(method)


def written_plain(config: Mapping[str, object]) -> dict[str, object]:
    """Return the config of the same model with all matrices as plain numbers."""
    method, _ = _how(config)
    if method not in _READ:
        return dict(config)
    plain = {k: v for k, v in config.items() if k not in {"quantization", "quantization_config"}}
    text = plain.get("text_config")
    return {**plain, "text_config": written_plain(text)} if isinstance(text, dict) else plain


def _how(config: Mapping[str, object]) -> tuple[str | None, Mapping[str, object]]:
    """Return the name of the way and its settings; None if a config names none."""
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    own = config.get("quantization_config") or inner.get("quantization_config")
    settings = own or config.get("quantization") or inner.get("quantization")
    if not settings:
        return None, {}
    if not isinstance(settings, dict):
        return "", {}
    method = settings.get("quant_method")
    if isinstance(method, str):
        return method.lower(), settings
    return (MLX if "group_size" in settings and "bits" in settings else ""), settings


def _dtype(config: Mapping[str, object]) -> FloatName:
    """Return the number format that a config names, bfloat16 where it names none."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = (place.get(name) for place in places for name in ("dtype", "torch_dtype"))
    return cast("FloatName", next((x for x in found if x in _FLOATS), "bfloat16"))


def _refusal(how: str) -> str:
    return (
        f"This model is already quantized {how}. Read are {_WORDS}. Use the 16-bit model that it "
        "was made from: edgetune quantizes it as the plan says."
    )
