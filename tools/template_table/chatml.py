"""Structures with ``<|im_start|>`` turns: the most common family."""

from __future__ import annotations

from template_table import parts
from template_table.structure import Structure, says, writes

_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_SYSTEM = says("<|im_start|>system\n", "<|im_end|>\n")
_USER = says("<|im_start|>user\n", "<|im_end|>\n")
_SAYS = says("<|im_start|>assistant\n", "<|im_end|>\n")
_PROMPT = writes("<|im_start|>assistant\n")
_THINKS = writes("<|im_start|>assistant\n<think>\n")
_END = writes("<|im_end|>\n")
_LISTED = parts.chatml_head("# Tools\n")
_START = "{{- '<|im_start|>assistant\n' -}}"
_THOUGHT = "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' -}}"
_CALLING = "{%- set said = m.content or '' -%}" + _START + "{{- said -}}" + parts.QWEN_CALLS + _END


def _im(**fields: str) -> Structure:
    common = {"system": _SYSTEM, "user": _USER, "assistant": _SAYS, "prompt": _PROMPT}
    return Structure(special=_IM, eos="<|im_end|>", **{**common, **fields})


_TOOLS = {"head": _LISTED, "system": parts.UNLESS_JOINED, "tool": parts.QWEN_RESULT}
_SINCE_LAST = (
    parts.SPLIT + _START + "{%- if loop.index0 > ns.last and (loop.last or thought) -%}" + _THOUGHT
    + "{%- endif -%}{{- said -}}"
)  # fmt: skip
_DEFAULT = "{%- if messages[0].role != 'system' -%}" + writes(
    "<|im_start|>system\nYou are a helper.<|im_end|>\n"
) + "{%- endif -%}"  # fmt: skip

