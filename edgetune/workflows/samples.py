"""Held-out rows answered by base and tuned model, for ``samples.json`` and the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from edgetune.backend import GenerateOptions, Session
from edgetune.data import Tokenizer
from edgetune.errors import EdgetuneError
from edgetune.metrics.texts import token_f1
from edgetune.verdict import Answered
from edgetune.workflows.after import ANSWER, BEGINNING
from edgetune.workflows.inference import streamed
from edgetune.workflows.job import Job
from edgetune.workflows.opened import Opened
from edgetune.workflows.scoring import question


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers the first held-out rows in the session that trained, for ``seconds`` at most."""

    job: Job
    session: Session
    tokenizer: Tokenizer
    stop: Callable[[], bool]
    seconds: float

    def answer(self, count: int) -> dict[str, Any]:
        """Return how the base and the tuned model answer the first ``count`` held-out rows.

        Of answers that are desirable or not, the first desirable ones.

        ``special`` are the texts among them that stand for tokens without a text of their own.
        """
        begun, rows = time.monotonic(), self.job.dataset.validation
        until, said = begun + self.seconds, ""
        found: list[dict[str, Any]] = []
        tuned = self._opened()
        good = range(len(rows)) if rows.kind is None else np.flatnonzero(rows.firsts).tolist()
        for index in good[:count]:
            if found and (time.monotonic() > until or self.stop()):
                said = f"{count - len(found)} more rows were left out, because time was up."
                break
            try:
                found.append({"place": rows.place(index), **self._sample(tuned, index, until)})
            except (EdgetuneError, MemoryError) as error:
                said = f"No more rows were answered: {error}"
                break
        return {
            "samples": found,
            "special": _occurring(self.tokenizer.special_texts, found),
            "note": said,
            "seconds": round(time.monotonic() - begun, 3),
        }

    def _sample(self, tuned: Opened, index: int, until: float) -> dict[str, Any]:
        """Return one row: the prompt, what is expected, and both answers, as far as time allows."""
        prompt, wanted, one_right = self._asked(index)
        most = tuned.longest_answer(len(prompt), ANSWER)
        options = GenerateOptions(max_tokens=max(1, most), end_tokens=self.tokenizer.end_tokens)
        answers, cut = ["", ""], False
        for number, piece in streamed([(tuned.base(), prompt), (tuned, prompt)], options):
            answers[number] += piece
            if time.monotonic() > until:
                cut = True
                break
        expected = self.tokenizer.decode(wanted)
        scored = one_right and not cut and len(wanted) <= most
        right = {name: answer.strip() == expected.strip()
                 for name, answer in zip(("base", "tuned"), answers, strict=True)}  # fmt: skip
        return {
            "prompt": self.tokenizer.decode(prompt),
            "expected": expected,
            "base": answers[0],
            "tuned": answers[1],
            "cut": cut,
            "right": right if scored else None,
        }

    def _asked(self, index: int) -> tuple[list[int], list[int], bool]:
        """Return what a row's answer comes after, the answer, and whether it is the one right one.

        Of a pair it is the better one; plain text just goes on somehow.
        """
        rows = self.job.dataset.validation
        length = int(rows.firsts[index]) or int(rows.lengths[index])
        tokens, mask = rows[index]
        tokens, mask = tokens[:length], mask[:length]
        if not mask.any():
            return tokens.tolist(), [], False
        prompt, wanted = question(tokens, mask, self.tokenizer.end_tokens)
        if len(prompt) > 1:
            return prompt, wanted, self.job.plan.objective is None
        start = max(1, min(BEGINNING, length // 2))
        return tokens[:start].tolist(), tokens[start : start + ANSWER].tolist(), False

    def _opened(self) -> Opened:
        return Opened(
            name="tuned",
            plan=self.job.plan,
            model=self.job.model,
            tokenizer=self.tokenizer,
            session=self.session,
            method=self.job.plan.choice.method,
        )


def answered(samples: Sequence[Mapping[str, Any]]) -> Answered | None:
    """Return how the samples with one right answer were answered, None if there are none."""
    scored = [one for one in samples if one["right"] is not None]
    if not scored:
        return None
    base, tuned = (
        [token_f1(one[name], one["expected"]) for one in scored] for name in ("base", "tuned")
    )
    return Answered(
        count=len(scored),
        right=sum(one["right"]["tuned"] for one in scored),
        base_right=sum(one["right"]["base"] for one in scored),
        token_f1=fmean(tuned),
        base_token_f1=fmean(base),
    )


def _occurring(texts: Iterable[str], samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those of some texts that a sample has."""
    names = ("prompt", "expected", "base", "tuned")
    whole = "\0".join(one[name] for one in samples for name in names)
    return sorted(text for text in texts if text in whole)
