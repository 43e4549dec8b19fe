"""The plan: from a device, a model and what the user fixed to a choice with its reasons.

:mod:`~edgetune.planning.problem` checks what was asked, :mod:`~edgetune.planning.defaults` fixes the knobs
that touch the result, :mod:`~edgetune.planning.ladder` lists what may be given up and in which order,
:mod:`~edgetune.planning.search` finds the fastest choice on a rung, and
:mod:`~edgetune.planning.reasons` and :mod:`~edgetune.planning.alternatives` say why.
"""

from edgetune.planning.file import FILE_NAME, is_plan_file, plan_from_json, read_plan_file
from edgetune.planning.make import make_plan
from edgetune.planning.moved import moved, with_sums_held
from edgetune.planning.plan import Alternative, DataFacts, DeviceSummary, ModelSummary, Plan

__all__ = [
    "FILE_NAME",
    "Alternative",
    "DataFacts",
    "DeviceSummary",
    "ModelSummary",
    "Plan",
    "is_plan_file",
    "make_plan",
    "moved",
    "plan_from_json",
    "read_plan_file",
    "with_sums_held",
]
