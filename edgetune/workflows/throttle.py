"""A run on a machine that is used for other things: it says what puts it under pressure, and can wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from edgetune.device import read_pressure
from edgetune.events import Event, Stepped, UnderPressure

POLL_SECONDS = 10.0


def yield_to_machine(
    events: Iterable[Event],
    *,
    pause: bool,
    stop: Callable[[], bool],
    read: Callable[[], str | None] = read_pressure,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Pass events on; after a step, say when the machine comes under pressure.

    With ``pause`` the next step waits until the pressure is over, or ``stop`` says so.
    """
    under_pressure = False
    for event in events:
        yield event
        if not isinstance(event, Stepped):
            continue
        because = read()
        if because is not None and (pause or not under_pressure):
            yield UnderPressure(step=event.step, because=because, paused=pause)
        while pause and because is not None and not stop():
            sleep(POLL_SECONDS)
            because = read()
        under_pressure = because is not None
