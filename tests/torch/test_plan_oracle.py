"""The closed form of a run's memory against live tensors counted in the engine itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from statistics import median
from typing import Any

import pytest
from models import MIXERS
from oracle import Case, Compared, cases, compare, generation, opening, plain
from products import products

from edgetune.memory import MemoryModel, Platform, estimate
from edgetune.methods import METHODS, Method, build
from edgetune.methods.lora import Lora
from edgetune.methods.lora_fa import LoraFa
from edgetune.settings.spec import Checkpointing, ComputeDtype
from edgetune_torch.dry_run import live_peaks

DRAWN, LONG = 24, 400
WORST, USUAL = 0.02, 0.003
"""Shares by which plans may be over: at most, and usually."""
FORKED = (((32, 224), (0, 16)), ((228, 28), (0, 200)), ((80, 48, 80, 48), (0, 40, 0, 40)))
"""Lengths of the documents of a row, and what each goes on from."""
SHORTEST = 128.0
DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16")
EVERY_METHOD = [*((kind, {}) for kind in METHODS), ("prefix", {"reparameterize": True})]
IN_BOTH_DTYPES = [
    pytest.param(*method, dtype, marks=[pytest.mark.long] if (place + other) % 2 else [])
    for place, method in enumerate(EVERY_METHOD)
    for other, dtype in enumerate(DTYPES)
]
"""Each method in one of both dtypes; the other one in the long form."""
MORE = 1.15


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """Yield two processes: a dry run is a matter of one processor."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "drawn", [DRAWN, pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(36000)])]
)
def test_the_closed_form_is_never_under_and_hardly_over(drawn: int) -> None:
    with workers() as pool:
        found = [item for each in pool.map(compare, cases(drawn), chunksize=4) for item in each]
    assert len(found) >= 2 * drawn
    assert {item.multiplies_16bit for item in found} == {True, False}
    under = [_words(item) for item in found if item.over < 0]
    far = [_words(item) for item in found if item.over > WORST]
    assert not under, "\n".join(under)
    assert not far, "\n".join(far)
    assert median(item.over for item in found) <= USUAL


@pytest.mark.parametrize(("kind", "settings", "dtype"), IN_BOTH_DTYPES)
def test_no_method_needs_more_than_planned(
    kind: str, settings: dict[str, Any], dtype: ComputeDtype
) -> None:
    for checkpointed in (0, 2):
        case = next(cases(1))
        kept = Checkpointing(layers=checkpointed)
        choice = replace(
            case.choice, method=build(kind, settings), quantization="none", checkpointing=kept,
            placement="resident", compute_dtype=dtype, context=128, micro_batch=2,
        )  # fmt: skip
        for item in compare(Case("smollm2-135m", 2, 512, choice)):
            assert item.over >= 0, _words(item)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("qwen3_moe", Lora(rank=16, targets=("experts",))),
        ("gpt_oss", Lora(rank=8, targets=("experts", "attention"), layers=1)),
        ("qwen2_moe", LoraFa(rank=16, targets=("experts.down_proj",))),
        ("nemotron_h_moe", Lora(rank=16, targets=("experts",))),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_updates_of_experts_take_what_is_planned(
    model: str, method: Method, dtype: ComputeDtype
) -> None:
    for checkpointed, tile, quantization in ((0, 0, "none"), (2, 128, "nf4")):
        choice = plain(
            method=method, checkpointing=Checkpointing(layers=checkpointed), tile=tile,
            quantization=quantization, compute_dtype=dtype, context=256, micro_batch=2,
        )  # fmt: skip
        for item in compare(Case(model, 2, 512, choice)):
            assert 0 <= item.over < WORST, _words(item)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "words"),
    [("smollm2-135m", ("embeddings", "norms")), ("pythia-160m", ("embeddings", "head", "norms"))],
    ids=["tied", "untied"],
)
def test_modules_trained_whole_take_what_is_planned(
    model: str, words: tuple[str, ...], dtype: ComputeDtype
) -> None:
    method = build("lora", {"rank": 8, "modules_to_save": words})
    for head, chunk in (("resident", 64), ("disk", 256)):
        choice = plain(
            method=method, quantization="none", compute_dtype=dtype, context=128, micro_batch=2,
            head=head, loss_chunk=chunk, checkpointing=Checkpointing(layers=2),
        )  # fmt: skip
        for item in compare(Case(model, 2, 5000, choice)):
            assert 0 <= item.over <= WORST, _words(item)


