"""Write the table of chat templates into docs/data.md, or with --check say whether it is true.

    python tools/update_templates.py [--check]
    python tools/update_templates.py FILE.jinja ...     try templates of files; nothing is written

Structures of well-known templates, each written anew, by eleven chats: what is learned is compared
with what the model would sample, token for token (see template_table/judge.py).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from template_table.files import structure_of
from template_table.table import STRUCTURES, table, verdicts_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "data.md"
_BEGIN, _END = "<!-- template table -->\n", "<!-- end of the template table -->"


def updated(document: str) -> str:
    """Return the document with the table of today."""
    text = table(verdicts_of(STRUCTURES))
    head, _, rest = document.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}{text}\n{_END}{tail}"


def main() -> int:
    """Write, check, or try the templates of files."""
    files = [Path(name) for name in sys.argv[1:] if not name.startswith("-")]
    if files:
        found = table(verdicts_of({file.stem: structure_of(file) for file in files}))
        print(found)
        return int(bool(re.search(r"\| SILENT", found)))
    document = DOCUMENT.read_text(encoding="utf-8")
    new = updated(document)
    if "--check" in sys.argv:
        print("true" if new == document else "docs/data.md is not what the templates come to")
        return int(new != document)
    DOCUMENT.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
