"""Preference objectives beside TRL's trainers: ten steps of DPO, ORPO and KTO on the same rows.

    python tools/bench/trl_objectives.py dpo|orpo|kto

The model is a small random Llama in float32, the adapter the same random LoRA, the optimizer plain
AdamW; TRL cuts rows into tokens and both train on those. A line is printed for each backend that is
installed: by how much losses and gradients differ from TRL's at the worst step, as shares of them; of
pairs a second one, for answers that share what is computed of their prompt.
Needs ``trl``, ``datasets`` and ``peft``, in an environment of their own.

TRL's ORPO takes the likelihood of chosen answers over their prompts, too; the paper does not, and here
TRL is told the likelihood that it computes of the answers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.backend import backend_names, load_backend
from edgetune.data.batch import MicroBatch
from edgetune.data.mismatched import mismatched_batches, moved_on
from edgetune.data.rectangles import Piece, micro_batch_from
from edgetune.device import read_device
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.planning import make_plan
from edgetune.settings.spec import ADAMW, values

ROWS, STEPS, WIDTH = 4, 10, 64
RATE = 3e-3
VOCABULARY, END = 128, 2
LORA = Lora(rank=4)
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": WIDTH,
}  # fmt: skip
SETTINGS: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.3},
    "orpo": {"beta": 0.3},
    "kto": {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
}
Vectors = dict[str, NDArray[np.float64]]


def rows(objective: str) -> list[dict[str, Any]]:
    """Return random texts of words that are one token each."""
    draw = np.random.default_rng(0)

    def said(count: int) -> str:
        return " ".join(f"w{n}" for n in draw.integers(3, VOCABULARY, count))

    def answer(count: int) -> str:
        return f" {said(count)} w{END}"

    if objective == "kto":
        return [
            {"prompt": said(3 + n % 4), "completion": answer(2 + 3 * n % 7), "label": n % 5 < 3}
            for n in range(ROWS * STEPS)
        ]
    return [
        {"prompt": said(3 + n % 4), "chosen": answer(2 + 3 * n % 7), "rejected": answer(3 + n % 3)}
        for n in range(ROWS * STEPS)
    ]


def make_model(folder: Path) -> None:
    """Write a random Llama and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=END)).save_pretrained(folder)
    words = {f"w{n}": n for n in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"w{END}", pad_token="w0", unk_token="w1"
    ).save_pretrained(folder)


class Peer:
    """TRL's trainer on the rows; what it began with and what it computed in each step."""

    def __init__(self, objective: str, folder: Path) -> None:
        """Train."""
        self.losses: list[float] = []
        self.gradients: list[Vectors] = []
        trainer = self._trainer(objective, folder)
        self.start = self._randomized(trainer.model)
        trainer.train()
        self.rows = trainer.train_dataset

    def _trainer(self, objective: str, folder: Path) -> Any:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

        peer, (base, arguments) = self, _classes(objective)

        class Watched(base):  # type: ignore[misc, valid-type]
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                found = super().compute_loss(*args, **kwargs)
                loss = found[0] if isinstance(found, tuple) else found
                peer.losses.append(float(loss.detach()))
                return found

            if objective == "orpo":

                def concatenated_forward(self, *args: Any, **kwargs: Any) -> Any:
                    chosen, *others = super().concatenated_forward(*args, **kwargs)
                    return (chosen, *others[:3], -chosen.mean(), *others[4:])

                def _get_train_sampler(self, *_: Any) -> Any:
                    return torch.utils.data.SequentialSampler(self.train_dataset)

        class Gradients(TrainerCallback):
            def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
                peer.gradients.append(_named(model, lambda x: x.grad))

        modules = sorted({each.module.split(".")[-1] for each in LORA.select(_shape(folder))})
        return Watched(
            model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"),
            args=arguments,
            train_dataset=Dataset.from_list(rows(objective)),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(
                r=LORA.rank, lora_alpha=LORA.scale * LORA.rank, target_modules=modules,
                lora_dropout=0.0, task_type="CAUSAL_LM",
            ),
            callbacks=[Gradients()],
        )  # fmt: skip

    def _randomized(self, model: Any) -> dict[str, NDArray[np.float32]]:
        """Give every trained tensor random numbers and return them."""
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, tensor in sorted(model.named_parameters()):
                if tensor.requires_grad:
                    tensor.copy_(0.05 * torch.randn(tensor.shape, generator=draw))
        return {name: x.astype(np.float32) for name, x in _named(model, lambda x: x).items()}

    def documents(self, number: int) -> list[tuple[list[int], list[int], str]]:
        """Return prompt, answer and kind of a row's documents, as TRL has their tokens."""
        row = self.rows[number]
        if "completion_ids" in row:
            kind = "chosen" if row["label"] else "rejected"
            return [(row["prompt_ids"], row["completion_ids"], kind)]
        kinds = ("chosen", "rejected")
        if "chosen_ids" in row:
            return [(row["prompt_ids"], row[f"{kind}_ids"], kind) for kind in kinds]
        found = []
        for kind in kinds:
            tokens, labels = row[f"{kind}_input_ids"], row[f"{kind}_labels"]
            begins = next(n for n, label in enumerate(labels) if label != -100)
            found.append((tokens[:begins], tokens[begins:], kind))
        return found


