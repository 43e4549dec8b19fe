"""What a plan says of several ranks: their memory, their time, and what they send each other."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from edgetune.device import Device
from edgetune.device.base import CARD
from edgetune.planning import Plan
from edgetune.speed.ranks import gradient_bytes, least_bandwidth, speed_up
from edgetune.units import format_bytes
from edgetune.world import Place


def own_memory(memory: int | None, place: Place | None, device: Device) -> int | None:
    """Return the bytes that a rank may use: its share, where ranks share a machine's memory.

    ``memory`` is what the user allows.
    """
    if place is None or place.local_world == 1 or has_own_memory(device):
        return memory
    share = device.usable_bytes // place.local_world
    return share if memory is None else min(memory, share)


def on_shared_host(device: Device, place: Place | None) -> Device:
    """Return a rank's device with its share of the host's memory.

    All ranks of a machine use that: cards for streamed weights, offloaded checkpoints and pages.
    """
    if place is None or place.local_world == 1:
        return device
    return replace(device, host_free_bytes=device.host_free_bytes // place.local_world)


def has_own_memory(device: Device) -> bool:
    """Return whether a device has memory that no other rank of its machine uses: most cards."""
    return device.kind == CARD and not device.unified


def shared(plan: Plan, place: Place | None) -> Plan:
    """Return a plan that says what its ranks do to its time, and what they send each other."""
    if place is None:
        return plan
    sent = gradient_bytes(plan.choice.method.parameters(plan.shape), place.world)
    times = speed_up(plan.choice.accumulation, place.world)
    shares = (
        f"{place.world} ranks, each with its share of the {plan.choice.accumulation} micro-batches "
        f"of a step: {times:.1f} times as fast as one like this alone, but for the network; each "
        f"sends {format_bytes(sent)} of gradients per step"
    )
    least = least_bandwidth(sent, plan.time.seconds_per_step, times)
    network = (
        "a step has too few micro-batches to share: one rank alone is as fast"
        if least is None
        else f"one rank alone is faster where the network carries less than {format_bytes(ceil(least))}/s"
    )
    alone = (
        f"the {place.local_world} ranks on this machine share its processor: one process with all "
        "cores is about as fast"
    )
    one_processor = plan.device.kind != CARD and place.local_world > 1
    reasons = (shares, alone if one_processor else network)
    # what was measured was measured with the cores that a rank has
    sharing = place.local_world if one_processor and plan.time.basis != "measured" else 1
    factor = times / sharing
    time, run = plan.time, plan.time.run
    if run is not None:
        run = replace(run, steps=run.steps / factor, evaluations=run.evaluations / factor)
    time = replace(
        time,
        seconds_per_step=time.seconds_per_step / factor,
        tokens_per_second=time.tokens_per_second * factor,
        run=run,
    )
    return replace(plan, time=time, reasons=(*plan.reasons, *reasons))
