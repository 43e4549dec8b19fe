"""Does memory stay flat, and within the plan, on rows and prompts of ever-changing lengths?

    python tools/bench/flat_memory.py /tmp/models [--question tiny packed ...]

Each question is a process of its own that loads what a run loads, but no tokenizer of the model,
which is taken off the plan. Memory is anonymous memory; growth is that of the last reading over the one after
20 steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from models import load_libraries, write_model

from edgetune.backend import GenerateOptions, Session
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.device import read_device
from edgetune.generation import generate
from edgetune.memory.costs.base import TOKEN
from edgetune.model import LocalModel, resolve
from edgetune.planning import Plan, make_plan
from edgetune.units import format_bytes
from edgetune.workflows.opening import open_session

SETTLED = 20
"""Steps after which memory may not grow."""

THREE_LAYERS = {
    "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 1024, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What is asked of one process."""

    model: str
    work: str
    """``rows`` of one document, ``packed`` rows or ``prompts``."""
    count: int
    context: int


@dataclass(frozen=True)
class Found:
    """Bytes of the plan, at the peak, after 20 pieces of work, and after the last."""

    planned: int
    peak: int
    settled: int
    last: int


QUESTIONS = {
    "tiny": Question("tiny", "rows", 600, 256),
    "small": Question("smollm2-135m", "rows", 600, 256),
    "packed": Question("three-layers", "packed", 150, 512),
    "prompts": Question("tiny", "prompts", 300, 256),
}


def row(lengths: tuple[int, ...], width: int, vocabulary: int, seed: int) -> MicroBatch:
    """Return a row of random documents, about two thirds of it under loss."""
    draw, used = np.random.default_rng(seed), sum(lengths)
    tokens, targets = (draw.integers(0, vocabulary, (1, width)).astype(np.int32) for _ in range(2))
    tokens[:, used:] = 0
    targets[draw.random((1, width)) < 1 / 3] = IGNORED
    targets[:, used:] = IGNORED
    targets[0, 0] = 1
    return MicroBatch(tokens=tokens, targets=targets, documents=(lengths,))


def documents(draw: np.random.Generator, question: Question) -> tuple[int, ...]:
    """Return the lengths of the documents of one row."""
    if question.work != "packed":
        return (int(draw.integers(2, question.context + 1)),)
    lengths: list[int] = []
    while (room := question.context - sum(lengths)) > 2:
        lengths.append(int(draw.integers(2, min(room, 200) + 1)))
    return tuple(lengths)


def readings(session: Session, question: Question, vocabulary: int) -> Iterator[int]:
    """Do the work, yielding the bytes in use after each piece of it."""
    draw = np.random.default_rng(0)
    for number in range(question.count):
        lengths = documents(draw, question)
        if question.work == "prompts":
            options = GenerateOptions(max_tokens=4, end_tokens=frozenset())
            list(generate(session, [[1] * min(lengths[0], question.context - 4)], options))
        else:
            width = question.context if question.work == "packed" else lengths[0]
            batch = row(lengths, width, vocabulary, number)
            session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-4)
        yield session.memory().current_bytes


def plan_for(question: Question, model: LocalModel) -> Plan:
    """Return the plan, in bfloat16."""
    fixed = {
        "context": question.context, "micro_batch": 1, "accumulation": 1,
        "compute_dtype": "bfloat16",
    }  # fmt: skip
    return make_plan(read_device("cpu"), model.ref, model.shape, fixed=fixed, training={})


def answer(question: Question, folder: Path) -> Found:
    """Do the work in this process."""
    at = resolve("tiny").folder if question.model == "tiny" else folder / question.model
    assert at is not None
    model = LocalModel.open(at)
    plan = plan_for(question, model)
    load_libraries()
    session = open_session(plan, model)
    seen = list(readings(session, question, model.shape.vocabulary))
    peak = session.memory().peak_bytes
    session.close()
    planned = plan.memory.peak_bytes - TOKEN * model.shape.vocabulary
    return Found(planned, peak, seen[SETTLED], seen[-1])


def models(folder: Path) -> None:
    """Write the models that are not there yet."""
    for name, changes in (("smollm2-135m", {}), ("three-layers", THREE_LAYERS)):
        if not (folder / name / "config.json").exists():
            write_model("smollm2-135m", folder / name, changes)


def main() -> None:
    """Ask every question and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models are written and kept")
    parser.add_argument("--question", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--here", choices=list(QUESTIONS), help="answer one in this process")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(asdict(answer(QUESTIONS[given.here], given.folder))))
        return
    models(given.folder)
    for name in given.question:
        command = [sys.executable, __file__, str(given.folder), "--here", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found, asked = Found(**json.loads(done.stdout.splitlines()[-1])), QUESTIONS[name]
        print(
            f"{name} ({asked.count} {asked.work}, {asked.model}): growth "
            f"{found.last / found.settled - 1:+.2%} after {SETTLED}, peak "
            f"{format_bytes(found.peak)} of {format_bytes(found.planned)} planned",
            flush=True,
        )


if __name__ == "__main__":
    main()