def _shape(folder: Path) -> Any:
    return LocalModel.open(folder).shape


def _classes(objective: str) -> tuple[type[Any], Any]:
    """Return TRL's trainer and its settings."""
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": ROWS, "max_steps": STEPS,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 1e9,
        "weight_decay": 0.0, "use_cpu": True, "report_to": [], "save_strategy": "no",
        "max_length": WIDTH, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        **SETTINGS[objective],
    }  # fmt: skip
    if objective == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig(**common)
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    both = (DPOTrainer, DPOConfig) if objective == "dpo" else (KTOTrainer, KTOConfig)
    return both[0], both[1](**common, train_sampling_strategy="sequential")


def _named(model: Any, of: Any) -> Vectors:
    """Return something of every trained tensor by the name that edgetune has for it."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): of(tensor)
        .detach()
        .double()
        .numpy()
        .copy()
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    }


def micro_batches(peer: Peer, objective: str, step: int, *, shared: bool) -> list[MicroBatch]:
    """Return a step on the rows that TRL took; the answers of a row may share their prompt."""
    laid = [
        [_piece(*document) for document in peer.documents(number)]
        for number in range(step * ROWS, (step + 1) * ROWS)
    ]
    if shared:
        laid = [[_sharing(*row)] for row in laid]
    found = [micro_batch_from(laid, WIDTH)]
    if objective == "kto":
        documents = [(piece.tokens, piece.mask) for (piece,) in laid]
        others = moved_on(documents, range(len(documents)), by=1, longest=WIDTH)
        found += mismatched_batches(
            others, widths=np.array([WIDTH]), micro_batch=ROWS, packing=False
        )
    return found


def _piece(prompt: list[int], answer: list[int], kind: Any) -> Piece:
    tokens = np.array([*prompt, *answer], np.int32)
    return Piece(tokens, np.arange(len(tokens)) >= len(prompt), (len(tokens),), (kind,))


def _sharing(first: Piece, second: Piece) -> Piece:
    """Return a row of two documents, of which the second goes on from the first one's prompt."""
    shared = int(np.argmax(first.mask)) - 1
    tokens, mask = (
        np.concatenate([one, other[shared:]])
        for one, other in zip(first[:2], second[:2], strict=True)
    )
    lengths = len(first.tokens), len(second.tokens) - shared
    return Piece(tokens, mask, lengths, first.kinds + second.kinds, shared)


def compared(
    peer: Peer, objective: str, folder: Path, name: str, *, shared: bool
) -> dict[str, Any]:
    """Return by how much a backend differs from TRL at the worst step."""
    model = LocalModel.open(folder)
    fixed = {
        "compute_dtype": "float32", "quantization": "none", "context": WIDTH, "micro_batch": ROWS,
        "accumulation": 1, **values(LORA), "method": LORA.kind,
    }  # fmt: skip
    training = {"learning_rate": RATE, "objective": objective, "max_grad_norm": 1e9,
                **SETTINGS[objective]}  # fmt: skip
    device = read_device("mlx" if name == "mlx" else "cpu")
    plan = make_plan(device, str(folder), model.shape, fixed=fixed, training=training)
    session = load_backend(name).open(plan.spec, model)
    worst, before = {"loss": 0.0, "gradient": 0.0}, {}
    try:
        session.restore(peer.start)
        for step, (loss, gradient) in enumerate(zip(peer.losses, peer.gradients, strict=True)):
            batches = micro_batches(peer, objective, step, shared=shared)
            result = session.step(batches, loss_tokens=ROWS, learning_rate=RATE)
            after = dict(session.optimizer_tensors())
            own = _as_one(_gradients(before, after))
            before, right = after, _as_one(gradient)
            far = float(np.linalg.norm(own - right) / np.linalg.norm(right))
            worst["loss"] = max(worst["loss"], abs(result.loss / loss - 1))
            worst["gradient"] = max(worst["gradient"], far)
    finally:
        session.close()
    prompts = {"prompts": "shared" if shared else "apart"}
    return {"objective": objective, "backend": name, "steps": STEPS, **prompts, **worst}


def _gradients(before: Mapping[str, Any], after: Mapping[str, Any]) -> Vectors:
    """Return what a step added to the first moments: the gradients, as nothing is clipped."""
    found, end = {}, ".exp_avg"
    for name in after:
        if name.endswith(end):
            grown = after[name].astype(np.float64)
            if name in before:
                grown = grown - ADAMW.beta1 * before[name].astype(np.float64)
            found[name.removesuffix(end)] = grown / (1 - ADAMW.beta1)
    return found


def _as_one(tensors: Vectors) -> NDArray[np.float64]:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def main() -> None:
    """Compare every backend that is here with TRL in one objective."""
    import trl

    os.environ["HF_HUB_OFFLINE"] = "1"
    objective = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        peer = Peer(objective, folder)
        ways = (False,) if objective == "kto" else (False, True)
        for backend, shared in product(backend_names(), ways):
            with suppress(ImportError):
                found = compared(peer, objective, folder, backend, shared=shared)
                print(json.dumps({"trl": trl.__version__, **found}))


if __name__ == "__main__":
    main()
