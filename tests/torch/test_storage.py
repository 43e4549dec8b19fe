"""How frozen matrices are stored: the formats, and the cache of quantized weights on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import make_model
from safetensors.torch import load_file, save_file

from edgetune.errors import DiskError, ModelError, UsageError
from edgetune.model import LocalModel
from edgetune.owned import own_path, replacing_shared
from edgetune_torch import cache
from edgetune_torch.checkpoints import DiskCheckpoints
from edgetune_torch.int8 import product
from edgetune_torch.load import Loader, Placements, Weights
from edgetune_torch.matrices import store
from edgetune_torch.pages import Files
from edgetune_torch.sources import Checkpoint
from edgetune_torch.streaming import HostSlot

SHAPES = [(64, 128), (33, 70), (300, 2048)]
CPU = torch.device("cpu")


@pytest.fixture
def llama(tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", "llama"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def _values(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.randn(shape) * 0.02).to(dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_that_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    values = _values(shape, dtype)
    packed, state = quantize_4bit(values, blocksize=64, compress_statistics=True, quant_type="nf4")
    ours = store(values, "nf4")
    state.dtype = torch.float32
    theirs = dequantize_4bit(packed, state)

    assert torch.equal(ours.parts["codes"][: packed.numel()], packed.view(-1))
    # bitsandbytes rounds some scales to the second nearest value
    different = ours.parts["scales"] != state.absmax
    assert int(different.sum()) <= 0.005 * len(different) + 3
    assert (ours.dense(torch.float32) - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_takes_the_planned_bytes(shape: tuple[int, int]) -> None:
    size, blocks = shape[0] * shape[1], -(-shape[0] * shape[1] // 64)

    assert store(_values(shape, torch.float32), "nf4").nbytes == (
        32 * blocks + blocks + 4 * -(-blocks // 256) + 4
    )
    assert store(_values(shape, torch.float32), "int8").nbytes == size + 4 * shape[0]


def test_int8_is_the_nearest_of_255_values_a_row() -> None:
    values = _values((6, 50), torch.float32)
    values[2] = 0
    dense = store(values, "int8").dense(torch.float32)
    step = values.abs().amax(1, keepdim=True) / 127

    assert bool(((dense - values).abs() <= 0.5001 * step).all())
    assert torch.equal(dense[2], values[2])


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_dense_matrix_in_bfloat16_is_the_rounded_one(quantization: str) -> None:
    matrix = store(_values((64, 96), torch.bfloat16), quantization)
    wide = matrix.dense(torch.float32).clone()

    assert torch.equal(matrix.dense(torch.bfloat16), wide.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_in_one_product_is_int8_by_rows(dtype: torch.dtype) -> None:
    matrix = store(_values((300, 70), torch.float32), "int8")
    out = torch.empty(300, 70, dtype=dtype)

    assert torch.equal(
        product(matrix.parts["codes"], matrix.parts["scales"], out), matrix.dense(dtype)
    )


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="nf4"):
        store(_values((4, 4), torch.float32), "q4")


def _load(model: LocalModel, blocks: str = "resident") -> Weights:
    return Loader(model, CPU, "nf4", Placements(blocks=blocks)).load()  # type: ignore[arg-type]


def _dense(weights: Weights) -> list[torch.Tensor]:
    found = [
        weights.blocks[layer].matrices["q"].dense(torch.float32).clone()
        for layer in weights.blocks.walk(range(len(weights.blocks)))
    ]
    weights.close()
    return found


def test_a_second_start_reads_the_cache(
    llama: LocalModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _dense(_load(llama))
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr("edgetune_torch.placement.build", None)

    for blocks in ("resident", "disk"):
        assert all(map(torch.equal, first, _dense(_load(llama, blocks))))


def test_another_model_is_another_file(llama: LocalModel, folder: Path) -> None:
    _load(llama).close()
    shard = llama.folder / "model.safetensors"
    shard.touch()
    _load(LocalModel.open(llama.folder)).close()

    assert len(list(folder.iterdir())) == 2


def test_other_weights_of_the_same_age_are_another_file(
    llama: LocalModel, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(llama.folder, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] *= -1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    for each in (llama.folder, other):
        os.utime(each / "model.safetensors", (0, 0))
    first, second = (_dense(_load(LocalModel.open(each))) for each in (llama.folder, other))

    assert len(list(folder.iterdir())) == 2
    assert [torch.equal(*pair) for pair in zip(first, second, strict=True)] == [True, False, True]


@pytest.mark.parametrize("harm", ["cut", "emptied", "deleted"])
def test_a_cache_that_is_not_whole_is_made_anew(llama: LocalModel, folder: Path, harm: str) -> None:
    first = _dense(_load(llama))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    if harm == "deleted":
        file.unlink()
    else:
        file.write_bytes(content[:-100] if harm == "cut" else b"")

    assert all(map(torch.equal, first, _dense(_load(llama, "disk"))))
    assert file.read_bytes() == content


@pytest.mark.parametrize("blocks", ["resident", "disk"])
def test_a_changed_byte_is_found(llama: LocalModel, folder: Path, blocks: str) -> None:
    _load(llama).close()
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)

    with pytest.raises(ModelError, match="Delete it"):
        _dense(_load(llama, blocks))


def test_a_cache_is_written_whole_or_not_at_all(
    llama: LocalModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(cache.CacheWriter, "finish", fail)
        with pytest.raises(DiskError, match="no space"):
            _load(llama, "disk")
        _load(llama).close()

    assert list(folder.iterdir()) == []


TOGETHER = """
import sys
from pathlib import Path
import torch
from edgetune.model import LocalModel
from edgetune_torch.load import Loader, Placements
model = LocalModel.open(Path(sys.argv[1]))
Loader(model, torch.device("cpu"), "nf4", Placements(blocks=sys.argv[2])).load().close()
"""


@pytest.mark.parametrize("blocks", ["resident", "disk"])
def test_processes_that_begin_together_make_one_cache(
    llama: LocalModel, folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: str
) -> None:
    finish = cache.CacheWriter.finish

    def when_another_has_finished(writer: cache.CacheWriter) -> None:
        subprocess.run([sys.executable, "-c", TOGETHER, llama.folder, blocks], check=True)
        finish(writer)

    with monkeypatch.context() as patched:
        patched.setattr(cache.CacheWriter, "finish", when_another_has_finished)
        first = _dense(_load(llama, blocks))

    (file,) = folder.iterdir()
    assert file.suffix == ".blocks"
    assert all(map(torch.equal, first, _dense(_load(llama, "disk"))))


def test_what_a_killed_process_left_is_deleted(llama: LocalModel, folder: Path) -> None:
    folder.mkdir(parents=True)
    left = own_path(folder / "other.blocks")
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    with replacing_shared(folder / "other.blocks") as living:
        os.utime(living, (0, 0))
        _load(llama).close()
        assert living.exists()
    assert not left.exists()


@pytest.mark.skipif(os.name == "nt", reason="files that are open cannot be deleted")
@pytest.mark.parametrize("blocks", ["resident", "disk"])
@pytest.mark.parametrize("moment", ["finish", "room_for"])
def test_the_folder_may_be_deleted_at_any_time(
    llama: LocalModel, folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: str, moment: str
) -> None:
    expected = _dense(_load(llama))
    shutil.rmtree(folder)
    owner = cache.CacheWriter if moment == "finish" else cache
    work, deleted = getattr(owner, moment), 0

    def and_then_it_is_gone(*arguments: object) -> object:
        nonlocal deleted
        result = work(*arguments)
        if deleted < 3:
            shutil.rmtree(folder, ignore_errors=True)
            deleted += 1
        return result

    monkeypatch.setattr(owner, moment, and_then_it_is_gone)
    weights = _load(llama, blocks)
    shutil.rmtree(folder, ignore_errors=True)
    assert all(map(torch.equal, expected, _dense(weights)))
    assert deleted


def test_a_cache_under_another_name_is_not_taken(llama: LocalModel, folder: Path) -> None:
    _load(llama).close()
    (file,) = folder.iterdir()
    layers = llama.shape.layers
    source = Checkpoint(llama, "nf4", Files())
    other = file.with_name("other.blocks")
    shutil.copy(file, other)
    assert cache.find(file, source, layers, source.files) is not None
    assert cache.find(other, source, layers, source.files) is None
    source.files.close()


def test_a_folder_that_cannot_be_written_stops_only_what_is_on_disk(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("EDGETUNE_CACHE", str(file))

    _load(llama).close()
    with pytest.raises(DiskError, match="EDGETUNE_CACHE"):
        _load(llama, "disk")
    with pytest.raises(DiskError, match="EDGETUNE_CACHE"):
        DiskCheckpoints(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_checkpoints_on_a_full_disk_are_refused(tmp_path: Path) -> None:
    checkpoints = DiskCheckpoints(CPU, tmp_path)
    checkpoints._file.close()
    checkpoints._file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
    with pytest.raises(DiskError, match=r"No space left.*EDGETUNE_CACHE"):
        checkpoints.put(torch.zeros(1, 2, 3))
    checkpoints.close()


def test_a_disk_without_room_is_said(llama: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "room_for", lambda *_: False)
    monkeypatch.setattr("edgetune_torch.placement.room_for", lambda *_: False)

    with pytest.raises(DiskError, match="EDGETUNE_CACHE"):
        _load(llama, "disk")
    _load(llama).close()


def test_a_block_outside_of_its_turn_is_a_bug(llama: LocalModel) -> None:
    weights = _load(llama, "disk")
    for _ in weights.blocks.walk([0, 1]):
        pass

    with pytest.raises(RuntimeError, match="outside of its turn"):
        weights.blocks[2].matrices["q"].dense(torch.float32)
    weights.close()


def test_a_walk_that_is_broken_off_releases_its_slot(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int | None] = []
    monkeypatch.setattr(HostSlot, "release", lambda slot: released.append(slot.layer))
    weights = _load(llama, "disk")
    walk = weights.blocks.walk([0, 1, 2])
    next(walk)
    walk.close()

    assert released == [0]
    weights.close()
