"""Methods that PEFT does not know: their kind and settings, in a file of the same shape."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgetune import methods
from edgetune.adapters.base import EDGETUNE, AdapterFormat
from edgetune.errors import ModelError, UsageError
from edgetune.escapes import short
from edgetune.methods.base import Method
from edgetune.settings.spec import to_plain
from edgetune.shape import ModelShape


class TypedFormat(AdapterFormat):
    """``method`` is the kind, ``settings`` holds every setting by its name."""

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return kind and settings."""
        return {
            "peft_type": EDGETUNE,
            "task_type": "CAUSAL_LM",
            "method": method.kind,
            "settings": to_plain(method),
        }

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Method:
        """Return the method of that kind and those settings."""
        kind, settings = config.get("method"), config.get("settings")
        if not isinstance(kind, str) or not isinstance(settings, dict):
            raise ModelError(
                f"The adapter's config names the method {short(kind)} with the settings {short(settings)}; "
                "expected a name and an object. Save or copy the adapter again."
            )
        try:
            return methods.build(kind, {name: _tuple(value) for name, value in settings.items()})
        except (UsageError, TypeError) as error:
            raise ModelError(f"The adapter's config cannot be used: {error}") from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
