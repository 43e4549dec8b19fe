"""``chat_template_kwargs``: what a row gives to the chat template beside messages and tools."""

from __future__ import annotations

import json
from typing import Any

from edgetune.data.problems import RowError

FIELD = "chat_template_kwargs"
_OURS = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
         "chat_template", "conversation", "bos_token", "eos_token", "pinned_dates",
         "strftime_now", "raise_exception"}  # fmt: skip


def read_template_arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of a row, none if it has none.

    Raises:
        RowError: if they are no object, or would replace what the template is given anyway.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise RowError(f"{FIELD} is no JSON.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError(f"{FIELD} must be an object.")
    replaced = sorted(_OURS & value.keys())
    if replaced:
        raise RowError(f"{FIELD} may not replace {', '.join(replaced)}. Remove it.")
    return {name: item for name, item in value.items() if item is not None}
