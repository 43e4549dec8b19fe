"""Pieces of HTML; every text that comes from a run goes through :func:`text`.

>>> text("a<b>\\x1b[2J</script>", 12)
'a&lt;b&gt;\\\\x1b[2J&lt;…'
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from edgetune.escapes import marked, one_line, plain

DASH = "\u2013"
"""What stands where there is no value."""

LONGEST = 400
"""Characters of a text of a run that are shown."""


def text(value: object, longest: int = LONGEST) -> str:
    """Return a text of a run, escaped and on one line, cut where it is too long."""
    return escape(one_line(_cut(str(value), longest)))


def block(value: str, longest: int = 1200, special: Collection[str] = ()) -> str:
    """Return a text of several lines, escaped; line ends stay, ``special`` texts are dimmed."""
    return "".join(
        f'<span class="special">{escape(plain(piece))}</span>' if dim else escape(plain(piece))
        for piece, dim in marked(_cut(value, longest), special)
    )


def table(
    rows: Iterable[Sequence[str]], header: Sequence[str], caption: str, kind: str = "figures"
) -> str:
    """Return a table of cells that are HTML already; the first of a row is its heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    kind += " wide" if len(header) > 3 else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f'<table class="{kind}"><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, which are HTML already, as a list of descriptions."""
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>' if items else ""


def bullets(items: Iterable[str]) -> str:
    """Return a list of items that are HTML already."""
    inner = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{inner}</ul>" if inner else ""


def _cut(value: str, longest: int) -> str:
    return value if len(value) <= longest else f"{value[: longest - 1]}…"
