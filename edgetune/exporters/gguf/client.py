"""A GGUF file in llama.cpp itself: loaded by ``xllamacpp``, in a process of its own.

A file that llama.cpp cannot take may end the process that loads it; this one goes on and says so.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import CheckFailedError

PACKAGE: Final = "xllamacpp"
_TOLD: Final = 2000
"""Characters of llama.cpp's last words that an error repeats."""


def client_is_here() -> bool:
    """Return whether llama.cpp can be asked."""
    return find_spec(PACKAGE) is not None


class Client:
    """A loaded file; close it to end its process."""

    def __init__(self, file: Path, *, context: int, adapter: Path | None = None) -> None:
        """Load a file, with a LoRA over it if one is given.

        Raises:
            CheckFailedError: if llama.cpp does not load it.
        """
        self._file = file
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (held until close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgetune.exporters.gguf.client_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        adapters = [str(adapter)] if adapter is not None else []
        try:
            self._ask({"file": str(file), "context": context, "adapters": adapters})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def log_probabilities(self, tokens: Sequence[int], size: int) -> NDArray[np.float32]:
        """Return those (size,) of the token that follows, of the model's ``size`` tokens."""
        answer = self._ask({"ask": "next", "tokens": list(tokens), "size": size})
        return np.frombuffer(base64.b64decode(answer["values"]), np.float32)

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return the most probable continuation of at most ``count`` tokens."""
        answer = self._ask({"ask": "generate", "tokens": list(tokens), "count": count})
        return [int(token) for token in answer["tokens"]]

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of a text; with ``special``, begun as the file says."""
        answer = self._ask({"ask": "tokens", "text": text, "special": special})
        return [int(token) for token in answer["tokens"]]

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return a chat as the text that the model answers."""
        answer = self._ask({"ask": "render", "messages": list(messages)})
        return str(answer["text"])

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise CheckFailedError(
                f"llama.cpp does not take {self._file.name}: {answer['error']} Export the model as "
                "a folder (--to hf), and report this file's architecture and quantization."
            )
        return dict(answer)

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip()[-_TOLD:]
        return f"its process ended with {self._process.returncode}; it said: {said}"
