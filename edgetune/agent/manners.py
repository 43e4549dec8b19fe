"""A run on a machine that is used for other things: it says what strains it, and can wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from edgetune.device import read_strain
from edgetune.train import Event, Stepped, Strained

POLL_SECONDS = 10.0


def considerate(
    events: Iterable[Event],
    *,
    pause: bool,
    stop: Callable[[], bool],
    read: Callable[[], str | None] = read_strain,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Pass events on; after a step, say when the machine comes under strain.

    With ``pause`` the next step waits until the strain is over, or ``stop`` says so.
    """
    strained = False
    for event in events:
        yield event
        if not isinstance(event, Stepped):
            continue
        because = read()
        if because is not None and (pause or not strained):
            yield Strained(step=event.step, because=because, paused=pause)
        while pause and because is not None and not stop():
            sleep(POLL_SECONDS)
            because = read()
        strained = because is not None
