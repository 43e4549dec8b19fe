"""What other tools call our settings, and what they have that has no place here.

Sources: the command lines and configs of mlx-lm, transformers, TRL, PEFT, Unsloth, LLaMA-Factory,
Axolotl and torchtune.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SAME: Final[Mapping[str, str]] = {
    "iters": "steps",
    "max-steps": "steps",
    "num-iters": "steps",
    "num-train-epochs": "epochs",
    "num-epochs": "epochs",
    "n-epochs": "epochs",
    "lr": "learning-rate",
    "max-seq-length": "context",
    "max-seq-len": "context",
    "max-length": "context",
    "max-len": "context",
    "cutoff-len": "context",
    "sequence-len": "context",
    "seq-len": "context",
    "seq-length": "context",
    "block-size": "context",
    "model-max-length": "context",
    "context-length": "context",
    "batch-size": "micro-batch",
    "micro-batch-size": "micro-batch",
    "per-device-train-batch-size": "micro-batch",
    "gradient-accumulation-steps": "accumulation",
    "grad-accumulation-steps": "accumulation",
    "accumulation-steps": "accumulation",
    "gradient-accumulation": "accumulation",
    "lora-r": "rank",
    "lora-rank": "rank",
    "r": "rank",
    "lora-alpha": "alpha",
    "lora-dropout": "dropout",
    "lora-target": "targets",
    "lora-target-modules": "targets",
    "lora-modules": "targets",
    "target-modules": "targets",
    "lora-modules-to-save": "modules-to-save",
    "save-modules": "modules-to-save",
    "additional-target": "modules-to-save",
    "num-layers": "layers",
    "lora-layers": "layers",
    "loraplus-lr-ratio": "lora-plus",
    "model-name-or-path": "model",
    "model-name": "model",
    "model-path": "model",
    "model-id": "model",
    "base-model": "model",
    "dataset": "data",
    "dataset-path": "data",
    "data-path": "data",
    "train-file": "data",
    "train-data": "data",
    "eval-file": "validation-data",
    "validation-file": "validation-data",
    "eval-dataset": "validation-data",
    "val-size": "validation",
    "val-set-size": "validation",
    "output-dir": "output",
    "adapter-path": "output",
    "save-dir": "output",
    "eval-steps": "eval-every",
    "steps-per-eval": "eval-every",
    "save-steps": "save-every",
    "save-total-limit": "keep",
    "warmup-ratio": "warmup",
    "optim": "optimizer",
    "quantize": "quantization",
    "quant": "quantization",
    "clip-grad": "max-grad-norm",
    "max-norm": "max-grad-norm",
    "gradient-clipping": "max-grad-norm",
    "fine-tune-type": "method",
    "finetuning-type": "method",
    "train-type": "method",
    "random-seed": "seed",
    "data-seed": "seed",
    "pref-beta": "beta",
    "pref-loss": "objective",
    "kto-chosen-weight": "desirable-weight",
    "kto-rejected-weight": "undesirable-weight",
    "report-to": "log",
}
"""The same setting under another name."""

SWITCHES: Final[Mapping[str, tuple[str, str]]] = {
    "load-in-4bit": ("quantization", "nf4"),
    "qlora": ("quantization", "nf4"),
    "load-in-4bits": ("quantization", "nf4"),
    "load-in-8bit": ("quantization", "int8"),
    "gradient-checkpointing": ("checkpointing", "all"),
    "grad-checkpoint": ("checkpointing", "all"),
    "use-dora": ("method", "dora"),
    "bf16": ("compute-dtype", "bfloat16"),
    "cpu": ("device", "cpu"),
    "use-cpu": ("device", "cpu"),
}
"""Switches that stand for a value of a setting."""

VALUES: Final[Mapping[str, Mapping[str, str]]] = {
    "optimizer": {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
        "adamw_8bit": "adamw-8bit", "adamw_bnb_8bit": "adamw-8bit",
        "paged_adamw_8bit": "paged-adamw-8bit",
    },
}  # fmt: skip
"""Other tools' values under their own names for a setting."""

