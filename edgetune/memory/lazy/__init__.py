"""Bytes of a block on MLX: its text run over a graph that is evaluated as MLX does it."""
