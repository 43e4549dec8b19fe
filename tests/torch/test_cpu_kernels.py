"""Kernels in C: attention near float64, pointwise work near its text, whatever shares it out."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetune_torch import cpu_kernels, nf4, pointwise
from edgetune_torch.cpu_kernels import attention, build
from edgetune_torch.cpu_kernels import loss as loss_kernel
from edgetune_torch.cpu_kernels import nf4 as nf4_kernel
from edgetune_torch.cpu_kernels import pointwise as pointwise_kernel
from edgetune_torch.flash import FusedOnCpu
from edgetune_torch.loss import Head, Sums, loss_and_gradient, loss_only, token_losses
from edgetune_torch.matrices import store
from edgetune_torch.row_formats import PlainRows
from edgetune_torch.vocabulary import ResidentHead
from edgetune_torch.workspace import Workspace

SHAPES = [
    # positions, heads, key/value heads, channels
    (1, 4, 4, 64), (64, 4, 2, 32), (65, 2, 1, 64), (200, 6, 2, 96), (130, 3, 3, 128),
]  # fmt: skip
ROUNDED = 0.004
"""Relative error that roundings to bfloat16 make."""

pytestmark = pytest.mark.skipif(
    cpu_kernels.library() is None, reason="no processor with AVX512-BF16, or no compiler"
)


def _drawn(positions: int, *heads: int, channels: int, rows: int = 1) -> list[Tensor]:
    """Return tensors (rows, heads, positions, channels), laid out as projections are."""
    draw = torch.Generator().manual_seed(positions)
    size = (rows, positions, sum(heads), channels)
    every = torch.randn(size, generator=draw).bfloat16()
    return [x.transpose(1, 2) for x in torch.split(every, list(heads), dim=2)]


def _attended(
    inputs: list[Tensor], grad: Tensor, documents: tuple[tuple[int, ...], ...]
) -> list[Tensor]:
    """Return the output and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = FusedOnCpu.apply(*leaves, 0.15, documents, ())  # type: ignore[no-untyped-call]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _expected(inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.double().requires_grad_() for x in inputs]
    out = torch.nn.functional.scaled_dot_product_attention(
        *leaves, is_causal=True, scale=0.15, enable_gqa=True
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


@pytest.mark.parametrize(("positions", "heads", "groups", "channels"), SHAPES)
def test_output_and_gradients_are_near_those_in_float64(
    positions: int, heads: int, groups: int, channels: int
) -> None:
    *inputs, grad = _drawn(positions, heads, groups, groups, heads, channels=channels)
    assert attention.served(*inputs)
    found = _attended(inputs, grad, ((positions,),))
    for ours, exact in zip(found, _expected(inputs, grad), strict=True):
        assert float((ours - exact).norm()) <= ROUNDED * float(exact.norm()) + 1e-6


def test_rows_and_documents_are_attended_to_by_themselves() -> None:
    *inputs, grad = _drawn(100, 4, 2, 2, 4, channels=32, rows=2)
    found = _attended(inputs, grad, ((70, 30), (100,)))
    for row, span in ((0, slice(0, 70)), (0, slice(70, 100)), (1, slice(0, 100))):
        own = [x[row : row + 1, :, span] for x in (*inputs, grad)]
        alone = _attended(own[:3], own[3], ((span.stop - span.start,),))
        for whole, part in zip(found, alone, strict=True):
            assert torch.equal(whole[row : row + 1, :, span], part)


def test_padding_behind_a_row_changes_nothing_before_it() -> None:
    *inputs, grad = _drawn(130, 4, 2, 2, 4, channels=32)
    grad[:, :, 90:] = 0
    longer = _attended(inputs, grad, ((90,),))
    shorter = _attended([x[:, :, :90] for x in inputs], grad[:, :, :90], ((90,),))
    for whole, part in zip(longer, shorter, strict=True):
        assert torch.equal(whole[:, :, :90], part)


def test_threads_change_no_bit() -> None:
    *inputs, grad = _drawn(150, 8, 4, 4, 8, channels=32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(_attended(inputs, grad, ((150,),)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_large_scores_overflow_nowhere() -> None:
    *inputs, grad = _drawn(96, 2, 2, 2, 2, channels=32)
    inputs[0] = inputs[0] * 300
    for ours, exact in zip(_attended(inputs, grad, ((96,),)), _expected(inputs, grad), strict=True):
        assert torch.isfinite(ours).all()
        assert float((ours - exact).norm()) <= 0.02 * float(exact.norm())


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], list[Tensor]]], list[Tensor]]:
    """Return what computes without the kernels."""

    def computed(what: Callable[[], list[Tensor]]) -> list[Tensor]:
        with monkeypatch.context() as patched:
            patched.setattr(pointwise_kernel, "served", lambda *_: False)
            return what()

    return computed


