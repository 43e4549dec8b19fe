"""Folders of tiny models as they are published quantized, each beside one with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import make_model
from published_formats import Format
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDE = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "head_dim": 8}


def make_pair(
    folder: Path,
    family: str,
    form: Format,
    *,
    skip: tuple[str, ...] = (),
    shards: int = 1,
    **sizes: Any,
) -> tuple[Path, Path]:
    """Write a model of a family quantized, and one that has its numbers; return both folders.

    What a linear layer has in transformers is quantized, but the head and what ``skip`` names.
    """
    packed, plain = folder / "packed", folder / "plain"
    for each in (packed, plain):
        make_model(each, family, dtype=form.dtype, **(sizes | form.others))
    tensors = load_file(plain / "model.safetensors")
    quantized, numbers = {}, dict(tensors)
    for name, x in tensors.items():
        if not is_quantized(name, x, form) or any(part in name for part in skip):
            quantized[name] = x
            continue
        turned = family == "gpt2"
        written, values = form.writer((x.T if turned else x).float().contiguous())
        numbers[name] = (values.T if turned else values).contiguous().to(_dtype(written, form))
        module = name.removesuffix("weight")
        quantized |= {f"{module}{part}": y for part, y in written.items()}
    save_file(numbers, plain / "model.safetensors", {"format": "pt"})
    write_tensors(packed, quantized, shards)
    change_config(packed, lambda config: config | {form.place: dict(form.settings)})
    return packed, plain


def is_quantized(name: str, x: Tensor, form: Format) -> bool:
    """Return whether a format quantizes a tensor of a checkpoint."""
    outer = any(part in name for part in ("embed_tokens", "lm_head", "wte"))
    inner = name.endswith(".weight") and x.ndim == 2 and "wpe" not in name
    return inner and (form.outer or not outer)


def _dtype(written: dict[str, Tensor], form: Format) -> torch.dtype:
    """Return the number format of a matrix: that of scales of 16 bits, else that of the model."""
    scales = (x for name, x in written.items() if "scale" in name and "input" not in name)
    found = [x.dtype for x in scales if x.dtype in {torch.float16, torch.bfloat16}]
    state = next((x for name, x in written.items() if "quant_state" in name), None)
    if state is not None:
        return getattr(torch, json.loads(bytes(state.tolist()))["dtype"])
    return found[0] if found else form.dtype


def write_tensors(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """Write tensors to one file or to several, those of a matrix to different ones."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    where = {name: f"model-{i % shards + 1}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        part = {name: x for name, x in tensors.items() if where[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a folder's config anew."""
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def make_mxfp4(folder: Path, **sizes: Any) -> Path:
    """Write a gpt-oss as it is published: its experts in MX FP4, all else in bfloat16."""
    make_model(folder, "gpt_oss", dtype=torch.bfloat16, **sizes)
    draw, tensors = torch.Generator().manual_seed(3), load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        size = (experts, outputs, inputs // 32)
        codes = torch.randint(0, 256, (*size, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(121, 126, size, dtype=torch.uint8, generator=draw)
        tensors |= {f"{name}_blocks": codes, f"{name}_scales": scales}
    write_tensors(folder, tensors)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    change_config(folder, lambda config: config | {"quantization_config": settings})
    return folder
