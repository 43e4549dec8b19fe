"""Methods as data: where tensors start, what is refused, what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from adapters import random_tensors
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.choice import Choice
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.data.virtual import PLACEHOLDER, with_virtual_tokens
from edgetune.errors import UsageError
from edgetune.exporters.truncate import truncated
from edgetune.memory import Platform, estimate
from edgetune.methods import METHODS, build, initial_value, known_settings, method_class
from edgetune.methods.base import AdapterTensor
from edgetune.methods.dylora import DyLora
from edgetune.methods.initial import KeysValues, Principal, RowNorms, Tokens
from edgetune.methods.lora import Lora
from edgetune.model import resolve
from edgetune.model.families import shape_of
from edgetune.settings.spec import Checkpointing, knobs

SHAPE = shape_of(
    {
        "model_type": "llama", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    }
)  # fmt: skip


BOS = 25


@dataclass
class Numbers:
    """A base whose tensors are all the same matrix; a letter of a text is a token.

    Of a token its cache holds its number.
    """

    matrix: NDArray[np.float32]

    @property
    def vocabulary(self) -> int:
        return len(self.matrix)

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self.matrix

    def rows(self, indices: Sequence[int]) -> NDArray[np.float32]:
        return self.matrix[np.array(indices)]  # no indices are no whole numbers, as in torch

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [BOS] * special + [ord(letter) - ord("a") for letter in text if letter.isalpha()]

    def keys_values(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.array(tokens, np.float32)[:, None]


def _matrix(rows: int, columns: int) -> NDArray[np.float32]:
    draw = np.random.default_rng(0)
    decay = np.exp(-np.arange(columns) / 4)
    return (draw.normal(size=(rows, columns)) * decay).astype(np.float32)


def _prompt(choose: Tokens) -> NDArray[np.float32]:
    tensor = AdapterTensor(name="prompt", shape=(5, 8), initial=choose)
    return initial_value(tensor, 0, Numbers(_matrix(26, 8)))


def test_a_prompt_starts_from_a_text_repeated_to_its_length() -> None:
    found = _prompt(Tokens("text", "abc", factor=2.0))

    np.testing.assert_array_equal(found, 2 * _matrix(26, 8)[[0, 1, 2, 0, 1]])


@pytest.mark.parametrize(("length", "tokens"), [(6, [BOS, 0, 1, 2, 0, 1]), (2, [BOS, 0])])
def test_a_prefix_starts_from_a_text_as_the_model_reads_it(length: int, tokens: list[int]) -> None:
    tensor = AdapterTensor(name="prefix", shape=(length, 1), initial=KeysValues("abc"))

    found = initial_value(tensor, 0, Numbers(_matrix(26, 8)))

    assert found[:, 0].tolist() == tokens


@pytest.mark.parametrize("kind", ["prefix", "mam"])
def test_a_prefix_has_one_start(kind: str) -> None:
    starts = {
        "text": ({}, {"prefix_text": "Say what."}, {"prefix_initial": "text"}),
        "random": ({"reparameterize": True}, {"prefix_initial": "random"}),
    }
    for start, ways in starts.items():
        assert [build(kind, given).used()["prefix_initial"] for given in ways] == [start] * len(
            ways
        )
    for strange in (
        {"reparameterize": True, "prefix_initial": "text"},
        {"reparameterize": True, "prefix_text": "Say what."},
        {"prefix_initial": "random", "prefix_text": "Say what."},
        {"prefix_text": " "},
    ):
        with pytest.raises(UsageError, match="--prefix-initial"):
            build(kind, strange)


def test_a_network_learns_at_a_rate_of_its_own() -> None:
    prefix, network = build("prefix", {}), build("prefix", {"reparameterize": True})

    assert prefix.usual_factor == prefix.rate_factor > network.usual_factor


def test_a_prompt_starts_from_the_mean_of_each_label_and_common_tokens() -> None:
    found, matrix = _prompt(Tokens("labels", "ab, c")), _matrix(26, 8)

    np.testing.assert_allclose(found[0], matrix[:2].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found[1], matrix[2])
    assert all(any((row == known).all() for known in matrix) for row in found[2:])


def test_labels_that_are_as_many_as_a_prompt_is_long_are_all_of_it() -> None:
    matrix = _matrix(26, 8)
    np.testing.assert_array_equal(_prompt(Tokens("labels", "a,b,,c,d,e,f,")), matrix[:5])
    assert np.isfinite(_prompt(Tokens("labels", "a,,b, "))).all()


@pytest.mark.parametrize("choose", [Tokens("labels", "a,\x00"), Tokens("text", "\x00")])
def test_a_start_of_which_there_are_no_tokens_is_refused(choose: Tokens) -> None:
    with pytest.raises(UsageError, match="makes no tokens of"):
        _prompt(choose)


@pytest.mark.parametrize("rows", [40, 600], ids=["exact", "by-iteration"])
def test_pissa_starts_from_the_best_approximation(rows: int) -> None:
    matrix, scale = _matrix(rows, rows), 2.0
    names = ("left", (rows, 3)), ("right", (3, rows))
    b, a = (
        initial_value(
            AdapterTensor(name=side, shape=size, initial=Principal("w", side, scale)),
            0,
            Numbers(matrix),
        )
        for side, size in names
    )
    left = np.linalg.norm(matrix - scale * b @ a)

    assert left == pytest.approx(np.sqrt((np.linalg.svd(matrix)[1][3:] ** 2).sum()), rel=1e-3)


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 24), (24, 4)])
def test_pissa_has_no_more_components_than_a_narrow_matrix(outputs: int, inputs: int) -> None:
    matrix, scale, rank = _matrix(outputs, inputs), 2.0, 6
    b, a = (
        initial_value(
            AdapterTensor(name=side, shape=size, initial=Principal("w", side, scale)),
            0,
            Numbers(matrix),
        )
        for side, size in (("left", (outputs, rank)), ("right", (rank, inputs)))
    )

    assert (b.shape, a.shape) == ((outputs, rank), (rank, inputs))
    assert not b[:, 4:].any()
    assert not a[4:].any()
    np.testing.assert_allclose(scale * b @ a, matrix, atol=1e-5)


def test_magnitudes_are_the_norms_of_rows() -> None:
    tensor = AdapterTensor(name="m", shape=(26,), initial=RowNorms("w"))

    found = initial_value(tensor, 0, Numbers(_matrix(26, 8)))

    np.testing.assert_allclose(found, np.linalg.norm(_matrix(26, 8), axis=1), rtol=1e-6)


@pytest.mark.parametrize("kind", METHODS)
def test_settings_of_one_name_are_of_one_type(kind: str) -> None:
    """A flag is shared by all methods that have the setting."""
    own = {knob.name: knob for knob in knobs(method_class(kind))}
    for other in METHODS:
        for knob in knobs(method_class(other)):
            if knob.name in own:
                assert own[knob.name].type == knob.type


@pytest.mark.parametrize("kind", [kind for kind in METHODS if "layers" in known_settings(kind)])
def test_only_the_last_blocks_are_adapted(kind: str) -> None:
    method = build(kind, {"layers": 1})

    assert method.first_layer(SHAPE) == 2
    assert not any(".layers.0." in x.name or ".layers.1." in x.name for x in method.tensors(SHAPE))


def test_a_prompt_needs_a_text_only_if_it_starts_from_one() -> None:
    for settings in ({"prompt_initial": "text"}, {"prompt_text": "hello"}):
        with pytest.raises(UsageError, match="--prompt-text"):
            build("prompt", settings)


def test_dylora_is_cut_to_a_rank_and_scaled_as_it_was_trained() -> None:
    trained = DyLora(rank=4, alpha=6.0)
    adapter = LoadedAdapter(
        method=trained.on_disk(), tensors=random_tensors(trained, SHAPE), base=None
    )
    found = truncated(adapter, 2, trained)

    assert isinstance(found.method, Lora)
    assert found.method.scale == trained.scale_at(2) == 3.0
    assert {n: x.shape for n, x in found.tensors.items()} == {
        tensor.name: tensor.shape for tensor in found.method.tensors(SHAPE)
    }
    with pytest.raises(UsageError, match="from 1 to 4"):
        truncated(adapter, 5, trained)
    with pytest.raises(UsageError, match="--method dylora"):
        truncated(adapter, 2, Lora(rank=4))


def test_modules_are_named_by_three_words() -> None:
    for words, found in (("lm_head",), "no module"), (("norms", "norms"), "there twice"):
        with pytest.raises(UsageError, match=found):
            build("lora", {"modules_to_save": words})


@pytest.mark.parametrize("kind", ["lora", "dora", "dylora", "lora-fa"])
def test_modules_that_cannot_be_trained_beside_an_update_are_refused(kind: str) -> None:
    every, size = {"context": 8, "quantization": "none"}, 50 * 8
    whole = build(kind, {"modules_to_save": ("embeddings", "head")})
    assert whole.refusals(SHAPE, **every) == []
    assert whole.parameters(SHAPE) - build(kind, {}).parameters(SHAPE) == 2 * size
    assert whole.on_disk().parameters(SHAPE) >= whole.parameters(SHAPE)

    (reason,) = build(kind, {"modules_to_save": ("norms",), "layers": 1}).refusals(SHAPE, **every)
    assert "those of all blocks" in reason
    gemma4 = resolve("gemma-4-e2b").shape
    (reason,) = build(kind, {"modules_to_save": ("embeddings",)}).refusals(gemma4, **every)
    assert "table of their own" in reason


def test_a_cut_leaves_modules_whole() -> None:
    trained = DyLora(rank=4, modules_to_save=("head",))
    tensors = random_tensors(trained.on_disk(), SHAPE)
    adapter = LoadedAdapter(method=trained.on_disk(), tensors=tensors, base=None)
    cut = truncated(adapter, 2, trained)
    assert {n: x.shape for n, x in cut.tensors.items()} == {
        tensor.name: tensor.shape for tensor in cut.method.tensors(SHAPE)
    }


def test_placeholders_stand_before_every_document() -> None:
    batch = MicroBatch(
        tokens=np.array([[5, 6, 7, 8], [9, 9, 9, 0]], np.int32),
        targets=np.array([[6, IGNORED, 8, IGNORED], [9, 9, IGNORED, IGNORED]], np.int32),
        documents=((2, 2), (3,)),
    )
    p, no = PLACEHOLDER, IGNORED
    found = with_virtual_tokens(batch, (2, 2))

    assert found.tokens.tolist() == [[p, p, 5, 6, p, p, 7, 8], [p, p, 9, 9, 9, p, p, p]]
    assert found.targets.tolist() == [[no, no, 6, no, no, no, 8, no], [no, no, 9, 9, *[no] * 4]]
    assert found.documents == ((4, 4), (5,))


def test_each_row_gets_its_own_placeholders() -> None:
    batch = MicroBatch(
        tokens=np.array([[5, 6, 7], [9, 9, 0], [8, 8, 8]], np.int32),
        targets=np.array([[6, 7, 8], [9, 9, IGNORED], [8, 8, 8]], np.int32),
        documents=((3,), (2,), (3,)),
    )
    p, no = PLACEHOLDER, IGNORED
    found = with_virtual_tokens(batch, (0, 2, 1))

    assert found.tokens.tolist() == [[5, 6, 7, p, p], [p, p, 9, 9, p], [p, 8, 8, 8, p]]
    assert found.targets.tolist() == [[6, 7, 8, no, no], [no, no, 9, 9, no], [no, 8, 8, 8, no]]
    assert found.documents == ((3,), (4,), (4,))


@pytest.mark.parametrize("kind", ["cpu", "mlx"])
def test_a_constant_half_takes_less_memory(kind: Literal["cpu", "mlx"]) -> None:
    shape = resolve("smollm2-135m").shape
    fixed: dict[str, Any] = {
        "quantization": "none", "checkpointing": Checkpointing(layers=0), "placement": "resident",
        "optimizer": "adamw", "compute_dtype": "float32", "context": 512, "micro_batch": 1,
        "accumulation": 1, "loss_chunk": 64,
    }  # fmt: skip

    platform = Platform(kind=kind, multiplies_16bit=False)
    more, less = (
        estimate(shape, Choice(method=build(name, {}), **fixed), platform).parts
        for name in ("lora", "lora-fa")
    )
    assert less.activations < 0.85 * more.activations
    assert less.optimizer < 0.6 * more.optimizer
    assert less.adapter == more.adapter


@pytest.mark.parametrize(("heads", "reasons"), [(1, 1), (2, 0)])
def test_attention_in_groups_needs_heads_that_can_be_halved(heads: int, reasons: int) -> None:
    shape = replace(SHAPE, blocks=tuple(replace(x, kv_heads=heads) for x in SHAPE.blocks))
    method = Lora(attention_group=32)

    found = method.refusals(shape, context=64, quantization="none")
    assert len(found) == reasons
    assert all("--attention-group" in reason for reason in found)


LFM2 = shape_of(
    {
        "model_type": "lfm2", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "layer_types": ["full_attention", "full_attention", "conv", "conv"],
    }
)  # fmt: skip


@pytest.mark.parametrize(("layers", "reasons"), [(1, 1), (2, 1), (3, 0), (None, 0)])
def test_prompts_beside_attention_need_a_block_that_has_it(
    layers: int | None, reasons: int
) -> None:
    method = build("llama-adapter", {"layers": layers})

    found = method.refusals(LFM2, context=64, quantization="none")
    assert len(found) == reasons
    assert all(f"--layers {layers} in" in x and "--layers 3 has one" in x for x in found)
    assert bool(method.tensors(LFM2)) is not bool(reasons)


def test_projections_that_the_last_blocks_lack_are_told_as_theirs() -> None:
    method = build("lora", {"layers": 2, "targets": ("q_proj",)})

    with pytest.raises(
        UsageError, match=r"in the blocks of --layers 2 .* named q_proj. There are in_proj"
    ):
        method.tensors(LFM2)


def test_a_rate_of_b_against_that_of_a_is_refused_where_a_has_none() -> None:
    method = build("lora-fa", {"lora_plus": 4.0})

    (reason,) = method.refusals(SHAPE, context=64, quantization="none")
    assert "--lora-plus" in reason
