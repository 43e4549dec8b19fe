"""``edgetune serve``: runs, adapters and models for programs that speak OpenAI's API."""

from __future__ import annotations

from dataclasses import replace

import click

from edgetune.cli.options import Ref, common_options, over_options
from edgetune.cli.show import out, out_json_line, say
from edgetune.workflows.opened import Opened
from edgetune.workflows.over import Over
from edgetune.workflows.references import opened_references
from edgetune.workflows.several import serving_of, serving_text

PORT = 8321


@click.command("serve", short_help="Serve runs, adapters or models over HTTP on this machine.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    help=f"Where to listen on 127.0.0.1; 0 takes a free port. [default: {PORT}]",
)
@over_options
@common_options
def command(names: tuple[str, ...], port: int, over: Over, as_json: bool) -> None:
    """Answer programs that speak OpenAI's API: chat completions, completions, models.

    A REF is a run's folder, an adapter's (over its own base or --model), or a model. Several must
    be over the same base model, which is loaded once; each is served under its name, and so is
    the base. Adapters that do not fit into the memory together are refused before anything is
    loaded. Only programs on this machine are answered.
    """
    with opened_references(names, over) as opened:
        _serve(opened, names, port, as_json=as_json)


def _serve(opened: list[Opened], names: tuple[str, ...], port: int, *, as_json: bool) -> None:
    """Serve what was opened until the command is interrupted."""
    from edgetune.serving.requests import names_of
    from edgetune.serving.server import serve

    for notice in (notice for one in opened for notice in one.notices):
        say(notice)
    served = dict(zip(names_of(names), opened, strict=True))
    base = replace(opened[0].base(), name=opened[0].plan.model.ref)
    if all(one.adapter is not None for one in opened):
        (name,) = names_of([base.name])
        served.setdefault(name, base)

    methods = [one.method for one in opened if one.method is not None]
    serving = serving_of(opened[0].plan, methods) if methods else None
    if serving is not None:
        say(f"Memory: {serving_text(opened[0].plan, serving)}.")

    def ready(found: int) -> None:
        url = f"http://127.0.0.1:{found}/v1"
        if as_json:
            memory = {} if serving is None else {"memory": serving.to_json()}
            out_json_line({"url": url, "models": list(served)} | memory)
        else:
            out(f"Serving {', '.join(served)} on {url}. Ctrl-C ends it.")

    serve(served, port, ready)
