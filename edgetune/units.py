"""Bytes, seconds and rises as people write and read them.

>>> parse_bytes("6GB"), parse_bytes("512MiB")
(6000000000, 536870912)
>>> format_bytes(6_442_450_944), format_seconds(3660)
('6.4 GB', '1 h 1 min')
"""

from __future__ import annotations

import re

from edgetune.errors import UsageError

_FACTORS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
}  # fmt: skip
LARGEST = 10**18
LEAST_BARE = 10**6
"""Bytes: whoever writes a smaller number without a unit means another unit."""
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Return the number of bytes in a size such as ``6GB``, ``6GiB`` or ``512MB``.

    Raises:
        UsageError: if the text is not a positive number with a known unit.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match.group(2).upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size. Write it like 6GB, 6GiB or 512MB.")
    size = float(match.group(1)) * factor
    refuse_bare(size if match.group(2) == "" else LEAST_BARE, text)
    if not 1 <= size < LARGEST:
        raise UsageError(f"A size must be from 1 B to under 1 EB; found {text[:40]!r}.")
    return int(size)


def refuse_bare(size: float, text: object) -> None:
    """Refuse a number of bytes, written as ``text``, that must have been meant in another unit.

    Raises:
        UsageError: if it is above zero and below 1 MB.
    """
    if 0 < size < LEAST_BARE:
        raise UsageError(
            f"A size of {text} without a unit is less than 1 MB. Write the unit too, such as 6GB."
        )


def format_bytes(size: float) -> str:
    """Return a size in decimal units with two significant digits or more (``512 MB``)."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 0.9995 so that a value which would print as "1000 MB" moves up to "1.0 GB".
        if size >= factor * 0.9995:
            value = size / factor
            return f"{sign}{value:.0f} {unit}" if value >= 99.95 else f"{sign}{value:.1f} {unit}"
    return f"{sign}{size:.0f} B"


def precise_bytes(size: float) -> str:
    """Return a size with three significant digits or more, for comparing with another.

    >>> precise_bytes(7_980_000_000), precise_bytes(512_300_000)
    ('7.98 GB', '512.3 MB')
    """
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB"


def format_seconds(seconds: float) -> str:
    """Return a duration with its two largest units (``1 h 1 min``, ``4.2 s``)."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


MANY_TIMES = 10.0
"""From this rise on a factor says more than a percentage."""


def format_rise(share: float) -> str:
    """Return by how much something rose, as a share of what it was.

    >>> format_rise(0.303), format_rise(-0.01), format_rise(3097.2)
    ('+30.3%', '-1.0%', '3,098 x')
    """
    return f"{share:+.1%}" if share < MANY_TIMES else f"{share + 1:,.0f} x"


def format_count(count: int) -> str:
    """Return a count as model cards write it (``8.03 B``, ``41.9 M``, ``812``)."""
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor * 0.9995:
            return f"{count / factor:.3g} {unit}"
    return str(count)
