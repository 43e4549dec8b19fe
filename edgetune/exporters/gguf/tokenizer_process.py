"""The process that loads a model's tokenizer and writes down what a GGUF file says of it.

Loading it with transformers imports torch where that is installed, which takes more memory than the
export. Nothing here needs it, and so it is hidden from this process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Write the facts about the tokenizer of the folder in the first argument to standard output."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from edgetune.data.tokenizer import load_tokenizer
    from edgetune.errors import EdgetuneError

    try:
        loaded = load_tokenizer(Path(sys.argv[1]))
    except EdgetuneError as error:
        sys.stdout.write(json.dumps({"error": str(error)}))
        return
    facts = {
        "definition": json.loads(loaded.definition),
        "bos": loaded.bos_id,
        "eos": loaded.eos_id,
        "pad": loaded.pad_id,
        "turn_end": loaded.turn_end,
        "ends": sorted(loaded.end_tokens),
        "end_texts": loaded.end_texts,
        "adds_bos": loaded.adds_bos,
        "templates": loaded.templates,
    }
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
