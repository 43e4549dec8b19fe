"""Damaged GGUF files of any kind are read or refused by name; nothing else leaves the reader."""

from __future__ import annotations

import random
import resource
import sys
import time
import warnings
from pathlib import Path

import pytest
from gguf_tokenizers import LLAMA_TYPE, byte_level, published, sentencepiece
from test_gguf_resolve import small_llama

from edgetune.data.tokenizer import load_tokenizer
from edgetune.errors import EdgetuneError
from edgetune.model import LocalModel

FILES = 200
NUMBERS = (0, 1, 255, 2**31, 2**40, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small models with both kinds of tokenizers."""
    folder = tmp_path_factory.mktemp("whole")
    tokens, scores, kinds = sentencepiece()
    pieces = {
        "tokenizer.ggml.model": LLAMA_TYPE, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    cut = byte_level(published("llama-bpe"), "llama-bpe")
    files = [
        small_llama(folder / "cut.gguf", metadata=cut, shapes={"token_embd.weight": (640, 32)}),
        small_llama(
            folder / "pieces.gguf", metadata=pieces, shapes={"token_embd.weight": (320, 32)}
        ),
    ]
    for file in files:
        _used(file)
    return [file.read_bytes() for file in files]


def _used(file: Path) -> None:
    model = LocalModel.open(file)
    for name in model.tensors:
        model.read(name)
    load_tokenizer(file, model.shape.vocabulary).encode("hello <s> ü world 123")


def _damaged(draw: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(min(len(damaged), draw.choice((200, 2000, 40_000))))
        match draw.randrange(4):
            case 0:
                damaged[place] ^= 1 << draw.randrange(8)
            case 1:
                damaged[place : place + 8] = draw.choice(NUMBERS).to_bytes(8, "little")
            case 2:
                del damaged[place : place + draw.randrange(1, 9)]
            case 3:
                damaged[place:place] = draw.randbytes(draw.randrange(1, 9))
    return bytes(damaged)


def test_damaged_files_are_read_or_refused(whole: list[bytes], tmp_path: Path) -> None:
    file, draw, refused = tmp_path / "model.gguf", random.Random(0), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(FILES):
        file.write_bytes(_damaged(draw, draw.choice(whole)))
        begun = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # numbers that overflow
                _used(file)
        except EdgetuneError:
            refused += 1
        assert time.process_time() - begun < 5
    assert FILES // 4 < refused < FILES
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 150_000_000
