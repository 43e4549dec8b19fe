"""A training that goes on from an adapter: its method is the adapter's, its weights are its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune import methods
from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.backend import Session
from edgetune.errors import UsageError
from edgetune.methods import Method
from edgetune.methods.lora import LowRank
from edgetune.planning import Plan
from edgetune.runs import RunFolder
from edgetune.settings.spec import values
from edgetune.shape import ModelShape
from edgetune.workflows.over import Over
from edgetune.workflows.planning import PlanRequest
from edgetune.workflows.references import is_run, read_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """An adapter that a training goes on from, with one scale for all of its updates."""

    name: str
    adapter: LoadedAdapter
    shape: ModelShape
    ref: str
    """Its base."""
    notices: tuple[str, ...]
    """What the user should know of it."""

    def request(self, asked: PlanRequest) -> PlanRequest:
        """Return a request for a plan with the adapter's method.

        Raises:
            UsageError: naming the settings that are asked for and are not the adapter's.
        """
        if asked.training.get("search") == "method":
            raise UsageError(
                "--search method begins each method anew, and --from goes on with that of "
                f"{self.name}. Leave one out."
            )
        method = self.adapter.method
        own = {name: value for name, value in asked.choice.items() if name in values(method)}
        kind = asked.choice.get("method", method.kind)
        if kind != method.kind:
            raise UsageError(
                f"{self.name} is an adapter of the method {method.kind}, and --method {kind} is "
                "asked for. Leave out --method."
            )
        wanted = methods.build(method.kind, {**values(method), **own})
        if not self._computes_the_same(wanted, own):
            given = ", ".join(
                f"--{name.replace('_', '-')}" for name in own if own[name] != values(method)[name]
            )
            raise UsageError(
                f"{self.name} is continued as it is: {given} would make it a different adapter. "
                "Leave that out."
            )
        settings = {**values(wanted), "method": method.kind}
        fixed = (*asked.fixed, *(name for name in settings if name not in asked.choice))
        return replace(asked, choice={**asked.choice, **settings}, fixed=fixed)

    def _computes_the_same(self, wanted: Method, given: Mapping[str, Any]) -> bool:
        """Tell whether a method takes the adapter's tensors and means the same by them."""
        method = self.adapter.method
        if not isinstance(method, LowRank) or not isinstance(wanted, LowRank):
            return all(values(method)[name] == value for name, value in given.items())
        return _without_training(method, self.shape) == _without_training(wanted, self.shape)


def read_beginning(name: str, model: str | None) -> Beginning:
    """Return the adapter of a run, or the one in a folder, over its own base or ``model``.

    Raises:
        UsageError: if it is no adapter, or does not say over which model.
        ModelError: if the adapter or the model is missing or damaged, or they do not fit.
    """
    if model is not None and is_run(name):
        name = str(RunFolder.open(Path(name).expanduser()).finished_adapter())
    found = read_reference(name, Over(model=model))
    if found.adapter is None:
        raise UsageError(
            f"{name} is a model, not an adapter to continue from. Train on it with --model {name}."
        )
    opened = found.model
    return Beginning(
        name=name, adapter=found.adapter, shape=opened.shape, ref=opened.ref, notices=found.notices
    )


def _without_training(method: LowRank, shape: ModelShape) -> list[tuple[Any, ...]]:
    """Return what decides the numbers: tensors and the scale of each update."""
    tensors = sorted((tensor.name, tensor.shape) for tensor in method.tensors(shape))
    scales = sorted((target.module, method.scale_of(target)) for target in method.select(shape))
    return [*tensors, *scales, (values(method).get("lora_initial"),)]


def keep_start(beginning: Beginning | None, plan: Plan, folder: RunFolder) -> None:
    """Copy the adapter that a run goes on from, if it does, into its folder."""
    if beginning is not None:
        method, tensors = beginning.adapter.method, beginning.adapter.tensors
        save_adapter(folder.start, method, plan.shape, tensors, base=plan.model.ref)


def begin(session: Session, folder: RunFolder, plan: Plan) -> None:
    """Take over the adapter that a run goes on from, if it does."""
    if folder.start.is_dir():
        session.restore(load_adapter(folder.start, plan.shape).tensors)