@pytest.mark.parametrize(
    ("model", "dtype", "kind"),
    [
        ("smollm2-135m", "float32", "lora"),
        ("smollm2-135m", "bfloat16", "prefix"),
        pytest.param("bloom", "float32", "lora", marks=pytest.mark.long),
        ("gpt_oss", "float32", "lora"),
        pytest.param("gpt_oss", "bfloat16", "prefix", marks=pytest.mark.long),
        pytest.param("ministral", "float32", "prefix", marks=pytest.mark.long),
    ],
)
def test_answers_that_share_their_prompt_fit_into_the_plan(
    model: str, dtype: ComputeDtype, kind: str
) -> None:
    case = Case(
        model,
        1,
        512,
        plain(context=256, micro_batch=2, compute_dtype=dtype, method=build(kind, {})),
    )
    platform = Platform(kind="cpu", multiplies_16bit=False)
    sharing = MemoryModel(
        case.shape, case.choice.method, platform, documents=SHORTEST, forked=True
    ).estimate(case.choice)
    with products(multiplies_16bit=False):
        alone = live_peaks(case.shape, case.choice)["train"]
        for documents, shared in FORKED:
            found = live_peaks(case.shape, case.choice, documents, shared=shared)
            for phase, size in found.items():
                assert size <= getattr(sharing.phases, phase) - sharing.parts.runtime
            assert found["train"] <= MORE * alone


def test_long_rows_in_tiles_take_what_is_planned() -> None:
    """Of long rows a token adds the block's input, its gradient, keys and values, and nothing else.

    But for one step: a tile attends to pieces of 2,048 keys before it, and the last tile of 2,048
    tokens has only 1,536. On the way back a piece is there in float32, with its gradients.
    """
    kept, planned = Checkpointing(layers=1, offload="disk"), []
    for context in (2048, 4096, 6144):
        choice = plain(
            method=build("lora", {"rank": 32}), quantization="none", checkpointing=kept,
            compute_dtype="bfloat16", context=context, tile=512, loss_chunk=256, head="disk",
            optimizer="adamw-8bit",
        )  # fmt: skip
        case = Case("llama-3.1-8b", 1, 512, choice)
        planned.append(estimate(case.shape, choice, Platform(kind="cpu", multiplies_16bit=True)))
        for item in compare(case) if context < 6144 else ():
            assert 0 <= item.over < 0.001, _words(item)
    first, then, last = (each.phases.train for each in planned)
    states, keys = 2 * 4096, 2 * 1024
    a_token = 2 * states + 2 * keys + 4 * keys
    piece = 512 * 2 * 2 * 4 * 1024
    assert (last - then) / 2048 == pytest.approx(a_token, rel=0.001)
    assert 0 < then - first - 2048 * a_token < piece


@pytest.mark.parametrize(
    ("family", "context", "documents", "dtype"),
    [
        *((family, 700, (), "bfloat16") for family in MIXERS),
        *((family, 64, (), "float32") for family in MIXERS),
        *((family, 300, (200, 100), "float32") for family in MIXERS),
        ("falcon_h1", 300, (), "bfloat16"),
        ("nemotron_h", 300, (), "bfloat16"),
    ],
)
def test_a_block_that_carries_a_state_takes_what_is_planned(
    family: str, context: int, documents: tuple[int, ...], dtype: ComputeDtype
) -> None:
    """Of a model that has no other block, so that nothing else has a peak."""
    choice = plain(context=context, compute_dtype=dtype, micro_batch=1 if documents else 2)
    whole = Case(family, 2, 512, choice).shape
    block = next(block for block in whole.blocks if block.recurrent is not None)
    shape = replace(whole, blocks=(block,))
    model = MemoryModel(
        shape, choice.method, Platform(kind="cpu", multiplies_16bit=False),
        documents=context / (len(documents) or 1),
    )  # fmt: skip
    planned = model.estimate(choice)
    with products(multiplies_16bit=False):
        held = live_peaks(shape, choice, documents or None)
    for phase, size in held.items():
        over = (getattr(planned.phases, phase) - planned.parts.runtime) / size - 1
        assert 0 <= over < 0.01, (phase, over)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("ministral", build("prefix", {})),
        ("phimoe", LoraFa(rank=16, targets=("experts.down_proj",))),
        ("gpt_oss", Lora(rank=8)),
    ],
    ids=lambda x: x if isinstance(x, str) else x.kind,
)
def test_queries_are_put_together_only_while_they_are_multiplied(
    model: str, method: Method
) -> None:
    """Those of heads that share keys, where a tile's scores are made: an evaluation's peak."""
    choice = plain(
        method=method, quantization="nf4", compute_dtype="bfloat16", context=256, tile=128,
        checkpointing=Checkpointing(layers=2, offload="disk"),
    )  # fmt: skip
    for item in compare(Case(model, 2, 512, choice)):
        assert 0 <= item.over < 0.003, _words(item)


