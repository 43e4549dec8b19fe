"""Personal data and secrets in texts, by patterns alone: a help, no guarantee.

Numbers of accounts and cards count only with the right check digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PATTERNS: dict[str, re.Pattern[str]] = {
    "mail": re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
    "key": re.compile(
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_]){0,3}[A-Za-z0-9]{20,}\b"
        r"|\bgh[pousr]_[A-Za-z0-9]{36}|\bhf_[A-Za-z0-9]{30,}\b|\bAIza[0-9A-Za-z_-]{35}"
        r"|\bxox[abprs]-[0-9A-Za-z-]{10,}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
        r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
    ),
    "account": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"),
    "phone": re.compile(
        r"(?<![\w.+-])(?:\+\d{1,3}[ ./-]?(?:\(\d{1,4}\)[ ./-]?)?(?:\d[ ./-]?){6,12}\d"
        r"|\(\d{2,5}\)[ ./-]?\d{3,4}[ ./-]?\d{3,5}|0\d{1,4}[ /-]\d{3,5}(?:[ -]?\d{2,5}){0,2}"
        r"|[2-9]\d{2}[-.]\d{3}[-.]\d{4})(?![\w-])"
    ),
}


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind of each finding in a text and the finding; no part of it is found twice."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in PATTERNS.items():
        for found in pattern.finditer(text):
            start, stop = found.span()
            free = all(stop <= first or start >= last for first, last in taken)
            if free and _is_right(kind, found.group()):
                taken.append((start, stop))
                yield kind, found.group()


def veiled(finding: str) -> str:
    """Return a finding so that it can be found again but not used.

    >>> veiled("ann@example.org")
    'an…rg'
    """
    return f"{finding[:2]}…{finding[-2:]}"


def _is_right(kind: str, text: str) -> bool:
    compact = re.sub(r"[ -]", "", text)
    if kind == "card":
        return _luhn(compact)
    if kind == "account":
        moved = compact[4:] + compact[:4]
        return int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1
    return True


def _luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812)."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(digits[::-1])]
    return len(set(digits)) > 1 and sum(number - 9 * (number > 9) for number in doubled) % 10 == 0
