"""Cards through ``nvidia-smi``, for machines whose driver library cannot be loaded."""

from __future__ import annotations

import csv
from typing import Final

from edgetune.device.card import Card
from edgetune.device.system import System

_FIELDS: Final = (
    "index",
    "uuid",
    "name",
    "memory.total",
    "memory.free",
    "pcie.link.gen.max",
    "pcie.link.width.max",
)
COMMAND: Final = (
    "nvidia-smi",
    f"--query-gpu={','.join(_FIELDS)}",
    "--format=csv,noheader,nounits",
)


def smi_cards(system: System) -> tuple[Card, ...]:
    """Return every card; none if the command is missing or fails."""
    rows = csv.reader((system.run(COMMAND) or "").splitlines(), skipinitialspace=True)
    return tuple(_card(row) for row in rows if len(row) == len(_FIELDS) and _answers(row))


def _card(row: list[str]) -> Card:
    index, uuid, name, total, free, generation, lanes = row
    return Card(
        index=_number(index),
        uuid=uuid,
        name=name,
        total_bytes=_number(total) * 2**20,
        free_bytes=_number(free) * 2**20,
        link_generation=_number(generation),
        link_lanes=_number(lanes),
    )


def _answers(row: list[str]) -> bool:
    """Say whether a card tells its memory or shares the host's; others are lost or forbidden."""
    return row[3].isdecimal() or row[3] in {"[N/A]", "[Not Supported]"}


def _number(text: str) -> int:
    """Return the number, or 0 for ``[N/A]`` and ``[Not Supported]``."""
    return int(text) if text.isdecimal() else 0
