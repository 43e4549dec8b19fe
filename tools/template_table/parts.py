"""Pieces that several structures share: thoughts, calls and lists of tools."""

from __future__ import annotations

SPLIT = (
    "{%- set said = m.content or '' -%}{%- set thought = m.reasoning_content or '' -%}"
    "{%- if not thought and '</think>' in said -%}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
)
"""``thought`` and ``said`` of a turn, whichever way it came."""

DROP = (
    "{%- set said = m.content or '' -%}{%- if '</think>' in said -%}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
)
"""``said`` of a turn, its thought left out."""

QWEN_CALLS = (
    "{%- for call in m.tool_calls or [] -%}{%- if not loop.first or said -%}{{- '\n' -}}{%- endif -%}"
    '{{- \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- call.function.arguments | tojson -}}{{- '}\n</tool_call>' -}}{%- endfor -%}"
)
"""Calls as JSON between tags, after what is ``said``."""

XML_CALLS = (
    "{%- for call in m.tool_calls or [] -%}{{- '\n<tool_call>\n<function=' + call.function.name -}}"
    "{{- '>\n' -}}{%- for name, value in call.function.arguments.items() -%}"
    "{{- '<parameter=' + name + '>\n' -}}"
    "{{- value if value is string else value | tojson -}}{{- '\n</parameter>\n' -}}{%- endfor -%}"
    "{{- '</function>\n</tool_call>' -}}{%- endfor -%}"
)
"""Calls as one tag a parameter."""

GLM_CALLS = (
    "{%- for call in m.tool_calls or [] -%}{{- '\n<tool_call>' + call.function.name -}}"
    "{%- for name, value in call.function.arguments.items() -%}"
    "{{- '\n<arg_key>' + name + '</arg_key>\n<arg_value>' -}}"
    "{{- value if value is string else value | tojson -}}{{- '</arg_value>' -}}{%- endfor -%}"
    "{{- '\n</tool_call>' -}}{%- endfor -%}"
)
"""Calls as pairs of tags."""

TOOL_LINES = "{%- for tool in tools -%}{{- tool | tojson + '\n' -}}{%- endfor -%}"
"""The tools, one a line."""

QWEN_RESULT = (
    "{%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}"
    "{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}"
)
"""Results of tools inside a user's turn."""


def chatml_head(wording: str, *, joined: bool = True) -> str:
    """Return a system turn that lists the tools, in front of the other turns.

    The system prompt stands in it, before the tools; without tools it is a turn of its own.
    """
    own = "{{- messages[0].content + '\n\n' -}}" if joined else ""
    return (
        "{%- if tools -%}{{- '<|im_start|>system\n' -}}{%- if messages[0].role == 'system' -%}"
        f"{own}{{%- endif -%}}{{{{- {wording!r} -}}}}{TOOL_LINES}{{{{- '<|im_end|>\n' -}}}}{{%- endif -%}}"
    )


UNLESS_JOINED = (
    "{%- if not (tools and loop.first) -%}"
    "{{- '<|im_start|>system\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}"
)
"""A system turn, unless the list of tools has it already."""

TEXT = (
    "{%- if m.content is string -%}{%- set text = m.content -%}{%- else -%}"
    "{%- set text = m.content | map(attribute='text') | join(@) -%}{%- endif -%}"
)
"""``text`` of a turn that may have parts; @ is what stands between them."""
