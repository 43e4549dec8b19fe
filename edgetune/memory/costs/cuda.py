"""A card, through torch: its context, of 290 to 670 MB by version, and no tokenizer."""

from edgetune.memory.costs.base import Costs

CUDA = Costs(libraries=600_000_000, token=0, update_arrays=4, updated_at_once=1 << 20)
