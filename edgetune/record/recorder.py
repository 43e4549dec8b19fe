"""Writes what happens in a run into its folder, as it happens."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgetune import __version__
from edgetune.backend import Session
from edgetune.files import sha256_json
from edgetune.plan import Plan
from edgetune.record.checkpoint import mark_best, prune, save_checkpoint
from edgetune.record.folder import RunFolder, append_line
from edgetune.train import Evaluated, Event, Recovered, SaveDue, Stepped

PACKAGES = ("numpy", "safetensors", "tokenizers", "transformers", "torch", "bitsandbytes", "mlx")


class Recorder:
    """Consumes a run's events."""

    def __init__(self, folder: RunFolder, session: Session, plan: Plan, data: str) -> None:
        """Record into ``folder``; ``data`` is the fingerprint of the rows."""
        self.folder = folder
        self.session = session
        self.plan = plan
        self.facts = run_facts(plan, data)

    def handle(self, event: Event) -> None:
        """Write an event down; a due checkpoint is saved before this returns."""
        match event:
            case Stepped():
                append_line(self.folder.metrics, {"event": "step", **asdict(event)})
            case Evaluated():
                append_line(self.folder.metrics, {"event": "eval", **asdict(event)})
            case Recovered():
                facts = {"step": event.step, "rows": event.rows}
                self.folder.note("smaller micro-batches", event.because, **facts)
            case SaveDue():
                self._save(event)

    def _save(self, event: SaveDue) -> None:
        folder = self.folder.checkpoints
        path = save_checkpoint(folder, self.session, self.plan, event.state, self.facts)
        if event.best:
            mark_best(folder, path)
            self.folder.note("best checkpoint", "lowest validation loss", step=event.state.step)
        prune(folder, self.plan.training.keep)


def run_facts(plan: Plan, data: str) -> dict[str, Any]:
    """Return what a resumed run must share with the one that wrote a checkpoint."""
    return {
        "plan": sha256_json(
            {"choice": plan.choice.to_json(plan.shape), "training": _training(plan)}
        ),
        "data": data,
        "versions": versions(),
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what has changed between two sets of :func:`run_facts`, in words."""
    changed = [name for name in ("plan", "data") if saved.get(name) != now[name]]
    names = sorted(now["versions"])
    old = saved.get("versions", {})
    return changed + [
        f"{name} {old.get(name)} -> {now['versions'][name]}"
        for name in names
        if old.get(name) != now["versions"][name]
    ]


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a bit of the result."""
    found = {"edgetune": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _training(plan: Plan) -> dict[str, Any]:
    """Return the settings that decide the result; how often to save does not."""
    settings = asdict(plan.training)
    return {k: v for k, v in settings.items() if k not in {"save_every", "keep"}}
