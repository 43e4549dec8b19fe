"""The whole way of a run: plan, train and record, then use what was trained."""

from __future__ import annotations

from edgetune.agent.planning import Planned, Wish, plan_for
from edgetune.agent.training import Run, resume_run, start_run
from edgetune.agent.using import OpenedRun, Scores, open_run, score

__all__ = [
    "OpenedRun",
    "Planned",
    "Run",
    "Scores",
    "Wish",
    "open_run",
    "plan_for",
    "resume_run",
    "score",
    "start_run",
]
