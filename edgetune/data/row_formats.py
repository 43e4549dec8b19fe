"""The formats that rows may have, by what an objective learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgetune.data.content import RowContent
from edgetune.data.formats import FORMATS, Format
from edgetune.data.pairs import PAIR_FORMATS
from edgetune.data.unpaired import UNPAIRED_FORMATS
from edgetune.objectives import Rows

ROW_FORMATS: Mapping[Rows | None, Sequence[Format[RowContent]]] = {
    None: FORMATS,
    "pairs": PAIR_FORMATS,
    "unpaired": (*UNPAIRED_FORMATS, *PAIR_FORMATS),
}
"""None: plain answers. Pairs count as two answers, each by itself."""

ALL_FORMATS = [*FORMATS, *PAIR_FORMATS, *UNPAIRED_FORMATS]
