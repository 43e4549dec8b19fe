"""The knobs that touch the result, from the data and the model: one place for every constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgetune.errors import UsageError
from edgetune.methods.base import Method
from edgetune.objectives import Objective, objective_of
from edgetune.planning.plan import DataFacts
from edgetune.settings.spec import Decision, Training, values
from edgetune.shape import ModelShape

ROWS = 8
"""Rows in an optimizer step: enough to average over, few enough to take many steps."""

CONTEXT = 2048
"""Tokens in a row when no data says otherwise, and in a piece of a text that is split."""

RATE, RATE_WIDTH, RATE_POWER = 2e-4, 4096, 0.8
"""Published recipes use 2e-4 at a hidden size of 4096 and more for narrower models."""

RANK = 16
RANKS = ((2_000, 8), (20_000, 16), (100_000, 32))
LARGE_RANK = 128
"""Ranks by rows below a limit. Hu et al. 2021 (table 6) find ranks of 1 to 8 enough for tasks of
up to some 100 k rows when several matrices are adapted; over that, 128 and more match full
fine-tuning."""

EPOCHS = (3, 10)
ROWS_SEEN = 2_000
"""Small sets of rows are repeated until the model has seen about so many."""

PATIENCE = 3
"""Evaluations without a lower validation loss that end a run over rows which are repeated often."""


def training_for(
    shape: ModelShape, method: Method, fixed: Mapping[str, Any], facts: DataFacts | None
) -> tuple[Training, list[str]]:
    """Return the training settings, with what was not fixed decided, and the reasons."""
    settings = dict(fixed)
    reasons: list[str] = []
    objective = objective_of(Training(**settings))
    if objective is not None:
        settings |= values(objective)
        reasons += _of_objective(objective, fixed)
    if settings.get("learning_rate") is None:
        rate = usual_rate(shape.hidden_size, method, objective)
        settings["learning_rate"] = rate
        by = method.kind if objective is None else f"{objective.name} with {method.kind}"
        reasons.append(
            f"learning rate {rate:g}: usual for {by} at this width ({shape.hidden_size})"
        )
    if facts is not None and not {"epochs", "steps"} & settings.keys():
        epochs = min(EPOCHS[1], max(EPOCHS[0], round(ROWS_SEEN / max(1, facts.rows))))
        settings["epochs"] = float(epochs)
        reasons.append(f"{epochs} epochs: there are {facts.rows} rows to train on")
        if epochs > EPOCHS[0] and facts.validation != 0 and settings.get("patience") is None:
            settings["patience"] = PATIENCE
            reasons.append(
                f"ends early after {PATIENCE} evaluations without a lower validation loss: "
                f"the rows are repeated often (--patience 0 trains all {epochs} epochs)"
            )
    if settings.get("patience") and facts is not None and facts.validation == 0:
        raise UsageError(
            f"--patience {settings['patience']} needs validation rows, and there are none. Keep "
            "some with --validation or --validation-data, or leave it out."
        )
    return Training(**settings), reasons


def usual_rate(width: int, method: Method, objective: Objective | None = None) -> float:
    """Return the learning rate of a method over a hidden state of so many channels."""
    factor = method.usual_factor * (1.0 if objective is None else objective.rate_factor)
    return float(f"{RATE * (RATE_WIDTH / width) ** RATE_POWER * factor:.1e}")


def _of_objective(objective: Objective, fixed: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings of an objective that were not fixed."""
    for name, value in values(objective).items():
        if fixed.get(name) is None:
            yield f"{name.replace('_', ' ')} {value:g}: usual for {objective.name}"


def rank_for(facts: DataFacts | None) -> Decision[int]:
    """Return LoRA's rank by the number of rows."""
    if facts is None:
        return Decision(RANK, "the usual size when no data is given")
    for rows, rank in RANKS:
        if facts.rows < rows:
            return Decision(rank, f"enough for {facts.rows} rows")
    return Decision(LARGE_RANK, f"{facts.rows} rows can fill a large update")


def context_for(room: int, facts: DataFacts | None) -> Decision[int]:
    """Return the row length: the longest row, rounded up, within the ``room`` in the model."""
    if facts is None:
        return Decision(min(CONTEXT, room), "a usual length when no data is given")
    wanted = max(1, -(-facts.longest // 32)) * 32
    if facts.long_rows == "split" and wanted > CONTEXT:
        return Decision(min(CONTEXT, room), "longer texts are split into rows; nothing is lost")
    if facts.longest > room:
        return Decision(room, "the longest that the model reads; some rows are longer")
    because = f"covers the longest row ({facts.longest} tokens); nothing is cut"
    return Decision(min(wanted, room), because)
