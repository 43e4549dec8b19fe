"""Preference objectives written from their papers on transformers' model, in float64 by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from reference import _documents as documents
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM

from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.data.encode import Learned
from edgetune.data.examples import Examples, RowLocations
from edgetune.data.token_store import token_store_of
from edgetune.methods.lora import Lora
from edgetune.objectives import Rows
from edgetune.shape import ModelShape

Arrays = Mapping[str, NDArray[Any]]


class Scores:
    """Of pairs (P,): log-probabilities of the policy and the reference, and loss tokens."""

    def __init__(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> None:
        """Take them of documents in order, each chosen one followed by its rejected one."""
        self.chosen, self.rejected = policy[::2], policy[1::2]
        self.chosen_base, self.rejected_base = reference[::2], reference[1::2]
        self.chosen_tokens, self.rejected_tokens = tokens[::2], tokens[1::2]


def dpo(s: Scores, beta: float = 0.1) -> Tensor:
    """Rafailov et al. 2023, equation 7, without its mean."""
    ratios = (s.chosen - s.chosen_base) - (s.rejected - s.rejected_base)
    return -logsigmoid(beta * ratios)


def ipo(s: Scores, tau: float = 0.1) -> Tensor:
    """Azar et al. 2023, equation 17, on means over tokens."""
    chosen = (s.chosen - s.chosen_base) / s.chosen_tokens
    rejected = (s.rejected - s.rejected_base) / s.rejected_tokens
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def orpo(s: Scores, weight: float = 0.1) -> Tensor:
    """Hong et al. 2024, equations 3 to 7."""
    likelihoods = [torch.exp(s.chosen / s.chosen_tokens), torch.exp(s.rejected / s.rejected_tokens)]
    odds = [p / (1 - p) for p in likelihoods]
    return -s.chosen / s.chosen_tokens - weight * logsigmoid(torch.log(odds[0] / odds[1]))


def simpo(s: Scores, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """Meng et al. 2024, equation 6."""
    chosen, rejected = s.chosen / s.chosen_tokens, s.rejected / s.rejected_tokens
    return -logsigmoid(beta * chosen - beta * rejected - gamma)


LOSSES: dict[str, Callable[[Scores], Tensor]] = {
    "dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo,
}  # fmt: skip


def kto(
    ratios: Tensor, desirable: Tensor, mismatched: Tensor, beta: float, weights: tuple[float, float]
) -> Tensor:
    """Ethayarajh et al. 2024, equations 7 and 8, less the constant, of log-ratios."""
    z = mismatched.mean().clamp(min=0)
    value = torch.where(
        desirable, torch.sigmoid(beta * (ratios - z)), torch.sigmoid(beta * (z - ratios))
    )
    weight = torch.where(desirable, torch.tensor(weights[0]), torch.tensor(weights[1]))
    return weight.double() * (1 - value)


class Rated(NamedTuple):
    """An answer to a prompt, both as tokens, and whether it is desirable."""

    prompt: NDArray[np.int32]
    answer: NDArray[np.int32]
    desirable: bool


class PreferenceReference:
    """A transformers model whose projections are ``W + scale B A``, and the same without B A."""

    def __init__(self, folder: Path, shape: ModelShape, method: Lora) -> None:
        """Load the model in float64."""
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = model.double().eval()
        self.targets, self.scale = method.select(shape), method.scale

    def gradients(
        self, objective: str, batches: Sequence[MicroBatch], tensors: Arrays
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the mean loss over all pairs and its gradient by tensor."""
        trained = {
            name: torch.from_numpy(np.array(x)).double().requires_grad_()
            for name, x in tensors.items()
        }
        policy = self._log_probs(batches, self._weights(trained))
        with torch.no_grad():
            reference = self._log_probs(batches, {})
        tokens = [
            (targets != IGNORED).sum() for batch in batches for _, targets in documents(batch)
        ]
        loss = LOSSES[objective](Scores(policy, reference, torch.stack(tokens))).mean()
        grads = torch.autograd.grad(loss, list(trained.values()))
        return float(loss.detach()), dict(zip(trained, grads, strict=True))

    def kto_gradients(
        self, rows: Sequence[Rated], tensors: Arrays, *, beta: float, weights: tuple[float, float]
    ) -> tuple[float, float, dict[str, Tensor]]:
        """Return the mean loss over rows, the reference point, and the gradient by tensor.

        The answer of each row comes after the prompt of the next one, too; the last after the first.
        """
        trained = {
            name: torch.from_numpy(np.array(x)).double().requires_grad_()
            for name, x in tensors.items()
        }
        policy = self._weights(trained)
        others = [rows[-1], *rows[:-1]] if len(rows) > 1 else []
        matched = [self._ratio(row.prompt, row.answer, policy) for row in rows]
        mismatched = [
            self._ratio(row.prompt, other.answer, policy)
            for row, other in zip(rows, others, strict=False)
        ]
        desirable = torch.tensor([row.desirable for row in rows])
        away = (torch.stack(mismatched) if mismatched else torch.zeros(1)).detach()
        loss = kto(torch.stack(matched), desirable, away, beta, weights).mean()
        grads = torch.autograd.grad(loss, list(trained.values()))
        point = float(away.mean().clamp(min=0))
        return float(loss.detach()), point, dict(zip(trained, grads, strict=True))

    def _ratio(
        self, prompt: NDArray[np.int32], answer: NDArray[np.int32], weights: Mapping[str, Tensor]
    ) -> Tensor:
        tokens = torch.from_numpy(np.concatenate([prompt, answer]))[None]
        under = slice(len(prompt) - 1, -1)

        def log_prob(weights: Mapping[str, Tensor]) -> Tensor:
            out = torch.func.functional_call(self.model, dict(weights), (tokens,))
            scores = log_softmax(out.logits[0][under], -1)
            return scores.gather(-1, tokens[0, len(prompt) :].long()[:, None]).sum()

        with torch.no_grad():
            reference = log_prob({})
        return log_prob(weights) - reference

    def _log_probs(self, batches: Sequence[MicroBatch], weights: Mapping[str, Tensor]) -> Tensor:
        found = []
        for batch in batches:
            for tokens, targets in documents(batch):
                out = torch.func.functional_call(self.model, dict(weights), (tokens[None],))
                under = targets != IGNORED
                scores = log_softmax(out.logits[0][under], -1)
                found.append(scores.gather(-1, targets[under].long()[:, None]).sum())
        return torch.stack(found)

    def _weights(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {}
        for target in self.targets:
            a = trained[f"{target.module}.lora_A.weight"]
            b = trained[f"{target.module}.lora_B.weight"]
            frozen = self.model.get_parameter(f"{target.module}.weight")
            weights[f"{target.module}.weight"] = frozen.detach() + self.scale * (b @ a)
        return weights


def rated(count: int, *, seed: int = 0) -> list[Rated]:
    """Return ``count`` random answers, three of five desirable."""
    draw = np.random.default_rng(seed)
    sizes = [(3 + n % 4, 2 + (n * 3) % 7) for n in range(count)]
    drawn = [[draw.integers(3, 97, size).astype(np.int32) for size in both] for both in sizes]
    return [Rated(*both, n % 5 < 3) for n, both in enumerate(drawn)]


def rated_examples(rows: Sequence[Rated]) -> Examples:
    """Return answers as they are read from a file, one a row."""
    return examples_of([answered(row.prompt, row.answer, desirable=row.desirable) for row in rows])


def answered(
    prompt: Sequence[int] | NDArray[np.int32],
    answer: Sequence[int] | NDArray[np.int32],
    *,
    desirable: bool,
) -> Learned:
    """Return an answer to a prompt as it is read."""
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    return Learned(tokens, [(len(prompt), len(tokens))], len(tokens) if desirable else 0)


def examples_of(rows: Sequence[Learned], kind: Rows = "unpaired") -> Examples:
    """Return rows as examples."""
    store = token_store_of(rows, range(1, len(rows) + 1))
    places = RowLocations(("rows:",), np.array([0, len(rows)]), store.lines)
    return Examples.of(store, places, kind)


def pairs(count: int, *, seed: int = 0, packed: int = 1, width: int = 48) -> MicroBatch:
    """Return ``count`` random pairs that share their prompts, ``packed`` of them in a row."""
    draw = np.random.default_rng(seed)
    rows = -(-count // packed)
    tokens = np.zeros((rows, width * packed), np.int32)
    targets = np.full_like(tokens, IGNORED)
    lengths: list[list[int]] = [[] for _ in range(rows)]
    for number in range(count):
        row, prompt = number // packed, draw.integers(3, 97, 3 + number % 3)
        for size in (5 + number % 2, 3 + number % 4):
            document = np.concatenate([prompt, draw.integers(3, 97, size)]).astype(np.int32)
            start = sum(lengths[row])
            stop = start + len(document)
            tokens[row, start:stop] = document
            targets[row, start + len(prompt) - 1 : stop - 1] = document[len(prompt) :]
            lengths[row].append(len(document))
    answers = tuple(("chosen", "rejected") * (len(row) // 2) for row in lengths)
    return MicroBatch(
        tokens=tokens, targets=targets, documents=tuple(map(tuple, lengths)), answers=answers
    )


def paired_examples(count: int, *, seed: int = 0) -> Examples:
    """Return random pairs as they are read from a file; the answers of some begin alike."""
    draw, rows = np.random.default_rng(seed), []
    for number in range(count):
        prompt, alike = draw.integers(3, 97, 5 + 3 * (number % 3)), draw.integers(3, 97, number % 2)
        better, worse = (
            np.concatenate([alike, draw.integers(3, 97, size)])
            for size in (4 + number % 3, 3 + number % 5)
        )
        rows.append(
            answered(prompt, better, desirable=True).followed(
                answered(prompt, worse, desirable=False)
            )
        )
    return examples_of(rows, "pairs")
