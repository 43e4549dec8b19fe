"""Structures of all other families."""

from __future__ import annotations

from template_table import parts
from template_table.structure import Structure, says, writes

_C = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
      "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_THINKING|>", "<|END_THINKING|>",
      "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>")  # fmt: skip
_D = ("<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>",
      "<|tool_calls_begin|>", "<|tool_calls_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
      "<|tool_sep|>", "<|tool_output_begin|>", "<|tool_output_end|>")  # fmt: skip
_GLM = (
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|endoftext|>",
)
_GR = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>")
_H = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")


def _cohere(**fields: str) -> Structure:
    turn = "<|START_OF_TURN_TOKEN|>{}"
    return Structure(special=_C, eos="<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>", **{
        "head": "{{- bos_token -}}",
        "system": says(turn.format("<|SYSTEM_TOKEN|>"), "<|END_OF_TURN_TOKEN|>"),
        "user": says(turn.format("<|USER_TOKEN|>"), "<|END_OF_TURN_TOKEN|>"),
        "assistant": says(turn.format("<|CHATBOT_TOKEN|>"), "<|END_OF_TURN_TOKEN|>"),
        "prompt": writes(turn.format("<|CHATBOT_TOKEN|>")), **fields,
    })  # fmt: skip


def _deepseek(**fields: str) -> Structure:
    return Structure(special=_D, eos=_D[1], bos=_D[0], **{
        "head": "{{- bos_token -}}", "system": "{{- m.content -}}", "user": says("<|User|>", ""),
        "tool": says("<|tool_output_begin|>", "<|tool_output_end|>"),
        "assistant": says("<|Assistant|>", _D[1]), "prompt": writes("<|Assistant|>"), **fields,
    })  # fmt: skip


_LISTED = (
    "{{- bos_token -}}{%- if tools -%}{{- '## Tools\n' + tools | tojson + '\n' -}}{%- endif -%}"
)
_D_CALLS = (
    "{%- if m.tool_calls -%}{{- '<|tool_calls_begin|>' -}}{%- for call in m.tool_calls -%}"
    "{{- '<|tool_call_begin|>' + call.function.name + '<|tool_sep|>' -}}{{- @ -}}"
    "{{- '<|tool_call_end|>' -}}{%- endfor -%}{{- '<|tool_calls_end|>' -}}{%- endif -%}"
)
_AS_TEXT = _D_CALLS.replace("@", "call.function.arguments + '\n'")
_AS_OBJECT = _D_CALLS.replace("@", "call.function.arguments | tojson")
_OPEN = "{{- '<|Assistant|>' if loop.previtem.role != 'tool' -}}"
_GLM_HEAD = (
    "{{- '[gMASK]<sop>' -}}{%- if tools -%}{{- '<|system|>\n# Tools\n' -}}" + parts.TOOL_LINES
    + "{%- endif -%}"
)  # fmt: skip


def _glm(**fields: str) -> Structure:
    return Structure(special=_GLM, eos="<|endoftext|>", ends=("<|user|>", "<|observation|>"), **{
        "head": _GLM_HEAD, "system": says("<|system|>\n", ""), "user": says("<|user|>\n", ""),
        "tool": says("<|observation|>\n", ""), "assistant": says("<|assistant|>\n", ""),
        "prompt": writes("<|assistant|>"), **fields,
    })  # fmt: skip


def _granite(**fields: str) -> Structure:
    role = "<|start_of_role|>{}<|end_of_role|>"
    return Structure(special=_GR, eos="<|end_of_text|>", **{
        "system": says(role.format("system"), "<|end_of_text|>\n"),
        "user": says(role.format("user"), "<|end_of_text|>\n"),
        "assistant": says(role.format("assistant"), "<|end_of_text|>\n"),
        "prompt": writes(role.format("assistant")), **fields,
    })  # fmt: skip


