"""A machine written down as data: what a bug report carries and a test replays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.device.system import System


def recorded_system(facts: Mapping[str, Any]) -> System:
    """Return the system that a recording describes.

    Only ``total_bytes`` and ``available_bytes`` are required. ``files`` maps paths to their text,
    ``commands`` maps command lines to their output, ``modules`` maps packages to their
    folders; whatever is not recorded is absent.
    """
    files: Mapping[str, str] = facts.get("files", {})
    commands: Mapping[str, str] = facts.get("commands", {})
    return System(
        platform=facts.get("platform", "linux"),
        architecture=facts.get("architecture", "x86_64"),
        kernel=facts.get("kernel", "6.8.0"),
        environment=facts.get("environment", {}),
        total_bytes=facts["total_bytes"],
        available_bytes=facts["available_bytes"],
        cores=facts.get("cores", 1),
        clock=facts.get("clock", 0.0),
        ceilings=facts.get("ceilings", {}),
        read_text=files.get,
        run=lambda command: commands.get(" ".join(command)),
        load_library=lambda _name: None,
        module_folder=facts.get("modules", {}).get,
    )
