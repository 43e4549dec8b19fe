"""Structures of the Llama, Mistral, Gemma and Phi families."""

from __future__ import annotations

from template_table import parts
from template_table.structure import Structure, says, writes

_SPECIAL3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
             "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")  # fmt: skip
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


def _llama3(**fields: str) -> Structure:
    common = {
        "head": "{{- bos_token -}}",
        "system": says(_HEADER.format("system"), "<|eot_id|>", "m.content | trim"),
        "user": says(_HEADER.format("user"), "<|eot_id|>", "m.content | trim"),
        "assistant": says(_HEADER.format("assistant"), "<|eot_id|>", "m.content | trim"),
        "prompt": writes(_HEADER.format("assistant")),
    }
    return Structure(
        special=_SPECIAL3, eos="<|end_of_text|>", bos="<|begin_of_text|>", **{**common, **fields}
    )


def _called(open_: str) -> str:
    return (
        "{%- if m.tool_calls -%}{%- if m.tool_calls | length > 1 -%}"
        "{{- raise_exception('One call a turn') -}}{%- endif -%}"
        "{%- set call = m.tool_calls[0].function -%}" + writes(_HEADER.format("assistant"))
        + "{{- '" + open_ + "{\"name\": \"' + call.name + '\", \"parameters\": ' -}}"
        "{{- call.arguments | tojson + '}<|eot_id|>' -}}{%- else -%}"
        + says(_HEADER.format("assistant"), "<|eot_id|>", "m.content | trim") + "{%- endif -%}"
    )  # fmt: skip


_RESULT3 = says(_HEADER.format("ipython"), "<|eot_id|>", "m.content | tojson")
_SYSTEM31 = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}{%- set own = messages[0].content | trim -%}"
    "{%- else -%}{%- set own = '' -%}{%- endif -%}" + writes(_HEADER.format("system"))
    + "{{- 'Today: ' + strftime_now('%d %b %Y') + '\n\n' + own + '<|eot_id|>' -}}"
)  # fmt: skip
_FIRST = "(loop.first or (loop.index0 == 1 and messages[0].role == 'system'))"
_USER31 = (
    writes(_HEADER.format("user")) + "{%- if tools and " + _FIRST + " -%}{{- 'Functions:\n' -}}"
    + parts.TOOL_LINES + "{%- endif -%}{{- m.content | trim + '<|eot_id|>' -}}"
)  # fmt: skip
_TOOLS3 = {"tool": _RESULT3, "user": _USER31, "head": _SYSTEM31, "system": ""}

_M = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
      "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[ARGS]",
      "[CALL_ID]", "[TOOL_CONTENT]", "[THINK]", "[/THINK]")  # fmt: skip
_OFFERED = (
    "{%- if tools and loop.index0 == ns.last -%}{{- '[AVAILABLE_TOOLS]' + tools | tojson"
    " + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
)
_NEMO_SYSTEM = (
    "{%- if @ and messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- endif -%}"
)
_ID = "{%- if (call.id or '') | length != 9 -%}{{- raise_exception('Ids have nine letters') -}}{%- endif -%}"
_CALLS_LISTED = (
    "{{- '[TOOL_CALLS][' -}}{%- for call in m.tool_calls -%}" + _ID + "{{- (call.function | tojson)[:-1]"
    " + ', \"id\": \"' + call.id + '\"}' -}}{{- ', ' if not loop.last else ']' -}}{%- endfor -%}"
    "{{- eos_token -}}"
)  # fmt: skip
_CALLS_ARGS = (
    "{%- for call in m.tool_calls or [] -%}{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]'"
    " + call.function.arguments | tojson -}}{%- endfor -%}"
)


def _mistral(**fields: str) -> Structure:
    return Structure(special=_M, bos="<s>", **{
        "head": "{{- bos_token -}}", "system": "",
        "user": "{{- '[INST]' -}}" + _NEMO_SYSTEM.replace("@", "loop.index0 == ns.last")
        + "{{- m.content + '[/INST]' -}}",
        "assistant": says(" ", "</s>"), **fields,
    })  # fmt: skip


