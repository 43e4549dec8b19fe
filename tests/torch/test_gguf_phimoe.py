"""PhiMoE in GGUF files: read as it was trained, and what llama.cpp computes in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_adapter
from gguf_models import TINY, convert
from models import make_model
from numpy.typing import NDArray
from opened import open_decoder
from safetensors.torch import load_file, save_file

from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.gguf.client import Client
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE
from edgetune.shape import ModelShape

SIZES = {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 96, "head_dim": 32,
    "max_position_embeddings": 512, "initializer_range": 0.08, "router_jitter_noise": 0.01,
    "num_local_experts": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalModel, Path]:
    """A model whose norms have biases of zero, and its file as llama.cpp's script makes it."""
    tmp_path = tmp_path_factory.mktemp("phimoe")
    folder = make_model(tmp_path / "folder", "phimoe", **SIZES)
    tensors = load_file(folder / "model.safetensors")
    for name, values in tensors.items():
        if "norm" in name and name.endswith("bias"):
            values.zero_()
    save_file(tensors, folder / "model.safetensors")
    metadata = TokenizerFacts.read(TINY).metadata(1024)
    tokenizer = {key: value.content for key, value in metadata.items()}
    file = convert(folder, tmp_path / "model.gguf", tokenizer=tokenizer)
    return LocalModel.open(folder), file


def _otherwise(shape: ModelShape, *, experts: bool, norms: bool) -> ModelShape:
    """Return a shape whose experts, or norms, are computed as llama.cpp does."""
    changed = [
        replace(block, experts=replace(block.experts, score="softmax", normalised=True))
        if experts and block.experts is not None
        else block
        for block in shape.blocks
    ]
    kind = replace(shape.norm, kind="rms") if norms else shape.norm
    return replace(shape, blocks=tuple(changed), norm=kind)


def _centred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values - values.mean(dtype=np.float64).astype(np.float32)


def test_llama_cpp_weighs_its_experts_and_takes_its_norms_otherwise(
    pair: tuple[LocalModel, Path],
) -> None:
    """If this fails, llama.cpp may have learned what SparseMixer is: then files can be written."""
    model, file = pair
    tokens = np.random.default_rng(1).integers(4, 1024, 32).tolist()
    with Client(file, context=512) as client:
        found = _centred(client.log_probabilities(tokens, 1024))

    def off(*, experts: bool, norms: bool) -> float:
        changed = replace(model, shape=_otherwise(model.shape, experts=experts, norms=norms))
        logits = open_decoder(changed).logits(tokens, BASE)[-1].numpy()
        assert logits.std() > 0.5
        return float(np.abs(found - _centred(logits)).max())

    assert off(experts=True, norms=True) < 2e-3
    for experts, norms in ((False, False), (True, False), (False, True)):
        assert off(experts=experts, norms=norms) > 0.1


@pytest.mark.parametrize("alone", [False, True])
def test_files_and_adapters_for_it_are_refused(
    pair: tuple[LocalModel, Path], tmp_path: Path, alone: bool
) -> None:
    model, file = pair
    for base in (model, LocalModel.open(file)):
        adapter = random_adapter(Lora(rank=2), base.shape)
        request = ExportRequest(
            adapter=adapter, model=base, output=tmp_path / "m.gguf", alone=alone
        )
        with pytest.raises(UsageError, match=r"phimoe models are not written: llama\.cpp weighs"):
            export("gguf", request)


def _read(folder: Path, file: Path, **rotary: Any) -> tuple[LocalModel, LocalModel]:
    table = {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0,
        "original_max_position_embeddings": 64, "short_factor": [1.0, 1.125, 1.25, 1.375],
        "long_factor": [2.0, 3.0, 5.0, 8.0], **rotary,
    }  # fmt: skip
    make_model(folder, "phimoe", rope_parameters=table, router_jitter_noise=0.01)
    return LocalModel.open(folder), LocalModel.open(convert(folder, file))


def test_what_scores_grow_by_is_as_published_where_a_file_has_what_its_contexts_make(
    tmp_path: Path,
) -> None:
    """llama.cpp's script does not write the number of the config: of the same contexts it is one."""
    for number in (1.243163121016122, 1.2):
        _, file = _read(
            tmp_path / f"{number}", tmp_path / f"{number}.gguf", short_mscale=number,
            long_mscale=number,
        )  # fmt: skip
        assert {x.attention_factor for x in file.shape.rotaries} == {1.243163121016122}
