"""LoRA as PEFT writes it. What PEFT knows beyond plain LoRA is refused, never dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Final, cast

from edgetune.adapter_file.base import AdapterFormat
from edgetune.adapter_file.modules import adaptable, exact_names
from edgetune.errors import ModelError
from edgetune.methods.base import Method
from edgetune.methods.lora import Lora
from edgetune.model.config import Fields
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_READ: Final = {
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora",
}  # fmt: skip
_WITHOUT_EFFECT: Final = {
    # which modules are adapted: the tensors in the file say it
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    # how training began, where the file came from, how PEFT computes
    "eva_config", "inference_mode", "fan_in_fan_out", "revision", "auto_mapping", "peft_version",
    "runtime_config", "megatron_config", "megatron_core", "qalora_group_size",
    "ensure_weight_tying",
}  # fmt: skip
_ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    # the other first values change the base weights as well
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}


class LoraFormat(AdapterFormat):
    """Pairs of ``lora_A`` (rank, inputs) and ``lora_B`` (outputs, rank)."""

    prefix: ClassVar[str] = "base_model.model."

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of a ``LoraConfig``; those left out keep PEFT's defaults."""
        lora = cast("Lora", method)
        targets = lora.select(shape)
        alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": lora.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": lora.dropout,
            "use_rslora": lora.rslora,
            "use_dora": False,
            "bias": "none",
            "fan_in_fan_out": any(target.linear.transposed for target in targets),
            "target_modules": list(exact_names(shape, [target.module for target in targets])),
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Lora:
        """Return LoRA on the modules whose tensors are there."""
        fields = Fields(config)
        rank, alpha = fields.size("r"), fields.number("lora_alpha", 8.0)
        dropout, rslora = fields.number("lora_dropout", 0.0), fields.flag("use_rslora", False)
        found = {name.rsplit(".", 2)[0] for name in names}
        known = [module for module in adaptable(shape) if module in found]
        problems = [*fields.problems, *_unsupported(config), *_strange(found, known, shape)]
        if problems:
            raise ModelError(f"This LoRA adapter cannot be used:\n  - {listing(problems)}")
        targets = exact_names(shape, known)
        return Lora(rank=rank, alpha=alpha, dropout=dropout, targets=targets, rslora=rslora)


def _unsupported(config: Mapping[str, object]) -> Iterator[str]:
    """Name the fields that ask for something: an empty or false field asks for nothing."""
    for name, value in config.items():
        off = not value or name in _READ | _WITHOUT_EFFECT
        if not off and value not in _ALLOWED.get(name, ()):
            yield f"{name} is {value!r}: not supported"


def _strange(found: set[str], known: Collection[str], shape: ModelShape) -> Iterator[str]:
    if not known:
        yield f"none of its modules is a projection in a block of this {shape.family} model"
        return
    for module in sorted(found.difference(known)):
        yield f"{module}: not a projection in a block of this {shape.family} model"
