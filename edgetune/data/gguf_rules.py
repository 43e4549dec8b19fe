"""By which rule a GGUF file's byte-level tokenizer cuts text, also where the file does not say.

Files from before llama.cpp named these rules say nothing, those of Ollama's own converter ``default``
where it did not know the tokenizer. llama.cpp then cuts in a way that no model was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line, short
from edgetune.tensors.gguf.reader import GgufHeader

RULE: Final = "tokenizer.ggml.pre"
_UNSAID: Final = ("", "default")

LLAMA3_TURN_END: Final = 128_009
"""Where Llama 3's vocabulary has the token that ends a turn, which no other one has there."""
_TURN_END: Final = "<|eot_id|>"

_BY_ARCHITECTURE: Final[Mapping[str, str]] = {
    "bloom": "bloom",
    "command-r": "command-r",
    "gpt-oss": "gpt-4o",
    "gpt2": "gpt-2",
    "lfm2": "lfm2",
    "mpt": "mpt",
    "phi2": "phi-2",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2",
    "starcoder": "starcoder",
    "starcoder2": "starcoder",
}
"""The rule of architectures whose published models are all cut alike."""


def rule_of(header: GgufHeader, tokens: Sequence[str]) -> str:
    """Return llama.cpp's name for the rule of a file with these tokens.

    Raises:
        ModelError: if the file does not say it, and nothing else does.
    """
    architecture = header.metadata.text("general.architecture", "")
    if architecture == "gptoss":  # as Ollama's own files call it, which name another rule
        return _BY_ARCHITECTURE["gpt-oss"]
    if architecture == "lfm2" and _by_ollama(header):
        return _BY_ARCHITECTURE["lfm2"]
    stated = header.metadata.text(RULE, "")
    if stated not in _UNSAID:
        return stated
    if is_llama3(tokens):
        return "llama-bpe"
    if architecture in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[architecture]
    said = f"is {short(stated)}" if RULE in header.metadata else "is missing"
    raise ModelError(
        f"{header.file} does not say by which rule its tokenizer cuts text ({RULE} {said}), and "
        f"models of the architecture {one_line(architecture)} are cut in different ways: training "
        "would be on other tokens than the model's own. Take a newer GGUF file of it, or its folder."
    )


def is_llama3(tokens: Sequence[str]) -> bool:
    """Return whether a vocabulary is Llama 3's, or one that goes on from it."""
    return list(tokens[LLAMA3_TURN_END : LLAMA3_TURN_END + 1]) == [_TURN_END]


def _by_ollama(header: GgufHeader) -> bool:
    """Return whether a file of LFM2 has the last norm by the name that Ollama's converter gives it."""
    names = header.tensors.keys()
    return "output_norm.weight" in names and "token_embd_norm.weight" not in names
