"""The largest array that an operation of a step adds to what is there."""

from __future__ import annotations

from edgetune.block_shape import BlockShape
from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.shape import ModelShape
from edgetune.storage import FLOAT32_BYTES
from edgetune_mlx.attention import QUERY_CHUNK
from edgetune_mlx.precision import multiplies_quantized
from edgetune_mlx.tile_attention import KEYS


def largest_array(choice: Choice, shape: ModelShape) -> int:
    """Return the most bytes that one operation of a step adds, with the copies that it makes.

    Of what passes between blocks, of an MLP or a mixer, of scores, of logits, of a tensor of the
    method's own, or of a matrix that is converted. All numbers count as float32, which norms, scores
    and states are in any case.
    """
    positions = bucket(choice.context + choice.method.virtual_tokens)
    queries, keys = min(QUERY_CHUNK, positions), positions + choice.method.positions
    splits = all(block.splits for block in shape.kinds)
    if choice.tile and splits and choice.checkpointing.layers >= shape.layers:
        positions = min(choice.tile + shape.reach, positions)
        keys = min(KEYS, keys)
    rows, tokens = choice.micro_batch, choice.micro_batch * positions
    numbers = max(
        tokens * shape.stream_size,
        *(tokens * _widest(block) for block in shape.kinds),
        *(rows * _scores(block, queries, keys) for block in shape.kinds),
        min(choice.loss_chunk, bucket(choice.tokens)) * shape.vocabulary,
        *(tensor.size for tensor in choice.method.tensors(shape)),
        *(linear.inputs * linear.outputs for linear in shape.all_matrices),
        0 if multiplies_quantized() else _stacks(shape),
    )
    return FLOAT32_BYTES * numbers


def _widest(block: BlockShape) -> int:
    """Return the most numbers of a token in one array."""
    rule = block.experts
    chosen = 0 if rule is None else rule.chosen * max(rule.hidden, rule.first_outputs)
    return max(chosen, block.ffn_size, *(max(x.inputs, x.outputs) for x in block.linears))


def _scores(block: BlockShape, queries: int, keys: int) -> int:
    """Return the numbers of the scores of a row, beside copies of its queries and keys."""
    return block.heads * (queries * keys + (queries + keys) * block.head_dim)


def _stacks(shape: ModelShape) -> int:
    """Return the numbers of the largest matrices of all experts of a block, which are one array."""
    stacks = (stack for block in shape.kinds for stack in block.expert_stacks)
    return max((stack.experts * stack.inputs * stack.outputs for stack in stacks), default=0)
