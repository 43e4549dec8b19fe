"""A session's promises: state that survives, memory that does not grow, nothing left behind."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import continued
from engines import BATCH, micro_batch
from models import LONGROPE, make_model
from sessions import plan_for, session_for
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgetune.backend import DeviceOutOfMemoryError, GenerateOptions, Tensors
from edgetune.errors import UsageError
from edgetune.memory.generation import cache_bytes
from edgetune.methods.base import Method
from edgetune.methods.dora import Dora
from edgetune.methods.lora import Lora
from edgetune.methods.prefix import Prefix
from edgetune.methods.prompt import Prompt
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing
from edgetune_torch import memory, row_norms
from edgetune_torch.opening import open_session
from edgetune_torch.out_of_memory import SIGNS, out_of_memory
from edgetune_torch.session import TorchSession

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox")
DISK = {"placement": "disk", "embedding": "disk", "head": "disk"}
OPTIMIZERS = ("adamw", "adamw-8bit")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 300}


@pytest.fixture
def llama(tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", "llama"))


def _step(session: TorchSession, seed: int = 0) -> float:
    batch = micro_batch((9, 6), (17,), width=19, seed=seed)
    result = session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-2)
    return result.loss


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("places", [{}, DISK], ids=["resident", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_greedy_as_in_transformers(
    family: str, places: dict[str, Any], tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    theirs = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    prompt = list(range(3, 12))
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    with session_for(model, **places) as session:
        found = continued(session, prompt, GenerateOptions(max_tokens=12), adapter=None)

    assert found == expected


@pytest.mark.parametrize(
    "method",
    [Lora(rank=3), Prefix(prefix_length=3, prefix_initial="random"), Prompt(prompt_length=3)],
)
def test_generation_goes_on_beyond_what_longrope_leaves_as_it_was(
    method: Method, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "base", "llama", rope_parameters=LONGROPE)
    with session_for(LocalModel.open(folder), method=method) as session:
        _step(session)
        for start in (3, 9, 14, 18):
            prompt = list(range(3, 3 + start))
            found = continued(session, prompt, GenerateOptions(max_tokens=9))
            alone = [
                session.logits(prompt + found[:count])[-1].argmax() for count in range(len(found))
            ]
            assert found == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_cache_is_as_large_as_is_counted(family: str, dtype: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    with session_for(model, compute_dtype=dtype) as session:
        cache = session.new_cache(None, 9 + 5)
        held = sum(x.nbytes for x in (*cache.keys, *cache.values))
        assert held == cache_bytes(model.shape, session.spec.choice, 9 + 5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("places", [{}, DISK], ids=["resident", "disk"])
def test_a_restored_session_goes_on_bit_for_bit(
    optimizer: str, places: dict[str, Any], tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama", **WIDE))
    knobs = {"optimizer": optimizer, "quantization": "nf4", **places}
    with session_for(model, **knobs) as session:
        for seed in range(3):
            _step(session, seed)
        saved = session.adapter_tensors(), session.optimizer_tensors()
        rest = [_step(session, seed) for seed in (3, 4)]
        end = session.adapter_tensors(), session.optimizer_tensors()
    with session_for(model, **knobs) as session:
        session.restore(*saved)
        again = [_step(session, seed) for seed in (3, 4)]
        end_again = session.adapter_tensors(), session.optimizer_tensors()

    assert rest == again
    assert _same(end[0], end_again[0])
    assert _same(end[1], end_again[1])


@pytest.mark.parametrize("method", [Dora(rank=2), Lora(rank=2, lora_initial="pissa")])
def test_opening_leaves_nothing_that_no_product_needs(llama: LocalModel, method: Method) -> None:
    with session_for(llama, method=method, quantization="int8") as session:
        assert session.engine.decoder.weights.workspace.nbytes == 0


def test_norms_of_rows_are_computed_once_a_step(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on the weights alone, whatever the number of micro-batches and recomputations."""
    calls: list[int] = []
    crossed = row_norms._crossed

    def counted(*args: Tensor) -> Tensor:
        calls.append(len(args[0]))
        return crossed(*args)

    monkeypatch.setattr(row_norms, "_crossed", counted)
    batches = [micro_batch((9, 6), (17,), width=19, seed=seed) for seed in range(3)]
    loss_tokens = sum(batch.loss_tokens for batch in batches)
    choices = {"method": Dora(rank=2), "checkpointing": Checkpointing(layers=1)}
    with session_for(llama, **choices) as session:
        outputs = sum(linear.outputs for block in llama.shape.blocks for linear in block.linears)
        for step in (1, 2):
            session.step(batches, loss_tokens=loss_tokens, learning_rate=1e-2)
            assert sum(calls) == step * outputs


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_training_goes_on_after_an_evaluation(llama: LocalModel, quantization: str) -> None:
    """bitsandbytes' own Linear4bit trains nothing after it was evaluated on some CPUs (0.50)."""
    with session_for(llama, quantization=quantization) as session:
        _step(session)
        before = session.adapter_tensors()
        session.evaluate([BATCH])
        continued(session, [3, 4], GenerateOptions(max_tokens=2))
        _step(session)
        after = session.adapter_tensors()

    assert all(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "said",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_step_that_runs_out_of_memory_changes_nothing(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    with session_for(llama) as session, session_for(llama) as undisturbed:
        _step(session)
        _step(undisturbed)
        before = session.adapter_tensors(), session.optimizer_tensors()
        with monkeypatch.context() as patched:
            _fail_in_the_second_block(session, patched, said)
            with pytest.raises(DeviceOutOfMemoryError, match=re.escape(said)):
                _step(session)
        after = session.adapter_tensors(), session.optimizer_tensors()

        assert _same(before[0], after[0])
        assert _same(before[1], after[1])
        assert _step(session) == _step(undisturbed)


@pytest.mark.parametrize(
    "error", [*map(RuntimeError, SIGNS), MemoryError(), torch.OutOfMemoryError("no memory")]
)
def test_every_way_to_run_out_of_memory_is_known(error: Exception) -> None:
    with pytest.raises(DeviceOutOfMemoryError), out_of_memory():
        raise error
    with pytest.raises(RuntimeError, match="another"), out_of_memory():
        raise RuntimeError("another")


def test_a_look_at_the_memory_without_memory_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def look() -> int:
        looks.append(0)
        if len(looks) < 3:
            raise MemoryError
        return 7

    monkeypatch.setattr(memory, "anonymous_bytes", look)
    watch = memory.MemoryWatch(torch.device("cpu"), 0)
    deadline = time.monotonic() + 20
    while len(looks) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.close()
    assert watch.read().peak_bytes == 7
    assert len(looks) >= 5


def _fail_in_the_second_block(
    session: TorchSession, patched: pytest.MonkeyPatch, said: str
) -> None:
    """Let the backward pass fail when it has added to some gradients."""
    calls, decoder = iter(range(5)), session.engine.decoder

    def failing(block: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise RuntimeError(said)
        return block(*arguments)

    patched.setattr(session.engine, "checkpointed", 3)
    for name in ("block", "block_again"):
        patched.setattr(decoder, name, partial(failing, getattr(decoder, name)))


@pytest.mark.skipif(sys.platform != "linux", reason="counts through /proc")
@pytest.mark.parametrize("places", [{}, DISK], ids=["resident", "disk"])
def test_closing_gives_everything_back(
    llama: LocalModel, places: dict[str, Any], tmp_path: Path
) -> None:
    def held() -> tuple[Counter[str], int]:
        gc.collect()  # what tests before this one left to the collector is not the session's
        return _open_files(), _entries("/proc/self/task")

    with session_for(llama, quantization="nf4", **places) as session:
        _step(session)
    (files, threads), cached = held(), _cached()
    checkpointing = Checkpointing(layers=2, offload="disk")
    with session_for(llama, quantization="nf4", checkpointing=checkpointing, **places) as session:
        _step(session)

    files_now, threads_now = held()  # what other tests left open may be gone by now
    assert files_now - files == Counter()
    assert threads_now <= threads
    assert _cached() == cached


def _open_files() -> Counter[str]:
    """Return what is open, but for what the session reads of the kernel at any time."""
    links = Path("/proc/self/fd").iterdir()
    names = (str(link.readlink()) for link in links if link.is_symlink())
    return Counter(name for name in names if not name.startswith("/proc/"))


def _entries(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def _cached() -> list[Path]:
    return sorted((Path(os.environ["EDGETUNE_CACHE"]) / "weights").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads anonymous memory from /proc")
@pytest.mark.parametrize("places", [{}, DISK], ids=["resident", "disk"])
def test_nothing_grows_in_200_steps(tmp_path: Path, places: dict[str, Any]) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama"))
    checkpointing = Checkpointing(layers=2, offload="disk")
    with session_for(
        model, quantization="nf4", optimizer="adamw-8bit", checkpointing=checkpointing, **places
    ) as session:
        for seed in range(20):
            _step(session, seed)
        files, memory = _open_files().total(), session.memory().current_bytes
        for seed in range(180):
            _step(session, seed)

        assert _open_files().total() == files
        assert session.memory().current_bytes < 1.01 * memory


def test_a_page_of_state_needs_a_card(llama: LocalModel) -> None:
    with pytest.raises(UsageError, match="adamw-8bit"):
        open_session(plan_for(llama, optimizer="paged-adamw-8bit").spec, llama)


WALLED = """
import sys
import threading
import time
from pathlib import Path
sys.path.insert(0, "tests")
from engines import micro_batch
from sessions import session_for
from edgetune.backend import DeviceOutOfMemoryError
from edgetune.memory.generation import cache_bytes
from edgetune.model import LocalModel
from edgetune.device.footprint import anonymous_bytes

def step(session, rows):
    batch = micro_batch(*[(500,)] * rows, width=500)
    session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-2)

model = LocalModel.open(Path(sys.argv[1]))
with session_for(model, limit=anonymous_bytes() + 150_000_000) as session:
    step(session, 1)
    try:
        step(session, 64)
    except DeviceOutOfMemoryError as error:
        print("stopped:", error)
    step(session, 1)
    widest = 64 * 500 * 256 * 4  # of a tensor; some come between one look and the next
    assert session.memory().peak_bytes < session.spec.limits.limit_bytes + 4 * widest
with session_for(model) as session:
    step(session, 64)
    print("without a limit")
"""


def test_memory_is_limited(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama", **WIDE, max_position_embeddings=512)
    run = subprocess.run(
        [sys.executable, "-c", WALLED, str(folder)], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("stopped:")
    assert run.stdout.endswith("without a limit\n")


TOO_LOW = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from sessions import session_for
from edgetune.errors import OutOfMemoryError
from edgetune.model import LocalModel
from edgetune.device.footprint import anonymous_bytes

model = LocalModel.open(Path(sys.argv[1]))
try:
    with session_for(model, quantization="nf4", limit=anonymous_bytes() // 2):
        print("opened")
except OutOfMemoryError as error:
    print("refused:", error)
with session_for(model):
    print("without a limit")
"""


def test_a_model_beyond_the_limit_is_said(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama", hidden_size=512, intermediate_size=4096)
    run = subprocess.run(
        [sys.executable, "-c", TOO_LOW, str(folder)], capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("refused: The model does not fit while it is opened")
    assert run.stdout.endswith("without a limit\n")


def test_a_session_that_is_forgotten_is_watched_no_more(llama: LocalModel) -> None:
    def watching() -> int:
        gc.collect()
        time.sleep(0.1)
        return sum(thread.name == "edgetune-memory" for thread in threading.enumerate())

    before = watching()
    session = open_session(plan_for(llama).spec, llama)
    assert watching() == before + 1
    del session
    assert watching() == before
