"""What a plan counts for a tokenizer is what a large one keeps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from edgetune.memory.costs import COSTS

VOCABULARY = 100_000

SCRIPT = """
import sys
from pathlib import Path

import edgetune_torch.opening
from edgetune.data.tokenizer import load_tokenizer
from edgetune_torch.malloc import limit_heap, trim

def anonymous():
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

limit_heap()
small = load_tokenizer(Path(sys.argv[1]))  # with it, the libraries are there
trim()
before = anonymous()
large = load_tokenizer(Path(sys.argv[2]))
assert len(large) > len(small)
trim()
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_tokenizer_keeps_no_more_than_planned(tmp_path: Path) -> None:
    small, large = (_folder(tmp_path / str(size), size) for size in (300, VOCABULARY))
    command = [sys.executable, "-c", SCRIPT, str(small), str(large)]

    done = subprocess.run(command, check=True, capture_output=True, text=True)

    counted = COSTS["cpu"].runtime(VOCABULARY) - COSTS["cpu"].libraries
    assert 0.5 * counted < int(done.stdout) < counted


def test_a_card_holds_no_tokenizer() -> None:
    assert COSTS["cuda"].runtime(VOCABULARY) == COSTS["cuda"].libraries


def _folder(folder: Path, size: int) -> Path:
    """Write a byte-level BPE tokenizer of pairs and pairs of pairs of bytes."""
    vocabulary = {text: i for i, text in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    letters = list(vocabulary)
    pairs = itertools.chain(
        itertools.product(letters, letters),
        ((a + b, c) for a, b, c in itertools.product(letters, letters, letters)),
    )
    while len(vocabulary) < size:
        left, right = next(pairs)
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    folder.mkdir()
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    tokenizer = {"version": "1.0", "pre_tokenizer": None, "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": letters[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    return folder