MORE: Final[Mapping[str, str]] = {
    "micro-batch": "rows at once; --accumulation of them make a step",
    "context": "longer rows are refused unless --long-rows says otherwise",
}
"""What is worth knowing where the same name behaves a little differently."""

REFUSED: Final[Mapping[str, str]] = {
    "warmup-steps": "Warm-up is a share of the steps: --warmup 0.03.",
    "lr-scheduler-type": "The rate rises over --warmup and falls along a cosine; that is fixed.",
    "lr-scheduler": "The rate rises over --warmup and falls along a cosine; that is fixed.",
    "resume-from-checkpoint": "Resume a run by its folder: --resume --output RUN.",
    "resume-adapter-file": "Go on from an adapter: --from ADAPTER; with a run: --resume --output RUN.",
    "overwrite-output-dir": "Nothing is overwritten: give another --output, or delete the folder.",
    "fp16": "Cards without bfloat16 compute in float16 unasked, with loss scaling; all others in "
    "bfloat16 or float32, which need none: --compute-dtype.",
    "torch-dtype": "The computation's format is --compute-dtype, the weights' --quantization.",
    "dtype": "The computation's format is --compute-dtype, the weights' --quantization.",
    "trust-remote-code": "No code of a model's folder is ever run. Leave it out.",
    "template": "The chat template is the model's own. Leave it out.",
    "chat-template": "The chat template is the model's own. Leave it out.",
    "mask-prompt": "Prompts are masked already; --loss-on all trains them too.",
    "train-on-inputs": "Prompts are masked unless you say --loss-on all.",
    "train-on-prompt": "Prompts are masked unless you say --loss-on all.",
    "train": "`edgetune train` trains without it. Leave it out.",
    "do-train": "`edgetune train` trains without it. Leave it out.",
    "train-mode": "The objective is --objective sft, dpo, ipo, kto, orpo or simpo.",
    "stage": "The objective is --objective sft, dpo, ipo, kto, orpo or simpo.",
    "push-to-hub": "Nothing leaves this machine. Upload the exported folder yourself.",
    "hub-model-id": "Nothing leaves this machine. Upload the exported folder yourself.",
    "deepspeed": "One machine, one process: --placement host or disk keeps weights off the card.",
    "fsdp": "One machine, one process: --placement host or disk keeps weights off the card.",
    "flash-attn": "The fastest exact attention is taken by itself. Leave it out.",
    "flash-attention": "The fastest exact attention is taken by itself. Leave it out.",
    "logging-steps": "Every step is shown and kept in metrics.jsonl. Leave it out.",
    "steps-per-report": "Every step is shown and kept in metrics.jsonl. Leave it out.",
    "val-batches": "All validation rows are evaluated; --validation says how many there are.",
    "gpu": "The device is --device cuda, or cuda:1 for the second card.",
    "gpus": "A run has one device: --device cuda, or cuda:1 for the second card.",
    "num-gpus": "A run has one device: --device cuda, or cuda:1 for the second card.",
    "export-gguf": "Export afterwards: edgetune export RUN --to gguf.",
    "save-gguf": "Export afterwards: edgetune export RUN --to gguf.",
    "merge": "Merge afterwards: edgetune export RUN --to hf.",
    "text-field": "Name the columns: --fields text=COLUMN.",
    "dataset-text-field": "Name the columns: --fields text=COLUMN.",
    "dataset-format": "The format of rows is found by their fields; --fields renames columns.",
    "neftune-noise-alpha": "There is no noise on embeddings here. Leave it out.",
    "use-rslora": "The switch is --rslora, without a value.",
}
"""What has another meaning or none here, and what to do instead."""

_AS_REF: Final = "Give the adapter itself, or the run: edgetune generate ADAPTER --model BASE."

ADAPTER_NAMES: Final[Mapping[str, str]] = {
    "--adapter-path": _AS_REF,
    "--adapter": _AS_REF,
    "--adapter-name-or-path": _AS_REF,
    "--lora": _AS_REF,
    "--peft-model": _AS_REF,
    "--prompt": "The prompt is -p TEXT.",
    "--max-new-tokens": "The longest answer is --max-tokens N.",
}
"""What commands that use an adapter do not have, and what to type."""
