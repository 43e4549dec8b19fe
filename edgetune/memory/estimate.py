"""What an estimate says: bytes by part at the peak of training, and by phase."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where the bytes are at the peak of training."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    workspace: int
    runtime: int

    @property
    def total(self) -> int:
        """The peak."""
        lasting = self.weights + self.adapter + self.gradients + self.optimizer + self.runtime
        return lasting + self.activations + self.loss + self.workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """The peak of each phase of a run's life, in bytes."""

    load: int
    train: int
    evaluate: int
    save: int

    @property
    def peak(self) -> int:
        """The largest of them."""
        return max(self.load, self.train, self.evaluate, self.save)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a run needs, in bytes."""

    peak_bytes: int
    phases: Phases
    parts: Parts
