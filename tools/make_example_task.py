"""Make the example task: plain-English requests about the house, answered by strict command lines.

    python tools/make_example_task.py

A command is `set DEVICE ROOM STATE WHEN`: STATE is `on`, `off`, `open`, `closed` or a number; WHEN
is `now`, a time as `at 7:30`, or a delay in minutes as `in 10`. The built-in model knows the words
but answers in sentences, so what the fine-tuning adds can be counted as exact matches.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tiny_model.words import ADJUSTED, OPENED, QUARTERS, ROOMS, SWITCHED, capital, in_words

FOLDER = Path(__file__).parents[1] / "examples"
TRAINING_ROWS, HELD_OUT_ROWS = 400, 100
SEED = 0
ROUND = 5  # what people set a dial to is a multiple of this
DELAYS = (5, 10, 15, 20, 25, 30, 40, 45, 50, 60)  # minutes

SWITCHING = {
    "on": ("turn on {}", "switch on {}", "turn {} on", "switch {} on", "start {}"),
    "off": ("turn off {}", "switch off {}", "turn {} off", "switch {} off", "stop {}"),
}
OPENING = {
    "open": ("open {}", "have {} open"),
    "closed": ("close {}", "shut {}", "have {} closed"),
}
ADJUSTING = ("set {} to {} {}", "put {} at {} {}", "turn {} to {} {}")
PLACES = ("the {device} in the {room}", "the {room} {device}", "the {device} of the {room}")
FRAMES = (
    "{}.", "{}, please.", "Please {}.", "please {}", "Can you {}?", "Could you {}?",
    "Could you please {}?", "Would you {}, please?", "I want you to {}.", "{} for me.",
)  # fmt: skip


def main() -> None:
    """Write both files; they have no request in common."""
    rng = Random(SEED)
    pairs: dict[str, str] = {}
    while len(pairs) < TRAINING_ROWS + HELD_OUT_ROWS:
        request, command = example(rng)
        pairs.setdefault(request, command)
    rows = [json.dumps(_row(request, command)) for request, command in pairs.items()]
    _write(FOLDER / "home_commands.jsonl", rows[:TRAINING_ROWS])
    _write(FOLDER / "home_commands_heldout.jsonl", rows[TRAINING_ROWS:])


def example(rng: Random) -> tuple[str, str]:
    """A request and its command."""
    room = rng.choice(ROOMS)
    wish, device, state = rng.choice((_switching, _opening, _adjusting))(rng, room)
    # A dial is turned at once: two numbers in one request are too many for so small a model.
    said_when, when = _now(rng) if state.isdigit() else rng.choice((_now, _at, _after))(rng)
    request = rng.choice(FRAMES).format(wish + said_when)
    return capital(request), f"set {device} {room} {state} {when}"


def _switching(rng: Random, room: str) -> tuple[str, str, str]:
    """The wish in words, the device, the state; so do the next two."""
    device, state = rng.choice(SWITCHED), rng.choice(list(SWITCHING))
    return rng.choice(SWITCHING[state]).format(_place(rng, device, room)), device, state


def _opening(rng: Random, room: str) -> tuple[str, str, str]:
    device, state = rng.choice(OPENED), rng.choice(list(OPENING))
    return rng.choice(OPENING[state]).format(_place(rng, device, room)), device, state


def _adjusting(rng: Random, room: str) -> tuple[str, str, str]:
    device, dial = rng.choice(list(ADJUSTED.items()))
    value = rng.choice([value for value in dial.values if value % ROUND == 0])
    said = rng.choice((str(value), in_words(value)))
    wish = rng.choice(ADJUSTING).format(_place(rng, device, room), said, dial.unit)
    return wish, device, str(value)


def _place(rng: Random, device: str, room: str) -> str:
    return rng.choice(PLACES).format(device=device, room=room)


def _now(rng: Random) -> tuple[str, str]:
    """The time as asked, with its leading space, and as commanded; so do the next two."""
    return rng.choice(("", " now", " right now")), "now"


def _at(rng: Random) -> tuple[str, str]:
    clock = rng.choice(QUARTERS)
    return f" at {clock.either(rng)}", f"at {clock.digits}"


def _after(rng: Random) -> tuple[str, str]:
    delay = rng.choice(DELAYS)
    return f" in {rng.choice((str(delay), in_words(delay)))} minutes", f"in {delay}"


def _row(request: str, command: str) -> dict[str, list[dict[str, str]]]:
    return {
        "messages": [
            {"role": "user", "content": request},
            {"role": "assistant", "content": command},
        ]
    }


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
