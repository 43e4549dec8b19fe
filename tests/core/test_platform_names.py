"""The core names no platform but where devices and their costs are declared, and file formats."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import edgetune

CORE = Path(edgetune.__file__).parent
DECLARED = ("device", "memory/costs", "speed/costs")
FORMATS = ("exporters", "adapters", "model/published", "page/views/export.py")
"""Where ``mlx`` is what mlx-lm reads and writes."""
PLATFORMS = ("mlx", "cuda")


def test_no_platform_is_named_in_the_core() -> None:
    """Nothing branches on a platform: neither strings nor names of code are one."""
    excepted = tuple(CORE / place for place in (*DECLARED, *FORMATS))
    found = [
        f"{path.relative_to(CORE)}:{node.lineno}"
        for path in sorted(CORE.rglob("*.py"))
        if not any(path.is_relative_to(place) for place in excepted)
        for node in _naming(ast.parse(path.read_text("utf-8")))
    ]
    assert not found


def _naming(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if text.partition(":")[0].strip() in PLATFORMS:
                yield node
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in PLATFORMS:
                yield node
