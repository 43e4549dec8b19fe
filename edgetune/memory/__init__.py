"""Bytes of a run as pure functions of a model's shape and a choice.

:mod:`~edgetune.memory.ledger` counts what lives through a sequence of allocations. The text of a
block is run over sizes: :mod:`~edgetune.memory.eager` frees them as torch does,
:mod:`~edgetune.memory.lazy` as MLX does. :mod:`~edgetune.memory.head` is torch's loss,
:mod:`~edgetune.memory.weights` what is stored, :mod:`~edgetune.memory.costs` what each kind of
device declares; :mod:`~edgetune.memory.step` and :mod:`~edgetune.memory.model` put them together
for each phase of a run.
"""

from edgetune.memory.batch_shape import Platform
from edgetune.memory.estimate import MemoryEstimate, Parts, Phases
from edgetune.memory.model import MemoryModel, estimate

__all__ = ["MemoryEstimate", "MemoryModel", "Parts", "Phases", "Platform", "estimate"]
