"""A run on several ranks: rank 0 plans, writes and speaks; the others follow it.

What rank 0 decides before the first step, and the state that training begins or goes on with, is
*told*: plan, hashes, and every tensor of adapter and optimizer, so that a follower needs neither
the run folder nor the same processor to start from the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgetune.backend import Session, load_backend
from edgetune.choice import Choice
from edgetune.device import Device, list_devices, read_device
from edgetune.device.base import CARD, card_name
from edgetune.errors import UsageError
from edgetune.events import RunState
from edgetune.loop import train
from edgetune.model import open_model
from edgetune.planning import Plan, plan_from_json, read_plan_file
from edgetune.runs import RunFacts, RunFolder
from edgetune.settings.parse import from_plain
from edgetune.settings.spec import values
from edgetune.together import together
from edgetune.workflows.job import Job
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import PlanRequest, PreparedPlan, plan_for
from edgetune.workflows.roundings import ANEW, Roundings
from edgetune.workflows.sharing import begun, meet, sharing_of
from edgetune.world import Place, World

OWN: Final = frozenset({"placement", "embedding", "head", "checkpointing", "loss_chunk", "tile"})
"""Knobs of memory and time that every rank chooses for its own device."""


def device_of(place: Place, name: str, cards: Sequence[Device] | None = None) -> str:
    """Return the name of the device that a rank computes on: ranks on one machine have a card each.

    ``cards`` are those of this machine, read where they are not given.

    Raises:
        UsageError: if there are fewer than ranks, or one is asked for that all would share.
    """
    if place.local_world == 1:
        return name
    if name.startswith(f"{CARD}:"):
        raise UsageError(
            f"--device {name} is one card, but {place.local_world} ranks run on this machine. "
            "Leave out its number."
        )
    if name not in {"auto", CARD}:
        return name
    if cards is None:
        cards = [device for device in list_devices() if device.kind == CARD]
    usable = [number for number, card in enumerate(cards) if card.fault is None]
    if not usable:
        return name
    if len(usable) < place.local_world:
        raise UsageError(
            f"{place.local_world} ranks are to train on this machine, which has {len(usable)} card"
            f"{'s' if len(usable) > 1 else ''}. Start as many ranks as cards, or give --device cpu."
        )
    return card_name(usable[place.local_rank])


def planned_device(run: Path | None) -> str:
    """Return the device that a run was planned for, ``auto`` where its folder is not on this machine."""
    if run is None or not RunFolder(run).plan.is_file():
        return "auto"
    device = read_plan_file(RunFolder(run).plan).get("device")
    return str(device.get("kind", "auto")) if isinstance(device, dict) else "auto"


def join(place: Place, device: str, timeout: float) -> World:
    """Meet the other ranks on the backend of a device.

    Raises:
        UsageError: if that backend has no ranks here.
        LostRankError: if some do not come.
    """
    found = read_device(device)
    return load_backend(found.backend).join(place, timeout, found)


def tell_plan(
    world: World, plan: Plan, facts: RunFacts, parts: int, roundings: Roundings = ANEW
) -> None:
    """Tell the followers what is trained on what, in how many parts of a step, as rank 0.

    A run that goes on rounds as it did.
    """
    told = {
        "plan": plan.to_json(), "data": facts.data, "model": facts.model, "parts": parts,
        "kernels": roundings.kernels,
    }  # fmt: skip
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
                loop, ranks = json.loads(world.spread(b"")), meet(world, job.plan)
                sharing = sharing_of(told["parts"], ranks, loop["pilot"], job.deal)
                start = begun(take_state(world, session), sharing)
                steps = train(
                    session, job.batches.step, job.evaluation, job.facts.schedule, start, stop,
                    rewind=lambda _: take_state(world, session), strict=loop["strict"],
                    pilot=job.pilot() if loop["pilot"] else None, world=world, sharing=sharing,
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
        theirs_on, mine = told["plan"]["device"]["backend"], read_device(self.device)
        if mine.backend != theirs_on:
            raise UsageError(
                f"{mine.name} computes with {mine.backend}, rank 0 with {theirs_on}: their gradients "
                "cannot be added. Give all ranks the same kind of --device."
            )
        ref = self.model or told["plan"]["model"]["ref"]
        model = open_model(ref)
        theirs = plan_from_json(told["plan"], model.shape)
        data = self.data or (Path(theirs.data.path) if theirs.data else None)
        planned = plan_on(
            self.place, theirs, told["parts"],
            ref=ref, data=data, device=self.device, memory=self.memory,
        )  # fmt: skip
        alike = planned.plan.device.kind == theirs.device.kind
        roundings = Roundings(told["kernels"] if alike else None)
        plan = roundings.planned(planned.plan)
        assert planned.dataset is not None
        job = Job.of(plan, planned.dataset.fit(plan.choice.context), model, world)
        other = [name for name in ("model", "data") if getattr(job.facts, name) != told[name]]
        if other:
            raise UsageError(
                f"Rank {self.place.rank} does not have the same {' and '.join(other)} as rank 0: "
                f"{ref}, {data}. Give it the same files: --model and --data."
            )
        session = open_session(plan, model, world)
        roundings.keep(session)
        return job, session


def plan_on(
    place: Place,
    theirs: Plan,
    parts: int,
    *,
    ref: str,
    data: Path | None,
    device: str,
    memory: int | None,
) -> PreparedPlan:
    """Return a rank's own plan of a run that another rank planned: within its own memory.

    Raises:
        EdgetuneError: if the model, the data or the device cannot be had, or nothing fits.
    """
    training = {
        **values(theirs.training),
        "gradient_parts": parts,
        "search": None,  # rank 0 knows the rate
        "share_prompts": bool(theirs.training.share_prompts),  # older plans do not say so
    }
    planned = plan_for(
        PlanRequest(
            model=ref, data=data, device=device, memory=memory, choice=_shared(theirs.choice),
            training=training, run=True, place=place,
        )
    )  # fmt: skip
    return replace(planned, plan=replace(planned.plan, training=theirs.training))


def _shared(choice: Choice) -> dict[str, Any]:
    """Return the knobs that are the same on every rank, by name."""
    knobs = {name: value for name, value in values(choice).items() if name not in {*OWN, "method"}}
    return {**knobs, **values(choice.method), "method": choice.method.kind}
