"""What Python code calls on adapters that are trained: combine them, and study them.

Everything here is also at the top: ``edgetune.combine(...)``. Arguments are named as the flags of
``edgetune combine`` and ``edgetune study``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from edgetune.api import PathLike, Rows, rows_file, size_of
from edgetune.combining import HOW, How
from edgetune.errors import UsageError
from edgetune.owned import ScratchFolder
from edgetune.workflows.over import Over

if TYPE_CHECKING:
    from edgetune.workflows.combining import Combination
    from edgetune.workflows.dimension import IntrinsicDimension
    from edgetune.workflows.robustness import Robustness
    from edgetune.workflows.studying import Ablation, Movement, SharedDirections

TRIES = 4
"""Variants of a row that an attack chooses from."""

SPANS = 6
"""Parts that the blocks of an adapter are divided into."""

STUDIES = ("blocks", "directions", "intrinsic-dimension", "robustness", "weights")


def combine(
    refs: Sequence[PathLike],
    output: PathLike,
    *,
    how: How = "cat",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    rank: int | None = None,
    seed: int | None = None,
    data: Rows | None = None,
    evaluations: int | None = None,
    model: PathLike | None = None,
    device: str = "auto",
    memory: int | str | None = None,
) -> Combination:
    """Write one LoRA adapter made of several over the same base to a new folder.

    ``refs`` are folders of runs or adapters. What is None is the way's own choice; ``data``,
    ``evaluations``, ``device`` and ``memory`` are for ``lorahub``, which finds the weights on rows.

    >>> import edgetune, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> def trained(name, step):
    ...     rows = [{"prompt": f"{n} and {step} is", "completion": str(n + step)} for n in range(24)]
    ...     place = f"{folder.name}/{name}"
    ...     return edgetune.train("tiny", data=rows, output=place, steps=2, rank=2).folder
    >>> both = [trained("one", 1), trained("two", 2)]
    >>> found = edgetune.combine(both, folder.name + "/both", how="svd", rank=3)
    >>> found.rank, found.weights
    (3, (0.5, 0.5))
    >>> folder.cleanup()

    Raises:
        UsageError: if they are not LoRA over one base, or arguments do not suit the way.
        ModelError: if an adapter or the base is missing or damaged.
    """
    from edgetune.workflows.combining import CombineRequest
    from edgetune.workflows.combining import combine as combined

    if how not in HOW:
        raise UsageError(f"There is no way {how!r} to combine. There are: {', '.join(HOW)}.")
    if isinstance(refs, str | os.PathLike):
        raise UsageError(f"combine takes a list of adapters; found one: {os.fspath(refs)}.")
    if not refs:
        raise UsageError("combine takes a list of adapters; found an empty one.")
    with ScratchFolder() as scratch:
        return combined(
            CombineRequest(
                names=tuple(os.fspath(ref) for ref in refs),
                output=Path(output),
                how=how,
                weights=None if weights is None else tuple(map(float, weights)),
                density=density,
                rank=rank,
                seed=seed,
                data=None if data is None else rows_file(data, scratch),
                evaluations=evaluations,
                over=_over(model, device, memory),
            )
        )


@overload
def study(
    what: Literal["blocks"], ref: PathLike, *, data: Rows, spans: int = ...,
    tell: Callable[[int, int], None] | None = ..., model: PathLike | None = ...,
    device: str = ..., memory: int | str | None = ...,
) -> Ablation: ...  # fmt: skip
@overload
def study(
    what: Literal["directions"], ref: PathLike, other: PathLike, *, model: PathLike | None = ...
) -> SharedDirections: ...
@overload
def study(
    what: Literal["intrinsic-dimension"], ref: PathLike, *, data: Rows,
    dimensions: Sequence[int] | None = ..., seeds: int = ..., steps: int | None = ...,
    tell: Callable[[int, int], None] | None = ..., device: str = ...,
    memory: int | str | None = ...,
) -> IntrinsicDimension: ...  # fmt: skip
@overload
def study(
    what: Literal["robustness"], ref: PathLike, *, data: Rows, clean: Rows, tries: int = ...,
    tuning_steps: int | None = ..., tuning_rate: float | None = ..., seed: int = ...,
    model: PathLike | None = ..., device: str = ..., memory: int | str | None = ...,
) -> Robustness: ...  # fmt: skip
@overload
def study(what: Literal["weights"], ref: PathLike, *, model: PathLike | None = ...) -> Movement: ...
def study(
    what: Literal["blocks", "directions", "intrinsic-dimension", "robustness", "weights"],
    ref: PathLike,
    other: PathLike | None = None,
    *,
    data: Rows | None = None,
    spans: int = SPANS,
    dimensions: Sequence[int] | None = None,
    seeds: int = 1,
    steps: int | None = None,
    clean: Rows | None = None,
    tries: int = TRIES,
    tuning_steps: int | None = None,
    tuning_rate: float | None = None,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
    model: PathLike | None = None,
    device: str = "auto",
    memory: int | str | None = None,
) -> Ablation | SharedDirections | IntrinsicDimension | Robustness | Movement:
    """Return what a study of trained adapters found, or of what a task takes to be learned.

    ``blocks`` leaves the adapter out of every span of blocks and predicts the rows of ``data``;
    ``tell`` is told how many of how many losses are there. ``directions`` compares those of two
    low-rank adapters, ``weights`` says how far matrices were lengthened and rotated. These train
    nothing. ``intrinsic-dimension`` trains the model ``ref`` with all weights and in subspaces of
    ``dimensions`` on ``data``, for ``seeds`` seeds. ``robustness`` attacks the prompts of ``data`` and counts
    what a prefix answers right, alone and with one that is tuned for each batch towards what blocks
    compute on ``clean`` rows.

    >>> import edgetune, tempfile
    >>> rows = [{"prompt": f"{n} and one is", "completion": str(n + 1)} for n in range(24)]
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = edgetune.train("tiny", data=rows, output=folder.name + "/run", steps=2, rank=2)
    >>> found = edgetune.study("blocks", run.folder, data=rows[:4], spans=2)
    >>> found.rows, len(found.without), found.whole < found.base
    (4, 2, True)
    >>> shared = edgetune.study("directions", run.folder, run.folder)
    >>> all(table[-1][-1] > 0.99 for table in shared.inputs.values())
    True
    >>> len(edgetune.study("weights", run.folder).matrices) > 0
    True
    >>> folder.cleanup()

    Raises:
        UsageError: if there is no such study, an argument is missing or is for another study, or the
            method cannot be studied.
        ModelError: if an adapter or its base is missing or damaged.
    """
    from edgetune.workflows.dimension import GRID, DimensionRequest, intrinsic_dimension
    from edgetune.workflows.robustness import RobustnessRequest, Steering, robustness
    from edgetune.workflows.studying import ablation, movement, shared_directions

    over, name = _over(model, device, memory), os.fspath(ref)
    _refuse_unread(what, data, other, clean)
    match what:
        case "blocks" if data is not None:
            with ScratchFolder() as scratch:
                rows = rows_file(data, scratch)
                return ablation(name, rows, over, spans=spans, tell=tell or _silent)
        case "directions" if other is not None:
            return shared_directions(name, os.fspath(other), over)
        case "intrinsic-dimension" if data is not None:
            with ScratchFolder() as scratch:
                wanted = DimensionRequest(
                    data=rows_file(data, scratch), over=replace(over, model=name), seeds=seeds,
                    dimensions=GRID if dimensions is None else tuple(dimensions),
                    training={} if steps is None else {"steps": steps},
                )  # fmt: skip
                return intrinsic_dimension(wanted, tell or _silent)
        case "robustness" if data is not None and clean is not None:
            usual = Steering()
            steering = Steering(
                tuning_steps=usual.tuning_steps if tuning_steps is None else tuning_steps,
                tuning_rate=usual.tuning_rate if tuning_rate is None else tuning_rate,
            )
            with ScratchFolder() as scratch, ScratchFolder() as beside:
                attacked = RobustnessRequest(
                    name=name, data=rows_file(data, scratch), clean=rows_file(clean, beside),
                    over=over, tries=tries, seed=seed, steering=steering,
                )  # fmt: skip
                return robustness(attacked, lambda _: None)
        case "weights":
            return movement(name, over)
        case "blocks" | "directions" | "intrinsic-dimension" | "robustness":
            missing = "a second adapter" if what == "directions" else "rows: data="
            missing += " and clean=" if what == "robustness" else ""
            raise UsageError(f"A study of {what} needs {missing}.")
    raise UsageError(f"There is no study {what!r}. There are: {', '.join(STUDIES)}.")


def _refuse_unread(
    what: str, data: Rows | None, other: PathLike | None, clean: Rows | None
) -> None:
    """Refuse rows and a second adapter for a study that would leave them unread."""
    readers = {
        "rows": (data, ("blocks", "intrinsic-dimension", "robustness")),
        "clean rows": (clean, ("robustness",)),
        "second adapter": (other, ("directions",)),
    }
    for name, (given, of) in readers.items():
        if given is not None and what in STUDIES and what not in of:
            raise UsageError(f"A study of {what} reads no {name}: leave it out.")


def _over(model: PathLike | None, device: str, memory: int | str | None) -> Over:
    base = None if model is None else os.fspath(model)
    return Over(model=base, device=device, memory=size_of(memory))


def _silent(done: int, of: int) -> None:
    """Say nothing of how far a study is."""
