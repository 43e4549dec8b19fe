"""Gemma 3n from its own GGUF file: trained, exported again, loaded by others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf_models import TINY, exported, in_numbers
from models import make_model
from opened import open_decoder
from rows import Cli, write_rows
from transformers import AutoModelForCausalLM

from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.updates import Merge
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

LAYERS, OWN = 22, 20
STREAMS = {
    "vocab_size": 1024, "vocab_size_per_layer_input": 1024, "hidden_size": 64, "head_dim": 32,
    "intermediate_size": 2048, "hidden_size_per_layer_input": 256, "laurel_rank": 64,
    "final_logit_softcapping": 30.0, "num_hidden_layers": LAYERS, "max_position_embeddings": 512,
    "num_kv_shared_layers": LAYERS - OWN, "sliding_window": 64, "initializer_range": 0.08,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (LAYERS - 10),
    "layer_types": ["sliding_attention"] * 19 + ["full_attention"] * 2 + ["sliding_attention"],
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A random model with the tokenizer of ``tiny``."""
    folder = make_model(tmp_path_factory.mktemp("streams") / "base", "gemma3n_text", **STREAMS)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder)
    return LocalModel.open(folder)


@pytest.mark.parametrize("place", ["resident", "disk"])
def test_a_run_over_its_file_is_exported_and_checked(
    base: LocalModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys)
    write_rows(tmp_path / "rows.jsonl")
    model_file(base, Merge(changes={}), "q8_0").write(tmp_path / "base.gguf")
    learn = ("train", "--model", "base.gguf", "--device", "cpu", "--data", "rows.jsonl", "--steps",
             "2", "--learning-rate", "0.01", "--output", "run")  # fmt: skip
    called = cli(*learn, "--placement", place)
    assert called.code == 0, called.err

    called = cli("export", "run", "--to", "gguf", "--quantize", "f32", "--output", "m.gguf",
                 "--data", "rows.jsonl", "--json")  # fmt: skip
    assert called.code == 0, called.err
    found = json.loads(called.out)

    check = found["check"]
    assert found["same_tokens"] == check["rows"] > 0
    # Of random weights some next tokens are all but ties: texts may part where logits do not.
    assert 2 * found["same_text"] >= check["rows"]
    assert found["difference"] < 2e-2
    assert check["top1_agreement"] == 1
    assert check["effect"] > 0.01
    assert check["kl_mean"] < 1e-5
    merged = LocalModel.open(tmp_path / "m.gguf")
    assert merged.tensors.keys() == base.tensors.keys()


def test_a_folder_of_its_file_is_what_transformers_computes(
    base: LocalModel, tmp_path: Path
) -> None:
    file = LocalModel.open(exported(base, tmp_path / "model.gguf", "q8_0"))
    folder = in_numbers(file, tmp_path / "numbers")
    tokens = [number % 1000 for number in range(7, 107)]
    expected = AutoModelForCausalLM.from_pretrained(folder.folder).eval()

    with torch.no_grad():
        theirs = expected(torch.tensor([tokens])).logits[0]

    for model in (file, folder):
        ours = open_decoder(model).logits(tokens, BASE)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert theirs.std() > 0.5
