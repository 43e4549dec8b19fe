"""The adapter itself, as a folder that PEFT loads."""

from __future__ import annotations

from typing import Final

from edgetune.adapters import save_adapter
from edgetune.adapters.form import FOLDED
from edgetune.errors import UsageError
from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.folder import folder_bytes, needed_bytes, new_folder
from edgetune.exporters.gguf.architectures import multiplied_into_weights
from edgetune.methods.prompt import Prompt

_WHOLE: Final = (
    "The adapter is for the whole vision-language model: load its base with transformers' "
    "AutoModelForImageTextToText. AutoModelForCausalLM makes the text model alone of some, in which "
    "its names are not found."
)
"""Said where names are those of a wrapper: of Qwen3.5's, transformers 5 makes both."""

_MISTAKEN: Final = frozenset({"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "qwen3_moe"})
"""Families whose MLPs in dense layers, or beside experts, have the names of experts to PEFT 0.21."""


def _of_mlp(name: str) -> bool:
    """Return whether a tensor belongs to an MLP that all tokens go through."""
    return ".mlp." in name and ".mlp.experts." not in name


def export_peft(request: ExportRequest) -> Exported:
    """Write the adapter in float32 with its own base, or the model's name if none is known.

    Raises:
        UsageError: if the output folder cannot be made, an option of merging is given, or PEFT would
            not compute the adapter as it was trained.
    """
    if request.dtype is not None or request.shard_bytes is not None:
        raise UsageError(
            "--dtype and --shard-size are for merged weights; an adapter is one file in float32. "
            "Leave them out, or use --to hf."
        )
    adapter, model = request.adapter, request.model
    if model.shape.family in _MISTAKEN and any(map(_of_mlp, adapter.tensors)):
        raise UsageError(
            f"PEFT takes the MLPs of {model.shape.family} models that all tokens go through for "
            "experts, and would load this adapter into other modules. Adapt attention alone "
            "(--targets attention), or merge it (--to hf)."
        )
    if model.folder.is_file() and multiplied_into_weights(model.shape):
        raise UsageError(
            f"A GGUF file of a {model.shape.family} model has its multipliers in its weights: PEFT "
            "would load this adapter over the model that the file was made from, which multiplies "
            "what it adds once more. Export the adapter of the run over that model (edgetune export "
            "RUN/adapter --model FOLDER --to peft), for the file (--to gguf --adapter), or merged "
            "(--to gguf or --to hf)."
        )
    if model.shape.family in FOLDED and isinstance(adapter.method, Prompt):
        raise UsageError(
            f"PEFT gives {model.shape.family} models embeddings of tokens beside a prompt, which "
            "transformers does not multiply as it does those that it looks up itself: the model "
            "would be another one. Train --method prefix or lora for PEFT."
        )
    tensors = [tensor.size for tensor in adapter.method.tensors(model.shape)]
    needed = needed_bytes(4 * size for size in tensors)
    with new_folder(request.output, needed) as folder:
        base = adapter.base or model.ref
        save_adapter(folder, adapter.method, model.shape, adapter.tensors, base=base)
        nbytes = folder_bytes(folder)
    notes = () if model.shape.inside is None else (_WHOLE,)
    return Exported(folder=request.output, nbytes=nbytes, notes=notes)
