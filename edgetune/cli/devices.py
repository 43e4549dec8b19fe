"""``edgetune devices``: what this machine has, and which others are known."""

from __future__ import annotations

import click

from edgetune.backend import backend_names, load_backend
from edgetune.cli.options import common_options
from edgetune.cli.show import out, out_json, table
from edgetune.device import read_machine
from edgetune.device.profiles import profile_device
from edgetune.profile import names
from edgetune.spec import to_plain
from edgetune.units import format_bytes


@click.command("devices", short_help="List the devices of this machine and the known ones.")
@click.option("--all", "everything", is_flag=True, help="Also list the profiles.")
@common_options
def command(everything: bool, as_json: bool) -> None:
    """List what can be trained on here, with the memory that a run may use, and why."""
    machine = read_machine()
    profiles = [profile_device(name) for name in names("devices")] if everything else []
    usable = {name: load_backend(name).usable() for name in backend_names()}
    if as_json:
        out_json(
            {
                "devices": to_plain(machine.devices),
                "absent": list(machine.absent),
                "backends": to_plain(usable),
                "profiles": to_plain(profiles),
            }
        )
        return
    rows = [
        (f"{device.name} ({device.kind})", *map(format_bytes, sizes))
        for device in machine.devices
        for sizes in [(device.total_bytes, device.free_bytes, device.usable_bytes)]
    ]
    out(table(rows, ("Here", "total", "free", "for a run")))
    for device in machine.devices:
        for note in device.notes:
            out(f"- {device.name}: {note}")
    for reason in machine.absent:
        out(f"- {reason}")
    out("\nBackends")
    for name, decision in usable.items():
        out(f"- {name}: {'usable' if decision.value else 'not usable'}, {decision.because}")
    if everything:
        listed = [(d.name, format_bytes(d.total_bytes), format_bytes(d.usable_bytes))
                  for d in profiles]  # fmt: skip
        out("\n" + table(listed, ("Profile", "total", "for a run")))
    else:
        out(f"\n{len(names('devices'))} profiles of other machines: edgetune devices --all")