def _differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("size", [(3, 64), (2, 70, 96), (1, 700, 2048)])
def test_norms_and_gates_are_near_their_text(size: tuple[int, ...], text: Any) -> None:
    x, y = torch.randn(2, *size, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight = torch.rand(size[-1])
    for what in (
        lambda: _differentiated(lambda x: pointwise.RmsNorm.apply(x, weight, 1e-5), x),
        lambda: _differentiated(lambda x, y: pointwise.gated_activation(x, y, "silu"), x, y),
    ):
        for ours, theirs in zip(what(), text(what), strict=True):
            assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())
            torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.001)


def test_gates_keep_infinities_and_far_numbers(text: Any) -> None:
    x = torch.tensor([-3e38, -1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 3e38] * 4).bfloat16().view(2, 16)
    what = lambda: [pointwise.gated_activation(x, torch.ones_like(x), "silu")]  # noqa: E731
    assert torch.equal(what()[0], text(what)[0])


@pytest.mark.parametrize(("rows", "tables"), [(1, 1), (2, 1), (2, 2)])
def test_rotations_are_those_of_their_text(rows: int, tables: int, text: Any) -> None:
    (x,) = _drawn(37, 3, channels=64, rows=rows)
    cos, sin = torch.randn(2, tables, 1, 37, 64).bfloat16()
    what = lambda: _differentiated(  # noqa: E731
        lambda x: pointwise.rotate(x, cos, sin, interleaved=False), x
    )
    assert all(torch.equal(ours, its) for ours, its in zip(what(), text(what), strict=True))


