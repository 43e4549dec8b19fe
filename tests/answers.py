"""What a session continues a prompt with."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.backend import DEFAULT_ADAPTER, GenerateOptions, Session
from edgetune.generation import generate


def continued(
    session: Session,
    prompt: Sequence[int],
    options: GenerateOptions,
    adapter: str | None = DEFAULT_ADAPTER,
) -> list[int]:
    """Return the tokens that follow one prompt."""
    return [token for _, token in generate(session, [prompt], options, adapters=[adapter])]
