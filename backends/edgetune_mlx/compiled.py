"""The blocks of a decoder as functions of arrays, compiled where MLX needs no compiler for it.

A compiled function is made once for each block and each form of rows; trained tensors and
places are its inputs, so that a step, a learning rate or other rows of the same form compile
nothing. Not yet seen on a Mac: that this saves time there; on Linux the results are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from edgetune.methods.adapted import Adapted
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.token_layout import TokenLayout

Function = Callable[..., Any]

PLACES = ("positions", "documents", "lengths", "trunks")
"""The arrays that say where tokens stand."""

OWN_INPUT = "per_layer"
"""What a block reads besides the stream, a constant beside those arrays."""


class Blocks:
    """Runs blocks forward and back."""

    def __init__(self, decoder: Decoder, *, compiled: bool) -> None:
        """Run the blocks of ``decoder``; streamed blocks and drawn masks are never compiled."""
        self.decoder = decoder
        self.compiled = compiled and isinstance(decoder.weights.blocks, list)
        self._made: dict[tuple[object, ...], Function] = {}

    def forward(
        self, layer: int, x: mx.array, layout: TokenLayout, method: Adapted[mx.array]
    ) -> mx.array:
        """Return the output of a block (B, S, D); what it lends goes into the layout."""
        given = [x, *self._read(layer, layout)]
        found: list[mx.array] = self._computed("forward", layer, given, layout, method)
        if len(found) > 1:
            layout.lent[layer] = (found[1], found[2])
        return found[0]

    def backward(
        self,
        layer: int,
        x: mx.array,
        grads: Sequence[mx.array],
        layout: TokenLayout,
        method: Adapted[mx.array],
    ) -> tuple[list[mx.array], dict[str, mx.array]]:
        """Return the gradients of what a block reads and of its trained tensors.

        It reads its input, and keys and values of another block if it has none of its own.
        ``grads`` are those of its output, and of keys and values that it lends.
        """
        read = [x, *self._read(layer, layout)]
        found = self._computed("backward", layer, [*read, *grads], layout, method)
        own = dict(zip(method.of_block(layer), found[len(read) :], strict=True))
        return found[: len(read)], own

    def _read(self, layer: int, layout: TokenLayout) -> Sequence[mx.array]:
        """Return the keys and values of another block that a block reads."""
        source = self.decoder.shape.source(layer)
        return () if source is None else layout.lent[source]

    def _computed(
        self,
        way: str,
        layer: int,
        given: list[mx.array],
        layout: TokenLayout,
        method: Adapted[mx.array],
    ) -> Any:
        """Call a block's function, and compile all anew if it fails.

        MLX keeps a function whose trace was broken off, and takes it for whole (0.32).
        """
        function, inputs = self._function(way, layer, layout, method)
        try:
            with self.decoder.graph:
                return function(given, *inputs)
        except BaseException:
            self._made.clear()
            raise

    def _function(
        self, way: str, layer: int, layout: TokenLayout, method: Adapted[mx.array]
    ) -> tuple[Function, tuple[Any, ...]]:
        """Return a block's function of arrays, and what it wants after the first of them."""
        own = method.of_block(layer)
        places = {name: array for name in PLACES if (array := getattr(layout, name)) is not None}
        if layout.per_layer:
            places[OWN_INPUT] = layout.per_layer[layer]
        inputs = (places, list(own.values()))
        if not self.compiled or method.draws:
            return self._make(way, layer, layout, method, tuple(own)), inputs
        form = (way, layer, layout.context, layout.first, *places)
        if form not in self._made:
            function = self._make(way, layer, layout, method.without_trained(), tuple(own))
            self._made[form] = mx.compile(function)
        return self._made[form], inputs

    def _make(
        self,
        way: str,
        layer: int,
        layout: TokenLayout,
        method: Adapted[mx.array],
        names: Sequence[str],
    ) -> Function:
        source = self.decoder.shape.source(layer)
        reads = 1 if source is None else 3
        layout = replace(layout, lent={}, per_layer=())  # which must not live on with a function

        def forward(
            given: list[mx.array], places: dict[str, mx.array], tensors: list[mx.array]
        ) -> list[mx.array]:
            x, *others = given
            here = replace(
                layout,
                positions=places["positions"],
                documents=places.get("documents"),
                lengths=places.get("lengths"),
                trunks=places.get("trunks"),
                lent={} if source is None else {source: (others[0], others[1])},
                per_layer={layer: places[OWN_INPUT]} if OWN_INPUT in places else {},
            )
            own = method.over(dict(zip(names, tensors, strict=True)))
            out = self.decoder.block(layer, x, here, own)
            return [out, *here.lent.get(layer, ())]

        def backward(
            given: list[mx.array], places: dict[str, mx.array], tensors: list[mx.array]
        ) -> list[mx.array]:
            read, grads = given[:reads], given[reads:]

            def function(*inputs: mx.array) -> list[mx.array]:
                return forward(list(inputs[:reads]), places, list(inputs[reads:]))

            return list(mx.vjp(function, [*read, *tensors], grads)[1])

        return forward if way == "forward" else backward
