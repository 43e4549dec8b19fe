"""Whether torch can compute on an NVIDIA card, tried on it."""

from __future__ import annotations

import torch

from edgetune.settings.spec import Decision
from edgetune_torch import kernels


def card_number(uuid: str | None) -> int:
    """Return torch's number of a card; that of the current one if none has this name."""
    for number in range(torch.cuda.device_count()):
        # without the "GPU-" that the driver's tools put before it
        if uuid and uuid.endswith(str(torch.cuda.get_device_properties(number).uuid)):
            return number
    return torch.cuda.current_device()


def usable_card(uuid: str | None = None) -> Decision[bool]:
    """Say whether torch computes on a card, and why not; without a name, on the current one."""
    if torch.version.cuda is None:
        return Decision(
            False,
            f"this torch ({torch.__version__}) is built without CUDA. `edgetune doctor` says what "
            "to type.",
        )
    try:
        device = torch.device("cuda", card_number(uuid))
        (torch.ones(2, device=device) + 1).sum().item()
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0].removesuffix(".")
        return Decision(False, f"{first}. `edgetune doctor` says what to type.")
    if fault := _kernel_fault(device):
        return Decision(False, fault)
    return Decision(True, f"torch {torch.__version__} sees {torch.cuda.get_device_name(device)}")


def _kernel_fault(device: torch.device) -> str | None:
    """Return why our kernels do not run on a card that plans take them to serve; what to type."""
    if not kernels.served(device):
        return None
    from edgetune_torch.kernels.gated import gated_activation

    x = torch.ones(1, 2, device=device)
    try:
        with torch.cuda.device(device):
            gated_activation(x, x, "silu").sum().item()
    except Exception as error:  # noqa: BLE001  # of Triton, the compiler of the host or the driver
        first = (str(error).strip() or repr(error)).splitlines()[0].removesuffix(".")
        return (
            f"Triton does not compile here: {first}. Type: sudo apt install gcc python3-dev, or "
            "go without it: pip uninstall triton"
        )
    return None
