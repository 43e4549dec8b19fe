"""Which kernels of this backend's own compute: a run that goes on without them rounds otherwise."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

import torch

from edgetune_torch import cpu_kernels, kernels
from edgetune_torch.cpu_kernels import build
from edgetune_torch.precision import cpu_multiplies_bf16


def own_kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Return their language and version where they compute, nothing where torch alone does."""
    if kernels.served(device):
        return f"Triton {_triton()}".strip()
    narrow = device.type == "cpu" and dtype == torch.bfloat16 and cpu_multiplies_bf16()
    if not narrow or cpu_kernels.library() is None:
        return ""
    texts = b"".join(file.read_bytes() for file in build.TEXTS)
    return f"C {hashlib.sha256(texts).hexdigest()[:8]}"


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # torch's nightly builds have it under another name
        return ""
