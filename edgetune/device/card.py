"""What a driver says about one NVIDIA card, and which cards this process may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_LINK_RATE: Final = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Bytes/s of one PCI Express lane after line coding, by generation."""

_LINK_SHARE: Final = 0.8
"""What copies from pinned memory reach of it: headers and flow control take the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card, or one instance of a card that is divided (MIG). Unknown numbers are 0."""

    index: int
    """The driver's number, in the order of the PCI bus; an instance has its card's."""
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    link_generation: int
    link_lanes: int
    memory_bandwidth: float = 0.0
    compute_capability: tuple[int, int] | None = None


def link_bandwidth(generation: int, lanes: int) -> float:
    """Return the bytes/s that copies reach over PCI Express; 0 if the link is not known."""
    return _LINK_RATE.get(generation, 0.0) * lanes * _LINK_SHARE


def visible(cards: Sequence[Card], environment: Mapping[str, str]) -> tuple[Card, ...]:
    """Return the cards that ``CUDA_VISIBLE_DEVICES`` leaves, in its order.

    As in CUDA: entries are numbers or beginnings of UUIDs, the first one that names no card ends
    the list, and a repeated one empties it.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(cards)
    chosen: list[Card] = []
    for entry in wanted.split(","):
        card = _named(cards, entry.strip())
        if card is None:
            break
        if card in chosen:
            return ()
        chosen.append(card)
    return tuple(chosen)


def _named(cards: Sequence[Card], entry: str) -> Card | None:
    if entry.isdecimal():
        return next((card for card in cards if card.index == int(entry)), None)
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    return next((card for card in cards if card.uuid.startswith(entry)), None)


_KERNELS_FROM: Final = (7, 5)
"""The least compute capability that the backend's own kernels are compiled for (Triton's)."""


def as_capability(told: str) -> tuple[int, int] | None:
    """Return a compute capability that is written ``8.6``; ``None`` for anything else."""
    major, _, minor = told.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def has_kernels(capability: tuple[int, int]) -> bool:
    """Return whether the backend's own kernels run on cards of a compute capability."""
    return capability >= _KERNELS_FROM
