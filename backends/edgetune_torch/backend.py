"""The torch backend's door: imports torch only when it is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgetune.device import Device
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
        _wait_quietly()
        import torch

        if torch.cuda.is_available():
            return Decision(True, f"torch {torch.__version__} sees {torch.cuda.get_device_name()}")
        return Decision(True, f"torch {torch.__version__} on CPU")

    def open(self, spec: RunSpec, model: LocalModel) -> TorchSession:
        """Load the model as planned, with a new adapter."""
        _wait_quietly()
        from edgetune_torch.opening import open_session

        return open_session(spec, model)

    def measure(self, device: Device) -> Measurements:
        """Time what a step consists of."""
        _wait_quietly()
        from edgetune_torch.measure import measure

        return measure(device)

    def dry_run(self, spec: RunSpec, shape: ModelShape) -> Mapping[str, int]:
        """Run the planned step on tensors without content."""
        _wait_quietly()
        from edgetune_torch.dry_run import dry_run

        return dry_run(spec, shape)


def _wait_quietly() -> None:
    """Let idle threads sleep instead of spin; read by OpenMP when torch is first imported.

    With other programs at work on two cores, spinning made a step take 9 times as long; on an
    idle machine sleeping costs nothing that could be measured.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
