"""A language model that people use, SmolLM2-135M, through the files of other tools."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sessions import session_for

from edgetune.backend import GenerateOptions
from edgetune.data import load_tokenizer
from edgetune.exporters.gguf.client import Client
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.updates import Merge
from edgetune.generation import generate
from edgetune.model import LocalModel

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "LICENSE"
real_model = runpy.run_path(str(ROOT / "tools" / "fetch_real_model.py"))["real_model"]
LENGTHS = (32, 256)
PROMPT = "Name three colours of the rainbow."


def _centred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values - values.mean(dtype=np.float64).astype(np.float32)


@pytest.mark.long
def test_llama_cpp_computes_the_f16_file_as_we_do(tmp_path: Path) -> None:
    """Rounding to F16 alone moves logits by up to 0.022: over the file itself there is none."""
    model, file = LocalModel.open(real_model()), tmp_path / "f16.gguf"
    model_file(model, Merge(changes={}), "f16").write(file)
    tokenizer = load_tokenizer(file)
    tokens = tokenizer.encode(TEXT.read_text("utf-8"), special=False)[: max(LENGTHS)]
    chat = tokenizer.prompt_tokens([{"role": "user", "content": PROMPT}], "")
    with session_for(LocalModel.open(file)) as session:
        over_file = session.logits(tokens)
        options = GenerateOptions(max_tokens=24, end_tokens=tokenizer.end_tokens)
        said = [token for _, token in generate(session, [chat], options, adapters=[None])]
    with session_for(model, quantization="gguf") as session:
        unrounded = session.logits(tokens)

    with Client(file, context=512) as client:
        for length in LENGTHS:
            found = _centred(client.log_probabilities(tokens[:length], over_file.shape[1]))
            own, away = (
                float(np.abs(found - _centred(x[length - 1])).max()) for x in (over_file, unrounded)
            )
            assert own < 2e-2, (length, own, away)
            assert away < 4e-2, (length, own, away)
        answer = client.generate(chat, 24)
    assert answer == [token for token in said if token not in tokenizer.end_tokens][: len(answer)]
    assert len(answer) > 3
