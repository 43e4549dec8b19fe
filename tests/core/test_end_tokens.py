"""Which tokens end an answer, as a model's folder lists them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.data.turn_tokens import listed_ends


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (None, None, set()),
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": [2, 7]}, None, {2, 7}),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": [3, 4]}, {3, 4}),
        ({"eos_token_id": 0}, {"temperature": 1}, {0}),
        ({"text_config": {"eos_token_id": [1, 106]}}, None, {1, 106}),
        ({"eos_token_id": 5, "text_config": {"eos_token_id": 1}}, None, {5}),
        ({"eos_token_id": None, "text_config": {"eos_token_id": 1}}, None, {1}),
        ({"eos_token_id": [True, -1, "2", 3.0, None, 8]}, None, {8}),
        ({"eos_token_id": {"a": 1}}, None, set()),
        ([1, 2], None, set()),
    ],
)
def test_all_end_tokens_are_found(
    tmp_path: Path, config: object, generation: object, ends: set[int]
) -> None:
    for name, content in (("config", config), ("generation_config", generation)):
        if content is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert listed_ends(tmp_path) == ends
