"""The vocabulary of the house: rooms, devices, numbers and times, each as words and as digits."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

ROOMS = (
    "kitchen", "bedroom", "bathroom", "hall", "study",
    "attic", "garage", "garden", "lounge", "cellar",
)  # fmt: skip
SWITCHED = ("lamp", "radio", "fan", "kettle", "oven", "television", "heater", "pump")
OPENED = ("door", "window", "curtain", "gate")

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_PAST = {5: "five", 10: "ten", 15: "quarter", 20: "twenty", 30: "half"}


def in_words(number: int) -> str:
    """Spell a number from 0 to 99: `in_words(21) == "twenty one"`."""
    if number < len(_SMALL):
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return f"{_TENS[tens]} {_SMALL[ones]}" if ones else _TENS[tens]


@dataclass(frozen=True, slots=True)
class Dial:
    """What a device can be set to, and in what unit."""

    unit: str
    values: range


ADJUSTED = {
    "heater": Dial("degrees", range(10, 31)),
    "lamp": Dial("percent", range(5, 100)),
    "radio": Dial("percent", range(5, 100)),
}


@dataclass(frozen=True, slots=True, order=True)
class Clock:
    """A time on a twelve-hour clock; `minute` is 0 or 30 or within twenty of the hour."""

    hour: int
    minute: int

    @property
    def digits(self) -> str:
        """The time as a display shows it: `7:45`."""
        return f"{self.hour}:{self.minute:02d}"

    @property
    def words(self) -> str:
        """The time as people say it: `quarter to eight`."""
        if self.minute == 0:
            return in_words(self.hour)
        if self.minute in _PAST:
            return f"{_PAST[self.minute]} past {in_words(self.hour)}"
        return f"{_PAST[60 - self.minute]} to {in_words(self.hour % 12 + 1)}"

    def either(self, rng: Random) -> str:
        """Digits or words, whichever the speaker likes."""
        return rng.choice((self.digits, self.words))


CLOCKS = tuple(
    Clock(hour, minute)
    for hour in range(1, 13)
    for minute in (0, 5, 10, 15, 20, 30, 40, 45, 50, 55)
)
QUARTERS = tuple(clock for clock in CLOCKS if clock.minute % 15 == 0)


def listed(items: list[str]) -> str:
    """Join as a sentence does: `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def capital(sentence: str) -> str:
    """Raise the first letter and leave the rest (`str.capitalize` would lower names)."""
    return sentence[:1].upper() + sentence[1:]