STRUCTURES = {
    "plain ChatML": _im(),
    "Yi": _im(prompt=_PROMPT, head="{%- if false -%}{%- endif -%}"),
    "Qwen 1.5": _im(head=_DEFAULT),
    "InternLM 2": Structure(
        special=(*_IM, "<s>", "</s>"), eos="</s>", bos="<s>", head="{{- bos_token -}}",
        system=_SYSTEM, user=_USER, assistant=_SAYS, prompt=_PROMPT, ends=("<|im_end|>",),
    ),
    "Qwen 2.5": _im(**{**_TOOLS, "assistant": _CALLING}),
    "Qwen 2.5 VL": _im(
        user=parts.TEXT.replace("@", "''") + says("<|im_start|>user\n", "<|im_end|>\n", "text")
    ),
    "Hermes 3": _im(
        head=parts.chatml_head("You may call functions.\n", joined=False), system=_SYSTEM,
        tool=parts.QWEN_RESULT.replace("user", "tool", 1),
        assistant="{%- set said = '' -%}{%- if m.tool_calls -%}" + _START + parts.QWEN_CALLS + _END
        + "{%- else -%}" + _SAYS + "{%- endif -%}",
    ),
    "Qwen 3": _im(**{
        **_TOOLS, "assistant": _SINCE_LAST + parts.QWEN_CALLS + _END,
        "prompt": _PROMPT + "{%- if enable_thinking is defined and not enable_thinking -%}"
        + writes("<think>\n\n</think>\n\n") + "{%- endif -%}",
    }),
    "Qwen 3 Thinking": _im(**{
        **_TOOLS, "assistant": _SINCE_LAST + parts.QWEN_CALLS + _END, "prompt": _THINKS,
    }),
    "Qwen 3 Coder": _im(**{
        **_TOOLS,
        "assistant": "{%- set said = m.content or '' -%}" + _START + "{{- said -}}" + parts.XML_CALLS + _END,
    }),
    "Qwen 3.5": _im(**{
        **_TOOLS,
        "user": parts.TEXT.replace("@", "''") + says("<|im_start|>user\n", "<|im_end|>\n", "text | trim"),
        "assistant": parts.SPLIT + _START + "{%- if loop.index0 > ns.last -%}" + _THOUGHT
        + "{%- endif -%}{{- said -}}" + parts.XML_CALLS + _END,
        "prompt": _THINKS,
    }),
    "QwQ": _im(**{
        **_TOOLS, "assistant": parts.DROP + _START + "{{- said -}}" + parts.QWEN_CALLS + _END,
        "prompt": _THINKS,
    }),
    "SmolLM 3": _im(
        assistant=parts.SPLIT + "{%- generation -%}" + _START + "{{- '<think>\n\n</think>\n' -}}"
        "{{- said -}}" + _END + "{%- endgeneration -%}",
        prompt=_PROMPT + writes("<think>\n\n</think>\n"),
    ),
    "marked by the template": _im(
        assistant="{{- '<|im_start|>assistant\n' -}}{% generation %}{{- m.content + '<|im_end|>' -}}"
        "{% endgeneration %}{{- '\n' -}}"
    ),
    "marked after an empty thought": _im(
        assistant="{{- '<|im_start|>assistant\n<think></think>' -}}{% generation %}"
        "{{- m.content + '<|im_end|>' -}}{% endgeneration %}{{- '\n' -}}"
    ),
    "LFM 2": _im(
        system="{%- if not tools -%}" + _SYSTEM + "{%- endif -%}",
        head="{%- if tools -%}{{- '<|im_start|>system\n' -}}{%- if messages[0].role == 'system' -%}"
        "{{- messages[0].content + '\n' -}}{%- endif -%}{{- 'List of tools: ' + tools | tojson"
        " + '<|im_end|>\n' -}}{%- endif -%}",
        tool=says("<|im_start|>tool\n", "<|im_end|>\n"),
        assistant="{{- '<|im_start|>assistant\n' + (m.content or '') -}}{%- for call in m.tool_calls or [] -%}"
        "{{- '[' + call.function.name + '(' -}}{%- for name, value in call.function.arguments.items() -%}"
        "{{- name + '=' + value | tojson -}}{%- endfor -%}{{- ')]' -}}{%- endfor -%}" + _END,
    ),
    "Nemotron 3 Nano": _im(**{
        **_TOOLS,
        "assistant": parts.SPLIT + _START + "{%- if thought and loop.index0 > ns.last -%}" + _THOUGHT
        + "{%- else -%}{{- '<think></think>' -}}{%- endif -%}{{- said -}}" + parts.XML_CALLS + _END,
        "prompt": _THINKS,
    }),
    "MiMo": _im(**{
        **_TOOLS, "assistant": _CALLING, "head": _LISTED + "{%- if not tools -%}" + _DEFAULT + "{%- endif -%}",
    }),
    "Kimi K2": Structure(
        special=("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>",
                 "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
                 "<|tool_call_end|>", "<|tool_call_argument_begin|>"),
        eos="<|im_end|>",
        head="{%- if tools -%}{{- '<|im_system|>tools<|im_middle|>' + tools | tojson + '<|im_end|>' -}}"
        "{%- endif -%}",
        system=says("<|im_system|>system<|im_middle|>", "<|im_end|>"),
        user=says("<|im_user|>user<|im_middle|>", "<|im_end|>"),
        tool="{{- '<|im_system|>tool<|im_middle|>## ' + m.tool_call_id + '\n' + m.content + '<|im_end|>' -}}",
        assistant="{{- '<|im_assistant|>assistant<|im_middle|>' + (m.content or '') -}}{%- if m.tool_calls -%}"
        "{{- '<|tool_calls_section_begin|>' -}}{%- for call in m.tool_calls -%}{{- '<|tool_call_begin|>'"
        " + call.id + call.function.name + '<|tool_call_argument_begin|>' -}}"
        "{{- call.function.arguments | tojson + '<|tool_call_end|>' -}}{%- endfor -%}"
        "{{- '<|tool_calls_section_end|>' -}}{%- endif -%}{{- '<|im_end|>' -}}",
        prompt=writes("<|im_assistant|>assistant<|im_middle|>"),
    ),
    "Bielik": _im(
        tool="{%- if loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}"
        "{{- '\nresult: ' + m.content -}}{%- if not loop.last and loop.nextitem.role != 'tool'"
        " or loop.last -%}{{- '<|im_end|>\n' -}}{%- endif -%}",
        head=_LISTED, system=parts.UNLESS_JOINED, assistant=_CALLING,
    ),
    "a template that closes results otherwise when more follows": _im(
        head=_LISTED, system=parts.UNLESS_JOINED, assistant=_CALLING,
        tool="{{- '<|im_start|>user\nresult: ' + m.content -}}{{- '<|im_end|>\n' if loop.last else '\n' -}}",
    ),
    "Olmo 3 Think": _im(
        assistant="{%- if loop.last -%}{{- '<|im_start|>assistant\n' + m.content + '<|im_end|>' -}}"
        "{%- else -%}" + parts.DROP + "{{- '<|im_start|>assistant\n' + said + '<|im_end|>\n' -}}{%- endif -%}",
        prompt=writes("<|im_start|>assistant\n<think>"),
    ),
    "white space in front": _im(head="{{ '\n\n' }}"),
}  # fmt: skip
