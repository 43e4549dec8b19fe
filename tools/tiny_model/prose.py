"""Plain documents about the house: descriptions, days, causes, searches, times and sums."""

from __future__ import annotations

from random import Random

from tiny_model.facts import HOUSE, PEOPLE, Fact, Person, all_facts, person_facts, room_facts
from tiny_model.words import ADJUSTED, CLOCKS, OPENED, ROOMS, SWITCHED, capital, in_words, listed

WEATHER = ("rainy", "sunny", "windy", "cloudy", "cold", "warm", "foggy", "snowy")
THINGS = ("key", "book", "ball", "cup", "hat", "coat", "map", "box", "letter", "pen", "bag", "shoe")
FEELINGS = ("happy", "tired", "hungry", "busy", "quiet", "glad")
CAUSES = (
    ("dark", "turned on the lamp", "bright"),
    ("cold", "turned on the heater", "warm"),
    ("hot", "turned on the fan", "cool"),
    ("quiet", "turned on the radio", "full of music"),
    ("too bright", "closed the curtain", "dark"),
    ("full of smoke", "opened the window", "full of fresh air"),
    ("too loud", "turned off the television", "quiet"),
    ("too warm", "turned off the heater", "cool"),
    ("wet", "turned on the pump", "dry"),
)
_FACTS = all_facts()


def prose(rng: Random) -> str:
    """One document of a random kind; the kinds that teach more are drawn more often."""
    kinds = (portrait, description, day, day, cause, search, search, times, times, sums, counting,
             inventory, log, log, knowledge)  # fmt: skip
    return rng.choice(kinds)(rng)


def portrait(rng: Random) -> str:
    """A person, by some of what is known."""
    person = rng.choice(PEOPLE)
    opening = f"{person.name} lives in the house."
    return " ".join([opening, *_told(rng, person_facts(person), rng.randint(3, 6))])


def description(rng: Random) -> str:
    """A room or two, by what is known."""
    return " ".join(
        sentence
        for room in rng.sample(HOUSE, rng.randint(1, 2))
        for sentence in _told(rng, room_facts(room), rng.randint(2, 4))
    )


def knowledge(rng: Random) -> str:
    """Unconnected facts, one after the other."""
    return " ".join(_told(rng, _FACTS, rng.randint(3, 6)))


def day(rng: Random) -> str:
    """A short story: the weather, and one person who does things at rising times."""
    person = rng.choice(PEOPLE)
    clocks = sorted(rng.sample(CLOCKS, rng.randint(2, 4)))
    lines = [f"It was a {rng.choice(WEATHER)} {rng.choice(('morning', 'day', 'evening'))}."]
    for number, clock in enumerate(clocks):
        who = person.name if number == 0 else rng.choice((person.name, person.they))
        lines.append(_deed(rng, person, who, clock.either(rng)))
    lines.append(f"In the end {person.name} was {rng.choice(FEELINGS)}.")
    return " ".join(lines)


def cause(rng: Random) -> str:
    """What was wrong in a room, what someone did about it, and how it was afterwards."""
    person, room = rng.choice(PEOPLE), rng.choice(ROOMS)
    before, act, after = rng.choice(CAUSES)
    told = rng.choice((
        f"The {room} was {before}, so {person.name} {act}.",
        f"{person.name} {act} in the {room} because it was {before}.",
        f"When {person.name} came into the {room}, it was {before}. So {person.they} {act}.",
    ))  # fmt: skip
    return f"{told} Then the {room} was {after}."


def search(rng: Random) -> str:
    """Things are put into rooms, perhaps moved, and found where they were put last."""
    story, things = hiding(rng)
    thing = rng.choice(list(things))
    return f"{story} Now the {thing} is in the {things[thing]}."


