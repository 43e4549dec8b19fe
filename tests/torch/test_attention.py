"""Attention where no kernel keeps the scores away: the same numbers, a chunk of queries at a time."""

from __future__ import annotations

import forks
import pytest
import torch
from reference import relative_error
from torch import Tensor

from edgetune.shape import Attention
from edgetune_torch import attention
from edgetune_torch.attention import attend, causal

RULE = Attention(scale=0.25)
DOCUMENTS = {"one a row": ((300,), (290,)), "packed": ((200, 90), (100, 100, 100))}


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 16) for heads in (4, 2, 2))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("documents", DOCUMENTS)
def test_without_a_kernel_it_is_the_same(documents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = _inputs(), _inputs()
    lengths = DOCUMENTS[documents]
    expected = attend(*fused, RULE, lengths)
    monkeypatch.setattr(attention, "attends", lambda *_: False)
    found = attend(*plain, RULE, lengths)
    for row, spans in enumerate(lengths):
        one, other = (x[row, :, : sum(spans)] for x in (found, expected))
        assert relative_error(one.detach(), other.detach()) < 1e-5
        one.square().sum().backward(retain_graph=True)
        other.square().sum().backward(retain_graph=True)
    for one, other in zip(plain, fused, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert relative_error(one.grad, other.grad) < 1e-5


def test_without_a_kernel_one_query_sees_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.detach() for x in _inputs())
    expected = causal(q[:, :, -1:], k, v, RULE)
    monkeypatch.setattr(attention, "attends", lambda *_: False)

    found = causal(q[:, :, -1:], k, v, RULE)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", forks.RULES)
def test_a_document_goes_on_from_another_one(rule: str, dtype: torch.dtype) -> None:
    apart, shared = forks.inputs(dtype), forks.inputs(dtype)
    expected = forks.written_out(*apart, forks.RULES[rule])
    found = forks.together(*shared, forks.RULES[rule])
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one.detach(), other.detach()) < near
    for outputs in (found, expected):
        sum(each.float().square().sum() for each in outputs).backward()
    for one, other in zip(shared, apart, strict=True):
        assert one.grad is not None
        assert relative_error(one.grad, other.grad) < near
