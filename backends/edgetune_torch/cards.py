"""Whether torch can compute on an NVIDIA card, tried on it."""

from __future__ import annotations

import torch

from edgetune.settings.spec import Decision


def usable_card() -> Decision[bool]:
    """Say whether torch computes on the card that it takes, and why not."""
    if torch.version.cuda is None:
        return Decision(
            False,
            f"this torch ({torch.__version__}) is built without CUDA. `edgetune doctor` says what "
            "to type.",
        )
    try:
        (torch.ones(2, device="cuda") + 1).sum().item()
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0].removesuffix(".")
        return Decision(False, f"{first}. `edgetune doctor` says what to type.")
    return Decision(True, f"torch {torch.__version__} sees {torch.cuda.get_device_name()}")
