"""What an objective over whole answers is, and what it says of the answers of a micro-batch.

An answer is a document whose loss tokens are the answer to a prompt. A backend sums the
log-probabilities of the loss tokens of each, and is told how much the loss changes with every
sum: that is the weight of the document's loss tokens in the backward pass. Plain language
modelling needs none of this; every loss token has the weight 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

AnswerKind = Literal["chosen", "rejected", "mismatched"]
"""A better or a worse answer, or one to another prompt: it is scored and never learned."""
Rows = Literal["pairs", "unpaired"]
"""What a row of the data is: ``pairs`` of a better and a worse answer to one prompt, or
``unpaired``: answers that are desirable or not, each by itself."""


@dataclass(frozen=True, slots=True)
class DocumentSums:
    """Of every document of a micro-batch in order: its summed log-probability, its loss tokens."""

    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]

    def __add__(self, other: DocumentSums) -> DocumentSums:
        """Return the documents of both."""
        return DocumentSums(self.log_probs + other.log_probs, self.tokens + other.tokens)

    def of(self, numbers: Sequence[int]) -> DocumentSums:
        """Return some of the documents, by their numbers."""
        return DocumentSums(
            tuple(self.log_probs[n] for n in numbers), tuple(self.tokens[n] for n in numbers)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its log-probability, its loss tokens, its log-probability under the reference."""

    log_prob: float
    tokens: int
    reference: float = 0.0

    @property
    def mean(self) -> float:
        """The log-probability of a token on average."""
        return self.log_prob / self.tokens

    @property
    def log_ratio(self) -> float:
        """How much more probable the answer is than under the reference."""
        return self.log_prob - self.reference


@dataclass(frozen=True, slots=True)
class PairTerm:
    """What one pair adds to the loss.

    ``chosen_slope`` and ``rejected_slope`` are the derivatives of the loss by the summed
    log-probabilities; the rewards are what the objective takes the answers to be worth.
    """

    loss: float
    chosen_slope: float
    rejected_slope: float
    chosen_reward: float
    rejected_reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Sums over answers, so that parts can be added; ``right`` counts the terms told apart.

    ``kl`` is the reference point of a step or an evaluation, which all of its parts share.
    """

    chosen: float = 0.0
    chosen_count: int = 0
    rejected: float = 0.0
    rejected_count: int = 0
    right: int = 0
    kl: float | None = None

    def __add__(self, other: Rewards) -> Rewards:
        """Return the sums over both."""
        return Rewards(
            chosen=self.chosen + other.chosen,
            chosen_count=self.chosen_count + other.chosen_count,
            rejected=self.rejected + other.rejected,
            rejected_count=self.rejected_count + other.rejected_count,
            right=self.right + other.right,
            kl=other.kl if self.kl is None else self.kl,
        )

    def means(self, terms: int) -> dict[str, float]:
        """Return the metrics over ``terms`` terms, by the names that TRL gives them too.

        There is no mean of answers that are not there, and no margin without both kinds.
        """
        found = {}
        if self.chosen_count:
            found["rewards/chosen"] = self.chosen / self.chosen_count
        if self.rejected_count:
            found["rewards/rejected"] = self.rejected / self.rejected_count
        if len(found) == 2:
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        found["rewards/accuracies"] = self.right / max(1, terms)
        return found if self.kl is None else {**found, "kl": self.kl}


@dataclass(frozen=True, slots=True)
class Scored:
    """The summed loss of a micro-batch, the slope of every document, the rewards."""

    loss: float
    slopes: tuple[float, ...]
    terms: int
    rewards: Rewards


class Objective(ABC):
    """What is summed where a term of the loss is about whole answers."""

    name: ClassVar[str]
    rows: ClassVar[Rows]
    needs_reference: ClassVar[bool]
    """Whether it compares with the base, the adapter switched off."""
    documents: ClassVar[int]
    """Documents of a row of the data, at most."""
    needs_mismatched: ClassVar[bool] = False
    """Whether answers to other prompts tell how far the policy is from the reference."""
    rate_factor: ClassVar[float] = 0.1
    """The usual learning rate against that of plain answers."""

    @abstractmethod
    def scored(
        self,
        kinds: Sequence[AnswerKind],
        policy: DocumentSums,
        reference: DocumentSums | None,
        *,
        divergence: float = 0.0,
    ) -> Scored:
        """Return what the documents of a micro-batch come to; ``kinds`` says what each is.

        ``divergence`` is that of the policy from the reference, where the objective asks for it.
        """


class PairObjective(Objective):
    """An objective whose terms are pairs: a chosen document and the rejected one after it."""

    rows = "pairs"
    documents = 2

    @abstractmethod
    def pair(self, chosen: Answer, rejected: Answer) -> PairTerm:
        """Return what one pair adds to the loss."""

    def scored(
        self,
        kinds: Sequence[AnswerKind],
        policy: DocumentSums,
        reference: DocumentSums | None,
        *,
        divergence: float = 0.0,  # noqa: ARG002 (pairs are compared with each other)
    ) -> Scored:
        """Return what the pairs of a micro-batch come to, whatever the divergence."""
        assert tuple(kinds) == ("chosen", "rejected") * (len(kinds) // 2)
        answers = answers_of(policy, reference)
        terms = [self.pair(*both) for both in zip(answers[::2], answers[1::2], strict=True)]
        rewards = Rewards(
            chosen=sum(term.chosen_reward for term in terms),
            chosen_count=len(terms),
            rejected=sum(term.rejected_reward for term in terms),
            rejected_count=len(terms),
            right=sum(term.chosen_reward > term.rejected_reward for term in terms),
        )
        slopes = tuple(s for term in terms for s in (term.chosen_slope, term.rejected_slope))
        return Scored(sum(term.loss for term in terms), slopes, len(terms), rewards)


def answers_of(policy: DocumentSums, reference: DocumentSums | None) -> list[Answer]:
    """Return the answers with what the reference says of them, where there is one."""
    compared = (0.0,) * len(policy.log_probs) if reference is None else reference.log_probs
    columns = zip(policy.log_probs, policy.tokens, compared, strict=True)
    return [Answer(*one) for one in columns]
