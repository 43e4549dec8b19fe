"""What was opened to be used: text from it, within the positions and the memory that there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from edgetune.backend import DEFAULT_ADAPTER, DeviceOutOfMemoryError, GenerateOptions, Session
from edgetune.data import Tokenizer
from edgetune.data.template import Message
from edgetune.errors import OutOfMemoryError, UsageError
from edgetune.generation import Generation, Row
from edgetune.memory.generation import Room, cache_bytes
from edgetune.methods import Method
from edgetune.model import LocalModel
from edgetune.planning import Plan
from edgetune.units import format_bytes


class TextStream:
    """The text of tokens that come one by one, in pieces of whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Begin with no tokens."""
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """Return what a token adds; half of a character waits for its other half."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        return "" if text.endswith("\ufffd") else self._piece(text)

    def rest(self) -> str:
        """Return what waited."""
        return self._piece(self._tokenizer.decode(self._tokens))

    def _piece(self, text: str) -> str:
        piece, self._shown = text[len(self._shown) :], text
        return piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model with an adapter or none, ready for use; several over one base share a session.

    ``plan`` is the session's. ``prompt_cut`` is the end of the generation prompt that the
    adapter was trained without.
    """

    name: str
    """How the user called it."""
    plan: Plan
    model: LocalModel
    tokenizer: Tokenizer
    session: Session
    adapter: str | None = DEFAULT_ADAPTER
    """Name of its adapter in the session; None: the base model alone."""
    method: Method | None = None
    """The adapter's."""
    prompt_cut: str = ""
    labels: tuple[str, ...] = ()
    """The labels that the adapter was trained on."""
    label_names: tuple[str, ...] = ()
    """The names of labels that were numbers there, the first for 0."""
    notices: tuple[str, ...] = ()
    """What the user should know of it."""
    attached: int = 0
    """Bytes that the session holds of other adapters than its own."""

    def base(self) -> Opened:
        """Return the same without the adapter."""
        return replace(self, adapter=None, method=None, prompt_cut="")

    def generate(self, prompt: str | Sequence[Message], options: GenerateOptions) -> Iterator[str]:
        """Yield the continuation piece by piece, without the token that ends it."""
        tokens = self.prompt_tokens(prompt)
        options = self.within_positions(options, len(tokens))
        text, generation = TextStream(self.tokenizer), self.generation()
        generation.add(Row(tokens, options, self.adapter))
        while generation.rows:
            with fitting(self, len(tokens), options):
                for _, token in generation.step():
                    if token not in options.end_tokens and (piece := text.add(token)):
                        yield piece
        yield text.rest()

    def generation(self, *, keeps: bool = False) -> Generation:
        """Return what continues prompts of all that share the session, within the plan's memory.

        If it ``keeps`` caches, a prompt that begins as an earlier one goes on from there.
        """
        return Generation(self.session, self._room, keeps=keeps)

    def prompt_tokens(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            UsageError: if there are none, or the model has no positions for so many.
        """
        tokens = self.tokenizer.prompt_tokens(prompt, self.prompt_cut)
        if not tokens:
            raise UsageError("The prompt is empty: it has no token to go on from. Give some text.")
        if len(tokens) > self.positions:
            raise UsageError(
                f"The prompt has {len(tokens)} tokens, and {self.plan.model.ref} has positions "
                f"for {self.positions}. Give a shorter one."
            )
        return tokens

    @property
    def positions(self) -> int:
        """How many tokens the model has positions for, besides those that the method takes."""
        method = self.method
        before = 0 if method is None else method.virtual_tokens + method.positions
        return self.model.shape.max_context - before

    def longest_answer(self, prompt: int, most: int) -> int:
        """Return how many of ``most`` tokens an answer may have within plan and positions."""
        most = self.within_positions(GenerateOptions(max_tokens=most), prompt).max_tokens
        return self._room.longest_answer(prompt, most)

    @property
    def _room(self) -> Room:
        return Room(self.model.shape, self.plan.choice, self.plan.memory, self.attached)

    def within_positions(self, options: GenerateOptions, prompt: int) -> GenerateOptions:
        """Return the options with answers that end at the model's last position."""
        rest = self.positions - prompt + 1  # the last token of an answer takes none
        return replace(options, max_tokens=max(1, min(options.max_tokens, rest)))


@contextmanager
def fitting(opened: Opened, prompt: int, options: GenerateOptions) -> Iterator[None]:
    """Say what took the memory when a prompt cannot be continued in it."""
    try:
        yield
    except DeviceOutOfMemoryError as error:
        size = cache_bytes(opened.model.shape, opened.plan.choice, prompt + options.max_tokens)
        raise OutOfMemoryError(
            f"A prompt of {prompt} tokens with an answer of up to {options.max_tokens} keeps "
            f"{format_bytes(size)} of keys and values, which do not fit: {error}. Close other "
            "programs, or ask for less with --max-tokens."
        ) from None
