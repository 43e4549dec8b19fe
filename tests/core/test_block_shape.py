"""A block has the roles that its text and its mixer's know, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgetune.model import shape_of
from edgetune.shape import Linear, Norm

LFM2 = {
    "model_type": "lfm2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
    "layer_types": ["conv", "full_attention"],
}  # fmt: skip
CONVOLVES, ATTENDS = shape_of(LFM2).blocks


def test_a_block_refuses_a_projection_that_nothing_knows() -> None:
    strange = Linear(role="scan_in", module="x", inputs=32, outputs=32)
    with pytest.raises(ValueError, match="scan_in"):
        replace(CONVOLVES, linears=(*CONVOLVES.linears, strange))


def test_a_projection_of_a_mixer_belongs_to_blocks_that_have_it() -> None:
    own = CONVOLVES.linear_by_role["conv_in"]
    with pytest.raises(ValueError, match="conv_in"):
        replace(ATTENDS, linears=(*ATTENDS.linears, own))
    beside = replace(ATTENDS, beside=CONVOLVES.recurrent, linears=(*ATTENDS.linears, own))
    assert beside.linear_by_role["conv_in"] is own


def test_a_block_refuses_a_norm_that_nothing_knows() -> None:
    with pytest.raises(ValueError, match="attention_inputs"):
        replace(ATTENDS, norms=(Norm(role="attention_inputs", module="x", size=32),))
