"""``edgetune devices``: what this machine has, and which others are known."""

from __future__ import annotations

import click

from edgetune.backend import backend_names, load_backend
from edgetune.cli.options import common_options, device_option
from edgetune.cli.show import out, out_json, table
from edgetune.device import Device, read_device, read_machine
from edgetune.device.base import WITHOUT_CARD, DeviceIdentity
from edgetune.device.profiles import profile_device
from edgetune.errors import UsageError
from edgetune.profile import names
from edgetune.settings.spec import to_plain
from edgetune.units import format_bytes


@click.command("devices", short_help="List the devices of this machine and the known ones.")
@click.option("--all", "everything", is_flag=True, help="Also list the profiles.")
@click.option("--measure", is_flag=True, help="Measure this machine's speed for plans.")
@device_option
@common_options
def command(everything: bool, measure: bool, device: str, as_json: bool) -> None:
    """List what can be trained on here, with the memory that a run may use, and why.

    --measure takes some seconds; what it finds is kept for later plans on the same --device.
    """
    if measure:
        _measure(device, as_json)
        return
    if device != "auto":
        raise UsageError("--device goes with --measure: without it all devices are listed.")
    machine = read_machine()
    profiles = {name: profile_device(name) for name in names("devices")} if everything else {}
    usable = {
        name: load_backend(name).usable(DeviceIdentity(WITHOUT_CARD.get(name, "cpu")))
        for name in backend_names()
    }
    if as_json:
        out_json(
            {
                "devices": to_plain(machine.devices),
                "absent": list(machine.absent),
                "faults": to_plain(machine.faults),
                "backends": to_plain(usable),
                "profiles": to_plain(profiles),
            }
        )
        return
    rows = [
        (f"{here.name} ({here.kind})", *map(format_bytes, sizes))
        for here in machine.devices
        for sizes in [(here.total_bytes, here.free_bytes, here.usable_bytes)]
    ]
    out(table(rows, ("Here", "total", "free", "for a run")))
    for here in machine.devices:
        if here.fault is not None:
            out(f"- {here.fault}")
        for note in here.notes:
            out(f"- {here.name}: {note}")
        if here.kind == "cpu":
            out(f"- {here.name}: {_products(here)}")
    for reason in (*machine.absent, *machine.faults):
        out(f"- {reason}")
    out("\nBackends")
    for name, decision in usable.items():
        out(f"- {name}: {'usable' if decision.value else 'not usable'}, {decision.because}")
    if everything:
        listed = [
            (name, format_bytes(known.total_bytes), format_bytes(known.usable_bytes))
            for name, known in profiles.items()
        ]
        out("\n" + table(listed, ("--device", "total", "for a run")))
    else:
        out(f"\n{len(names('devices'))} profiles of other machines: edgetune devices --all")


def _products(processor: Device) -> str:
    if processor.multiplies_16bit:
        return "multiplies bfloat16 itself"
    return "does not multiply bfloat16: such numbers are widened to float32 for products"


def _measure(name: str, as_json: bool) -> None:
    from edgetune.workflows.measured import measure_apart

    device = read_device(name)
    found = measure_apart(device, name)
    if as_json:
        out_json(to_plain(found))
        return
    rows = [
        ("float32 products", f"{found.product_32bit / 1e9:.1f} GFLOP/s"),
        ("16-bit products", f"{found.product_16bit / 1e9:.1f} GFLOP/s"),
        ("element by element", f"{format_bytes(found.pointwise)}/s"),
        ("4-bit weights unpacked", f"{found.dequantize / 1e6:.0f} M/s"),
        ("disk", f"{format_bytes(found.disk_bandwidth)}/s"),
    ]
    if found.link_bandwidth:
        rows.append(("host to device", f"{format_bytes(found.link_bandwidth)}/s"))
    out(table(rows, (device.name, "")))
    out("Plans for this device use these figures until its libraries change.")
