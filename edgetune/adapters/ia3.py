"""IA3 as PEFT writes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

from edgetune.adapters.base import ANYWHERE, AdapterFormat, unsupported
from edgetune.adapters.modules import adaptable, exact_names, peft_names
from edgetune.errors import ModelError
from edgetune.methods.base import Method
from edgetune.methods.ia3 import Ia3, scales_inputs
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_PART: Final = ".ia3_l"
_KNOWN: Final = ANYWHERE | {
    # the tensors in the file say which modules are adapted, their shapes which way
    "target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out",
    "init_ia3_weights",
}  # fmt: skip
_ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {"task_type": ("CAUSAL_LM",)}


class Ia3Format(AdapterFormat):
    """``ia3_l``, (outputs, 1), or (1, inputs) where the inputs are scaled."""

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of an ``IA3Config``."""
        targets = cast("Ia3", method).select(shape)
        inward = [target.module for target in targets if scales_inputs(target.linear)]
        every = [target.module for target in targets]
        names = peft_names(shape, every)
        inward_names = peft_names(shape, inward) if inward else ()
        if not set(inward_names) <= set(names):
            # PEFT wants the second list to repeat names of the first
            names, inward_names = tuple(every), tuple(inward)
        return {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "target_modules": list(names),
            "feedforward_modules": list(inward_names),
            "fan_in_fan_out": any(target.linear.transposed for target in targets),
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Ia3:
        """Return IA3 on the modules whose tensors are there."""
        found = {name.removesuffix(_PART) for name in names}
        known = [module for module in adaptable(shape) if module in found]
        problems = list(unsupported(config, _KNOWN, _ALLOWED))
        problems += [
            f"{module}: not a projection in a block of this {shape.family} model"
            for module in sorted(found.difference(known)) or ([] if known else ["the file"])
        ]
        if problems:
            raise ModelError(f"This IA3 adapter cannot be used:\n  - {listing(problems)}")
        return Ia3(targets=exact_names(shape, known))