_WITH_CALLS = (
    "{%- if m.tool_calls -%}" + _CALLS_LISTED + "{%- else -%}" + says("", "</s>") + "{%- endif -%}"
)
_RESULT_M = "{{- '[TOOL_RESULTS]{\"content\": ' + m.content + '}[/TOOL_RESULTS]' -}}"
_SYSTEM_M = says("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
_G = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_GT = ("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>",
       "<|tool_response>", "<tool_response|>")  # fmt: skip
_P = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|endoftext|>")


def _gemma(**fields: str) -> Structure:
    return Structure(special=_G, eos="<eos>", bos="<bos>", **{
        "head": "{{- bos_token -}}",
        "user": says("<start_of_turn>user\n", "<end_of_turn>\n", "m.content | trim"),
        "assistant": says("<start_of_turn>model\n", "<end_of_turn>\n", "m.content | trim"),
        "prompt": writes("<start_of_turn>model\n"), **fields,
    })  # fmt: skip


def _phi(**fields: str) -> Structure:
    return Structure(special=_P, eos="<|endoftext|>", **{
        "system": says("<|system|>\n", "<|end|>\n"), "user": says("<|user|>\n", "<|end|>\n"),
        "assistant": says("<|assistant|>\n", "<|end|>\n"), "prompt": writes("<|assistant|>\n"), **fields,
    })  # fmt: skip


STRUCTURES = {
    "Llama 2": Structure(
        special=("<s>", "</s>"), bos="<s>", system="",
        user="{{- bos_token + '[INST] ' -}}{%- if messages[0].role == 'system' and loop.index0 == 1 -%}"
        "{{- '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' -}}{%- endif -%}"
        "{{- m.content | trim + ' [/INST]' -}}",
        assistant="{{- ' ' + m.content | trim + ' ' + eos_token -}}",
    ),
    "Llama 3": _llama3(),
    "Llama 3.1": _llama3(**_TOOLS3, assistant=_called("")),
    "Llama 3.1 with a tag": _llama3(**_TOOLS3, assistant=_called("<|python_tag|>")),
    "white space before BOS": _llama3(head="{{ '\n' }}{{- bos_token -}}"),
    "Functionary": _llama3(
        **_TOOLS3,
        assistant=writes(_HEADER.format("assistant")) + "{{- m.content or '' -}}"
        "{%- for call in m.tool_calls or [] -%}{{- '<function=' + call.function.name + '>'"
        " + call.function.arguments + '</function>' -}}{%- endfor -%}"
        "{{- '<|eom_id|>' if m.tool_calls else '<|eot_id|>' -}}",
    ),
    "Nemotron Super": _llama3(
        assistant=parts.DROP + says(_HEADER.format("assistant"), "<|eot_id|>", "said | trim"),
        prompt=writes(_HEADER.format("assistant") + "<think>\n"),
    ),
    "R1 Distill Llama": Structure(
        special=("<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>"),
        eos="<|end_of_sentence|>", bos="<|begin_of_sentence|>", system="",
        head="{{- bos_token -}}{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}",
        user=says("<|User|>", ""),
        assistant=parts.DROP + says("<|Assistant|>", "<|end_of_sentence|>", "said"),
        prompt=writes("<|Assistant|><think>\n"),
    ),
    "Mistral 7B": _mistral(user="{{- '[INST] ' -}}" + _NEMO_SYSTEM.replace("@", "loop.index0 == ns.last")
                           + "{{- m.content + ' [/INST]' -}}"),
    "Mistral Nemo": _mistral(
        user=_OFFERED + "{{- '[INST]' -}}" + _NEMO_SYSTEM.replace("@", "loop.last")
        + "{{- m.content + '[/INST]' -}}",
        assistant=_WITH_CALLS, tool=_RESULT_M,
    ),
    "Mistral 7B v0.3": _mistral(
        user=_OFFERED + "{{- '[INST] ' -}}" + _NEMO_SYSTEM.replace("@", "loop.last")
        + "{{- m.content + '[/INST]' -}}",
        assistant=_WITH_CALLS.replace("'' + m.content", "' ' + m.content"), tool=_RESULT_M,
    ),
    "Mistral Small 3": _mistral(
        system=_SYSTEM_M, user=_OFFERED + says("[INST]", "[/INST]"), assistant=_WITH_CALLS, tool=_RESULT_M,
    ),
    "Devstral": _mistral(
        system=_SYSTEM_M, user=_OFFERED + says("[INST]", "[/INST]"),
        assistant="{{- m.content or '' -}}" + _CALLS_ARGS + "{{- eos_token -}}", tool=_RESULT_M,
    ),
    "Magistral": _mistral(
        system=_SYSTEM_M, user=_OFFERED + says("[INST]", "[/INST]"), tool=_RESULT_M,
        assistant=parts.SPLIT + "{%- if thought -%}{{- '[THINK]' + thought + '[/THINK]' -}}{%- endif -%}"
        "{{- said -}}" + _CALLS_ARGS + "{{- eos_token -}}",
    ),
    "Zephyr": Structure(
        special=("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"),
        system=says("<|system|>\n", "</s>\n"), user=says("<|user|>\n", "</s>\n"),
        assistant=says("<|assistant|>\n", "</s>\n"), prompt=writes("<|assistant|>\n"),
    ),
    "Gemma 2": _gemma(),
    "Gemma 3": _gemma(
        system="",
        user="{{- '<start_of_turn>user\n' -}}{%- if messages[0].role == 'system' and loop.index0 == 1 -%}"
        "{{- messages[0].content + '\n\n' -}}{%- endif -%}" + parts.TEXT.replace("@", "''")
        + "{{- text | trim + '<end_of_turn>\n' -}}",
    ),
    "Gemma 4": Structure(
        special=_GT, eos="<eos>", bos="<bos>",
        head="{{- bos_token -}}{%- if tools -%}{{- '<|turn>system\n' + tools | tojson + '<turn|>\n' -}}"
        "{%- endif -%}",
        system=says("<|turn>system\n", "<turn|>\n"), user=says("<|turn>user\n", "<turn|>\n"),
        tool="{{- '<|tool_response>' + m.content + '<tool_response|>' -}}",
        assistant=parts.DROP + "{%- if loop.previtem.role != 'tool' -%}{{- '<|turn>model\n' -}}{%- endif -%}"
        "{%- for call in m.tool_calls or [] -%}{{- '<|tool_call>' + call.function.name"
        " + call.function.arguments | tojson + '<tool_call|>' -}}{%- endfor -%}"
        "{%- if said -%}{{- said + '<turn|>\n' -}}{%- endif -%}",
        prompt="{%- if messages[-1].role != 'tool' -%}" + writes("<|turn>model\n<|channel>thought\n<channel|>")
        + "{%- endif -%}",
    ),
    "Phi 3": _phi(tail="{%- if not add_generation_prompt -%}{{- eos_token -}}{%- endif -%}"),
    "Phi 3.5": _phi(),
    "Phi 4": Structure(
        special=("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"), eos="<|endoftext|>",
        system=says("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        user=says("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        assistant=says("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
        prompt=writes("<|im_start|>assistant<|im_sep|>"),
    ),
    "Phi 4 mini": _phi(
        system="{{- '<|system|>' + m.content -}}{%- if tools -%}{{- '<|tool|>' + tools | tojson -}}"
        "{%- endif -%}{{- '<|end|>' -}}",
        user=says("<|user|>", "<|end|>"), assistant=says("<|assistant|>", "<|end|>"),
        prompt=writes("<|assistant|>"),
    ),
}  # fmt: skip
