"""An adapter over a GGUF file is the same over the folder that the file was made from, or refused.

Files differ from folders in the order of rows, in norms, in names, and in multipliers that are in the
weights; each adapter is saved over one form and loaded over the other.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
from adapters import random_tensors
from gguf_models import exported
from gguf_pairs import EVERY, any_pair
from models import make_model
from opened import open_decoder
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from transformers import AutoModelForCausalLM

from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.adapters.form import FOLDED
from edgetune.errors import ModelError, UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.gguf.architectures import ARCHITECTURES as WRITTEN
from edgetune.methods import METHODS as EVERY_KIND
from edgetune.methods import Method, build
from edgetune.methods.adapted import Adapted
from edgetune.methods.base import initial_value
from edgetune.methods.intrinsic import Intrinsic
from edgetune.methods.lora import Lora
from edgetune.methods.norm import NormTuning
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE
from edgetune_torch.tensors import LoadedBase

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

ROW = [number % 97 for number in range(1, 40)]
NEAR = 2e-4

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2}, "dora": {"rank": 2}, "vera": {"vera_rank": 4},
    "prompt": {"prompt_length": 3, "prompt_initial": "random"},
    "prefix": {"prefix_length": 3, "prefix_initial": "random"},
}  # fmt: skip
ALIKE = {"dylora", "lora-fa", "llama-adapter", "mam", "intrinsic"}
"""Methods whose tensors are those of others, or that are refused."""
MODULES = {"rank": 2, "modules_to_save": ("embeddings", "head", "norms")}
METHODS: dict[str, Method] = {
    **{kind: build(kind, SMALL.get(kind, {})) for kind in EVERY_KIND if kind not in ALIKE},
    "lora and modules": build("lora", MODULES),
}
BOTH_WAYS = [
    pytest.param(name, direction, marks=[pytest.mark.long] if (place + other) % 2 else [])
    for place, name in enumerate(METHODS)
    for other, direction in enumerate(("from the file", "from the folder"))
]
"""Each method one way; the other way in the long form."""


def _start(method: Method, model: LocalModel, folder: Path, seed: int = 0) -> LoadedAdapter:
    """Return an adapter that changed each tensor a little from where it starts."""
    base = LoadedBase(open_decoder(model).decoder, model.folder)
    noise = random_tensors(method, model.shape, seed)
    tensors = {
        tensor.name: (
            initial_value(tensor, 0, base) + (noise[tensor.name] if tensor.trained else 0)
        )
        for tensor in method.tensors(model.shape)
    }
    save_adapter(folder, method, model.shape, tensors, base="base")
    return load_adapter(folder, model.shape)


def _logits(model: LocalModel, adapter: LoadedAdapter | None = None) -> torch.Tensor:
    engine = open_decoder(model)
    if adapter is None:
        return engine.logits(ROW, BASE)
    parameters = {name: Parameter(torch.tensor(x)) for name, x in adapter.tensors.items()}
    return engine.logits(ROW, Adapted(adapter.method, model.shape, parameters))


def _same_over_both(
    method: Method, there: LocalModel, here: LocalModel, folder: Path, near: float = NEAR
) -> None:
    expected = _logits(there, _start(method, there, folder))
    assert float((expected - _logits(there)).abs().max()) > 50 * near
    found = _logits(here, load_adapter(folder, here.shape))
    torch.testing.assert_close(found, expected, rtol=0, atol=near)


@pytest.fixture
def falcon(tmp_path: Path) -> tuple[LocalModel, LocalModel]:
    """A Falcon-H1 model with multipliers of every kind, and its file, which has them in its weights."""
    folder = make_model(tmp_path / "folder", "falcon_h1", vocab_size=1024)
    base = LocalModel.open(folder)
    return base, LocalModel.open(exported(base, tmp_path / "model.gguf", "f32"))


@pytest.mark.parametrize(("name", "direction"), BOTH_WAYS)
def test_every_method_is_the_same_over_both_forms_of_a_falcon(
    name: str, direction: str, falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    folder, file = falcon
    there, here = (file, folder) if direction == "from the file" else (folder, file)

    _same_over_both(METHODS[name], there, here, tmp_path / "adapter")


def test_what_cannot_be_brought_over_is_refused(
    falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    folder, file = falcon
    method = Intrinsic(dimension=64)
    tensors = random_tensors(method, file.shape)
    save_adapter(tmp_path / "a", method, file.shape, tensors, base="base")
    with pytest.raises(ModelError, match="Use it over the model that it was trained on"):
        load_adapter(tmp_path / "a", folder.shape)
    _forget_form(tmp_path / "a")
    with pytest.raises(ModelError, match="does not say which they are"):
        load_adapter(tmp_path / "a", file.shape)

    save_adapter(
        tmp_path / "b", Lora(), folder.shape, random_tensors(Lora(), folder.shape), base="x"
    )
    _forget_form(tmp_path / "b")
    load_adapter(tmp_path / "b", folder.shape)
    with pytest.raises(ModelError, match=r"does not say which they are.*--model FOLDER --to gguf"):
        load_adapter(tmp_path / "b", file.shape)
    prompt = METHODS["prompt"]
    save_adapter(
        tmp_path / "c", prompt, folder.shape, random_tensors(prompt, folder.shape), base="x"
    )
    _forget_form(tmp_path / "c")
    load_adapter(tmp_path / "c", file.shape)  # what stands in the stream is the same


def test_an_older_adapter_over_a_file_is_known_by_its_base(
    falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    folder, file = falcon
    adapter = _start(Lora(rank=2), file, tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    told = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(told | {"base_model_name_or_path": "models/falcon.GGUF"}), "utf-8")
    _forget_form(tmp_path / "a")

    expected = _logits(file, adapter)
    for model in (file, folder):
        found = _logits(model, load_adapter(tmp_path / "a", model.shape))
        torch.testing.assert_close(found, expected, rtol=0, atol=NEAR)


def test_a_form_that_is_no_form_is_damage(
    falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    folder, file = falcon
    _start(Lora(rank=2), file, tmp_path / "a")
    for told in (
        "{", "[]", '{"in_file": 1}', '{"layers": {"q": "x"}}', '{"embedding": NaN}',
        '{"logits": 1e999}', '{"embedding": 0}', '{"layers": {"scores": [0.0, 0.0]}}',
        "[" * 100_000, '{"embedding": 1' + "0" * 400 + "}",
    ):  # fmt: skip
        _forget_form(tmp_path / "a", {"edgetune.form": told})
        with pytest.raises(ModelError, match="is damaged"):
            load_adapter(tmp_path / "a", file.shape)
    _forget_form(tmp_path / "a", {"edgetune.form": '{"in_file": true, "layers": {"q": [2.0]}}'})
    with pytest.raises(ModelError, match="not those of"):
        load_adapter(tmp_path / "a", folder.shape)


def test_peft_gets_an_adapter_of_a_file_over_the_folder(
    falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    folder, file = falcon
    expected = _logits(file, _start(Lora(rank=2), file, tmp_path / "a"))
    adapter = load_adapter(tmp_path / "a", folder.shape)
    request = ExportRequest(adapter=adapter, model=folder, output=tmp_path / "peft")
    export("peft", request)
    base = AutoModelForCausalLM.from_pretrained(folder.folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        found = theirs(torch.tensor([ROW])).logits[0]

    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR)
    prompt = replace(adapter, method=METHODS["prompt"])
    with pytest.raises(UsageError, match="does not multiply as it does those that it looks up"):
        export("peft", replace(request, adapter=prompt, output=tmp_path / "prompt"))


def test_a_lora_for_a_file_is_the_same_from_both(
    falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    _start(Lora(rank=2), falcon[1], tmp_path / "a")
    written = []
    for model in falcon:
        request = ExportRequest(
            adapter=load_adapter(tmp_path / "a", model.shape), model=model, alone=True,
            output=tmp_path / f"{len(written)}.gguf",
        )  # fmt: skip
        export("gguf", request)
        tensors = gguf.GGUFReader(request.output).tensors
        written.append({x.name: torch.from_numpy(x.data.copy()) for x in tensors})
    ours, theirs = written
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], rtol=1e-5, atol=1e-6)


def test_what_mlx_lm_trained_is_in_the_files_form(
    falcon: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    """mlx-lm multiplies the weights of Falcon-H1 when it reads them."""
    folder, file = falcon
    adapter = _start(Lora(rank=2, targets=("attention",)), file, tmp_path / "a")
    (tmp_path / "mlx").mkdir()
    ends = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b"}
    tensors = {
        f"{name.removesuffix(end)}{theirs}": torch.from_numpy(x.T.copy())
        for name, x in adapter.tensors.items()
        for end, theirs in ends.items()
        if name.endswith(end)
    }
    save_file(tensors, tmp_path / "mlx" / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0}}
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps(config), "utf-8")

    expected = _logits(file, adapter)
    for model in (file, folder):
        found = _logits(model, load_adapter(tmp_path / "mlx", model.shape))
        torch.testing.assert_close(found, expected, rtol=0, atol=NEAR)


def _forget_form(folder: Path, metadata: dict[str, str] | None = None) -> None:
    """Write an adapter's tensors again, as older versions and PEFT do."""
    file = folder / "adapter_model.safetensors"
    tensors = {name: x.clone() for name, x in load_file(file).items()}
    save_file(tensors, file, {"format": "pt", **(metadata or {})})


