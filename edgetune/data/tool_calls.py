"""Tools and their calls, whichever way a file writes them, as servers hand them to templates.

A call is ``{"type": "function", "function": {"name", "arguments"}}`` with an object of arguments;
a tool has its schema under ``function`` too.
"""

from __future__ import annotations

from typing import Any

from edgetune.data.json_text import JsonReader
from edgetune.data.problems import RowError

_BESIDE = ("id", "index", "type")  # what a call has beside its function


def read_tools(tools: Any, functions: Any = None) -> list[Any] | None:
    """Return the tools of a row, None if it has none; ``functions`` is their older name.

    Raises:
        RowError: if they are not a list of objects, nor the JSON of one.
    """
    found = [*_listed(tools), *_listed(functions)]
    return [_wrapped(tool) for tool in found] or None


def _listed(value: Any) -> list[Any]:
    value = _parsed(value) if isinstance(value, str) else value
    if value in (None, "", {}):
        return []
    tools = [value] if isinstance(value, dict) else value
    if isinstance(tools, list):
        tools = [_parsed(tool) if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("The tools must be a list of objects, or a text with the JSON of one.")
    return tools


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    is_bare = isinstance(tool.get("name"), str) and tool.get("function") is None
    if not is_bare or tool.get("type", "function") != "function":
        return tool
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def read_calls(message: dict[str, Any], number: int) -> list[Any]:
    """Return the calls of a message, also one under its older name ``function_call``.

    Raises:
        RowError: if they are not calls, or their arguments are no object.
    """
    calls, older = message.get("tool_calls"), message.get("function_call")
    found = as_calls(calls, number, "tool_calls") if calls else []
    if older and not found:
        found = as_calls(older, number, "function_call")
    return found


def as_calls(value: Any, number: int, field: str) -> list[Any]:
    """Return a call or a list of calls, or the JSON of either, as a list of calls.

    Raises:
        RowError: if a call has no name, or arguments that are no object.
    """
    value = _parsed(value) if isinstance(value, str) else value
    calls = [value] if isinstance(value, dict) and field != "tool_calls" else value
    if not isinstance(calls, list) or not all(map(_has_name, calls)):
        raise RowError(
            f"Message {number} has {field} that are no list of objects with the name of a function."
        )
    return [_call(call, number) for call in calls]


def _call(call: dict[str, Any], number: int) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        function = {name: value for name, value in call.items() if name not in _BESIDE}
        call = {"type": "function", **{name: call[name] for name in _BESIDE if name in call}}
    arguments = _arguments(function.get("arguments"), function["name"], number)
    return {**call, "function": {**function, "arguments": arguments}}


def _arguments(value: Any, name: str, number: int) -> dict[str, Any]:
    found = _parsed(value) if isinstance(value, str) else {} if value is None else value
    if not isinstance(found, dict):
        raise RowError(
            f"Message {number} calls {name} with arguments that are no object, nor the JSON of one:"
            f" {value!r:.60}."
        )
    return found


def _has_name(call: Any) -> bool:
    function = call.get("function") or call if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return isinstance(name, str) and bool(name.strip())


def _parsed(text: str) -> Any:
    """Return the value of a JSON text, or the text itself if it is none.

    Raises:
        RowError: if an object in it has a key twice.
    """
    reader = JsonReader()
    try:
        value = reader.value(text)
    except ValueError:
        return text.strip()
    if problem := reader.problem():
        raise RowError(problem)
    return value