def test_threads_share_pointwise_work_without_a_trace() -> None:
    x, y = torch.randn(2, 1, 1200, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    (q,) = _drawn(1200, 16, channels=64)
    cos, sin = torch.randn(2, 1, 1, 1200, 64).bfloat16()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            norm = pointwise.RmsNorm.apply(x, torch.ones(1024), 1e-5)
            gate = pointwise.gated_activation(x, y, "silu")
            found.append([norm, gate, pointwise.rotate(q, cos, sin, interleaved=False)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("size", [(3, 40), (64, 64), (300, 2048)])
def test_unpacked_weights_have_the_bits_of_the_text(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(2))
    matrix = store(values, "nf4")
    assert nf4_kernel._checked() is not None
    ours = matrix.dense(torch.bfloat16).clone()
    monkeypatch.setattr(nf4, "unpack_by_kernel", lambda *_: False)
    assert torch.equal(ours, matrix.dense(torch.bfloat16))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_no_number_is_not_hidden_by_attention(part: int) -> None:
    *inputs, grad = _drawn(70, 2, 2, 2, 2, channels=32)
    inputs[part] = inputs[part].clone()
    inputs[part][0, 0, 65] = torch.nan
    out, *grads = _attended(inputs, grad, ((70,),))
    sees_it = slice(65, 66) if part == 0 else slice(65, 70)
    assert out[0, 0, sees_it].isnan().all()
    assert out[0, 0, :64].isfinite().all()
    assert any(x[0, 0].isnan().any() for x in grads)
    assert all(x.isfinite().all() for x in (out[0, 1], *(x[0, 1] for x in grads)))


HEADS = [
    # vocabulary, states, under loss
    (40, 3, 3), (2048, 70, 64), (5003, 64, 61),
]  # fmt: skip


def _losses(
    size: tuple[int, int, int], scale: float | Tensor, *, learns: bool
) -> tuple[Sums, Tensor, Tensor, Sums]:
    """Return what is said of the loss of some states, their gradient, and each one's loss."""
    vocabulary, states, count = size
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(vocabulary, 32, generator=draw).mul_(0.5).bfloat16()
    weight[vocabulary // 2] = weight[0]  # logits that are equal
    x = torch.randn(states, 32, generator=draw).bfloat16()
    x[1] = weight[0] * 4
    targets = torch.randint(vocabulary, (states,), generator=draw, dtype=torch.int32)
    targets[1] = 0
    space = Workspace(torch.device("cpu"))
    rows = ResidentHead(weight, PlainRows(32, x.dtype), (vocabulary, 32), space, shared=False)
    rows.learns = learns
    head = Head(rows=rows, bias=None, scale=1.0, softcap=None)
    sums, grad = loss_and_gradient(x, targets, count, head, scale=scale)
    return sums, grad, token_losses(x, targets, head), loss_only(x, targets, count, head)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("size", HEADS)
def test_losses_are_near_their_text(
    size: tuple[int, int, int], learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scale in (0.25, torch.rand(size[1], generator=torch.Generator().manual_seed(4))):
        assert loss_kernel._checked() is not None
        ours = _losses(size, scale, learns=learns)
        with monkeypatch.context() as patched:
            patched.setattr(loss_kernel, "served", lambda _: False)
            text = _losses(size, scale, learns=learns)
        for own, its in ((ours[0], text[0]), (ours[3], text[3]), (ours[0], ours[3])):
            assert own.loss == pytest.approx(its.loss, rel=1e-6)
            assert (own.tokens, own.correct) == (its.tokens, its.correct)
        assert ours[0].correct > 0
        torch.testing.assert_close(ours[2], text[2], rtol=1e-5, atol=1e-5)
        assert float((ours[1] - text[1]).norm()) <= 1e-3 * float(text[1].norm())


def test_a_loss_of_what_is_no_number_is_none() -> None:
    tile = torch.zeros(2, 50).bfloat16()
    tile[0, 20] = torch.nan
    zeros, targets = torch.zeros(3, 2), torch.tensor([3, 4])
    known = loss_kernel.Known(targets, zeros[0] - torch.inf, *zeros[1:], targets.clone())
    loss_kernel.take_in(tile, 0, known)
    assert known.total.isnan().tolist() == [True, False]


def test_threads_change_no_loss() -> None:
    found = [_with_threads(n, lambda: _losses(HEADS[-1], 1.0, learns=False)) for n in (1, 3)]
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def _with_threads(count: int, what: Callable[[], Any]) -> Any:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        return what()
    finally:
        torch.set_num_threads(threads)


def test_an_interrupted_computation_ends_before_its_tensors_can() -> None:
    """Parts that run in threads write into what the caller owns."""
    ended: list[int] = []

    def part(first: Any, _: Any) -> int:
        if first.value == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        ended.append(first.value)
        return 0

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyboardInterrupt):
            cpu_kernels.shared_out(part, [], 3)
    finally:
        torch.set_num_threads(before)
    assert sorted(ended) == [1, 2]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of kernels, empty."""
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    return tmp_path / "kernels"


@pytest.fixture
def compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how often a library has been compiled until now."""
    calls: list[Any] = []
    run = subprocess.run

    def counted(*given: Any, **others: Any) -> Any:
        calls.append(given)
        return run(*given, **others)

    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    monkeypatch.setattr(subprocess, "run", counted)
    return lambda: len(calls)


def test_a_library_is_compiled_once(cache: Path, compiled: Callable[[], int]) -> None:
    for _ in range(2):
        assert build.built() is not None
    assert compiled() == 1
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "fault", ["damaged", "cut short", "writable by others", "a link", "a pipe"]
)
def test_a_kept_library_that_may_not_be_this_users_own_is_made_anew(
    cache: Path, compiled: Callable[[], int], fault: str, tmp_path: Path
) -> None:
    build.built()
    (kept,) = cache.iterdir()
    code, elsewhere = kept.read_bytes(), tmp_path / "elsewhere"
    kept.rename(elsewhere)  # it is in use
    match fault:
        case "a link":
            kept.symlink_to(elsewhere)
        case "a pipe":
            os.mkfifo(kept)
        case "damaged":
            kept.write_bytes(code[:5000] + bytes([code[5000] ^ 1]) + code[5001:])
        case "cut short":
            kept.write_bytes(code[:5000])
        case "writable by others":
            kept.write_bytes(code)
    if fault not in {"a link", "a pipe"}:
        kept.chmod(0o666 if fault == "writable by others" else 0o600)
    assert build.built() is not None
    assert compiled() == 2
    assert build.built() is not None
    assert compiled() == 2
    assert not kept.is_symlink()


def test_where_nothing_can_be_kept_each_process_compiles(
    cache: Path, compiled: Callable[[], int]
) -> None:
    cache.write_text("no folder")
    for count in (1, 2):
        assert build.built() is not None
        assert compiled() == count


def test_processes_that_compile_at_once_do_not_disturb_each_other(
    cache: Path, compiled: Callable[[], int]
) -> None:
    with ThreadPoolExecutor() as pool:
        libraries = list(pool.map(lambda _: build.built(), range(3)))
    assert all(library is not None for library in libraries)
    assert [file.suffix for file in cache.iterdir()] == [".so"]


def test_without_a_compiler_there_is_no_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu_kernels.library.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu_kernels.library.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))
