"""Norm tuning as PEFT writes it: LN_TUNING."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

from edgetune.adapters.base import ANYWHERE, AdapterFormat, unsupported
from edgetune.adapters.modules import loaded_name
from edgetune.errors import ModelError
from edgetune.methods.base import Method
from edgetune.methods.norm import PART, NormTuning
from edgetune.methods.targets import norms
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_KNOWN: Final = ANYWHERE | {"target_modules", "exclude_modules"}
_ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {"task_type": ("CAUSAL_LM",)}


class NormFormat(AdapterFormat):
    """``ln_tuning_layers.weight`` and ``.bias`` of every trained norm."""

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of an ``LNTuningConfig``; norms by their full paths."""
        selected = cast("NormTuning", method).select(shape)
        return {
            "peft_type": "LN_TUNING",
            "task_type": "CAUSAL_LM",
            "target_modules": [loaded_name(shape, module) for module, _ in selected],
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> NormTuning:
        """Return norm tuning of the norms whose tensors are there."""
        found = {name.rpartition(f".{PART}.")[0] for name in names}
        known = [module for module, _ in norms(shape, None) if module in found]
        problems = list(unsupported(config, _KNOWN, _ALLOWED))
        problems += [
            f"{module or 'a tensor'}: not a norm of this {shape.family} model"
            for module in sorted(found.difference(known)) or ([] if known else ["the file"])
        ]
        if problems:
            raise ModelError(f"This norm adapter cannot be used:\n  - {listing(problems)}")
        everything = len(known) == len(norms(shape, None))
        return NormTuning(norms=("all",) if everything else tuple(known))
