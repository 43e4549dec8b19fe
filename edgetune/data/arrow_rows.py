"""Rows of Arrow tables, each column converted on its own so that one that cannot be is named.

What JSON has is taken as it is. Times, dates and decimals become text. A struct has all fields of
its column in every row, as null where a row gave none: those nulls are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from edgetune.data.chunks import ReadingError
from edgetune.data.unpack import needed

ROWS = 256
"""As many rows are converted at once."""


def read_batches(names: list[str], batches: Iterable[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, counted from 1, and the values of each row of record batches.

    Raises:
        ReadingError: if they are damaged, or naming a column that cannot be read.
    """
    arrow: Any = needed("pyarrow")
    number = 0
    try:
        _refuse_repeated(names)
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                part = batch.slice(start, ROWS)
                columns = [
                    _values(arrow, name, column, number)
                    for name, column in zip(names, part.columns, strict=True)
                ]
                for number, values in enumerate(zip(*columns, strict=True), number + 1):  # noqa: B020
                    yield number, dict(zip(names, values, strict=True))
    except arrow.ArrowException as error:
        raise ReadingError(f"it cannot be read after row {number}: {error}") from error


def _refuse_repeated(names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ReadingError(
            f"columns must have different names; found twice: {', '.join(repeated)}."
        )


def _values(arrow: Any, name: str, column: Any, before: int) -> list[Any]:
    """Return the values of a column; ``before`` rows came before its first."""
    try:
        plain = _plain(arrow, column.type)
        values: list[Any] = (column if plain == column.type else column.cast(plain)).to_pylist()
    except UnicodeDecodeError as error:
        place = f"rows {before + 1} to {before + len(column)}"
        raise ReadingError(f"the column {name} is not UTF-8 in {place}.") from error
    except (arrow.ArrowException, ValueError, OverflowError) as error:
        raise ReadingError(
            f"the column {name} is {column.type}, which cannot be converted ({error})."
            " Remove it, or save it as text."
        ) from error
    return _unpadded(values) if _holds_structs(arrow, column.type) else values


def _holds_structs(arrow: Any, kind: Any) -> bool:
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
        return _holds_structs(arrow, kind.value_type)
    return bool(arrow.types.is_struct(kind))


def _unpadded(value: Any) -> Any:
    """Return a value without the fields of objects that are null."""
    if isinstance(value, list):
        return [_unpadded(item) for item in value]
    if isinstance(value, dict):
        return {name: _unpadded(item) for name, item in value.items() if item is not None}
    return value


def _plain(arrow: Any, kind: Any) -> Any:
    """Return the type that a column is converted to: the same, but for what JSON does not have."""
    types = arrow.types
    if types.is_temporal(kind) or types.is_decimal(kind):
        return arrow.string()
    if types.is_dictionary(kind):
        return _plain(arrow, kind.value_type)
    if types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        inner = [_plain(arrow, field.type) for field in fields]
        if inner != [field.type for field in fields]:
            names = [field.name for field in fields]
            return arrow.struct(list(zip(names, inner, strict=True)))
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _plain(arrow, kind.value_type)
        return kind if inner == kind.value_type else arrow.list_(inner)
    return kind
