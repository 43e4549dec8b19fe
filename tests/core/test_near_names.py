"""Names that mean a known model are understood and said; others are answered with five at most."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import write_folder
from rows import Cli, write_rows

from edgetune.errors import ModelError
from edgetune.model import open_model, resolve
from edgetune.model.near_names import meant, proposed, reading
from edgetune.profile import MOST_PROPOSED, hub_ids, model_names, model_profile, usual_models

UNDERSTOOD = {
    "llama3": "llama-3-8b-instruct",
    "llama3:latest": "llama-3-8b-instruct",
    "llama3:8b": "llama-3-8b-instruct",
    "Llama-3": "llama-3-8b-instruct",
    "llama3.2:3b-instruct-q4_K_M": "llama-3.2-3b-instruct",
    "llama_3_8b": "llama-3-8b",
    "Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b-instruct",
    "meta-llama/Llama-3-8B": "llama-3-8b",
    "qwen2.5:7b": "qwen2.5-7b-instruct",
    "qwen2.5:7b-base": "qwen2.5-7b",
    "qwen-2.5-7b": "qwen2.5-7b",
    "Qwen/Qwen2.5-7B-Instruct-AWQ": "qwen2.5-7b-instruct",
    "qwen3:8b": "qwen3-8b",
    "gemma3:4b": "gemma-3-4b-it",
    "gemma-3-4b-instruct": "gemma-3-4b-it",
    "gpt-2": "gpt2",
    "mistral": "mistral-7b-instruct",
    "mistral-7b-instruct-v0.3": "mistral-7b-instruct",
    "mistral-7b-v0.2": "mistral-7b-instruct-v0.2",
    "unsloth/llama-3-8b-bnb-4bit": "llama-3-8b",
    "mlx-community/Llama-3.2-1B-Instruct-4bit": "llama-3.2-1b-instruct",
    "TheBloke/Llama-2-7B-Chat-GGUF": "llama-2-7b-chat",
}
LEFT_OPEN = {
    "llama-8b": {"llama-3-8b", "llama-3.1-8b"},  # of which version?
    "qwen-7b": {"qwen2.5-7b", "qwen2.5-7b-instruct"},  # Qwen's first models are others
    "lama-7b": {"llama-7b", "llama-2-7b"},
    "mistral-7b-v0.4": {"mistral-7b-v0.1", "mistral-7b-instruct"},
    "somebody/qwen2.5-7b-poems": {"qwen2.5-7b"},
    "gemma-3-4b-itt": {"gemma-3-4b-it"},
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_name_that_can_only_mean_one_model_is_taken_as_it(name: str) -> None:
    source = resolve(name)

    assert (source.ref, source.profile) == (UNDERSTOOD[name], UNDERSTOOD[name])
    assert source.taken_as == f"{name} is taken as {source.ref} ({source.hub_id})"


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_a_name_that_leaves_it_open_is_answered_with_a_few(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name)

    offered = proposed(name)
    assert LEFT_OPEN[name] <= set(offered)
    assert len(offered) <= MOST_PROPOSED
    assert sum(known in str(caught.value) for known in offered) == len(offered)


@pytest.mark.parametrize("name", ["zzz", "C:\\models\\mine", "nothing-like-it", "b", "-7b"])
def test_what_is_like_nothing_is_answered_with_nothing(name: str) -> None:
    assert meant(name) is None
    assert proposed(name) == ()
    with pytest.raises(ModelError):
        resolve(name)


@pytest.mark.parametrize("name", model_names())
def test_own_names_and_hub_ids_are_taken_as_they_are(name: str) -> None:
    for own in filter(None, (name, hub_ids().get(name))):
        source = resolve(own)
        assert (source.ref, source.profile, source.taken_as) == (own, name, None)


def test_no_two_models_read_the_same() -> None:
    found = [(reading(name), reading(hub_ids().get(name, name)).tuned) for name in model_names()]

    assert len(found) == len(set(found))


def test_usual_models_are_known() -> None:
    assert set(usual_models().values()) <= set(model_names())
    assert resolve("llama3.1").ref == "llama-3.1-8b-instruct"


def test_instruct_models_differ_from_their_bases_in_what_they_say() -> None:
    base, tuned = model_profile("qwen2.5-7b"), model_profile("qwen2.5-7b-instruct")
    differing = {k for k in base.config if base.config[k] != tuned.config[k]}

    assert differing == {"max_position_embeddings"}
    assert base.parameters == tuned.parameters


def test_anothers_copy_keeps_its_name_and_says_whose_shape_it_is() -> None:
    ref = "unsloth/Llama-3.2-1B-Instruct"
    source = resolve(ref)

    assert (source.ref, source.hub_id, source.profile) == (ref, ref, "llama-3.2-1b-instruct")
    assert source.taken_as == f"{ref} is planned by the shape of llama-3.2-1b-instruct"
    with pytest.raises(ModelError, match=f"`edgetune fetch {ref}`"):
        open_model(ref)


def test_a_cached_copy_is_no_guess(tmp_path: Path) -> None:
    entry = tmp_path / "hub" / "models--unsloth--Llama-3.2-1B-Instruct" / "snapshots" / "abc"
    write_folder(entry)

    assert resolve("unsloth/Llama-3.2-1B-Instruct").taken_as is None


def test_weights_are_never_opened_under_another_name(tmp_path: Path) -> None:
    entry = tmp_path / "hub" / "models--Qwen--Qwen2.5-7B-Instruct" / "snapshots" / "abc"
    write_folder(entry)

    assert resolve("qwen2.5:7b").folder == entry
    with pytest.raises(ModelError, match=r"'qwen2\.5:7b' here\. Nearest: qwen2\.5-7b-instruct\."):
        open_model("qwen2.5:7b")


def test_the_plan_says_which_model_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(capsys)
    shown = cli("plan", "--model", "llama3", "--device", "rtx-4090", "--output", "kept.yaml")

    assert "- llama3 is taken as llama-3-8b-instruct (meta-llama/Meta-Llama-3-8B-" in shown.out
    assert "ref: llama-3-8b-instruct\n" in Path("kept.yaml").read_text()


def test_checking_data_says_which_model_was_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(Path("rows.jsonl"))
    called = Cli(capsys)("data", "check", data, "--model", "Tiny")
    assert called.code == 0
    refused = Cli(capsys)("data", "check", data, "--model", "llama3")
    assert "llama3 is taken as llama-3-8b-instruct" in refused.err
    assert "`edgetune fetch meta-llama/Meta-Llama-3-8B-Instruct`" in refused.err


def test_the_list_of_models_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(capsys)
    shown = cli("models", "Gemma-3-4b").out

    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["gemma-3-4b", "gemma-3-4b-it"]
    assert "No model has 'lamma-7b' in its name. Nearest: llama-7b" in cli("models", "lamma-7b").err