@pytest.mark.parametrize("scalar", [7, 40])
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_scores_that_a_file_scales_in_its_queries_are_so_in_adapters(
    family: str, scalar: int, tmp_path: Path
) -> None:
    """llama.cpp scales scores otherwise than the config says; queries, or their norm, make up for it."""
    base = LocalModel.open(
        make_model(tmp_path / "folder", family, vocab_size=1024, query_pre_attn_scalar=scalar)
    )
    file = LocalModel.open(exported(base, tmp_path / "model.gguf", "f32"))
    torch.testing.assert_close(_logits(file), _logits(base), rtol=0, atol=NEAR)
    for name in ("lora", "norm", "full"):
        _same_over_both(METHODS[name], file, base, tmp_path / f"{name}-file")
        _same_over_both(METHODS[name], base, file, tmp_path / f"{name}-folder")


def test_the_families_that_are_folded_are_those_that_are_written_so() -> None:
    assert {family for family, x in WRITTEN.items() if x.folded} == FOLDED


@pytest.mark.parametrize("family", EVERY)
def test_an_adapter_of_any_family_is_the_same_over_both(family: str, tmp_path: Path) -> None:
    folder, file = any_pair(family, tmp_path)
    methods = [Lora(rank=2), NormTuning()]
    if folder.shape.has_experts:
        methods.append(Lora(rank=2, targets=("experts",)))
    if not folder.shape.blocks[0].norms or all(x.plain for x in folder.shape.all_norms):
        methods.remove(NormTuning())
    for number, method in enumerate(methods):
        for there, here, name in ((file, folder, "file"), (folder, file, "folder")):
            _same_over_both(method, there, here, tmp_path / f"{number}-{name}")
