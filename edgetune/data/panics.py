"""Failures inside the tokenizers library: a panic is no Exception, and cannot leave a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgetune.errors import ModelError


@contextmanager
def refused_panics() -> Iterator[None]:
    """Say that the tokenizer failed instead of letting its panic through.

    Raises:
        ModelError: with the panic's own reason.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"The model's tokenizer fails on this text ({error}): a regular expression in its "
            "tokenizer.json may be hostile or damaged. Fetch or copy the file again."
        ) from None  # a panic cannot be pickled
