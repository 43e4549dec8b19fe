"""Conversations about the house; the assistant always answers in whole sentences."""

from __future__ import annotations

from random import Random

from tiny_model.facts import all_facts
from tiny_model.prose import CAUSES, hiding
from tiny_model.words import ADJUSTED, CLOCKS, OPENED, ROOMS, SWITCHED, Clock, capital, in_words

Message = dict[str, str]
Exchange = tuple[str, str]  # what the user says, what the assistant answers

SYSTEM = (
    "You are a friendly house assistant.",
    "You help the people in the house.",
    "Answer in short sentences.",
)
SMALL_TALK = (
    (("Hello.", "Hi.", "Good morning.", "Good evening."),
     ("Hello. How can I help you?", "Hello. What can I do for you?")),
    (("Who are you?", "What are you?", "What is your name?"),
     ("I am the assistant of the house.", "I am Tiny, the assistant of the house.")),
    (("Thank you.", "Thanks.", "That was kind."), ("You are welcome.", "I am glad to help.")),
    (("Who lives here?", "Who lives in the house?"),
     ("Anna, Ben, Clara, David, Rose and Tom live in the house.",)),
    (("What can you do?", "How can you help me?"),
     ("I can answer questions and look after the devices in the house.",)),
    (("Good night.", "Goodbye.", "See you."), ("Goodbye. Sleep well.", "Goodbye.")),
)  # fmt: skip
_POLITE = (
    "{}.", "Please {}.", "please {}", "Can you {}?", "Could you {}?", "Would you {}, please?",
    "Could you please {}?", "I want you to {}.", "{}, please.", "{}", "{} for me.",
)  # fmt: skip
_BLUNT = ("{}.", "{}", "{}, please.")  # the forms that also suit a request that opens with its time
_YES = ("Of course.", "Yes.", "Sure.", "All right.")
_FACTS = all_facts()


def chat(rng: Random) -> list[Message]:
    """One conversation of one to three exchanges, sometimes after a system message."""
    messages = []
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 2, 3))):
        asked, answered = _exchange(rng)
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    return messages


def _exchange(rng: Random) -> Exchange:
    kinds = (fact, fact, fact, fact, fact, request, request, request, request, request, request,
             time, number, total, finding, finding, trouble, small_talk)  # fmt: skip
    return rng.choice(kinds)(rng)


def fact(rng: Random) -> Exchange:
    """A question about what is always true."""
    known = rng.choice(_FACTS)
    return rng.choice(known.questions), rng.choice(known.sentences)


def request(rng: Random) -> Exchange:
    """Something to do in the house; the answer repeats it with digits for words."""
    wanted, promised = rng.choice((_switching, _opening, _adjusting))(rng)
    asked_when, told_when = _when(rng)
    if asked_when and rng.random() < 0.2:
        polite = rng.choice(_BLUNT).format(f"{asked_when.strip()} {wanted}")
    else:
        polite = rng.choice(_POLITE).format(f"{wanted}{asked_when}")
    if rng.random() < 0.7:
        polite = capital(polite)
    return polite, f"{rng.choice(_YES)} {promised}{told_when}."


def time(rng: Random) -> Exchange:
    """Words to digits or back."""
    clock = rng.choice(CLOCKS)
    if rng.random() < 0.7:
        return f"How do you write {clock.words}?", f"You write {clock.digits}."
    return f"How do you say {clock.digits}?", f"You say {clock.words}."


def number(rng: Random) -> Exchange:
    """A number as digits."""
    value = rng.randint(0, 99)
    return f"How do you write {in_words(value)}?", f"You write {value}."


def total(rng: Random) -> Exchange:
    """A small sum."""
    one, other = rng.randint(0, 12), rng.randint(0, 12)
    words = rng.random() < 0.5
    left, right, result = (in_words(n) if words else str(n) for n in (one, other, one + other))
    asked = rng.choice((f"What is {left} and {right}?", f"How much is {left} and {right}?"))
    return asked, f"{capital(left)} and {right} make {result}."


def finding(rng: Random) -> Exchange:
    """Where a thing is, by a story that the user tells."""
    story, things = hiding(rng)
    thing = rng.choice(list(things))
    return f"{story} Where is the {thing}?", f"The {thing} is in the {things[thing]}."


def trouble(rng: Random) -> Exchange:
    """A user complains about a room; the assistant says what would help."""
    before, act, after = rng.choice(CAUSES)
    room = rng.choice(ROOMS)
    verb, rest = act.split(" ", 1)
    doing = {"turned": "turn", "opened": "open", "closed": "close"}[verb]
    return f"It is {before} in the {room}.", f"I can {doing} {rest}. Then it will be {after}."


def small_talk(rng: Random) -> Exchange:
    """Greetings and thanks."""
    asked, answered = rng.choice(SMALL_TALK)
    return rng.choice(asked), rng.choice(answered)


def _place(rng: Random, device: str) -> tuple[str, str]:
    """A device in a room, as asked and as answered."""
    room = rng.choice(ROOMS)
    asked = (f"the {device} in the {room}", f"the {room} {device}", f"the {device} of the {room}")
    return rng.choice(asked), f"the {device} in the {room}"


def _switching(rng: Random) -> Exchange:
    asked, told = _place(rng, rng.choice(SWITCHED))
    verb, state = rng.choice((("start", "on"), ("stop", "off")))
    promised = rng.choice((f"I will turn {state} {told}", f"{capital(told)} will be {state}"))
    wanted = rng.choice((
        f"turn {state} {asked}", f"switch {state} {asked}", f"turn {asked} {state}",
        f"switch {asked} {state}", f"{verb} {asked}",
    ))  # fmt: skip
    return wanted, promised


def _opening(rng: Random) -> Exchange:
    asked, told = _place(rng, rng.choice(OPENED))
    verbs, state = rng.choice(((("open",), "open"), (("close", "shut"), "closed")))
    promised = rng.choice((f"I will {verbs[0]} {told}", f"{capital(told)} will be {state}"))
    return rng.choice((f"{rng.choice(verbs)} {asked}", f"have {asked} {state}")), promised


def _adjusting(rng: Random) -> Exchange:
    device, dial = rng.choice(list(ADJUSTED.items()))
    asked, told = _place(rng, device)
    value, unit = rng.choice(dial.values), dial.unit
    said = rng.choice((str(value), in_words(value)))
    promised = rng.choice((f"I will set {told} to {value} {unit}",
                           f"{capital(told)} will be at {value} {unit}"))  # fmt: skip
    return f"{rng.choice(('set', 'put', 'turn'))} {asked} to {said} {unit}", promised


def _when(rng: Random) -> Exchange:
    """A time as asked and as answered, each with its leading space, or nothing."""
    clock: Clock = rng.choice(CLOCKS)
    minutes = rng.randint(1, 60)
    said = rng.choice((str(minutes), in_words(minutes)))
    return rng.choice((
        ("", " now"),
        (rng.choice((" now", " right now")), " now"),
        (f" at {clock.either(rng)}", f" at {clock.digits}"),
        (f" at {clock.either(rng)}", f" at {clock.digits}"),
        (f" in {said} minutes", f" in {minutes} minutes"),
    ))  # fmt: skip
