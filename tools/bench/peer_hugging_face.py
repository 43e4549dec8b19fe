"""transformers + peft + bitsandbytes as contenders: ``peer_hugging_face.py WORK loop|trl|unsloth``.

``loop`` is a plain loop with gradient checkpointing and 8-bit AdamW, ``trl`` TRL's SFTTrainer
with its memory options, ``unsloth`` the same over unsloth's model and checkpointing. All start from
the adapter that edgetune starts from.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peer_work import ALPHA, RANK, SEED, TARGETS, Result, Work, capped, loading, measured

from edgetune.methods.base import AdapterTensor, initial_value
from edgetune.methods.lora import Lora
from edgetune.model.families import shape_of
from edgetune.model.local import read_config


def load(work: Work) -> Any:
    """Return the model in NF4 with a LoRA adapter, its parts prepared for training."""
    from bitsandbytes.nn import Linear4bit
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, work.dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        work.model, dtype=dtype, quantization_config=quantization, device_map={"": work.device},
        attn_implementation="sdpa",
    )  # fmt: skip
    model.config.use_cache = False
    model = prepare_model_for_kbit_training(
        model, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    adapter = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model, adapter)
    _same_start(model, work)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # training would stop after eval()
    return model


def load_unsloth(work: Work) -> Any:
    """Return the same by unsloth, with its own checkpointing."""
    from unsloth import FastLanguageModel

    with tempfile.TemporaryDirectory() as folder:
        for file in Path(work.model).iterdir():
            (Path(folder) / file.name).symlink_to(file)
        _tokenizer(work).save_pretrained(folder)  # it loads one, come what may
        model, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=work.tokens, dtype=getattr(torch, work.dtype), load_in_4bit=True
        )
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none",
        target_modules=list(TARGETS), use_gradient_checkpointing="unsloth", random_state=SEED,
    )  # fmt: skip
    _same_start(model, work)
    return model


def _same_start(model: Any, work: Work) -> None:
    """Set A to what edgetune begins with; B is zero everywhere."""
    shape = shape_of(read_config(Path(work.model)))
    tensors: dict[str, AdapterTensor] = {x.name: x for x in Lora(rank=RANK).tensors(shape)}
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".default", "")
        if ".lora_A." in name:
            parameter.data.copy_(torch.from_numpy(initial_value(tensors[plain], SEED)))


def loop(work: Work, result: Result) -> None:
    """Train in a plain loop."""
    from bitsandbytes.optim import AdamW8bit

    with loading(result):
        model = load(work)
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = AdamW8bit(trained, lr=work.learning_rate, weight_decay=0.0)
    model.train()
    for row in work.rows():
        begun = time.perf_counter()
        tokens = torch.from_numpy(row)[None].long().to(work.device)
        with torch.autocast(work.device, torch.bfloat16, enabled=work.dtype == "bfloat16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        result.seconds.append(time.perf_counter() - begun)
        result.losses.append(loss.item())


def trl(work: Work, result: Result) -> None:
    """Train with SFTTrainer: chunked loss (its default), checkpointing, 8-bit AdamW."""
    _with_trainer(work, result, load, gradient_checkpointing_kwargs={"use_reentrant": False})


def unsloth(work: Work, result: Result) -> None:
    """Train with SFTTrainer as unsloth changes it, which has to be imported first."""
    import unsloth  # noqa: F401

    _with_trainer(work, result, load_unsloth)


def _with_trainer(
    work: Work, result: Result, load_model: Callable[[Work], Any], **options: Any
) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            result.seconds.append(time.perf_counter() - self.begun)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                result.losses.append(logs["loss"])

    with loading(result):
        model = load_model(work)
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, max_steps=work.steps, per_device_train_batch_size=1,
            learning_rate=work.learning_rate, lr_scheduler_type="constant", weight_decay=0.0,
            max_grad_norm=1.0, optim="adamw_8bit", gradient_checkpointing=True,
            bf16=work.dtype == "bfloat16",
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=work.device == "cpu", seed=SEED,
            max_length=work.tokens, dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
            train_sampling_strategy="sequential", **options,
        )  # fmt: skip
        rows = Dataset.from_dict({"input_ids": work.rows().tolist()})
        SFTTrainer(
            model=model, args=settings, train_dataset=rows, processing_class=_tokenizer(work),
            callbacks=[Steps()],
        ).train()  # fmt: skip


def _tokenizer(work: Work) -> Any:
    """Return a tokenizer that is asked for and never used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(work.vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="0", eos_token="2", unk_token="0"
    )


def main() -> None:
    """Train and report."""
    warnings.filterwarnings("ignore")
    work, way = (
        Work(**json.loads(sys.argv[1])),
        {"loop": loop, "trl": trl, "unsloth": unsloth}[sys.argv[2]],
    )
    capped(work)
    result = Result()
    with measured(result):
        way(work, result)
    result.print()


if __name__ == "__main__":
    main()
