"""The torch backend's door: imports torch only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgetune.device import Device
from edgetune.idle_threads import let_idle_threads_sleep
from edgetune.model import LocalModel
from edgetune.run_spec import RunSpec
from edgetune.settings.spec import Decision
from edgetune.shape import ModelShape
from edgetune.speed import Measurements

if TYPE_CHECKING:
    from edgetune_torch.session import TorchSession


class TorchBackend:
    """CUDA where there is a card, else CPU."""

    def usable(self) -> Decision[bool]:
        """Say whether torch can run here."""
        if find_spec("torch") is None:
            return Decision(False, "torch is not installed: pip install torch")
        let_idle_threads_sleep()
        import torch

        if torch.cuda.is_available():
            return Decision(True, f"torch {torch.__version__} sees {torch.cuda.get_device_name()}")
        return Decision(True, f"torch {torch.__version__} on CPU")

    def open(self, spec: RunSpec, model: LocalModel) -> TorchSession:
        """Load the model as planned, with a new adapter."""
        let_idle_threads_sleep()
        from edgetune_torch.opening import open_session

        return open_session(spec, model)

    def measure(self, device: Device) -> Measurements:
        """Time what a step consists of."""
        let_idle_threads_sleep()
        from edgetune_torch.measure import measure

        return measure(device)

    def dry_run(self, spec: RunSpec, shape: ModelShape) -> Mapping[str, int]:
        """Run the planned step on tensors without content."""
        let_idle_threads_sleep()
        from edgetune_torch.dry_run import dry_run

        return dry_run(spec, shape)
