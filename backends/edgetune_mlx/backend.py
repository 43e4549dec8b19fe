"""The MLX backend's door: listed, and honest about what it cannot do yet."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NoReturn

from edgetune.errors import UsageError
from edgetune.model import LocalModel
from edgetune.plan import Plan
from edgetune.spec import Decision


class MlxBackend:
    """Apple silicon through MLX."""

    def usable(self) -> Decision[bool]:
        """Say why this backend cannot run yet."""
        if find_spec("mlx") is None:
            return Decision(False, "mlx is not installed: it runs on Apple silicon")
        return Decision(False, "training on MLX is not built yet; --device cpu works")

    def open(self, plan: Plan, model: LocalModel) -> NoReturn:
        """Refuse.

        Raises:
            UsageError: always, with the reason.
        """
        because = self.usable().because
        raise UsageError(f"{model.ref} cannot be opened on {plan.device.name}: {because}.")
