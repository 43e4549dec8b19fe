"""The MLX backend's door: imports mlx only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgetune.device import Device
from edgetune.device.base import DeviceIdentity
from edgetune.errors import UsageError
from edgetune.model import LocalModel
from edgetune.run_spec import RunSpec
from edgetune.settings.spec import Decision
from edgetune.shape import ModelShape
from edgetune.speed import Measurements
from edgetune.world import ALONE, Place, World

if TYPE_CHECKING:
    from edgetune_mlx.session import MlxSession


class MlxBackend:
    """Apple silicon; on Linux the processor, for tests."""

    def usable(self, device: DeviceIdentity) -> Decision[bool]:
        """Say whether MLX can compute here on a device."""
        if device.kind != "mlx":
            return Decision(False, f"MLX does not compute on {device.kind}.")
        if find_spec("mlx") is None:
            return Decision(False, "mlx is not installed. Type: pip install mlx mlx-lm")
        try:
            import mlx.core as mx
        except ImportError as error:
            return Decision(
                False,
                f"mlx is installed and does not load: {error}. Type: pip install --upgrade mlx",
            )
        where = "on Metal" if mx.metal.is_available() else "on CPU, for tests"
        return Decision(True, f"mlx {version('mlx')} {where}")

    def join(self, place: Place, timeout: float, device: Device) -> World:
        """Meet the other ranks on MLX's ring: MLX has one device a machine."""
        del device
        from edgetune_mlx.world import MlxWorld

        return MlxWorld(place, timeout)

    def open(self, spec: RunSpec, model: LocalModel, world: World = ALONE) -> MlxSession:
        """Load the model as planned, with a new adapter."""
        from edgetune_mlx.opening import open_session

        return open_session(spec, model, world)

    def measure(self, device: Device) -> Measurements:
        """Return how fast this machine does what a step consists of."""
        from edgetune_mlx.measure import measure

        return measure(device)

    def dry_run(self, spec: RunSpec, shape: ModelShape) -> Mapping[str, int]:  # noqa: ARG002
        """Refuse.

        Raises:
            UsageError: always: MLX has no tensors without memory.
        """
        raise UsageError(
            "MLX cannot tell the memory of a step without computing it; the plan's figures stand, and "
            "a run measures them."
        )
