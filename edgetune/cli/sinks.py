"""``--log``: a run's events for the dashboards that a user has, offline unless they say otherwise."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from edgetune.cli.show import say
from edgetune.errors import UsageError
from edgetune.events import Evaluated, Event, Stepped
from edgetune.workflows.training import Run

Values = Mapping[str, float]


class Sink(Protocol):
    """Something that keeps numbers by step."""

    def log(self, step: int, values: Values) -> None:
        """Keep the numbers of a step."""

    def close(self) -> None:
        """Write what is left."""


def check_sinks(names: Sequence[str]) -> None:
    """Refuse dashboards that are not known or not installed, before anything is read.

    Raises:
        UsageError: naming the line that installs them.
    """
    unknown = [name for name in names if name not in _SINKS]
    if unknown:
        known = ", ".join(_SINKS)
        raise UsageError(f"There is no --log {', '.join(unknown)}. There are: {known}.")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--log {', '.join(missing)} needs a package that is not installed. Type: pip install "
            f"{' '.join(missing)}"
        )


@contextmanager
def sinks(names: Sequence[str], run: Run) -> Iterator[Callable[[Event], None]]:
    """Yield what passes a run's events on to dashboards, and close them at the end.

    A dashboard that fails is told of once and left out: it never ends a run.
    """
    made = {name: _guarded(name, partial(_SINKS[name], run)) for name in names}
    opened: dict[str, Sink] = {name: sink for name, sink in made.items() if sink is not None}

    def show(event: Event) -> None:
        values = values_of(event)
        for name, sink in list(opened.items()):
            if values is not None and not _guarded(name, partial(_logged, sink, event, values)):
                del opened[name]

    try:
        yield show
    finally:
        for name, sink in opened.items():
            _guarded(name, sink.close)


def values_of(event: Event) -> dict[str, float] | None:
    """Return the numbers of an event; None if it has none to draw."""
    match event:
        case Stepped():
            found = {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/grad_norm": event.grad_norm,
                "train/epoch": float(event.epoch),
                "train/tokens_per_second": event.tokens / max(event.seconds, 1e-9),
                "memory/peak_bytes": float(event.peak_bytes),
            }
            return found | {f"train/{name}": value for name, value in event.metrics.items()}
        case Evaluated():
            found = {"validation/loss": event.loss, "validation/accuracy": event.accuracy}
            if event.perplexity is not None:
                found["validation/perplexity"] = event.perplexity
            return found | {f"validation/{name}": value for name, value in event.metrics.items()}
    return None


def _logged(sink: Sink, event: Any, values: Values) -> bool:
    sink.log(event.step, values)
    return True


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    """Return what a call into a dashboard's package returns; None, after saying so, if it fails."""
    try:
        with redirect_stdout(sys.stderr):  # results alone go there
            return call()
    except Exception as error:  # noqa: BLE001  # another's package: whatever it raises ends no run
        say(f"--log {name} stopped: {type(error).__name__}: {error}")
        return None


class _TensorBoard:
    """Event files in the run folder, written without a framework."""

    def __init__(self, run: Run) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        folder = run.folder.path / "tensorboard"
        self._writer = EventFileWriter(str(folder))
        say(f"Look at it with: tensorboard --logdir {folder}")

    def log(self, step: int, values: Values) -> None:
        summary = self._summaries.Summary(
            value=[
                self._summaries.Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
            ]
        )
        event = self._events.Event(wall_time=time.time(), step=step, summary=summary)
        self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases: offline, in the run folder, unless WANDB_MODE says otherwise."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode = os.environ.get("WANDB_MODE") or "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "edgetune",
            name=run.folder.path.name,
            dir=str(run.folder.path),
            config=_settings(run),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        if mode == "offline":
            say(f"Send it yourself with: wandb sync {run.folder.path}/wandb/offline-run-*")

    def log(self, step: int, values: Values) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, which keeps everything on this machine."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        import trackio

        self._run = trackio.init(
            project="edgetune",
            name=run.folder.path.name,
            config=_settings(run),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        say("Look at it with: trackio show --project edgetune")

    def log(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _settings(run: Run) -> dict[str, Any]:
    """Return what a dashboard shows as the settings of a run: nothing of the rows."""
    plain = run.job.plan.to_json()
    return {"model": Path(plain["model"]["ref"]).name, **plain["choice"], **plain["training"]}


_SINKS: Final[Mapping[str, Callable[[Run], Sink]]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}
