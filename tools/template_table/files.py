"""A template in a file as a structure: its special tokens are guessed from how they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from template_table.structure import Structure

_TOKENS = re.compile(
    r"<\|[^<>\s{}'\"|]+\|>|<\uff5c[^<>\s{}'\"\uff5c]+\uff5c>|\[/?[A-Z_]{3,}\]|<\|[a-z_]+>|<[a-z_]+\|>"
    r"|</?(?:start|end)_of_turn>|<(?:beginning|end)_of_(?:sentence|document)>|<SPECIAL_\d+>|<sep>"
    r"|\]~!?b\[|\]~b\]|\[e~\[|</?s>"
)


@dataclass(frozen=True, kw_only=True)
class FileStructure(Structure):
    """A template as it is, not put together from turns."""

    source: str

    @property
    def template(self) -> str:
        """The Jinja source."""
        return self.source


def structure_of(path: Path) -> FileStructure:
    """Return the template of a file with all that looks like a token as one."""
    source = path.read_text(encoding="utf-8")
    found = sorted(set(_TOKENS.findall(source)))
    return FileStructure(
        source=source, special=tuple(found), user="", assistant="", eos="<eos>", bos="<bos>"
    )
