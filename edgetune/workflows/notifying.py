"""A desktop notification when a run ends: the text is an argument, no shell ever reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from typing import Final

from edgetune.errors import EdgetuneError

_SECONDS: Final = 10.0
_LONGEST: Final = 200
"""Characters of a text; desktops cut longer ones."""

_SCRIPT: Final = (
    "on run argv\ndisplay notification (item 2 of argv) with title (item 1 of argv)\nend run"
)
NO_NOTIFIER: Final = (
    "--notify: there is no notify-send here (Debian and Ubuntu: apt install libnotify-bin), so the "
    "run will end without a notification."
)


def notifier() -> str | None:
    """Return the program that shows notifications here; None if there is none."""
    return shutil.which("osascript" if sys.platform == "darwin" else "notify-send")


def notify(title: str, text: str) -> bool:
    """Show a notification; return whether a program took it."""
    program = notifier()
    if program is None:
        return False
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [program, *_arguments(title, text[:_LONGEST])],
            check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        return True
    return False


def _arguments(title: str, text: str) -> list[str]:
    if sys.platform == "darwin":
        return ["-e", _SCRIPT, title, text]
    # the text of a notification may have markup; names of files are no markup
    return ["--app-name=edgetune", "--", title, escape(text)]


@contextmanager
def notified(name: str, *, wanted: bool) -> Iterator[None]:
    """Tell the desktop how the block ended, if that is wanted; ``name`` is the run's."""
    said = f"{name} is done."
    try:
        yield
    except EdgetuneError as error:
        said = f"{name}: {str(error).splitlines()[0]}"
        raise
    except KeyboardInterrupt:
        wanted = False  # who stops a run knows
        raise
    except BaseException as error:
        said = f"{name} failed: {type(error).__name__}"
        raise
    finally:
        if wanted:
            notify("edgetune", said)
