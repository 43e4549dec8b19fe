"""A whole choice: the method and every knob that decides memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgetune import methods
from edgetune.methods.base import Method
from edgetune.methods.targets import names
from edgetune.settings.parse import checked, from_plain
from edgetune.settings.spec import (
    Checkpointing,
    ComputeDtype,
    EmbeddingPlace,
    HeadPlace,
    Interval,
    OptimizerName,
    Placement,
    Quantization,
    check_numbers,
    knob,
    to_plain,
)
from edgetune.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a plan decides; each knob is also a flag of ``plan`` and ``train``.

    ``context`` is in tokens, ``micro_batch`` in rows, ``loss_chunk`` in loss tokens whose
    logits exist at one time, ``tile`` in tokens of a row.
    """

    method: Method = knob(None, "How the model is adapted.")
    quantization: Quantization = knob(None, "How the frozen projections are stored.")
    checkpointing: Checkpointing = knob(
        None, "Blocks that keep only their input: none, all or a number.", metavar="N|all|none"
    )
    placement: Placement = knob(None, "Where the frozen blocks live.")
    embedding: EmbeddingPlace = knob("resident", "Where the embedding lives; disk reads rows.")
    head: HeadPlace = knob("resident", "Where the head lives; int8 is resident in 8 bits.")
    optimizer: OptimizerName = knob(None, "The optimizer and the precision of its state.")
    compute_dtype: ComputeDtype = knob(None, "Number format of the computation.")
    context: int = knob(None, "Tokens in a row.", interval=Interval(low=2))
    micro_batch: int = knob(None, "Rows computed at once.", interval=Interval(low=1))
    accumulation: int = knob(None, "Micro-batches in an optimizer step.", interval=Interval(low=1))
    loss_chunk: int = knob(
        None, "Loss tokens whose logits are held at once.", interval=Interval(low=1)
    )
    tile: int = knob(
        0,
        "Tokens of a row that a checkpointed block computes at once; 0: all of them.",
        interval=Interval(low=0),
    )

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        check_numbers(self)

    @property
    def tokens(self) -> int:
        """Tokens in a full micro-batch."""
        return self.micro_batch * self.context

    @property
    def tiles(self) -> int:
        """Tiles in a row; 1 where it is computed at once."""
        return -(-self.context // self.tile) if self.tile else 1

    def to_json(self, shape: ModelShape) -> dict[str, Any]:
        """Return the ``choice`` object of ``plan --json``: method settings lie beside the rest."""
        plain = to_plain(self)
        settings = plain.pop("method")
        targets = getattr(self.method, "targets", ())
        return {
            "method": self.method.kind,
            "rank": None,
            **settings,
            "targets": list(names(shape, targets)),
            **plain,
            "trainable_parameters": self.method.parameters(shape),
        }


BESIDES = frozenset({"method", "rank", "targets", "trainable_parameters"})
"""What :meth:`Choice.to_json` adds to the knobs, whether or not the method has such a setting."""


def choice_from_json(plain: Mapping[str, Any]) -> Choice:
    """Return the choice that :meth:`Choice.to_json` wrote.

    Raises:
        UsageError: if a knob or a method's setting is unknown, missing or of another type.
    """
    kind = checked(str, plain.get("method"), "choice.method")
    method = methods.method_class(kind)
    ours = {item.name for item in fields(method)}  # type: ignore[arg-type]
    settings = {name: value for name, value in plain.items() if name in ours}
    rest = {name: value for name, value in plain.items() if name not in ours | BESIDES}
    return from_plain(Choice, rest | {"method": from_plain(method, settings, "choice")}, "choice")
