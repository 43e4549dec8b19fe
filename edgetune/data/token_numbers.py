"""The numbers of tokens in a model's files, looked at before the tokenizers library loads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.files import parsed_json, read_bounded

LARGEST: Final = 256 << 20
"""Bytes of a tokenizer's file; those with 260,000 tokens have 35 million."""

MOST: Final = 10_000_000
"""Tokens that a vocabulary may have, far more than any has."""

_HIGH: Final = re.compile(rb":\s*[0-9]{8}")
"""What a number of :data:`MOST` or more looks like; a text can look like it too."""


def check_token_numbers(folder: Path) -> None:
    """Refuse a vocabulary that has a high number: the library makes a place for all below it.

    Files are searched as they are, a hundredth of a second for an ordinary one; they are parsed only
    where something looks like such a number.

    Raises:
        ModelError: if there is one, or a file is far too large.
    """
    for name, inside in (("tokenizer.json", True), ("vocab.json", False)):
        try:
            data = read_bounded(folder / name, LARGEST)
        except OSError:  # not there, or the library says why it cannot be read
            continue
        except ValueError as error:
            raise ModelError(f"{error}, so it is no tokenizer. Copy it again.") from None
        if _HIGH.search(data):
            _refuse_high(folder / name, _vocabulary(data, inside=inside))


def _refuse_high(file: Path, vocabulary: dict[str, Any]) -> None:
    numbers = (number for number in vocabulary.values() if isinstance(number, int))
    most = max(numbers, default=0)
    if most >= MOST:
        raise ModelError(
            f"{file} has a token with number {short(most)}, and no model knows as many: it is "
            "damaged or hostile. Fetch or copy it again."
        )


def _vocabulary(data: bytes, *, inside: bool) -> dict[str, Any]:
    """Return the vocabulary of a file, nothing where it has none with numbers."""
    try:
        found = parsed_json(data)
    except ValueError:  # the library says what is wrong with it
        return {}
    for name in ("model", "vocab") if inside else ():
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
