"""What the ranks of a run are, and how they share its steps."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgetune.device.base import CARD
from edgetune.events import RunState
from edgetune.planning import Plan
from edgetune.shares import Sharing, Weights
from edgetune.world import World, told


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """A rank's device, and what it decided for it; ``machine`` is the name of its machine."""

    machine: str
    device: str
    kind: str
    placement: str
    checkpointed: int
    budget_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return what a run folder says of it: machines have no names there."""
        facts = asdict(self)
        del facts["machine"]
        return facts


def meet(world: World, plan: Plan) -> tuple[RankFacts, ...]:
    """Return the facts of every rank; ``plan`` is this one's."""
    own = RankFacts(
        machine=platform.node(),
        device=plan.device.name,
        kind=plan.device.kind,
        placement=plan.choice.placement,
        checkpointed=plan.choice.checkpointing.layers,
        budget_bytes=plan.device.budget_bytes,
    )
    return tuple(RankFacts(**json.loads(text)) for text in told(world, json.dumps(asdict(own))))


def sharing_of(
    parts: int, ranks: Sequence[RankFacts], pilot: bool, deal: Callable[[Weights], None]
) -> Sharing:
    """Return how ranks share steps of at least so many parts: by the speed that a pilot finds.

    The processors of one machine are one processor: they have equal shares.
    """
    here = ranks[0].machine
    one_processor = all(rank.kind != CARD and rank.machine == here for rank in ranks)
    return Sharing(parts=parts, by_speed=pilot and not one_processor, deal=deal)


def begun(state: RunState, sharing: Sharing) -> RunState:
    """Return a state in which the shares are decided, unless a pilot does that; deal them."""
    sharing.deal(state.shares or (1,) * sharing.parts)
    if state.shares or sharing.parts == 1 or sharing.by_speed:
        return state
    return replace(state, shares=(1,) * sharing.parts)
