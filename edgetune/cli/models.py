"""``edgetune models``: the models that are known by name."""

from __future__ import annotations

from collections.abc import Mapping

import click

from edgetune.cli.options import common_options
from edgetune.cli.show import VERBOSE, out, out_json, say, table
from edgetune.model import resolve
from edgetune.model.hub import cache_folder
from edgetune.profile import model_names, model_profile
from edgetune.units import format_count


@click.command("models", short_help="List the models that are known by name.")
@common_options
def command(as_json: bool) -> None:
    """List the models that `--model NAME` takes, and whether their weights are here.

    Besides these, any folder with a supported model, or hub id in the local cache, is taken.
    """
    found = [
        {
            "name": name,
            "hub_id": model_profile(name).hub_id,
            "parameters": model_profile(name).parameters,
            "folder": str(folder) if (folder := resolve(name).folder) else None,
        }
        for name in model_names()
    ]
    say(f"Looked for weights in {cache_folder()}", level=VERBOSE)
    if as_json:
        out_json(found)
        return
    rows = [
        (str(model["name"]), format_count(int(str(model["parameters"]))), _where(model))
        for model in found
    ]
    out(table(rows, ("Model", "parameters", "weights")))


def _where(model: Mapping[str, object]) -> str:
    if model["hub_id"] is None:
        return "built in"
    return "here" if model["folder"] else "not here"
