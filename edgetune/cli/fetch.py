"""``edgetune fetch``: a model from a hub, the only command that goes to the network."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from edgetune.cli.options import Model, common_options
from edgetune.cli.show import NORMAL, draw, out, out_json, say, verbosity
from edgetune.errors import UsageError
from edgetune.escapes import one_line
from edgetune.hub import Progress
from edgetune.units import format_bytes, format_count, format_seconds
from edgetune.workflows.fetching import Offer, fetch, offer

_BAR = 24
_BETWEEN_SECONDS = 0.2
_KNOWN_SHARE = 0.01
"""Share from which on it is said how long the rest takes."""


@click.command("fetch", short_help="Download a model (the only command that goes online).")
@click.argument("ref", type=Model())
@click.option("--revision", default="main", help="A branch, tag or commit. [default: main]")
@click.option("--endpoint", metavar="URL", help="A hub other than huggingface.co (or HF_ENDPOINT).")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before downloading.")
@click.option("--dry-run", is_flag=True, help="Show what would be downloaded; download nothing.")
@common_options
def command(
    ref: str, revision: str, endpoint: str | None, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Download a model's weights (safetensors), tokenizer and config. REF is like Qwen/Qwen3-0.6B.

    Size and licence are shown first. Pickles and code are never downloaded, and every file's
    checksum is verified. Files go to the cache that Hugging Face's tools share (HF_HUB_CACHE); an
    interrupted download is resumed. A gated model needs a token: HF_TOKEN, or `hf auth login`.
    """
    offered = offer(ref, revision=revision, endpoint=endpoint)
    if offered.taken_as is not None:
        say(offered.taken_as)
    for line in _lines(offered):
        say(line)
    if dry_run:
        if as_json:
            out_json(_as_json(offered))
        return
    _confirm(offered, yes=yes)
    try:
        with _bar(offered) as progress:
            model = fetch(offered, progress)
    except KeyboardInterrupt:
        say("What was downloaded is kept: run the same command to resume.")
        raise
    if as_json:
        out_json({**_as_json(offered), "folder": str(model.folder)})
        return
    out(f"{offered.listing.model} is complete and verified: {model.folder}")
    if offered.listing.revision == "main":
        out(f"Next: edgetune train --model {offered.listing.model} --data FILE")
    else:
        out(f"Next: edgetune train --model {model.folder} --data FILE")


def _lines(offered: Offer) -> list[str]:
    listing, hub = offered.listing, offered.hub
    licence = listing.licence or "not stated"
    gated = "; gated: its owner's terms hold" if listing.gated else ""
    weights = [file.size for file in listing.files if file.is_weights]
    files = "1 file" if len(weights) == 1 else f"{len(weights)} files"
    besides = format_bytes(listing.size - sum(weights))
    there = "" if offered.missing == listing.size else f", {format_bytes(offered.missing)} missing"
    revision = f"revision {one_line(listing.revision)} ({listing.commit[:12]})"
    return [
        f"{listing.model}, {format_count(offered.parameters)} parameters, {revision}",
        f"  From {hub.endpoint}, licence: {licence}{gated}",
        f"  {format_bytes(sum(weights))} of weights in {files}, {besides} of other files{there}",
        f"  To {offered.entry}, {format_bytes(offered.free)} free",
    ]


def _confirm(offered: Offer, *, yes: bool) -> None:
    if yes or not offered.missing:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"{format_bytes(offered.missing)} would be downloaded. Confirm with --yes (there is no "
            "terminal to ask)."
        )
    click.confirm(f"Download {format_bytes(offered.missing)}?", abort=True, err=True)


def _as_json(offered: Offer) -> dict[str, object]:
    listing = offered.listing
    return {
        "model": listing.model,
        "revision": listing.revision,
        "commit": listing.commit,
        "licence": listing.licence,
        "gated": listing.gated,
        "parameters": offered.parameters,
        "bytes": listing.size,
        "missing_bytes": offered.missing,
        "cache": str(offered.entry),
        "files": [
            {"name": file.name, "bytes": file.size, "digest": file.digest} for file in listing.files
        ],
    }


@contextmanager
def _bar(offered: Offer) -> Iterator[Progress]:
    """Yield what shows how far fetching is: a line that is written over, none without a terminal."""
    if not sys.stderr.isatty() or verbosity() < NORMAL:
        yield lambda _name, _bytes: None
        return
    bar = _Bar(offered.listing.size)
    try:
        yield bar.show
    finally:
        bar.clear()


class _Bar:
    def __init__(self, total: int) -> None:
        self._total, self._done, self._width = max(1, total), 0, 0
        self._begun = self._shown = time.monotonic()

    def show(self, name: str, came: int) -> None:
        self._done = min(self._total, self._done + came)
        now = time.monotonic()
        if now - self._shown < _BETWEEN_SECONDS:
            return
        self._shown = now
        share = self._done / self._total
        seconds = (now - self._begun) * (1 / share - 1) if share > _KNOWN_SHARE else None
        left = "" if seconds is None else f"{format_seconds(seconds)} left, "
        filled = "#" * round(_BAR * share)
        text = f"|{filled:<{_BAR}}| {share:4.0%}, {left}{name}"[:79]
        draw(f"\r{text:<{self._width}}")
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            draw(f"\r{'':<{self._width}}\r")
