"""``edgetune doctor``: what is here, what is missing, and what to type."""

from __future__ import annotations

from typing import Any

import click

from edgetune.cli.options import common_options, device_option
from edgetune.cli.show import out, out_json
from edgetune.errors import CheckFailedError
from edgetune.settings.spec import to_plain
from edgetune.units import format_bytes
from edgetune.workflows.diagnosis import Checked, Diagnosis, diagnose


@click.command("doctor", short_help="Say what is here, what is missing and what to type.")
@device_option
@common_options
def command(device: str, as_json: bool) -> int:
    """Look at this machine and say what works, what is missing and what to type.

    Devices are tried; nothing is changed. Exit code 0: something here can train (with --device:
    that device). 8: nothing can.
    """
    found = diagnose(device)
    if as_json:
        out_json(_as_json(found))
        return 0 if found.usable else CheckFailedError.exit_code
    for title, lines in _sections(found).items():
        out(title)
        for line in lines:
            out(f"  {line}")
    out()
    out(_verdict(found))
    return 0 if found.usable else CheckFailedError.exit_code


def _as_json(found: Diagnosis) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(found)
    return {"usable": found.usable, **plain}


def _sections(found: Diagnosis) -> dict[str, list[str]]:
    missing = [name for name, what in found.packages.items() if what is None]
    install = [f"missing: {', '.join(missing)}. Type: pip install {' '.join(missing)}"]
    versions = [f"{name} {what}" for name, what in found.packages.items() if what is not None]
    extras = [
        f"only for {what}: pip install {package}" for package, what in found.missing_extras.items()
    ]
    room = f"{format_bytes(found.free_bytes)} free"
    short = " (an 8 B model takes 16 GB)" if found.short_of_room else ""
    return {
        f"edgetune {found.edgetune}, Python {found.python}, {found.system}": [],
        "Devices": [line for checked in found.devices for line in _device(checked)]
        + [line for f in found.faults for line in (f"no   {f.what}: {f.because}", f"     {f.do}")],
        "Packages": [", ".join(versions), *(install if missing else ()), *extras],
        "Models": [f"{found.models} in {found.cache}, {room}{short}"],
    }


def _device(checked: Checked) -> list[str]:
    device = checked.device
    named = f"{device.name} ({device.kind})"
    advice = [f"     {checked.do}"] if checked.do else []
    if not checked.usable:
        return [f"no   {named}: {checked.because}", *advice]
    room = format_bytes(device.usable_bytes)
    return [
        f"ok   {named}: {checked.because}, {room} for a run",
        *advice,
        *(f"     {note}" for note in device.notes),
    ]


def _verdict(found: Diagnosis) -> str:
    usable = [checked.device for checked in found.devices if checked.usable]
    if not usable:
        return "Nothing here can train yet. Type the lines above, then `edgetune doctor` again."
    first = "edgetune train --model tiny --data FILE"
    cards = [device for device in usable if device.kind != "cpu"]
    where = cards[0].name if cards else f"{usable[0].name} (a processor: small models)"
    return f"Runs go to {where}. Try: {first}"
