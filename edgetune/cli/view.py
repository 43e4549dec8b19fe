"""``edgetune view``: the local page of all runs of a folder."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli.options import FilePath, common_options
from edgetune.cli.process import this_process
from edgetune.cli.show import out, out_json_line, say
from edgetune.errors import UsageError

FOLDER = Path("runs")


@click.command("view", short_help="Show all runs of a folder as a page in the browser.")
@click.argument("folder", type=FilePath(), required=False)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Where to listen on 127.0.0.1. [default: a free port]",
)
@common_options
def command(folder: Path | None, port: int, as_json: bool) -> None:
    """Watch, compare, start and stop runs in the browser; look at rows, chat, export.

    FOLDER holds the runs (default: runs). Only requests from this machine are answered, and
    only with the token of the address that is printed. Training continues when this command ends.
    """
    from edgetune.page.server import view

    place = (folder or FOLDER).absolute()
    if place.exists() and not place.is_dir():
        raise UsageError(f"{folder} is not a folder. Give the folder that your runs are in.")
    if (place / "plan.yaml").is_file():
        raise UsageError(f"{folder} is one run. Give the folder that it is in: {place.parent}.")
    if folder is not None and not place.exists():
        raise UsageError(f"There is no folder {folder}.")

    def ready(url: str) -> None:
        if as_json:
            out_json_line({"url": url, "folder": str(place)})
        else:
            out(url)
            say(f"The runs of {place}. Open this address in a browser; Ctrl-C ends the page.")

    this_process().interrupts.listen(passed_on=False)
    view(place, port, ready)
