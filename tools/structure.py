"""Write docs/structure.md: one sentence a module, taken from the modules themselves."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "structure.md"
PACKAGES = ("edgetune", "backends/edgetune_torch", "backends/edgetune_mlx", "profiles", "tools")

INTRODUCTION = """\
# Structure

One sentence a module, as the module itself says it (`python tools/structure.py` writes this
page). The core imports in one direction only, from the bottom of this list of stages to its top:

```
errors, units, files -> settings, shape, tensors -> network -> methods -> profile -> device -> model
  -> choice -> memory, speed -> planning -> data -> backend -> loop -> adapters -> runs -> exporters
  -> report -> workflows -> serving, api -> page -> cli
```

A run goes the same way: `cli.train` turns flags into a request; `workflows.planning` reads the model's
shape, the machine and the rows, and asks `planning` for a choice; `workflows.training` opens a session of
a backend and hands it to the loop in `loop`, whose events `runs` writes down and
`cli.progress` shows. The core never imports torch or mlx. The backends never import the loop, the
run folder or the command line; they are found by entry points.
"""


def main() -> int:
    """Write the page, or with ``--check`` tell whether it is true."""
    text = page()
    if "--check" in sys.argv:
        return 0 if PAGE.is_file() and PAGE.read_text("utf-8") == text else 1
    PAGE.write_text(text, "utf-8")
    return 0


def page() -> str:
    """Return the page that the modules describe."""
    return INTRODUCTION + "".join(_package(name) for name in PACKAGES)


def _package(name: str) -> str:
    folder = ROOT / name
    lines = [f"| `{path.relative_to(ROOT)}` | {sentence} |" for path, sentence in _modules(folder)]
    return "\n".join(["", f"## {name}", "", "| module | what it is |", "|---|---|", *lines, ""])


def _modules(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py"), key=lambda p: (p.parent, p.name != "__init__.py", p)):
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        if docstring is None:
            raise SystemExit(f"{path} has no docstring")
        yield path, _first_sentence(docstring)


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("|", "\\|") + "."


if __name__ == "__main__":
    sys.exit(main())
