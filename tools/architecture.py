"""Draw docs/architecture.svg: the stages of the core and what stands beside them.

The stages are those of the import contract in pyproject.toml, so that the picture cannot be
older than the code: ``make check`` draws it again and compares.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"

WIDTH, BESIDE, ROW, GAP, LEFT = 600, 220, 34, 6, 16
STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1a1a1a }
.small { font-size: 11px; fill: #555 }
.head { font-weight: 600 }
rect { fill: #f2f4f7; stroke: #b8c0cc; rx: 5 }
.beside { fill: #eaf3ea; stroke: #9dbd9d }
path { stroke: #7a8594; fill: none; marker-end: url(#tip) }
@media (prefers-color-scheme: dark) {
text { fill: #e8e8e8 } .small { fill: #aaa }
rect { fill: #23272e; stroke: #4a5260 } .beside { fill: #1f2b20; stroke: #4b6b4c }
svg { background: #14171b } }"""


HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" \
aria-label="The stages of edgetune and its backends">
<style>{style}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0,0L8,4L0,8" style="marker-end:none"/></marker></defs>
<text class="head" x="{x}" y="{y}">The core: each stage imports those below it</text>"""


def main() -> int:
    """Write the picture, or with ``--check`` tell whether it is true."""
    text = picture()
    if "--check" in sys.argv:
        return 0 if PICTURE.is_file() and PICTURE.read_text("utf-8") == text else 1
    PICTURE.write_text(text, "utf-8")
    return 0


def picture() -> str:
    """Return the picture."""
    stages = list(_stages())
    height = LEFT * 2 + 24 + len(stages) * (ROW + GAP)
    parts = [HEAD.format(width=WIDTH + BESIDE + 56, height=height, style=STYLE, x=LEFT, y=LEFT + 8)]
    tops: dict[str, int] = {}
    for number, names in enumerate(stages):
        top = LEFT + 24 + number * (ROW + GAP)
        tops |= dict.fromkeys(names, top)
        parts += _stage(names, top)
    parts += _beside(tops)
    return "\n".join([*parts, "</svg>", ""])


def _stages() -> Iterator[list[str]]:
    contract = (ROOT / "pyproject.toml").read_text("utf-8").partition("\nlayers = ")[2]
    for layer in ast.literal_eval(contract[: contract.index("]") + 1]):
        names = [name.strip() for name in layer.split("|")]
        if names != ["__main__"]:
            yield names


def _stage(names: list[str], top: int) -> Iterator[str]:
    width = (WIDTH - GAP * (len(names) - 1)) / len(names)
    for number, name in enumerate(names):
        left = LEFT + number * (width + GAP)
        yield f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{ROW}"/>'
        kind = "head" if len(names) < 5 else "small"
        yield f'<text class="{kind}" x="{left + 10:.0f}" y="{top + 21}">{escape(name)}</text>'
        if len(names) == 1:
            shown = _fitting(_sentence(name), 76)
            yield f'<text class="small" x="{left + 120:.0f}" y="{top + 21}">{escape(shown)}</text>'


def _beside(tops: dict[str, int]) -> Iterator[str]:
    left, top = LEFT + WIDTH + 24, tops["backend"]
    for number, (name, says) in enumerate(
        (
            ("edgetune_torch", "for CUDA and processors"),
            ("edgetune_mlx", "for Apple silicon"),
        )
    ):
        y = top - 30 + number * (2 * ROW + GAP)
        yield f'<rect class="beside" x="{left}" y="{y}" width="{BESIDE}" height="{2 * ROW}"/>'
        yield f'<text class="head" x="{left + 10}" y="{y + 24}">{name}</text>'
        yield f'<text class="small" x="{left + 10}" y="{y + 44}">{says}</text>'
        x = LEFT + WIDTH
        yield f'<path d="M{left},{y + ROW} C{x + 14},{y + ROW} {x + 14},{top + 17} {x + 2},{top + 17}"/>'
        below = tops["network"] + 17
        yield f'<path d="M{left},{y + ROW + 8} C{x + 10},{y + ROW + 8} {x + 18},{below} {x + 2},{below}"/>'
    y = tops["profile"] - 10
    yield f'<rect class="beside" x="{left}" y="{y}" width="{BESIDE}" height="{ROW + 10}"/>'
    yield f'<text class="head" x="{left + 10}" y="{y + 19}">edgetune_profiles</text>'
    yield f'<text class="small" x="{left + 10}" y="{y + 35}">models and devices, data only</text>'


def _sentence(name: str) -> str:
    """Return the first sentence of a stage's docstring."""
    single = ROOT / "edgetune" / f"{name}.py"
    file = single if single.is_file() else ROOT / "edgetune" / name / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split()).split(". ")[0].rstrip(".")


def _fitting(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " …"


if __name__ == "__main__":
    sys.exit(main())
