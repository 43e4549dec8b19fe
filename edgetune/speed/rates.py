"""How fast a device is: as measured, or as its published figures let one expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log
from typing import Literal

from edgetune.choice import Choice
from edgetune.device.base import DISK_BANDWIDTH, Device
from edgetune.speed.costs import COSTS
from edgetune.speed.measured import Experience, Measurements, way

MEMORY_SHARE = 0.6
"""Share of the memory bandwidth that element-by-element work reaches."""

LEAST_BANDWIDTH = 1.2e10
"""Bytes/s of memory assumed where it is not known: one channel of DDR4 in use by two cores."""

UNKNOWN_RATE = 1e11
"""FLOP/s by which choices are compared on a device without figures."""

ALIKE = 1.5
"""Times that a model may be as wide as another whose steps it is timed by."""

OPENING = 3.0
"""Seconds of a framework's import, where they were not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates that a step's time is made of; bytes/s, FLOP/s or numbers/s."""

    product_32bit: float
    product_16bit: float
    attention_32bit: float
    attention_16bit: float
    pointwise: float
    convert: float
    dequantize: float
    optimizer: float
    link: float
    disk: float
    operation: float
    """Seconds that an operation takes besides its work."""
    asynchronous: bool
    """Whether operations are issued while the device computes earlier ones."""
    widens: bool = False
    """Whether products are wider than activations in 16 bits."""
    attends_wide: bool = False
    """Whether attention is always in float32."""
    in_pieces: bool = False
    """Whether norms, rotations and gates are computed some rows at a time."""
    fused: bool = False
    """Whether there are kernels: norms, rotations and gates are one operation each."""
    updated_at_once: int = 1 << 20
    """Numbers of a trained tensor that the optimizer updates at a time."""
    sharing: float = 0.0
    """Seconds by which threads that share an operation's work delay it, before :attr:`block`."""
    opening: float = OPENING
    """Seconds until a process can open a model: the framework's import."""
    beside_copies: float = 1.0
    """Times as long a block of streamed weights computes."""
    block: Mapping[str, float] = field(default_factory=dict)
    """Factors on a block's element-by-element work by way of computing, from measuring one."""
    head: Mapping[str, float] = field(default_factory=dict)
    """Factors on the time of the loss."""
    experience: tuple[Experience, ...] = ()
    """What steps took of the seconds that all this predicts."""
    basis: Literal["measured", "profile"] = "profile"
    known: bool = True
    """False: the rates are guesses that only serve to compare choices."""

    def product(self, compute_dtype: str) -> float:
        """Return the rate of matrix products in a number format."""
        return self.product_32bit if compute_dtype == "float32" else self.product_16bit

    def attention(self, compute_dtype: str) -> float:
        """Return the rate of attention in a number format."""
        return self.attention_32bit if compute_dtype == "float32" else self.attention_16bit

    def block_factor(self, choice: Choice) -> float:
        """Return what a block's element-by-element work is multiplied by."""
        return self.block.get(way(choice.quantization, choice.compute_dtype), 1.0)

    def head_factor(self, choice: Choice) -> float:
        """Return what the loss's predicted time is multiplied by."""
        return self.head.get(way(choice.quantization, choice.compute_dtype), 1.0)

    def share(self, choice: Choice, hidden_size: int) -> float:
        """Return the share of the predicted seconds that such steps took, 1 if none are known.

        Runs of the same method say more than the measurement of the device; among either, the
        nearest width counts.
        """
        used = way(choice.quantization, choice.compute_dtype)
        for method in (choice.method.kind, None):
            near = [
                (abs(log(each.hidden_size / hidden_size)), each.share)
                for each in self.experience
                if each.way == used and each.method == method
            ]
            distance, share = min(near, default=(inf, 1.0))
            if distance <= log(ALIKE):
                return share
        return 1.0


def rates_of(device: Device, measured: Measurements | None = None) -> Rates:
    """Return a device's rates, measured ones if there are any."""
    if measured is not None:
        return _measured_rates(device, measured)
    costs = COSTS[device.kind]
    rate_32bit = device.rate_32bit or UNKNOWN_RATE
    moved = MEMORY_SHARE * (device.memory_bandwidth or LEAST_BANDWIDTH)
    product_32bit, product_16bit = (
        costs.products * rate for rate in (rate_32bit, device.rate_16bit or rate_32bit)
    )
    return Rates(
        product_32bit=product_32bit,
        product_16bit=product_16bit,
        attention_32bit=costs.attention * product_32bit,
        attention_16bit=costs.attention * product_16bit,
        pointwise=moved,
        convert=moved / 6,  # two bytes read, four written
        dequantize=_dequantize(device, moved),
        optimizer=moved / 28,  # four numbers read, three written
        link=device.link_bandwidth or moved,
        disk=device.disk_bandwidth or DISK_BANDWIDTH,
        operation=costs.operation,
        asynchronous=costs.asynchronous,
        beside_copies=costs.beside_copies,
        widens=costs.attends_wide and not device.multiplies_16bit,
        attends_wide=costs.attends_wide,
        in_pieces=costs.in_pieces,
        fused=costs.fused or device.kernels,
        updated_at_once=costs.updated_at_once,
        known=device.rate_32bit > 0,
    )


def _measured_rates(device: Device, measured: Measurements) -> Rates:
    """Return the rates as they were measured, with what runs took of them."""
    costs = COSTS[device.kind]
    return Rates(
        product_32bit=measured.product_32bit,
        product_16bit=measured.product_16bit,
        attention_32bit=measured.attention_32bit,
        attention_16bit=measured.attention_16bit,
        pointwise=measured.pointwise,
        convert=measured.convert,
        dequantize=measured.dequantize,
        optimizer=measured.optimizer,
        link=measured.link_bandwidth or measured.pointwise,
        disk=measured.disk_bandwidth,
        operation=measured.operation,
        sharing=costs.sharing,
        asynchronous=costs.asynchronous,
        opening=measured.opening,
        beside_copies=costs.beside_copies,
        widens=costs.attends_wide and not device.multiplies_16bit,
        attends_wide=costs.attends_wide,
        in_pieces=costs.in_pieces,
        fused=costs.fused or device.kernels,
        updated_at_once=costs.updated_at_once,
        block=measured.block,
        head=measured.head,
        experience=measured.experience,
        basis="measured",
    )


def _dequantize(device: Device, moved: float) -> float:
    """Return weights/s: half a byte read and two written, later read again; or as fast as codes
    are looked up.
    """
    lookups = COSTS[device.kind].lookups
    if lookups is None:
        return moved / 4.5
    return min(lookups * (device.rate_32bit or UNKNOWN_RATE), moved / 4.5)