def _words(user: str, opens: str, between: str, **fields: str) -> Structure:
    """Turns named by words alone, as the first instruction-tuned models have them."""
    return Structure(special=("<s>", "</s>"), bos="<s>", **{
        "head": "{{- bos_token -}}", "system": says("", between), "user": says(user, between),
        "assistant": says(opens + " ", "</s>"), "prompt": writes(opens), **fields,
    })  # fmt: skip


_SEED = "<seed:think>"
STRUCTURES = {
    "Command R": _cohere(),
    "Command R7B": _cohere(
        assistant="{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content"
        " + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' -}}",
        prompt=writes("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>"),
    ),
    "Command A Reasoning": _cohere(
        head=_LISTED,
        tool=says("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        assistant=parts.SPLIT + "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- if thought -%}"
        "{{- '<|START_THINKING|>' + thought + '<|END_THINKING|>' -}}{%- endif -%}{%- if m.tool_calls -%}"
        "{{- '<|START_ACTION|>' + m.tool_calls | map(attribute='function') | list | tojson"
        " + '<|END_ACTION|>' -}}{%- endif -%}{%- if said -%}{{- '<|START_RESPONSE|>' + said"
        " + '<|END_RESPONSE|>' -}}{%- endif -%}{{- '<|END_OF_TURN_TOKEN|>' -}}",
        prompt=writes("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>"),
    ),
    "DeepSeek V2": _deepseek(
        user="{{- 'User: ' + m.content + '\n\n' -}}", assistant="{{- 'Assistant: ' + m.content + eos_token -}}",
        prompt=writes("Assistant:"),
    ),
    "DeepSeek V3": _deepseek(head=_LISTED, assistant=_OPEN + "{{- m.content or '' -}}" + _AS_TEXT + "{{- eos_token -}}",
                             prompt="{%- if messages[-1].role != 'tool' -%}{{- '<|Assistant|>' -}}{%- endif -%}"),
    "DeepSeek R1": _deepseek(
        head=_LISTED, assistant=parts.DROP + _OPEN + "{{- said -}}" + _AS_TEXT + "{{- eos_token -}}",
        prompt="{%- if messages[-1].role != 'tool' -%}{{- '<|Assistant|><think>\n' -}}{%- endif -%}",
    ),
    "DeepSeek V3.1": _deepseek(
        head=_LISTED,
        assistant=parts.DROP + "{{- '<|Assistant|></think>' if loop.previtem.role != 'tool' -}}{{- said -}}"
        + _AS_OBJECT + "{{- eos_token -}}",
        prompt="{%- if messages[-1].role != 'tool' -%}{{- '<|Assistant|></think>' -}}{%- endif -%}",
    ),
    "DeepSeek V3.2": _deepseek(
        head=_LISTED,
        assistant=parts.SPLIT + "{{- '<|Assistant|>' -}}{%- if thought and loop.index0 > ns.last -%}"
        "{{- '<think>' + thought + '</think>' -}}{%- else -%}{{- '</think>' -}}{%- endif -%}{{- said -}}"
        + _AS_OBJECT + "{{- eos_token -}}",
        prompt=writes("<|Assistant|><think>"),
    ),
    "GLM 4": _glm(tool="", head="{{- '[gMASK]<sop>' -}}"),
    "GLM 4.5": _glm(
        assistant=parts.SPLIT + "{{- '<|assistant|>' -}}{%- if loop.index0 > ns.last and thought -%}"
        "{{- '\n<think>' + thought + '</think>' -}}{%- else -%}{{- '\n<think></think>' -}}{%- endif -%}"
        "{%- if said -%}{{- '\n' + said -}}{%- endif -%}" + parts.GLM_CALLS,
    ),
    "GLM 4.7": _glm(
        assistant=parts.SPLIT + "{{- '<|assistant|>' -}}{%- if loop.index0 > ns.last and thought -%}"
        "{{- '<think>' + thought + '</think>' -}}{%- else -%}{{- '</think>' -}}{%- endif -%}{{- said -}}"
        + parts.GLM_CALLS,
        prompt=writes("<|assistant|><think>"),
    ),
    "Granite 3": _granite(),
    "Granite 4": _granite(
        head="{%- if tools -%}{{- '<|start_of_role|>system<|end_of_role|>' -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n' -}}{%- endif -%}"
        + parts.TOOL_LINES + "{{- '<|end_of_text|>\n' -}}{%- endif -%}",
        system="{%- if not tools -%}{{- '<|start_of_role|>system<|end_of_role|>' + m.content"
        " + '<|end_of_text|>\n' -}}{%- endif -%}",
        tool=says("<|start_of_role|>user<|end_of_role|>\n<tool_response>\n", "\n</tool_response><|end_of_text|>\n"),
        assistant="{%- set said = m.content or '' -%}{{- '<|start_of_role|>assistant<|end_of_role|>' + said -}}"
        + parts.QWEN_CALLS + "{{- '<|end_of_text|>\n' -}}",
    ),
    "gpt-oss": Structure(
        special=_H, eos="<|return|>", ends=("<|call|>",),
        head="{%- if tools -%}{{- '<|start|>developer<|message|>' + tools | tojson + '<|end|>' -}}{%- endif -%}",
        system=says("<|start|>system<|message|>", "<|end|>"), user=says("<|start|>user<|message|>", "<|end|>"),
        tool="{{- '<|start|>' + m.name + ' to=assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' -}}",
        assistant="{%- if m.reasoning_content and loop.index0 > ns.last -%}{{- '<|start|>assistant<|channel|>analysis"
        "<|message|>' + m.reasoning_content + '<|end|>' -}}{%- endif -%}{%- if m.tool_calls -%}"
        "{%- set call = m.tool_calls[0].function -%}{{- '<|start|>assistant to=' + call.name"
        " + '<|channel|>commentary<|message|>' + call.arguments | tojson + '<|call|>' -}}{%- else -%}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content -}}"
        "{{- '<|return|>' if loop.last else '<|end|>' -}}{%- endif -%}",
        prompt=writes("<|start|>assistant"),
    ),
    "MiniMax M2": Structure(
        special=("]~!b[", "]~b]", "[e~["), eos="[e~[", head="{{- ']~!b[' -}}{%- if tools -%}"
        "{{- ']~b]system\n' + tools | tojson + '[e~[\n' -}}{%- endif -%}",
        system=says("]~b]system\n", "[e~[\n"), user=says("]~b]user\n", "[e~[\n"),
        tool=says("]~b]tool\n", "[e~[\n"),
        assistant=parts.SPLIT + "{{- ']~b]ai\n' -}}{%- if thought and loop.index0 > ns.last -%}"
        "{{- '<think>\n' + thought + '\n</think>\n\n' -}}{%- endif -%}{{- said -}}" + parts.XML_CALLS
        + "{{- '[e~[\n' -}}",
        prompt=writes("]~b]ai\n<think>\n"),
    ),
    "Seed OSS": Structure(
        special=("<seed:bos>", "<seed:eos>"), eos="<seed:eos>", bos="<seed:bos>",
        head="{%- if tools -%}{{- bos_token + 'system\n' + tools | tojson + eos_token -}}{%- endif -%}",
        system="{{- bos_token + 'system\n' + m.content + eos_token -}}",
        user="{{- bos_token + 'user\n' + m.content + eos_token -}}",
        tool="{{- bos_token + 'tool\n' + m.content + eos_token -}}",
        assistant="{%- set said = m.content or '' -%}{{- bos_token + 'assistant\n' -}}"
        "{%- if m.reasoning_content -%}{{- '" + _SEED + "' + m.reasoning_content + '</seed:think>' -}}{%- endif -%}"
        "{{- said -}}" + parts.XML_CALLS + "{{- eos_token -}}",
        prompt="{{- bos_token + 'assistant\n' -}}",
    ),
    "Apertus": Structure(
        special=("<s>", "</s>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
                 "<|system_start|>", "<|system_end|>"),
        bos="<s>", head="{{- bos_token -}}", system=says("<|system_start|>", "<|system_end|>"),
        user=says("<|user_start|>", "<|user_end|>"),
        assistant="{{- '<|assistant_start|>' + m.content -}}{%- if not loop.last -%}{{- '<|assistant_end|>' -}}"
        "{%- endif -%}",
        prompt=writes("<|assistant_start|>"),
    ),
    "Apriel Thinker": Structure(
        special=("<|begin_user|>", "<|begin_assistant|>", "<|begin_system|>", "<|begin_tool_result|>", "<|end|>"),
        eos="<|end|>", head="{%- if tools -%}{{- '<|begin_system|>\n' + tools | tojson + '\n' -}}{%- endif -%}",
        system=says("<|begin_system|>\n", "\n"), user=says("<|begin_user|>\n", "\n"),
        tool=says("<|begin_tool_result|>\n", "\n"),
        assistant="{%- set said = m.content or '' -%}{{- '<|begin_assistant|>\n' + said -}}" + parts.QWEN_CALLS
        + "{{- '\n<|end|>\n' -}}",
        prompt=writes("<|begin_assistant|>\nHere are my reasoning steps:\n"),
    ),
    "Nemotron Nano 2": Structure(
        special=("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"), eos="<SPECIAL_12>",
        system="", head="{{- '<SPECIAL_10>System\n' + (messages[0].content if messages[0].role == 'system' else '') -}}"
        "{{- '\n' -}}{%- if tools -%}" + parts.TOOL_LINES + "{%- endif -%}",
        user=says("<SPECIAL_11>User\n", "\n"), tool=says("<SPECIAL_11>User\n<TOOL_RESPONSE>", "</TOOL_RESPONSE>\n"),
        assistant=parts.DROP + "{{- '<SPECIAL_11>Assistant\n' -}}{%- if loop.last -%}{{- '<think>\n' -}}{%- endif -%}"
        "{{- said -}}" + parts.QWEN_CALLS + "{{- '\n<SPECIAL_12>\n' -}}",
        prompt=writes("<SPECIAL_11>Assistant\n<think>\n"),
    ),
    "Falcon": _words("User: ", "Assistant:", "\n"),
    "Vicuna": _words("USER: ", "ASSISTANT:", " "),
    "Alpaca": _words("### Instruction:\n", "### Response:\n", "\n\n", assistant=says("### Response:\n", "</s>\n\n")),
    "Solar": _words("### User:\n", "### Assistant:\n", "\n\n", assistant=says("### Assistant:\n", "</s>\n\n")),
    "OpenChat": _words(
        "GPT4 Correct User: ", "GPT4 Correct Assistant:", "<|end_of_turn|>",
        assistant=says("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
    ),
    "RWKV": _words("User: ", "Assistant:", "\n\n", assistant=says("Assistant: ", "\n\n")),
    "Exaone": _words("[|user|]", "[|assistant|]", "\n", assistant=says("[|assistant|]", "</s>\n")),
    "Baichuan": _words("<reserved_106>", "<reserved_107>", "", assistant=says("<reserved_107>", "</s>")),
    "Tulu": _words("<|user|>\n", "<|assistant|>\n", "\n",
                   assistant="{{- '<|assistant|>\n' + m.content + eos_token -}}{%- if not loop.last -%}"
                   "{{- '\n' -}}{%- endif -%}"),
    "Jamba": Structure(
        special=("<|startoftext|>", "<|bom|>", "<|eom|>"), eos="<|eom|>", bos="<|startoftext|>",
        head="{{- bos_token -}}", system=says("<|bom|><|system|> ", "<|eom|>"),
        user=says("<|bom|><|user|> ", "<|eom|>"), assistant=says("<|bom|><|assistant|> ", "<|eom|>"),
        prompt=writes("<|bom|><|assistant|>"),
    ),
}  # fmt: skip
