"""The neutral text: what a model forgets is measured on it, before and after.

``text.txt`` is plain prose about everyday things (bread, trams, tides, letters): twelve paragraphs that
were written for this purpose. Every measure of forgetting in edgetune is :func:`drift` on this one
text, which makes runs comparable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp
from typing import Final

import numpy as np

from edgetune.backend import DEFAULT_ADAPTER, EvalResult, Session
from edgetune.data import Tokenizer
from edgetune.data.batch import IGNORED, MicroBatch

WINDOW: Final = 256
"""Tokens of the text that are read at once, fewer where the context is shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The mean loss on ``tokens`` tokens of the neutral text, of the base and with an adapter.

    ``whole`` is false where time was up before the end of the text.
    """

    base_loss: float
    loss: float
    tokens: int
    whole: bool

    @property
    def share(self) -> float:
        """How much the perplexity rose, as a share of the base's; negative: it fell."""
        return exp(min(self.loss - self.base_loss, 700.0)) - 1


def neutral_text() -> str:
    """Return the neutral text."""
    return files(__package__).joinpath("text.txt").read_text("utf-8")


def neutral_batches(tokenizer: Tokenizer, context: int, rows: int) -> tuple[MicroBatch, ...]:
    """Return the text as micro-batches of at most ``rows`` rows, each no longer than ``context``.

    Rows are consecutive windows, each with the token that begins a text where there is one; of
    each all tokens but the first are predicted. The end that fills no row is left out.
    """
    first = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    tokens = tokenizer.encode(neutral_text())
    step = max(1, min(WINDOW, context) - len(first))
    starts = range(0, max(1, len(tokens) - step + 1), step)
    windows = [[*first, *tokens[start : start + step]] for start in starts]
    return tuple(_batch(windows[i : i + rows]) for i in range(0, len(windows), rows))


def drift(
    session: Session,
    batches: Sequence[MicroBatch],
    *,
    adapter: str = DEFAULT_ADAPTER,
    seconds: float = float("inf"),
) -> Drift:
    """Return the loss on the neutral text with and without an adapter.

    After ``seconds`` no further micro-batch is begun; the first one is read in any case.

    Raises:
        DeviceOutOfMemoryError: if a micro-batch does not fit.
    """
    until, base, tuned = time.monotonic() + seconds, EvalResult(), EvalResult()
    for batch in _in_time(batches, until):
        base += session.evaluate((batch,), adapter=None)
        tuned += session.evaluate((batch,), adapter=adapter)
    return Drift(
        base_loss=base.loss_sum / base.loss_tokens,
        loss=tuned.loss_sum / tuned.loss_tokens,
        tokens=base.loss_tokens,
        whole=base.loss_tokens == sum(batch.loss_tokens for batch in batches),
    )


def _in_time(batches: Sequence[MicroBatch], until: float) -> Iterator[MicroBatch]:
    for number, batch in enumerate(batches):
        if number and time.monotonic() > until:
            return
        yield batch


def _batch(windows: Sequence[Sequence[int]]) -> MicroBatch:
    tokens = np.array(windows, np.int32)
    ends = np.full((len(windows), 1), IGNORED, np.int32)
    return MicroBatch(
        tokens=tokens,
        targets=np.concatenate([tokens[:, 1:], ends], axis=1),
        documents=((tokens.shape[1],),) * len(windows),
    )
