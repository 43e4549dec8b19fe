"""What a plan says that training takes on MLX, against what MLX's allocator held."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_memory import CASES, MODELS, Case, make, measure

LEAST, MOST = -0.02, 0.05
MORE_TRIES = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(name, folder) for name in MODELS}


LENT = Case(model="lending", context=320, checkpointed=True)
LISTED = [
    pytest.param(
        case, id=str(case), marks=pytest.mark.xfail(case == LENT, reason="5.6 % over, docs/mlx.md")
    )
    for case in CASES
]


@pytest.mark.parametrize("case", LISTED)
def test_the_plan_is_what_training_takes(case: Case, folders: dict[str, Path]) -> None:
    found = measure(case, folders[case.model])
    for _ in range(MORE_TRIES):
        # a streamed block that arrives late was not there beside another: the highest peak counts
        if found.over > MOST:
            found = max(found, measure(case, folders[case.model]), key=lambda each: each.peak)

    assert LEAST <= found.over <= MOST
