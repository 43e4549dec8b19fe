"""NF4 by compiled code and by torch's text: the same bits, the same plan."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from edgetune_torch import native
from edgetune_torch.nf4 import Nf4Matrix, unpack_by_text
from edgetune_torch.workspace import Workspace

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("blocks", [1, 3, 1025])
def test_it_gives_the_bits_of_the_text(dtype: torch.dtype, blocks: int) -> None:
    if native._library() is None:
        pytest.skip("bitsandbytes' library is not there")
    draw = torch.Generator().manual_seed(blocks)
    codes = torch.randint(0, 256, (blocks * 32,), dtype=torch.uint8, generator=draw)
    scales = torch.rand(blocks, generator=draw)
    found, expected = torch.empty(blocks * 64, dtype=dtype), torch.empty(blocks * 64, dtype=dtype)
    assert native.unpack(codes, scales, found)
    unpack_by_text(codes, scales, expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (128, 512), (3, 70001)])
def test_a_matrix_is_the_same_either_way(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        name: torch.empty(part.shape, dtype=part.dtype)
        for name, part in Nf4Matrix.parts_of(*shape, torch.bfloat16).items()
    }
    matrix = Nf4Matrix(shape, parts, Workspace(torch.device("cpu")))
    matrix.write(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    compiled = [matrix.dense(dtype).clone() for dtype in TYPES]
    monkeypatch.setattr(native, "_function", lambda _: None)
    assert all(map(torch.equal, compiled, [matrix.dense(dtype).clone() for dtype in TYPES]))


def test_a_library_that_computes_something_else_is_not_used() -> None:
    def wrong(*_: object) -> None:
        """Leave what it should write as it is."""

    assert not native._is_right(wrong, torch.float32)


def test_bitsandbytes_itself_is_not_imported() -> None:
    code = (
        "import sys, torch; from edgetune_torch import native;"
        "native.unpack(torch.zeros(32, dtype=torch.uint8), torch.ones(1), torch.empty(64));"
        "print('bitsandbytes' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
