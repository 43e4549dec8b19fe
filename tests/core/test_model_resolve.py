"""What the user calls a model: a folder, a hub id in the cache, or a profile's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import TINY, write_folder

from edgetune.errors import ModelError
from edgetune.model import open_model, resolve, shape_of
from edgetune.model.hub import cache_folder, cached_snapshot, is_hub_id
from edgetune.profile import model_profile

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
LLAMA = "meta-llama/Llama-3.2-1B"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that the variables point to."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def _snapshot(cache: Path, hub_id: str, revision: str = "abc123", *, main: bool = True) -> Path:
    entry = cache / f"models--{hub_id.replace('/', '--')}"
    if main:
        (entry / "refs").mkdir(parents=True, exist_ok=True)
        (entry / "refs" / "main").write_text(revision)
    return entry / "snapshots" / revision


def test_a_folder(cache: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    source = resolve(str(folder))

    assert (source.ref, source.folder, source.profile) == (str(folder), folder, None)
    assert source.shape == shape_of(TINY)
    assert source.parameters == source.shape.parameters
    assert open_model(str(folder)).ref == str(folder)


def test_a_folder_that_is_named_from_here(cache: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "org" / "mine")

    assert resolve("org/mine").folder == Path("org/mine")


def test_a_home_folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write_folder(tmp_path / "mine")

    assert resolve("~/mine").folder == folder


def test_a_hub_id_in_the_cache(cache: Path) -> None:
    folder = write_folder(_snapshot(cache, "org/model"))
    source = resolve("org/model")

    assert (source.folder, source.hub_id, source.profile) == (folder, "org/model", None)
    assert open_model("org/model").folder == folder


def test_the_main_revision_is_taken(cache: Path) -> None:
    write_folder(_snapshot(cache, "org/model", "old", main=False))
    folder = write_folder(_snapshot(cache, "org/model", "new"))

    assert cached_snapshot("org/model") == folder


def test_the_only_revision_is_taken_when_none_is_main(cache: Path) -> None:
    folder = write_folder(_snapshot(cache, "org/model", "one", main=False))
    assert cached_snapshot("org/model") == folder

    write_folder(_snapshot(cache, "org/model", "two", main=False))
    assert cached_snapshot("org/model") is None


def test_a_main_revision_that_is_not_there_is_not_replaced_by_another(cache: Path) -> None:
    write_folder(_snapshot(cache, "org/model", "old", main=False))
    _snapshot(cache, "org/model", "new")

    assert cached_snapshot("org/model") is None


def test_a_profile_without_weights(cache: Path) -> None:
    source = resolve("llama-3.2-1b")

    assert (source.folder, source.profile, source.hub_id) == (None, "llama-3.2-1b", LLAMA)
    assert source.parameters == 1_235_814_400


def test_a_profile_whose_weights_are_in_the_cache(cache: Path) -> None:
    folder = write_folder(_snapshot(cache, LLAMA))
    source = resolve("llama-3.2-1b")

    assert (source.folder, source.profile) == (folder, "llama-3.2-1b")
    assert source.shape == shape_of(TINY)
    assert open_model("llama-3.2-1b").folder == folder


def test_a_hub_id_that_a_profile_knows(cache: Path) -> None:
    source = resolve(LLAMA.lower())

    assert (source.ref, source.profile, source.folder) == (LLAMA.lower(), "llama-3.2-1b", None)


@pytest.mark.parametrize("ref", ["llama-3.2-1b", LLAMA])
def test_missing_weights_say_what_to_do(cache: Path, ref: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_model(ref)

    message = str(caught.value)
    assert f"`edgetune fetch {LLAMA}`" in message
    assert "--model FOLDER" in message
    assert str(cache / "models--meta-llama--Llama-3.2-1B") in message
    assert caught.value.exit_code == 5


def test_a_cached_config_without_weights_is_enough_for_a_plan_only(cache: Path) -> None:
    folder = write_folder(_snapshot(cache, "org/model"))
    (folder / "model.safetensors").unlink()

    assert resolve("org/model").folder == folder
    with pytest.raises(ModelError, match="`edgetune fetch org/model`"):
        open_model("org/model")


def test_a_hub_id_that_is_not_here(cache: Path) -> None:
    with pytest.raises(ModelError, match="`edgetune fetch org/unheard-of`"):
        resolve("org/unheard-of")


def test_an_unknown_name_is_answered_with_near_ones(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"Nearest: llama-7b, .*`edgetune models` lists all"):
        resolve("lama-7b")


@pytest.mark.parametrize("ref", ["", "a/b/c", "../up", "spa ce", "org/..", "-dash"])
def test_what_is_neither_a_folder_nor_an_id(cache: Path, ref: str) -> None:
    assert not is_hub_id(ref)
    with pytest.raises(ModelError):
        resolve(ref)


def test_a_file_is_not_a_model(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"GGML")

    with pytest.raises(ModelError, match=r"model\.bin is a file, and no GGUF file\."):
        resolve("model.bin")


def test_an_empty_folder_is_not_a_model(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ModelError, match=r"empty has no config\.json"):
        resolve("empty")


def test_the_built_in_model_is_complete(cache: Path) -> None:
    source, model = resolve("tiny"), open_model("tiny")

    assert source.folder == model_profile("tiny").folder == model.folder
    assert source.parameters == model.shape.parameters == model_profile("tiny").parameters


def test_the_variables_decide_where_the_cache_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    found = [cache_folder()]
    for name in reversed(VARIABLES):
        monkeypatch.setenv(name, f"/{name.lower()}")
        found.append(cache_folder())

    assert [str(folder) for folder in found] == [
        "/home/someone/.cache/huggingface/hub",
        "/xdg_cache_home/huggingface/hub",
        "/hf_home/hub",
        "/huggingface_hub_cache",
        "/hf_hub_cache",
    ]


def test_a_name_that_no_file_system_takes_is_an_unknown_model(cache: Path) -> None:
    for odd in ("x" * 5000, "~nobody-of-that-name/model", "a\0b"):
        with pytest.raises(ModelError):
            resolve(odd)
    assert resolve("Llama-7B").profile == "llama-7b"


def test_the_tensors_of_a_folder_say_what_is_stored(cache: Path, tmp_path: Path) -> None:
    written = write_folder(tmp_path / "model", TINY | {"dtype": "bfloat16"})
    assert shape_of(TINY | {"dtype": "bfloat16"}).dtype == "bfloat16"
    assert resolve(str(written)).shape == open_model(str(written)).shape
    assert resolve(str(written)).shape.dtype == "float32"
