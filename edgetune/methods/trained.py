"""Trained copies of the base's norms, as several methods have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.network.ops import A

if TYPE_CHECKING:
    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block


def trained_norm(block: Block[A], own: Adapted[A], role: str, x: A, part: str = "") -> A:
    """Return x normalised, with what is trained in place of what is frozen.

    ``part`` stands between a norm's module and ``.weight`` or ``.bias`` in the names of the
    trained copies.
    """
    name, get = f"{block.module(block.norm_of(role))}{part}", own.tensors.get
    return block.ops.norm(role, x, get(f"{name}.weight"), get(f"{name}.bias"))
