"""What is minimised besides plain language modelling: objectives over whole answers."""

from edgetune.objectives.base import (
    AnswerKind,
    DocumentSums,
    Objective,
    Rewards,
    Rows,
    Scored,
)
from edgetune.objectives.registry import OBJECTIVES, objective_class, objective_of
from edgetune.objectives.weighing import Weighing

__all__ = [
    "OBJECTIVES",
    "AnswerKind",
    "DocumentSums",
    "Objective",
    "Rewards",
    "Rows",
    "Scored",
    "Weighing",
    "objective_class",
    "objective_of",
]
