"""Eleven chats as they come in files, each with something that templates treat differently."""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _says(text: str, **fields: Any) -> Row:
    return {"role": "assistant", "content": text, **fields}


def _system(text: str) -> Row:
    return {"role": "system", "content": text}


def _call(number: int, city: str, *, as_text: bool = False) -> Row:
    arguments: Any = {"city": city}
    function = {"name": "get_weather", "arguments": json.dumps(arguments) if as_text else arguments}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


def _result(number: int, text: str) -> Row:
    return {
        "role": "tool",
        "name": "get_weather",
        "tool_call_id": f"call{number:05d}",
        "content": text,
    }


_ASKED = [
    _user("How cold is Tromso?"),
    _says("", tool_calls=[_call(1, "Tromso")]),
    _result(1, "minus five"),
    _says("It is minus five."),
]
_TALK = [
    _user("Name a river."), _says("The Volga."), _user("And a lake."), _says("Lake Inari."),
    _user("A hill too."), _says("Monte Amiata."),
]  # fmt: skip

CHATS: dict[str, Row] = {
    "one turn": {"messages": [_user("Name a river."), _says("The Volga.")]},
    "system": {"messages": [_system("Be brief."), *_TALK[:2]]},
    "turns": {"messages": _TALK},
    "system, turns": {"messages": [_system("Be brief."), *_TALK]},
    "thought": {
        "messages": [_user("Is 91 prime?"), _says("No.", reasoning_content="It is 7 times 13.")]
    },
    "inline thought": {
        "messages": [
            _user("Is 91 prime?"), _says("<think>\nIt is 7 times 13.\n</think>\n\nNo."),
        ]
    },
    "thoughts, turns": {
        "messages": [
            _user("Is 91 prime?"), _says("No.", reasoning_content="It is 7 times 13."),
            _user("And 97?"), _says("Yes.", reasoning_content="Nothing up to 9 divides it."),
        ]
    },
    "call": {"messages": _ASKED, "tools": [_WEATHER]},
    "two calls": {
        "messages": [
            _system("Be brief."), _user("Tromso and Oslo?"),
            _says("Let me look.", tool_calls=[_call(1, "Tromso"), _call(2, "Oslo")]),
            _result(1, "minus five"), _result(2, "plus one"), _says("Minus five, and plus one."),
        ],
        "tools": [_WEATHER],
    },
    "call, turns": {
        "messages": [
            _user("How cold is Tromso?"),
            {"role": "assistant", "content": None, "tool_calls": [_call(1, "Tromso", as_text=True)]},
            _result(1, "minus five"), _says("It is minus five."),
            _user("Thank you."), _says("With pleasure."),
        ],
        "tools": json.dumps([_WEATHER]),
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "Name a river."}, {"type": "text", "text": "In Asia."},
            ]},
            _says("The Ob."),
        ]
    },
}  # fmt: skip
