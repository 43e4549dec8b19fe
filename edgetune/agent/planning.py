"""From what the user asked for to a plan that knows the model, the machine and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.device import read_device
from edgetune.errors import ModelError
from edgetune.model import ModelSource, resolve
from edgetune.plan import DataFacts, Plan, make_plan
from edgetune.spec import Training, values

if TYPE_CHECKING:
    from edgetune.data import Dataset, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked for. ``choice`` and ``training`` hold the knobs that they fixed."""

    model: str
    data: Path | None = None
    device: str = "auto"
    memory: int | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and the rows that it was made for, fitted to its context."""

    plan: Plan
    source: ModelSource
    dataset: Dataset | None = None
    tokenizer: Tokenizer | None = None


def plan_for(wish: Wish) -> Planned:
    """Return the plan for a wish; the data is read if there is any.

    Raises:
        EdgetuneError: if the model, the data or the device cannot be had, or nothing fits.
    """
    source = resolve(wish.model)
    device = read_device(wish.device)
    if wish.data is None:
        plan = make_plan(
            device, wish.model, source.shape,
            fixed=wish.choice, training=wish.training, memory=wish.memory,
        )  # fmt: skip
        return Planned(plan=plan, source=source)
    tokenizer, dataset = read_rows(source, wish.data, Training(**wish.training))
    lengths = dataset.lengths
    plan = make_plan(
        device, wish.model, source.shape,
        fixed=wish.choice, training=wish.training, memory=wish.memory,
        facts=DataFacts(
            path=str(wish.data),
            rows=len(dataset.train),
            longest=int(lengths.max()),
            tokens=int(lengths.sum()),
        ),
    )  # fmt: skip
    return Planned(
        plan=plan, source=source, tokenizer=tokenizer, dataset=dataset.fit(plan.choice.context)
    )


def read_rows(source: ModelSource, data: Path, training: Training) -> tuple[Tokenizer, Dataset]:
    """Return the model's tokenizer and the rows of a file, not fitted to a context yet."""
    from edgetune.data import load_tokenizer, read_dataset

    if source.folder is None:
        raise ModelError(
            f"To count the tokens of {data}, the tokenizer of {source.ref} must be on this "
            "machine, and it is not. Plan without --data, or get the model: "
            f"`edgetune fetch {source.hub_id or source.ref}` or --model FOLDER."
        )
    tokenizer = load_tokenizer(source.folder)
    dataset = read_dataset(
        data,
        tokenizer,
        loss_on=training.loss_on,
        validation=training.validation,
        seed=training.seed,
        long_rows=training.long_rows,
    )
    return tokenizer, dataset


def replanned(plan: Plan, wish: Wish) -> Wish:
    """Return a wish that fixes everything a plan file says, with ``wish``'s own knobs on top."""
    method = plan.choice.method
    settings = values(plan.choice) | values(method) | {"method": method.kind}
    training = values(plan.training)
    return replace(
        wish,
        model=plan.model.ref,
        choice={**settings, **wish.choice},
        training={**training, **wish.training},
    )
