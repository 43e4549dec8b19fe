"""What a session continues a prompt with."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.backend import DEFAULT_ADAPTER, GenerateOptions, Session


def continued(
    session: Session,
    prompt: Sequence[int],
    options: GenerateOptions,
    adapter: str | None = DEFAULT_ADAPTER,
) -> list[int]:
    """Return the tokens that follow one prompt."""
    return [token for _, token in session.generate([prompt], options, adapters=[adapter])]
