"""Typed access to a ``config.json`` that collects every problem before it complains.

>>> fields = Fields({"hidden_size": "64"})
>>> fields.size("hidden_size"), fields.flag("attention_bias", False)
(1, False)
>>> fields.problems
["hidden_size must be a whole number from 1 to 2,147,483,647; found '64'"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.shape import Activation

FloatName = Literal["float32", "float16", "bfloat16"]

_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
LARGEST: Final = 2**31 - 1
"""No size of a model is near it; what is above can only be damage."""
_FLOATS: Final = ("float32", "float16", "bfloat16")


class Fields:
    """One configuration; a field that is null counts as missing.

    Every reader returns a harmless placeholder where it notes a problem, so that one pass finds
    all of them; :meth:`finish` then raises.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        self._config = config
        self.problems: list[str] = []

    def has(self, name: str) -> bool:
        """Return whether a field is written at all, even as null."""
        return name in self._config

    def with_defaults(self, **defaults: object) -> Fields:
        """Return the same fields, and notes of problems, with values for what is missing."""
        given = {name: value for name, value in self._config.items() if value is not None}
        fields = Fields({**self._config, **defaults, **given})
        fields.problems = self.problems
        return fields

    def with_values(self, **values: object) -> Fields:
        """Return the same fields, and notes of problems, with other values."""
        fields = Fields({**self._config, **values})
        fields.problems = self.problems
        return fields

    def with_names(self, **names: str) -> Fields:
        """Return the same fields, those that are missing by the other names that they have."""
        return self.with_defaults(**{name: self.raw(other) for name, other in names.items()})

    def raw(self, name: str) -> object:
        """Return a field as it is written, ``None`` when missing."""
        return self._config.get(name)

    def size(self, name: str, default: int | None = None, *, most: int = LARGEST) -> int:
        """Return a whole number above zero; without a default the field must be there."""
        value = self.optional_size(name, most=most)
        if value is None and default is None and self.raw(name) is None:
            self.problems.append(f"{name} is missing")
        return value or default or 1

    def optional_size(self, name: str, *, most: int = LARGEST) -> int | None:
        """Return a whole number above zero, or ``None`` when missing."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
            return value
        self._wrong(name, f"a whole number from 1 to {most:,}", value)
        return None

    def count(self, name: str, default: int) -> int:
        """Return a whole number, which may be zero, or the default when missing."""
        return 0 if self.raw(name) == 0 else self.optional_size(name) or default

    def names(self) -> tuple[str, ...]:
        """Return the names of all fields."""
        return tuple(self._config)

    def number(self, name: str, default: float) -> float:
        """Return a number, or the default when missing."""
        value = self.optional_number(name)
        return default if value is None else value

    def optional_number(self, name: str) -> float | None:
        """Return a number, or ``None`` when missing."""
        value = self.raw(name)
        if value is None or is_number(value):
            return None if value is None else float(cast("float", value))
        self._wrong(name, "a number", value)
        return None

    def positive(self, name: str, default: float) -> float:
        """Return a number above zero, or the default when missing."""
        value = self.number(name, default)
        if value > 0:
            return value
        self._wrong(name, "above 0", value)
        return default

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self._wrong(name, "true or false", value)
        return default

    def table(self, name: str) -> dict[str, object]:
        """Return a mapping, empty when missing."""
        value = self.raw(name)
        if value is None or isinstance(value, dict):
            return dict(value or {})
        self._wrong(name, "a mapping", value)
        return {}

    def items(self, name: str, kind: type, count: int) -> list[object] | None:
        """Return a list of at least ``count`` items of one type, ``None`` when missing."""
        value = self.raw(name)
        if value is None:
            return None
        right = isinstance(value, list) and all(isinstance(item, kind) for item in value)
        if right and len(cast("list[object]", value)) >= count:
            return cast("list[object]", value)[:count]
        self._wrong(name, f"a list of {count} {kind.__name__} values", value)
        return None

    def activation(self, name: str, default: str) -> Activation:
        """Return the kind of activation function."""
        value = self.raw(name) or default
        if isinstance(value, str) and value in _ACTIVATIONS:
            return _ACTIVATIONS[value]
        self._wrong(name, f"one of {', '.join(_ACTIVATIONS)}", value)
        return "silu"

    def dtype(self) -> FloatName:
        """Return the number type that the weights were published in.

        Of float64, which no file is read in, float32: the tensors' own format counts in the end.
        """
        value = self.raw("dtype") or self.raw("torch_dtype") or "float32"
        value = "float32" if value == "float64" else value
        if value in _FLOATS:
            return value
        self._wrong("dtype", f"one of {', '.join(_FLOATS)}", value)
        return "float32"

    def refuse(self, name: str, because: str) -> None:
        """Note a problem when a switch of the config is on that nothing here honours."""
        if self.raw(name):
            self.problems.append(f"{name} is {short(self.raw(name))}: {because}")

    def finish(self, model_type: str) -> None:
        """Raise all problems at once.

        Raises:
            ModelError: if there was any.
        """
        if self.problems:
            listing = "".join(f"\n  - {problem}" for problem in self.problems)
            raise ModelError(f"The config.json of this {model_type} model cannot be used:{listing}")

    def _wrong(self, name: str, wanted: str, found: object) -> None:
        self.problems.append(f"{name} must be {wanted}; found {short(found)}")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
