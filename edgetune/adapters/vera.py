"""VeRA as PEFT writes it: the vectors, and the shared matrices or the key that they are drawn by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.base import ANYWHERE, AdapterFormat, unsupported
from edgetune.adapters.modules import adaptable, exact_names, peft_names
from edgetune.errors import ModelError
from edgetune.methods.base import Method
from edgetune.methods.vera import SHARED_A, SHARED_B, Vera, bound
from edgetune.model.config import Fields
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_PARTS: Final = (".vera_lambda_d", ".vera_lambda_b")
_SHARED: Final = {f"base_model.{name}": name for name in (SHARED_A, SHARED_B)}
"""What the file calls tensors of no module."""

_KNOWN: Final = ANYWHERE | {
    "r", "vera_dropout", "d_initial", "save_projection", "projection_prng_key",
    # the tensors in the file say which modules are adapted
    "target_modules", "layers_to_transform", "layers_pattern", "exclude_modules",
    "fan_in_fan_out", "init_weights",
}  # fmt: skip
_ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
}
_MANTISSA: Final = 24
"""Bits of a random float32 number."""
_EXACT: Final = 2**53
"""Whole numbers of a config are exact below this."""


class VeraFormat(AdapterFormat):
    """``vera_lambda_d`` (rank) and ``vera_lambda_b`` (outputs) of each target, and two matrices.

    The matrices are written; a file without them is read by its key.
    """

    def stored_name(self, name: str, shape: ModelShape) -> str:
        """Return what the file calls a tensor."""
        outer = {own: stored for stored, own in _SHARED.items()}
        return outer.get(name) or AdapterFormat.stored_name(self, name, shape)

    def own_name(self, stored: str, shape: ModelShape) -> str:
        """Return what the method calls a tensor of the file."""
        return _SHARED.get(stored) or AdapterFormat.own_name(self, stored, shape)

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of a ``VeraConfig``."""
        vera = cast("Vera", method)
        targets = vera.select(shape)
        return {
            "peft_type": "VERA",
            "task_type": "CAUSAL_LM",
            "r": vera.vera_rank,
            "vera_dropout": vera.dropout,
            "d_initial": vera.vera_initial,
            "bias": "none",
            "save_projection": True,
            "fan_in_fan_out": any(target.linear.transposed for target in targets),
            "target_modules": list(peft_names(shape, [target.module for target in targets])),
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Vera:
        """Return VeRA on the modules whose tensors are there."""
        fields = Fields(config)
        rank, dropout = fields.size("r"), fields.number("vera_dropout", 0.0)
        start = fields.number("d_initial", 0.1)
        found = {_module(name) for name in names} - set(_SHARED.values())
        known = [module for module in adaptable(shape) if module in found]
        problems = [*fields.problems, *unsupported(config, _KNOWN, _ALLOWED)]
        problems += [
            f"{module}: not a projection in a block of this {shape.family} model"
            for module in sorted(found.difference(known)) or ([] if known else ["the file"])
        ]
        if problems:
            raise ModelError(f"This VeRA adapter cannot be used:\n  - {listing(problems)}")
        return Vera(
            vera_rank=rank, vera_initial=start, dropout=dropout,
            targets=exact_names(shape, known),
        )  # fmt: skip

    def left_out(self, config: Mapping[str, object], names: Collection[str]) -> tuple[str, ...]:
        """Return the shared matrices, if the config says that they are not saved."""
        saved = config.get("save_projection", True)
        return () if saved or {SHARED_A, SHARED_B} & set(names) else (SHARED_A, SHARED_B)

    def drawn(
        self, config: Mapping[str, object], sizes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the matrices as torch draws them on a processor from the config's key."""
        if not sizes:
            return {}
        fields = Fields(config)
        key = fields.number("projection_prng_key", 0)
        if fields.problems or not key.is_integer() or abs(key) >= _EXACT:
            raise ModelError(
                "projection_prng_key of this VeRA adapter is no whole number below 2^53, and its "
                "matrices are not in the file. Save it again with save_projection."
            )
        draw = np.random.RandomState(int(key) % 2**32)
        return {name: _uniform(draw, sizes[name]) for name in (SHARED_A, SHARED_B)}


def _uniform(draw: np.random.RandomState, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the next numbers from -bound to bound, rounded once, as torch does it."""
    high = np.float32(bound(size[1]))
    words = draw.randint(0, 2**32, size, np.uint32) & (2**_MANTISSA - 1)
    drawn = words / 2**_MANTISSA * np.float64(high + high) - np.float64(high)
    rounded: NDArray[np.float32] = drawn.astype(np.float32)
    return rounded


def _module(name: str) -> str:
    for part in _PARTS:
        name = name.removesuffix(part)
    return name
