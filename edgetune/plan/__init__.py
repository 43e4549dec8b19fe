"""The plan: from a device, a model and what the user fixed to a choice with its reasons.

:mod:`~edgetune.plan.request` checks what was asked, :mod:`~edgetune.plan.defaults` fixes the knobs
that touch the result, :mod:`~edgetune.plan.ladder` lists what may be given up and in which order,
:mod:`~edgetune.plan.search` finds the fastest choice on a rung, and
:mod:`~edgetune.plan.reasons` and :mod:`~edgetune.plan.neighbours` say why.
"""

from edgetune.plan.file import FILE_NAME, plan_from_json, read_plan_file
from edgetune.plan.make import make_plan
from edgetune.plan.record import DataFacts, DeviceSummary, ModelSummary, Plan, Rejected

__all__ = [
    "FILE_NAME",
    "DataFacts",
    "DeviceSummary",
    "ModelSummary",
    "Plan",
    "Rejected",
    "make_plan",
    "plan_from_json",
    "read_plan_file",
]
