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
        """Return the output of a block (B, S, D)."""
        out: mx.array = self._computed("forward", layer, [x], layout, method)
        return out

    def backward(
        self,
        layer: int,
        x: mx.array,
        grad: mx.array,
        layout: TokenLayout,
        method: Adapted[mx.array],
    ) -> tuple[mx.array, dict[str, mx.array]]:
        """Return the gradients of a block's input and of its trained tensors."""
        x_grad, *grads = self._computed("backward", layer, [x, grad], layout, method)
        return x_grad, dict(zip(method.of_block(layer), grads, strict=True))

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
        def forward(
            given: list[mx.array], places: dict[str, mx.array], tensors: list[mx.array]
        ) -> mx.array:
            here = replace(
                layout,
                positions=places["positions"],
                documents=places.get("documents"),
                lengths=places.get("lengths"),
                trunks=places.get("trunks"),
            )
            own = method.over(dict(zip(names, tensors, strict=True)))
            return self.decoder.block(layer, given[0], here, own)

        def backward(
            given: list[mx.array], places: dict[str, mx.array], tensors: list[mx.array]
        ) -> list[mx.array]:
            x, grad = given
            function = lambda x, *tensors: forward([x], places, list(tensors))  # noqa: E731
            return list(mx.vjp(function, [x, *tensors], [grad])[1])

        return forward if way == "forward" else backward
