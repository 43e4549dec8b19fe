"""A run on several ranks: rank 0 plans, writes and speaks; the others follow it.

What rank 0 decides before the first step, and the state that training begins or goes on with, is
*told*: plan, hashes, and every tensor of adapter and optimizer, so that a follower needs neither
the run folder nor the same processor to start from the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgetune.backend import Session, load_backend
from edgetune.choice import Choice
from edgetune.device import read_device
from edgetune.errors import UsageError
from edgetune.events import RunState
from edgetune.loop import train
from edgetune.model import open_model
from edgetune.planning import Plan, plan_from_json
from edgetune.runs import RunFacts
from edgetune.settings.parse import from_plain
from edgetune.settings.spec import values
from edgetune.together import together
from edgetune.workflows.job import Job
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.world import Place, World

OWN: Final = frozenset({"placement", "embedding", "head", "checkpointing", "loss_chunk"})
"""Knobs of memory and time that every rank chooses for its own device."""


def join(place: Place, device: str, timeout: float) -> World:
    """Meet the other ranks on the backend of a device.

    Raises:
        UsageError: if that backend has no ranks here.
        LostRankError: if some do not come.
    """
    return load_backend(read_device(device).backend).join(place, timeout)


def tell_plan(world: World, plan: Plan, facts: RunFacts) -> None:
    """Tell the followers what is trained on what, as rank 0."""
    told = {"plan": plan.to_json(), "data": facts.data, "model": facts.model}
    world.spread(json.dumps(told).encode())


def tell_settings(world: World, *, strict: bool, pilot: bool) -> None:
    """Tell the followers how the loop goes, as rank 0."""
    world.spread(json.dumps({"strict": strict, "pilot": pilot}).encode())


def tell_state(world: World, session: Session, state: RunState) -> None:
    """Tell the followers where training stands, as rank 0."""
    if world.size == 1:
        return
    from safetensors.numpy import save

    tensors = {
        **{f"adapter/{name}": x for name, x in session.adapter_tensors().items()},
        **{f"optimizer/{name}": x for name, x in session.optimizer_tensors().items()},
    }
    world.spread(json.dumps(asdict(state)).encode())
    world.spread(save({name: np.asarray(x, order="C") for name, x in tensors.items()}))


def take_state(world: World, session: Session) -> RunState:
    """Take over what rank 0 tells of where training stands."""
    from safetensors.numpy import load

    state: RunState = from_plain(RunState, json.loads(world.spread(b"")), "state")
    tensors = load(world.spread(b""))
    adapter, optimizer = (
        {name.removeprefix(kind): x for name, x in tensors.items() if name.startswith(kind)}
        for kind in ("adapter/", "optimizer/")
    )
    session.restore(adapter, optimizer)
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """A rank that trains along with rank 0; what it may be told of its own machine.

    ``model``, ``data`` and ``memory`` are this rank's own, where they are not rank 0's.
    """

    place: Place
    device: str
    model: str | None = None
    data: Path | None = None
    memory: int | None = None
    timeout: float

    def run(self, stop: Callable[[], bool]) -> None:
        """Train along until rank 0 is done.

        Raises:
            EdgetuneError: if this rank cannot do its part, or another one is lost.
        """
        world = join(self.place, self.device, self.timeout)
        try:
            told = json.loads(world.spread(b""))
            with together(world):
                job, session = self._opened(told, world)
            try:
                loop = json.loads(world.spread(b""))
                steps = train(
                    session, job.batches.step, job.evaluation, job.facts.schedule,
                    take_state(world, session), stop,
                    rewind=lambda _: take_state(world, session), strict=loop["strict"],
                    pilot=job.pilot() if loop["pilot"] else None, world=world,
                )  # fmt: skip
                for _ in steps:
                    pass
            finally:
                session.close()
        finally:
            world.close()

    def _opened(self, told: Mapping[str, Any], world: World) -> tuple[Job, Session]:
        """Return this rank's share of the run, opened within this rank's own memory.

        Raises:
            UsageError: if model or rows are not those of rank 0.
        """
        ref = self.model or told["plan"]["model"]["ref"]
        model = open_model(ref)
        theirs = plan_from_json(told["plan"], model.shape)
        data = self.data or (Path(theirs.data.path) if theirs.data else None)
        planned = plan_for(
            PlanRequest(
                model=ref,
                data=data,
                device=self.device,
                memory=self.memory,
                choice=_shared(theirs.choice),
                training={**values(theirs.training), "search": None},  # rank 0 knows the rate
                run=True,
                place=self.place,
            )
        )
        assert planned.dataset is not None
        plan = replace(planned.plan, training=theirs.training)
        job = Job.of(plan, planned.dataset.fit(plan.choice.context), model, world)
        other = [name for name in ("model", "data") if getattr(job.facts, name) != told[name]]
        if other:
            raise UsageError(
                f"Rank {self.place.rank} has another {' and other '.join(other)} than rank 0: "
                f"{ref}, {data}. Give it the same files: --model and --data."
            )
        return job, open_session(plan, model, world)


def _shared(choice: Choice) -> dict[str, Any]:
    """Return the knobs that are the same on every rank, by name."""
    knobs = {name: value for name, value in values(choice).items() if name not in {*OWN, "method"}}
    return {**knobs, **values(choice.method), "method": choice.method.kind}