@pytest.mark.parametrize("model", ["gemma3n_text", "gemma4_text"])
def test_capped_logits_take_what_is_planned(model: str) -> None:
    """Behind a head on disk, by which they are multiplied in 16 bits or float32."""
    choice = plain(
        compute_dtype="bfloat16", context=256, micro_batch=4, loss_chunk=1024, head="disk",
        checkpointing=Checkpointing(layers=1, offload="disk"), placement="disk", embedding="disk",
    )  # fmt: skip
    for item in compare(Case(model, 1, 5000, choice)):
        assert 0 <= item.over < 0.003, _words(item)


def test_scratch_is_that_of_projections_which_stay_frozen() -> None:
    """Of a mixture that is trained in full only the experts, which are smaller than all else."""
    choice = plain(
        method=build("full", {}), compute_dtype="bfloat16", micro_batch=4, loss_chunk=64,
        head="int8", embedding="disk", optimizer="adamw-8bit",
    )  # fmt: skip
    for item in compare(Case("deepseek_v2", 1, 512, choice)):
        assert 0 <= item.over < 0.005, _words(item)


def test_nothing_is_learned_of_a_trained_prompt() -> None:
    """Of whose positions no logits are made, also in a chunk that would hold them all."""
    choice = plain(method=build("prompt", {}), context=512, loss_chunk=1024, head="int8")
    for item in compare(Case("opt", 1, 5000, choice)):
        assert 0 <= item.over < 0.005, _words(item)


@pytest.mark.parametrize(
    ("model", "targets", "dtype", "tile"),
    [
        ("bloom", "all-linear", "float32", 256),  # whose scores fall with the distance
        ("gemma-3-1b", "mlp", "bfloat16", 128),  # keys and values want no gradients
        ("lfm2-350m", "all-linear", "bfloat16", 256),  # reads two tokens before its own
        ("qwen3.5-0.8b", "all-linear", "bfloat16", 256),  # goes on from a state
    ],
)
def test_tiles_and_a_shorter_last_one_take_what_is_planned(
    model: str, targets: str, dtype: ComputeDtype, tile: int
) -> None:
    choice = plain(
        method=Lora(targets=(targets,)), compute_dtype=dtype, context=700, tile=tile,
        checkpointing=Checkpointing(layers=1),
    )  # fmt: skip
    for item in compare(Case(model, 1, 512, choice)):
        assert 0 <= item.over < 0.005, _words(item)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
@pytest.mark.usefixtures("products")
def test_prompts_that_go_together_fit_into_the_plan(kind: str) -> None:
    choice = plain(
        method=build(kind, {}), compute_dtype="bfloat16", context=64, micro_batch=8,
        loss_chunk=64, head="disk",
    )  # fmt: skip
    for prompt, answer in ((40, 2), (2, 10)):
        allowed, held = generation(Case("gemma-3-1b", 2, 256_000, choice), prompt, answer)
        assert held <= allowed, (prompt, answer)


@pytest.mark.parametrize(
    ("model", "dtype", "length", "knobs"),
    [
        ("smollm2-135m", "float32", 20, {}),
        ("smollm2-135m", "bfloat16", 300, {}),
        ("smollm2-135m", "bfloat16", 20, {"quantization": "nf4"}),
        ("smollm2-135m", "bfloat16", 20, {"placement": "disk", "quantization": "int8"}),
        ("smollm2-135m", "float32", 1000, {"context": 512, "tile": 128}),
        ("gemma2", "bfloat16", 700, {}),
        ("bloom", "float32", 100, {}),
        ("gpt_oss", "bfloat16", 100, {}),
        ("lfm2", "bfloat16", 300, {"context": 512, "tile": 128}),
        ("falcon_h1", "float32", 300, {}),
    ],
)
def test_the_text_that_a_prefix_starts_from_is_read_within_the_plan(
    model: str, dtype: ComputeDtype, length: int, knobs: dict[str, Any]
) -> None:
    method = build("prefix", {"prefix_length": length})
    choice = plain(**{"method": method, "compute_dtype": dtype, "context": 32} | knobs)
    for multiplies_16bit in (True, False):
        case = Case(model, 2, 512, choice)
        allowed, held, training = opening(case, multiplies_16bit=multiplies_16bit)
        assert held <= allowed < max(1.25 * held, training), (allowed, held, training)


def _words(item: Compared) -> str:
    case = item.case
    products = "16-bit" if item.multiplies_16bit else "float32"
    return (
        f"{item.over:+.2%} {item.phase} {products} products {case.model} L={case.layers} "
        f"{'mixed ' if case.mixed else ''}"
        f"V={case.vocabulary} "
        f"{case.choice}"
    )
