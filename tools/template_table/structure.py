"""What a chat template's structure is made of, and how it becomes a template.

A structure says what each role's turn looks like, as Jinja over ``m`` (the message), ``loop``,
``ns.last`` (where the last question stands) and ``tools``.
"""

from __future__ import annotations

from dataclasses import dataclass

_LAST = (
    "{%- set ns = namespace(last=-1, tool=false, first=true) -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
NO_TOOL = "{{- raise_exception('There are no tools here') -}}"
NO_SYSTEM = "{{- raise_exception('There is no system role here') -}}"


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The turns of a template, its special tokens, and its two tokens of sequences.

    ``head`` stands before all turns, ``tail`` after them; ``ends`` are further tokens at which the
    model's settings stop generation.
    """

    user: str
    assistant: str
    special: tuple[str, ...]
    system: str = NO_SYSTEM
    tool: str = NO_TOOL
    head: str = ""
    prompt: str = ""
    tail: str = ""
    eos: str = "</s>"
    bos: str | None = None
    ends: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """The Jinja source."""
        roles = {"system": self.system, "user": self.user, "tool": self.tool,
                 "assistant": self.assistant}  # fmt: skip
        branches = "".join(
            f"{{%- {'elif' if number else 'if'} m.role == '{role}' -%}}{text}"
            for number, (role, text) in enumerate(roles.items())
        )
        ends = f"{{%- if add_generation_prompt -%}}{self.prompt}{{%- endif -%}}{self.tail}"
        turns = f"{{%- for m in messages -%}}{branches}{{%- endif -%}}{{%- endfor -%}}"
        return f"{_LAST}{self.head}{turns}{ends}"


def says(before: str, after: str, content: str = "m.content") -> str:
    """Return a turn of a content between two texts."""
    return f"{{{{- {before!r} + {content} + {after!r} -}}}}"


def writes(text: str) -> str:
    """Return a fixed text."""
    return f"{{{{- {text!r} -}}}}"
