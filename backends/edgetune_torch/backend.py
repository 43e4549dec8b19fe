"""The torch backend's door: imports torch only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgetune.before_torch import set_environment
from edgetune.device import Device
from edgetune.device.base import DeviceIdentity
from edgetune.model import LocalModel
from edgetune.run_spec import RunSpec
from edgetune.settings.spec import Decision
from edgetune.shape import ModelShape
from edgetune.speed import Measurements
from edgetune.world import ALONE, Place, World

if TYPE_CHECKING:
    from edgetune_torch.session import TorchSession


class TorchBackend:
    """CUDA where there is a card, else CPU."""

    def usable(self, device: DeviceIdentity) -> Decision[bool]:
        """Say whether torch can compute here on a device, after computing something on it."""
        if device.kind not in {"cpu", "cuda"}:
            return Decision(False, f"torch does not compute on {device.kind} here.")
        if find_spec("torch") is None:
            return Decision(False, "torch is not installed. Type: pip install torch")
        set_environment()
        try:
            import torch
        except (ImportError, OSError) as error:
            return Decision(False, f"torch is installed and does not load: {error}.")
        if device.kind == "cpu":
            from edgetune_torch.cpu_kernels.build import COMPILERS, lacks_compiler

            slower = f". Runs in bfloat16 are faster with a compiler: install {COMPILERS[1]}"
            more = slower if lacks_compiler() else ""
            return Decision(True, f"torch {torch.__version__} on CPU{more}")
        from edgetune_torch.cards import usable_card

        return usable_card(device.uuid)

    def join(self, place: Place, timeout: float, device: Device) -> World:
        """Meet the other ranks over torch.distributed."""
        set_environment()
        from edgetune_torch.world import TorchWorld

        return TorchWorld(place, timeout, device.uuid if device.kind == "cuda" else None)

    def open(self, spec: RunSpec, model: LocalModel, world: World = ALONE) -> TorchSession:
        """Load the model as planned, with a new adapter."""
        set_environment()
        from edgetune_torch.opening import open_session

        return open_session(spec, model, world)

    def measure(self, device: Device) -> Measurements:
        """Time what a step consists of."""
        set_environment()
        from edgetune_torch.measure import measure

        return measure(device)

    def dry_run(self, spec: RunSpec, shape: ModelShape) -> Mapping[str, int]:
        """Run the planned step on tensors without content."""
        set_environment()
        from edgetune_torch.dry_run import dry_run

        return dry_run(spec, shape)