def hiding(rng: Random) -> tuple[str, dict[str, str]]:
    """A story about things that people put into rooms, and where each thing is at its end."""
    things: dict[str, str] = {}
    lines = []
    for thing in rng.sample(THINGS, rng.randint(1, 3)):
        things[thing] = rng.choice(ROOMS)
        verb = rng.choice(("put", "left", "found"))
        lines.append(f"{rng.choice(PEOPLE).name} {verb} the {thing} in the {things[thing]}.")
    if rng.random() < 0.4:
        thing = rng.choice(list(things))
        things[thing] = rng.choice([room for room in ROOMS if room != things[thing]])
        lines.append(f"Then {rng.choice(PEOPLE).name} took the {thing} to the {things[thing]}.")
    return " ".join(lines), things


def times(rng: Random) -> str:
    """Times in words and in digits, in both directions."""
    lines = []
    for clock in rng.sample(CLOCKS, rng.randint(2, 5)):
        pair = (clock.words, clock.digits)
        one, other = pair if rng.random() < 0.5 else pair[::-1]
        lines.append(f"{capital(one)} is {other}.")
    return " ".join(lines)


def sums(rng: Random) -> str:
    """Sums and numbers, in words and in digits."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        one, other = rng.randint(0, 12), rng.randint(0, 12)
        number = rng.randint(0, 99)
        lines.append(rng.choice((
            f"{one} + {other} = {one + other}.",
            f"{capital(in_words(one))} and {in_words(other)} make {in_words(one + other)}.",
            f"{capital(in_words(number))} is {number}.",
            f"The number {number} is {in_words(number)}.",
        )))  # fmt: skip
    return " ".join(lines)


def counting(rng: Random) -> str:
    """Someone counts up or down."""
    start, step = rng.randint(0, 40), rng.choice((1, 1, 2, 5, 10))
    numbers = [start + step * index for index in range(rng.randint(4, 6))]
    if rng.random() < 0.3:
        numbers.reverse()
    said = [in_words(number) if rng.random() < 0.5 else str(number) for number in numbers]
    return f"{rng.choice(PEOPLE).name} counts: {', '.join(said)}."


def inventory(rng: Random) -> str:
    """A list, a room on each line."""
    rooms = rng.sample(HOUSE, rng.randint(2, 4))
    return "\n".join(f"{room.name}: {', '.join(room.devices)}" for room in rooms)


def log(rng: Random) -> str:
    """What happened in the house, told as short lines with the time in digits."""
    lines = []
    for clock in rng.sample(CLOCKS, rng.randint(2, 4)):
        room, (dialled, dial) = rng.choice(ROOMS), rng.choice(list(ADJUSTED.items()))
        happened = rng.choice((
            f"{rng.choice(SWITCHED)} in the {room} was turned {rng.choice(('on', 'off'))}",
            f"{rng.choice(OPENED)} of the {room} was {rng.choice(('open', 'closed'))}",
            f"{room} {dialled} was set to {rng.choice(dial.values)} {dial.unit}",
        ))  # fmt: skip
        lines.append(f"At {clock.digits} the {happened}.")
    return " ".join(lines)


def _told(rng: Random, facts: list[Fact], count: int) -> list[str]:
    return [rng.choice(fact.sentences) for fact in rng.sample(facts, min(count, len(facts)))]


def _deed(rng: Random, person: Person, who: str, clock: str) -> str:
    """One sentence of a story: what `person`, here called `who`, did at `clock`."""
    room = rng.choice(ROOMS)
    others = [other.name for other in PEOPLE if other != person]
    act = rng.choice((
        f"turned {rng.choice(('on', 'off'))} the {rng.choice(SWITCHED)} in the {room}",
        f"{rng.choice(('opened', 'closed'))} the {rng.choice(OPENED)} of the {room}",
        f"went to the {room}",
        f"looked for the {rng.choice(THINGS)} in the {room}",
        f"had {person.food} and {person.drink}",
        f"talked with {listed(rng.sample(others, 2))}",
    ))  # fmt: skip
    return rng.choice((f"At {clock} {who} {act}.", f"{capital(who)} {act} at {clock}."))
