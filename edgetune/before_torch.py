"""What is set in the environment before torch is loaded, which reads it once."""

from __future__ import annotations

import os


def set_environment() -> None:
    """Have idle threads sleep and large tensors lie on large pages, unless the user chose.

    OpenMP reads its setting when the first library that uses it is loaded: transformers loads torch.
    With other programs at work on two cores, spinning made a step take 9 times as long; on an idle
    machine sleeping costs nothing that could be measured.

    Where the system has large pages, a tensor of 16 MB is there after 8 faults in place of 4,096,
    and takes no byte more.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
