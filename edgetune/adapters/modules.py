"""Names that make PEFT select exactly the modules that are meant.

PEFT takes a module whose path is a target's name or ends in a dot and that name, wherever in the
model it is: GPT-2's ``c_proj`` is in the attention and in the MLP of every block, Gemma 3's
``q_proj`` in the language model and in the vision tower beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgetune.shape import ModelShape


def adaptable(shape: ModelShape, *, with_experts: bool = False) -> dict[str, str]:
    """Return the full path of every block projection, with its path inside the block.

    ``with_experts``: those of all experts of a block together, too.
    """
    return {
        f"{shape.block(layer)}{linear.module}": linear.module
        for layer, block in enumerate(shape.blocks)
        for linear in block.linears + (block.expert_stacks if with_experts else ())
    }


def exact_names(shape: ModelShape, modules: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest names that select exactly these projections, or all their full paths.

    ``up_proj`` if that is in every block meant and nowhere else, ``mlp.c_proj`` where the last
    part alone says too little, ``model.layers.3.mlp.up_proj`` where only some blocks are meant.
    """
    inside, plain = adaptable(shape, with_experts=True), adaptable(shape)
    # the last part alone never names experts
    short = [inside[x].rsplit(".", 1)[-1] if x in plain else inside[x] for x in modules]
    for names in (short, [inside[module] for module in modules]):
        unique = tuple(dict.fromkeys(names))
        if _selected(shape, unique) == set(modules):
            return unique
    return tuple(modules)


def _selected(shape: ModelShape, names: Collection[str]) -> set[str]:
    everything = {tensor.name.rsplit(".", 1)[0] for tensor in shape.tensors()} | {shape.head}
    everything |= adaptable(shape, with_experts=True).keys()
    endings = tuple(f".{name}" for name in names)
    return {module for module in everything if f".{module}".endswith(endings)}


def peft_names(shape: ModelShape, modules: Sequence[str]) -> tuple[str, ...]:
    """Return names as :func:`exact_names` does, for the class that the model's folder loads as.

    What else a wrapper has is not known here: nothing shorter than a full path is exact.
    """
    if shape.inside is None:
        return exact_names(shape, modules)
    return tuple(loaded_name(shape, module) for module in modules)


def loaded_name(shape: ModelShape, name: str) -> str:
    """Return what the class that the model's folder loads as calls a module or a tensor."""
    root = f"{_root(shape)}."
    if shape.inside is None or not name.startswith(root):
        return name
    return f"{shape.inside}.{name.removeprefix(root)}"


def decoder_name(shape: ModelShape, name: str) -> str:
    """Return the decoder's own name of what a wrapper calls so.

    Before transformers 4.52, wrappers held the whole language model where they now hold its base.
    """
    if shape.inside is None:
        return name
    root = _root(shape)
    before = f"{shape.inside.rpartition('.')[2]}.{root}"
    for prefix in (shape.inside, before):
        if name.startswith(f"{prefix}."):
            return f"{root}.{name.removeprefix(f'{prefix}.')}"
    return name


def _root(shape: ModelShape) -> str:
    return shape.embedding.partition(".")[0]
