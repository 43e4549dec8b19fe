"""``edgetune similar``: how alike adapters are, and which one to go on from."""

from __future__ import annotations

import click

from edgetune.cli.options import Ref, common_options, over_options
from edgetune.cli.show import out, out_json, table
from edgetune.settings.spec import to_plain
from edgetune.workflows.inspecting import similarity
from edgetune.workflows.over import Over


@click.command("similar", short_help="Compare adapters over one base by cosine.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@over_options
@common_options
def command(names: tuple[str, ...], over: Over, as_json: bool) -> None:
    """Print the cosine of every two REFs, and which one is most like the first.

    Prompts are compared by their mean rows, LoRA and its kin by their updates. To start a new task
    from another task's prompt: train a few steps on the new one, name that run first and the
    candidates after it, then train again with --from and the nearest.
    """
    found = similarity(names, over)
    if as_json:
        out_json(to_plain(found))
        return
    rows = [
        (name, *("-" if x is None else f"{x:.3f}" for x in cosines))
        for name, cosines in zip(found.names, found.cosines, strict=True)
    ]
    out(table(rows, ("", *(str(place + 1) for place in range(len(names))))))
    out(f"Most like {names[0]}: {found.nearest} (edgetune train --from {found.nearest} ...)")
