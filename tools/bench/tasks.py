"""Tasks for a real model, each with answers that a program can check; written for this purpose.

``commands`` is the example of the project: requests become strict command lines. ``labels`` sorts
messages to a shop by what they are about. ``style`` answers questions in a fixed manner: one
sentence in lower case that begins with "well, " and ends with " and that is that.".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAINING_ROWS, HELD_OUT_ROWS = 300, 40

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """Rows to train on, rows held out, and whether an answer is right."""

    rows: Callable[[], tuple[list[Row], list[Row]]]
    right: Callable[[str, str], bool]
    """Of an answer and the expected one; where rows have labels, the label is compared."""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both files into a folder."""
        paths = (folder / "rows.jsonl", folder / "held-out.jsonl")
        for path, rows in zip(paths, self.rows(), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return paths


def _commands() -> tuple[list[Row], list[Row]]:
    def read(name: str, count: int) -> list[Row]:
        lines = (ROOT / "examples" / name).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines[:count]]

    rows = read("home_commands.jsonl", TRAINING_ROWS)
    return rows, read("home_commands_heldout.jsonl", HELD_OUT_ROWS)


GOODS = (
    "kettle", "lamp", "jacket", "pair of boots", "radio", "rucksack", "tent", "blender", "desk",
    "bicycle pump", "set of knives", "garden hose", "blanket", "camera", "toaster", "ladder",
)  # fmt: skip
ABOUT = {
    "delivery": (
        "My {} was due on {} and has not come.", "Where is the {} that I ordered on {}?",
        "The driver left my {} at the wrong house on {}.", "Can the {} be brought on {} instead?",
        "The tracking page has said since {} that my {} is on its way.",
    ),
    "payment": (
        "I was charged twice for the {} on {}.", "My card was refused on {} when I bought a {}.",
        "The invoice for the {} from {} shows the wrong sum.",
        "May I pay for the {} in two parts, the first on {}?",
        "The discount was not taken off the price of the {} on {}.",
    ),
    "fault": (
        "The {} stopped working on {}.", "Since {} the {} makes a strange noise.",
        "A part of the {} broke off on {}.", "The {} that I unpacked on {} is scratched.",
        "My {} has not switched on since {}.",
    ),
    "return": (
        "I would like to send the {} back that came on {}.",
        "The {} is too large; can I swap it by {}?", "How do I return a {} that I bought on {}?",
        "Please collect the {} on {}, I have changed my mind.",
        "I want my money back for the {} that I handed in on {}.",
    ),
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OPENINGS = ("", "Hello. ", "Good morning, ", "Hi there! ", "To whom it may concern: ")
ENDS = ("", " Thank you.", " Please answer soon.", " This is the second time.", " Regards, Kim")


def _labels() -> tuple[list[Row], list[Row]]:
    return _apart(_message)


def _message(rng: Random) -> Row:
    label = rng.choice(list(ABOUT))
    text, goods, day = rng.choice(ABOUT[label]), rng.choice(GOODS), rng.choice(DAYS)
    words = (
        (day, goods) if text.startswith(("Since {}", "The tracking", "My card")) else (goods, day)
    )
    said = text.format(*words)
    return {"text": rng.choice(OPENINGS) + said + rng.choice(ENDS), "label": label}


KNOWN = {
    "bread": ("flour, water, salt and yeast", "rise for an hour before it is baked"),
    "a tent": ("poles, pegs and cloth", "be dry before it is packed away"),
    "glue": ("water and starch", "set for a night"),
    "a candle": ("wax and a wick", "stand away from curtains"),
    "soap": ("fat and lye", "rest for some weeks"),
    "paper": ("fibres of wood", "be pressed and dried"),
    "cheese": ("milk, salt and rennet", "ripen in a cool cellar"),
    "a brick": ("clay and sand", "be fired in a kiln"),
    "a kite": ("sticks, string and paper", "be light and fly against the wind"),
    "ink": ("water and pigment", "be kept in a closed bottle"),
    "a rope": ("many twisted yarns", "be coiled when it is not in use"),
    "jam": ("fruit and sugar", "be boiled and filled in clean jars"),
    "a drum": ("a frame and a skin", "be tuned before it is played"),
    "mortar": ("sand, lime and water", "be used before it dries"),
    "tea": ("leaves and hot water", "draw for some minutes"),
    "a basket": ("willow twigs", "be woven while they are wet"),
}  # fmt: skip
ASKED = {
    "What is {} made of?": "well, {} is made of {} and that is that.",
    "Tell me what {} consists of.": "well, {} is made of {} and that is that.",
    "What must happen to {}?": "well, {} has to {} and that is that.",
    "What should one know about {}?": "well, {} has to {} and that is that.",
}
MANNERS = ("{}", "Please, {}", "A question: {}", "Quickly: {}", "My daughter asks: {}", "So, {}")


def _style() -> tuple[list[Row], list[Row]]:
    return _apart(_question)


def _question(rng: Random) -> Row:
    thing, (parts, duty) = rng.choice(list(KNOWN.items()))
    asked, answer = rng.choice(list(ASKED.items()))
    request = rng.choice(MANNERS).format(asked.format(thing))
    said = answer.format(thing, parts if "made" in answer else duty)
    return {"prompt": request, "completion": said}


def _in_style(answer: str, _: str) -> bool:
    said = answer.strip()
    return (
        said.startswith("well, ")
        and said.endswith(" and that is that.")
        and said == said.lower()
        and said.count(".") == 1
    )


def _apart(draw: Callable[[Random], Row]) -> tuple[list[Row], list[Row]]:
    """Return rows that differ from each other, those held out as well."""

    def rows() -> Iterator[Row]:
        rng, seen = Random(0), set[str]()
        while len(seen) < TRAINING_ROWS + HELD_OUT_ROWS:
            row = draw(rng)
            text = json.dumps(row)
            if text not in seen:
                seen.add(text)
                yield row

    found = list(rows())
    return found[:TRAINING_ROWS], found[TRAINING_ROWS:]


TASKS = {
    "commands": Task(_commands, str.__eq__),
    "labels": Task(_labels, str.__eq__),
    "style": Task(_style, _in_style),
}
