"""Threads of numeric libraries that wait for work sleep instead of spin."""

from __future__ import annotations

import os


def let_idle_threads_sleep() -> None:
    """Choose so for libraries that are loaded from now on, unless the user chose.

    OpenMP reads it once, when the first library that uses it is loaded: transformers loads torch.
    With other programs at work on two cores, spinning made a step take 9 times as long; on an idle
    machine sleeping costs nothing that could be measured.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
