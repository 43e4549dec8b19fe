"""What is always true in the house: people, rooms, the week, and how one asks about them."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_model.words import Clock, capital, in_words, listed


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who lives in the house."""

    name: str
    they: str  # "he" or "she"
    age: int
    job: str
    colour: str
    food: str
    drink: str
    hobby: str
    room: str
    wakes: Clock

    @property
    def their(self) -> str:
        """The possessive of `they`."""
        return "his" if self.they == "he" else "her"


@dataclass(frozen=True, slots=True)
class Room:
    """A room with what never changes about it."""

    name: str
    floor: str
    colour: str
    devices: tuple[str, ...]
    use: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One truth: ways to ask, ways to say, and the word that a right answer must contain."""

    questions: tuple[str, ...]
    sentences: tuple[str, ...]
    key: str


PEOPLE = (
    Person("Anna", "she", 38, "teacher", "green", "soup", "tea", "painting", "study", Clock(6, 30)),
    Person("Ben", "he", 41, "baker", "blue", "bread", "coffee", "fishing", "bedroom", Clock(5, 15)),
    Person("Clara", "she", 12, "pupil", "red", "pasta", "juice", "chess", "attic", Clock(7, 0)),
    Person("David", "he", 9, "pupil", "yellow", "rice", "milk", "football", "attic", Clock(7, 15)),
    Person("Rose", "she", 70, "gardener", "purple", "cake", "water", "reading", "lounge",
           Clock(8, 45)),
    Person("Tom", "he", 25, "driver", "orange", "fish", "lemonade", "singing", "cellar",
           Clock(9, 30)),
)  # fmt: skip

HOUSE = (
    Room("kitchen", "ground", "white", ("lamp", "oven", "kettle", "radio", "window"), "cook"),
    Room("bedroom", "top", "blue", ("lamp", "heater", "curtain", "window"), "sleep"),
    Room("bathroom", "top", "grey", ("lamp", "fan", "heater", "door"), "wash"),
    Room("hall", "ground", "brown", ("lamp", "door", "heater"), "put on our shoes"),
    Room("study", "top", "green", ("lamp", "radio", "heater", "window", "door"), "work"),
    Room("attic", "top", "red", ("lamp", "fan", "curtain", "door"), "play"),
    Room("garage", "ground", "black", ("lamp", "gate", "door", "pump"), "keep the car"),
    Room("garden", "ground", "green", ("lamp", "gate", "pump"), "grow flowers"),
    Room("lounge", "ground", "yellow", ("television", "lamp", "radio", "curtain"), "rest"),
    Room("cellar", "lowest", "grey", ("lamp", "fan", "pump", "door"), "keep the apples"),
)

WEEK = {
    "Monday": "go swimming",
    "Tuesday": "clean the house",
    "Wednesday": "visit the library",
    "Thursday": "bake bread",
    "Friday": "play games",
    "Saturday": "go to the market",
    "Sunday": "walk in the forest",
}

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("open", "closed"), ("dark", "bright"), ("wet", "dry"),
    ("fast", "slow"), ("old", "young"), ("loud", "quiet"), ("early", "late"), ("full", "empty"),
    ("happy", "sad"), ("clean", "dirty"), ("near", "far"), ("up", "down"),
)  # fmt: skip

PURPOSES = {
    "lamp": "gives light", "radio": "plays music", "fan": "moves the air", "kettle": "boils water",
    "oven": "bakes bread", "television": "shows films", "heater": "makes a room warm",
    "pump": "moves water", "door": "leads into a room", "window": "lets in fresh air",
    "curtain": "keeps out the sun", "gate": "closes the garden",
}  # fmt: skip


def person_facts(person: Person) -> list[Fact]:
    """All that is known about one person."""
    name, they, their = person.name, person.they, person.their
    age = in_words(person.age)
    return [
        Fact((f"How old is {name}?", f"What is the age of {name}?"),
             (f"{name} is {age} years old.", f"{capital(they)} is {age} years old."), age),
        Fact((f"What does {name} do?", f"What is the job of {name}?"),
             (f"{name} is a {person.job}.", f"{capital(they)} works as a {person.job}."),
             person.job),
        Fact((f"Which colour does {name} like best?", f"What is the favourite colour of {name}?"),
             (f"{name} likes {person.colour} best.",
              f"{capital(their)} favourite colour is {person.colour}."), person.colour),
        Fact((f"What does {name} like to eat?", f"What is the favourite food of {name}?"),
             (f"{name} likes to eat {person.food}.",
              f"{capital(their)} favourite food is {person.food}."), person.food),
        Fact((f"What does {name} drink?", f"What does {name} like to drink?"),
             (f"{name} likes to drink {person.drink}.", f"{capital(they)} drinks {person.drink}."),
             person.drink),
        Fact((f"What is the hobby of {name}?", f"What does {name} do for fun?"),
             (f"The hobby of {name} is {person.hobby}.",
              f"For fun {they} likes {person.hobby}."), person.hobby),
        Fact((f"Where does {name} sleep?", f"Which room belongs to {name}?"),
             (f"{name} sleeps in the {person.room}.",
              f"{capital(their)} room is the {person.room}."),
             person.room),
        Fact((f"When does {name} wake up?", f"At what time does {name} get up?"),
             (f"{name} wakes up at {person.wakes.digits}.",
              f"{capital(they)} gets up at {person.wakes.digits}."), person.wakes.digits),
    ]  # fmt: skip


def room_facts(room: Room) -> list[Fact]:
    """All that is known about one room."""
    name = room.name
    devices = listed([f"a {device}" if device != "oven" else "an oven" for device in room.devices])
    return [
        Fact((f"What is in the {name}?", f"What can I find in the {name}?"),
             (f"There is {devices} in the {name}.", f"The {name} has {devices}."), devices),
        Fact((f"What colour is the {name}?", f"Which colour does the {name} have?"),
             (f"The {name} is {room.colour}.", f"The walls of the {name} are {room.colour}."),
             room.colour),
        Fact((f"Where is the {name}?", f"On which floor is the {name}?"),
             (f"The {name} is on the {room.floor} floor.",
              f"You will find the {name} on the {room.floor} floor."), room.floor),
        Fact((f"What is the {name} for?", f"What do we do in the {name}?"),
             (f"The {name} is where we {room.use}.", f"In the {name} we {room.use}."), room.use),
    ]  # fmt: skip


def general_facts() -> list[Fact]:
    """Days, opposites, and what each device is for."""
    days = [
        Fact((f"What do we do on {day}?", f"What is the plan for {day}?"),
             (f"On {day} we {plan}.", f"Every {day} we {plan}."), plan)
        for day, plan in WEEK.items()
    ]  # fmt: skip
    pairs = [pair for both in OPPOSITES for pair in (both, both[::-1])]
    opposites = [
        Fact((f"What is the opposite of {one}?",),
             (f"The opposite of {one} is {other}.",), other)
        for one, other in pairs
    ]  # fmt: skip
    purposes = [
        Fact((f"What is a {device} for?", f"What does a {device} do?"),
             (f"A {device} {purpose}.",), purpose)
        for device, purpose in PURPOSES.items()
    ]  # fmt: skip
    return days + opposites + purposes


def all_facts() -> list[Fact]:
    """Every fact of the world, in a fixed order."""
    facts = [fact for person in PEOPLE for fact in person_facts(person)]
    facts += [fact for room in HOUSE for fact in room_facts(room)]
    return facts + general_facts()
