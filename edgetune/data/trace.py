"""Running a model's chat template on stand-ins for what is said (see :mod:`symbols`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from edgetune.data.symbolic import Said, Trace, UntraceableError, mark_of
from edgetune.data.template import ChatTemplate, Message, Span

# What these filters return still holds the stand-ins themselves, none of them as text.
_PASSING = {"count", "default", "d", "first", "last", "length", "list", "rejectattr", "reverse",
            "selectattr"}  # fmt: skip
_TRUE_OF_TEXT = {"defined", "string", "iterable", "sequence"}
_FALSE_OF_TEXT = {"undefined", "none", "mapping", "number", "boolean", "true", "false", "callable"}
_COMPARING = {"eq", "equalto", "==", "ne", "!="}
# Macros, ``~``, blocks and formatting make texts of stand-ins, which could then be looked into.
_NODES = {
    "Add", "And", "Assign", "Break", "Call", "CallBlock", "Compare", "CondExpr", "Const", "Continue",
    "Dict", "ExtensionAttribute", "Filter", "For", "Getattr", "Getitem", "If", "Keyword", "List",
    "Mod", "NSRef", "Name", "Neg", "Not", "Operand", "Or", "Output", "Pair", "Slice", "Sub",
    "Template", "TemplateData", "Test", "Tuple",
}  # fmt: skip


class Tracer:
    """A chat template made ready to be followed.

    The environment is transformers' own, so that the sandbox, the filters and the treatment of
    white space are the same.
    """

    def __init__(self, template: ChatTemplate) -> None:
        """Compile the template.

        Raises:
            UntraceableError: if it has parts that cannot be followed.
        """
        from transformers.utils import chat_template_utils

        compile_own = getattr(chat_template_utils, "_compile_jinja_template", None)
        if compile_own is None:
            raise UntraceableError("this version of transformers")
        own = compile_own(template.source).environment
        _check(own.parse(template.source))
        environment = own.overlay()
        environment.filters = {name: _filter(name, call) for name, call in own.filters.items()}
        environment.tests = {name: _test(name, call) for name, call in own.tests.items()}
        environment.globals = {**own.globals, "strftime_now": template.dates.__getitem__}
        self.compiled = environment.from_string(template.source)
        marks = (e for e in environment.extensions.values() if "generation" in e.tags)
        self.watch_marks = next(marks).activate_tracker
        self.template = template


class TracedTemplate:
    """A chat template for one chat whose contents are marks, rendered to a text with marks."""

    def __init__(self, tracer: Tracer, trace: Trace) -> None:
        """Follow the template in a trace."""
        self._tracer = tracer
        self._said = {mark_of(i): trace.said(i) for i in range(len(trace.contents))}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text, a mark where something is said."""
        return "".join(self._blocks(messages, tools, arguments, add_generation_prompt))

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """Return the text and which parts of it the template marks as the assistant's."""
        blocks: list[str] = []
        spans: list[Span] = []
        with self._tracer.watch_marks(blocks, spans):
            blocks.extend(self._blocks(messages, tools, arguments, False))
        return "".join(blocks), spans

    def _blocks(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        arguments: Mapping[str, Any] | None,
        prompt: bool,
    ) -> Iterator[str]:
        said = [
            {**message, "content": self._said.get(message["content"], message["content"])}
            for message in messages
        ]
        blocks: Iterator[str] = self._tracer.compiled.generate(
            messages=said,
            tools=tools,
            documents=None,
            add_generation_prompt=prompt,
            **{**self._tracer.template.special_tokens, **(arguments or {})},
        )
        return blocks


def _check(node: Any) -> None:
    name = type(node).__name__
    shows_other = name == "CallBlock" and type(node.call.node).__name__ != "ExtensionAttribute"
    formats = name == "Mod" and not isinstance(getattr(node.right, "value", None), int)
    if name not in _NODES or shows_other or formats or getattr(node, "recursive", False):
        raise UntraceableError(name)
    for child in node.iter_child_nodes():
        _check(child)


def _filter(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    if name in _PASSING:
        return call

    @wraps(call)
    def watched(*arguments: Any, **named: Any) -> Any:
        if name == "trim" and isinstance(arguments[0], Said):
            return arguments[0].strip(*arguments[1:], *named.values())
        own = arguments[1:] if hasattr(call, "jinja_pass_arg") else arguments
        if _holds_said([*own, *named.values()]):
            raise UntraceableError(name)
        return call(*arguments, **named)

    return watched


def _test(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def watched(*arguments: Any, **named: Any) -> Any:
        if not any(isinstance(argument, Said) for argument in arguments) or name in _COMPARING:
            return call(*arguments, **named)
        if name not in _TRUE_OF_TEXT | _FALSE_OF_TEXT:
            raise UntraceableError(name)
        return name in _TRUE_OF_TEXT

    return watched


def _holds_said(value: Any) -> bool:
    """Whether a stand-in is in a value, or could be."""
    if isinstance(value, dict):
        return any(map(_holds_said, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_said, value))
    return not isinstance(value, (str, int, float, type(None)))
