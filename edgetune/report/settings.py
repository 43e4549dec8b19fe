"""The settings of a run as they were used, each with who decided it, and the reasons of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from edgetune.choice import choice_from_json
from edgetune.errors import UsageError
from edgetune.objectives import objective_of
from edgetune.report.contents import Plain, Report, figure, items, value
from edgetune.report.markup import DASH, bullets, facts, table, text
from edgetune.settings.parse import from_plain
from edgetune.settings.spec import OBJECTIVE_SETTINGS, Training, values
from edgetune.units import format_count

NOT_USED = '<span class="muted">not used</span>'


def settings(report: Report) -> str:
    """Return what a run was made with, as HTML; nothing if that cannot be read."""
    plan = report.plan
    if not plan:
        return ""
    parameters = figure(plan, "model", "parameters")
    about = [
        ("Model", text(value(plan, "model", "ref"))),
        ("Parameters", format_count(int(parameters)) if parameters else DASH),
        ("Device", text(value(plan, "device", "name"))),
        ("Backend", text(value(plan, "device", "backend"))),
    ]
    html = facts(about)
    reasons = bullets(text(reason) for reason in items(plan, "reasons")[:60])
    html += f"<h3>Why these settings</h3>{reasons}" if reasons else ""
    used = (("Method and memory", choice_used(plan)), ("Training", training_used(report)))
    for title, found in used:
        if found:
            html += f"<details><summary>{title}: all settings</summary>"
            html += _table(title, found, plan.get("given")) + "</details>"
    return html


def choice_used(plan: Plain) -> dict[str, Any]:
    """Return the choice of a plan with what its method uses where a setting was left open."""
    found = value(plan, "choice")
    if not isinstance(found, dict):
        return {}
    with suppress(UsageError):
        method = choice_from_json(found).method.used()
        return found | {name: one for name, one in method.items() if name != "targets"}
    return found


def training_used(report: Report) -> dict[str, Any]:
    """Return the settings of a training with what holds where one was left open."""
    found = value(report.plan, "training")
    if not isinstance(found, dict):
        return {}
    return found | dict(_scheduled(report, found)) | _objective(found) | dict(_of_rows(report))


def _scheduled(report: Report, training: Plain) -> Iterator[tuple[str, Any]]:
    """Yield what the run's own schedule says, as its checkpoints keep it."""
    schedule = value(report.state, "schedule")
    for name in ("steps", "eval_every", "save_every"):
        if (count := figure(schedule, name)) is not None:
            yield name, int(count)
    steps, epoch = (figure(schedule, "steps"), figure(report.state, "position", "steps_per_epoch"))
    if steps and epoch and value(training, "steps") is not None:
        yield "epochs", f"{steps / epoch:.4g}"
    warmup, share = figure(schedule, "warmup"), figure(training, "warmup")
    if warmup is not None and share is not None:
        yield "warmup", f"{share:g} ({warmup:,.0f} step{'' if warmup == 1 else 's'})"
    if (patience := figure(schedule, "patience")) is not None:
        yield "patience", int(patience) or "0 (to the last step)"
    rate = figure(schedule, "learning_rate")
    if rate is not None:
        halved = [
            f"{now:g} from step {step:,.0f}"
            for note in report.notes("back to a checkpoint")
            if (now := figure(note, "learning_rate")) and (step := figure(note, "to")) is not None
        ]
        yield "learning_rate", ", ".join([f"{rate:g}", *halved])


def _objective(training: Plain) -> dict[str, Any]:
    with suppress(UsageError):
        objective = objective_of(from_plain(Training, training, "training"))
        known = {} if objective is None else values(objective)
        return {name: known[name] for name in OBJECTIVE_SETTINGS if name in known}
    return {}


def _of_rows(report: Report) -> Iterator[tuple[str, Any]]:
    """Yield what the rows decided."""
    for name in ("long_rows", "label_names"):
        if found := value(report.receipt, name):
            yield name, found
    if value(report.plan, "training", "validation_data") is not None:
        yield "validation", None


def _table(title: str, found: Plain, given: object) -> str:
    """Return a table of settings; who decided them is left out where it is not known."""
    known = isinstance(given, list)
    header = ("Setting", "Used", "Decided by")[: 3 if known else 2]
    rows = []
    for name, one in list(found.items())[:80]:
        row = [f"<code>{text(str(name).replace('_', '-'), 60)}</code>", _shown(one)]
        if known and isinstance(given, list):
            row.append("you" if name in given else "edgetune")
        rows.append(row)
    return table(rows, header, title, "words")


def _shown(found: object) -> str:
    if isinstance(found, list | tuple):
        return text(", ".join(map(str, found)) or "none")
    if isinstance(found, dict):
        return text(", ".join(f"{key} {one}" for key, one in found.items()))
    if found is None:
        return NOT_USED
    if isinstance(found, bool):
        return "yes" if found else "no"
    return text(f"{found:g}" if isinstance(found, float) else found)
