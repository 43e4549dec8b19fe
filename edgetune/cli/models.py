"""``edgetune models``: the models that are known by name."""

from __future__ import annotations

from collections.abc import Mapping

import click

from edgetune.cli.options import common_options
from edgetune.cli.show import VERBOSE, out, out_json, say, table
from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.model import resolve
from edgetune.model.hub import cache_folder
from edgetune.model.near_names import proposed
from edgetune.profile import model_names, model_profile, proposal
from edgetune.units import format_count


@click.command("models", short_help="List the models that are known by name.")
@click.argument("part", required=False)
@common_options
def command(part: str | None, as_json: bool) -> None:
    """List the models that `--model NAME` takes, and whether their weights are here.

    With PART only those with it in their names, such as `qwen2.5`. Besides these, any folder with
    a supported model, or hub id in the local cache, is taken.
    """
    names = [name for name in model_names() if part is None or part.lower() in name]
    if part is not None and not names:
        raise UsageError(
            f"No model has {short(part)} in its name. {proposal('models', proposed(part))}"
        )
    found = [
        {
            "name": name,
            "hub_id": model_profile(name).hub_id,
            "parameters": model_profile(name).parameters,
            "folder": str(folder) if (folder := resolve(name).folder) else None,
        }
        for name in names
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
