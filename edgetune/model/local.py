"""A model whose files are here: its shape, and where each of its tensors lies.

Only ``config.json`` and the headers of safetensors files are read; no code of the model's
folder ever runs and no pickle is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from edgetune.errors import ModelError
from edgetune.model.config import FloatName
from edgetune.model.families import shape_of
from edgetune.model.families.wrappers import without_head
from edgetune.model.fused_experts import taken_apart
from edgetune.model.names import heads, layers_in, match_names, tied_heads
from edgetune.model.published import assembled, needless_biases, untold, written_plain
from edgetune.model.weights import listing, read_json, stored_tensors
from edgetune.shape import ModelShape, Published
from edgetune.tensors.gguf.parts import first_part
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed import PackedTensor
from edgetune.tensors.samples import same_rounded, same_sample, sample_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOATS: Final = frozenset({"float32", "float16", "bfloat16"})


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A checked model folder; ``tensors`` has exactly the names of ``shape.tensors()``.

    ``folder`` is the file itself where the model is a GGUF file, the first of its parts.
    """

    ref: str
    folder: Path
    shape: ModelShape
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, object]

    @classmethod
    def open(cls, folder: Path, *, ref: str | None = None) -> LocalModel:
        """Check a folder, or a GGUF file, and return the model in it.

        Raises:
            ModelError: if files are missing or damaged, or tensors differ from the config.
        """
        if folder.is_file():
            return cls._of_gguf(folder, ref)
        config = read_config(folder)
        shape = shape_of(config)
        stored = assembled(config, stored_tensors(folder))
        if not heads(stored):
            shape = without_head(shape, config)
        tensors = _checked(folder, shape, stored, config)
        if _has_another_head(shape, stored, tensors):
            shape = _untied(folder, shape)
            tensors = _checked(folder, shape, stored, config)
        return cls(
            ref=ref or str(folder),
            folder=folder,
            shape=replace(
                shape, dtype=_main_dtype(tensors), published=_published(shape, tensors, config)
            ),
            tensors=tensors,
            config=config,
        )

    @classmethod
    def _of_gguf(cls, file: Path, ref: str | None) -> LocalModel:
        from edgetune.model.gguf import read_model

        file = first_part(file)
        config, shape, tensors = read_model(file)
        dtype = _main_dtype(tensors) if shape.formats is None else "float32"
        return cls(
            ref=ref or str(file),
            folder=file,
            shape=replace(shape, dtype=dtype),
            tensors=tensors,
            config={**config, "dtype": dtype},
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the config, of what the headers say and of samples of every tensor."""
        headers = [
            (name, tensor.file.name, tensor.name, tensor.dtype, tensor.shape, tensor.start)
            for name, tensor in sorted(self.tensors.items())
        ]
        samples = sample_digest(
            part for name, *_ in headers for part in parts_of(self.tensors[name])
        )
        text = json.dumps([self.config, headers, samples], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        """The files that tensors lie in."""
        return sorted({x.file for tensor in self.tensors.values() for x in parts_of(tensor)})

    def read(self, name: str) -> NDArray[Any]:
        """Return a read-only view of one tensor; its pages are read as they are touched.

        The array has the stored shape and number type (``ml_dtypes.bfloat16`` for bfloat16). Of a
        GGUF file, or where it was packed, it is a copy in plain numbers.
        """
        import ml_dtypes
        import numpy as np

        from edgetune.tensors.reader import read_tensor

        tensor = self.tensors[name]
        if isinstance(tensor, GgufTensor | PackedTensor):
            return read_tensor(tensor)
        dtype = np.dtype(ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else tensor.dtype)
        data = np.memmap(tensor.file, np.uint8, "r", tensor.start, (tensor.nbytes,))
        return np.asarray(data).view(dtype).reshape(tensor.shape)


def read_config(folder: Path) -> dict[str, object]:
    """Return a folder's ``config.json``.

    Raises:
        ModelError: if there is none, or it is not a JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(_no_config(folder))
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object. Fetch or copy the file again.")
    return config


def _no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"{folder} holds an adapter, not a model. Give the model that it was trained on."
    return f"{folder} has no config.json: it is not a model's folder."


def _checked(
    folder: Path,
    shape: ModelShape,
    stored: Mapping[str, StoredTensor],
    config: Mapping[str, object],
) -> dict[str, StoredTensor]:
    stored = taken_apart(shape, stored)
    found, strange = match_names(shape, stored)
    stored = {**stored, **_turned(shape, found, stored)}
    needless = {*needless_biases(stored, strange), *(x for x in strange if not stored[x].nbytes)}
    problems = [f"{name}: not expected" for name in strange if name not in needless]
    for tensor in shape.tensors():
        there = stored.get(found.get(tensor.name, ""))
        if there is None:
            problems.append(f"{tensor.name}: missing, expected {tensor.shape}")
        elif there.shape != tensor.shape:
            problems.append(f"{tensor.name}: is {there.shape}, expected {tensor.shape}")
        elif there.dtype not in _FLOATS:
            problems.append(f"{tensor.name}: is {there.dtype}, expected 16- or 32-bit floats")
    if problems:
        raise ModelError(
            f"The tensors in {folder} do not fit its config.json{_layers_apart(shape, stored)}:"
            f"\n  - {listing(problems)}"
            f"{_headless(shape, problems)}{untold(config, strange)}"
        )
    return {name: stored[source] for name, source in found.items()}


def _layers_apart(shape: ModelShape, stored: Iterable[str]) -> str:
    """Return what to say of the number of layers where the files have another one."""
    found = layers_in(shape, stored)
    if found == shape.layers:
        return ""
    return f" (layers: {shape.layers} in it, {found} in the files)"


def _headless(shape: ModelShape, problems: Sequence[str]) -> str:
    """Return what to add where the head alone is missing."""
    if len(problems) > 1 or not problems[0].startswith(f"{shape.head}.weight: missing"):
        return ""
    return (
        "\nIf the head is the embedding, set tie_word_embeddings to true in config.json"
        f"{', outside its text_config too' if shape.inside else ''}."
    )


def _turned(
    shape: ModelShape, found: Mapping[str, str], stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Return packed matrices of projections that the model has turned: codes never are."""
    turned = {
        f"{shape.block(layer)}{linear.module}.weight"
        for layer in range(shape.layers)
        for linear in shape.blocks[layer].matrices
        if linear.transposed
    }
    packed = {name: stored[source] for name, source in found.items() if name in turned}
    return {
        found[name]: tensor.turned_around()
        for name, tensor in packed.items()
        if isinstance(tensor, PackedTensor) and not tensor.turned and len(tensor.shape) == 2
    }


def _has_another_head(
    shape: ModelShape, stored: Mapping[str, StoredTensor], tensors: Mapping[str, StoredTensor]
) -> bool:
    """Return whether there is a head that is not the embedding which the config calls the head."""
    embedding = tensors[f"{shape.embedding}.weight"]
    copies = [stored[name] for name in tied_heads(shape, stored)]
    return not all(_same(embedding, copy) for copy in copies)


def _untied(folder: Path, shape: ModelShape) -> ModelShape:
    """Return a shape with a head of its own, which a wrapper's two configs may both fail to say.

    Raises:
        ModelError: if it is no wrapper.
    """
    if shape.inside is not None:
        return replace(shape, tied=False)
    raise ModelError(
        f"The config.json in {folder} ties the head to the embedding, but the files hold "
        "another head. Set tie_word_embeddings to false there, or remove that tensor."
    )


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether two tensors, or all that they are made of, agree in samples, but for rounding."""
    pairs = (parts_of(one), parts_of(other))
    return len(pairs[0]) == len(pairs[1]) and all(map(_same_part, *pairs))


def _same_part(one: StoredTensor, other: StoredTensor) -> bool:
    return same_sample(one, other) or same_rounded(one, other) or same_rounded(other, one)


def parts_of(tensor: StoredTensor) -> tuple[StoredTensor, ...]:
    """Return the stored tensors that one is made of."""
    if isinstance(tensor, GgufTensor):
        return tensor.pieces
    return tensor.parts if isinstance(tensor, PackedTensor) else (tensor,)


def _published(
    shape: ModelShape, tensors: Mapping[str, StoredTensor], config: Mapping[str, object]
) -> Published | None:
    """Return how the matrices are packed; None if all are plain numbers."""
    packed = {name: x for name, x in tensors.items() if isinstance(x, PackedTensor)}
    if not packed:
        return None
    outer = {f"{module}.weight" for module in (shape.embedding, shape.head)}
    inner = {
        f"{shape.block(layer)}{linear.module}.weight"
        for layer in range(shape.layers)
        for linear in shape.blocks[layer].matrices
    }  # a router, which is none of them, is kept in plain numbers whatever the plan
    kept = {tensor.kept_as for name, tensor in packed.items() if name in inner | outer}
    words = Counter(tensor.words for tensor in packed.values())
    return Published(
        words=" and ".join(word for word, _ in words.most_common()),
        kept_as=kept.pop() if len(kept) == 1 else None,
        vocabulary=not outer.isdisjoint(packed),
        merges_plain=written_plain(config) != config,
        unpacking_bytes=max(tensor.unpacking_bytes for tensor in packed.values()),
    )


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> FloatName:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return cast("FloatName", sizes.most_common(1)[0][0])
