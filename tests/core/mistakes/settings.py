"""Settings by other tools' names, out of their range, or against each other."""

from __future__ import annotations

from mistakes.mistake import Mistake, thread


def planned(flags: str, *says: str, code: int = 2, link: str = "", model: str = "tiny") -> Mistake:
    """Return the mistake of planning with some flags."""
    return Mistake(line=f"plan --model {model} {flags}", code=code, says=says, link=link)


def configured(text: str, *says: str, code: int = 2, link: str = "") -> Mistake:
    """Return the mistake of planning with a config."""
    return Mistake(
        line="plan --model tiny --config run.yaml", code=code, says=says, link=link,
        files={"run.yaml": text},
    )  # fmt: skip


SETTINGS = (
    planned("--max_seq_length 512", "--max_seq_length is --context", code=0,
            link=thread("unslothai/unsloth", 10785)),
    planned("--per_device_train_batch_size 2 --num_train_epochs 1", "is --micro-batch",
            "is --epochs", code=0, link=thread("lm-sys/FastChat", 2250)),
    planned("--load_in_4bit --lora_r 8", "--quantization nf4", "--rank", code=0,
            link=thread("artidoro/qlora", 17)),
    planned("--dataset_text_field text", "--fields text=COLUMN",
            link=thread("huggingface/open-r1", 205)),
    planned("--train-mode sft", "--objective", link=thread("Goekdeniz-Guelmez/mlx-lm-lora", 29)),
    planned("--load-in-4bits", "is --quantization nf4", code=0),
    planned("--bnb-4bit-compute-dtype bfloat16", "--bnb-4bit-compute-dtype"),
    planned("--quantize bnb.nf4-dq", "'bnb.nf4-dq'", "nf4", link=thread("Lightning-AI/litgpt", 459)),
    planned("--quantization q4_k_m", "'q4_k_m'", "nf4"),
    planned("--optim paged_adamw_32bit", "'paged_adamw_32bit'", "adamw",
            link=thread("artidoro/qlora", 17)),
    planned("--deepspeed ds_config.json", "One machine, one process", "--placement",
            link=thread("lm-sys/FastChat", 2701)),
    planned("--trust_remote_code", "No code of a model's folder is ever run",
            link=thread("hiyouga/LlamaFactory", 8867)),
    planned("--template alpaca", "The chat template is the model's own",
            link=thread("hiyouga/LlamaFactory", 2977)),
    planned("--push-to-hub", "Nothing leaves this machine"),
    planned("--warmup_steps 100", "--warmup 0.03"),
    planned("--fp16", "bfloat16", "--compute-dtype"),
    planned("--overwrite_output_dir", "Nothing is overwritten",
            link=thread("hiyouga/LlamaFactory", 6227)),
    planned("--resume_from_checkpoint saves/checkpoint-867", "--resume --output RUN",
            link=thread("hiyouga/LlamaFactory", 2780)),
    planned("--targets q_proj,v_proj", "c_attn", model="gpt2",
            link=thread("OptimalScale/LMFlow", 125)),
    planned("--target_modules q_proj,FAKE_TARGET_MODULE", "FAKE_TARGET_MODULE", "q_proj",
            link=thread("huggingface/peft", 1959)),
    planned("--targets .*query_key_value", "query_key_value", "q_proj",
            link=thread("huggingface/peft", 1206)),
    planned("--targets ''", "names nothing", link=thread("yangjianxin1/Firefly", 23)),
    planned("--rank 0", "--rank"),
    planned("--learning-rate -1e-4", "--learning-rate"),
    planned("--learning-rate 1e-4x", "'1e-4x' is not a valid float"),
    planned("--steps 10 --epochs 2", "--steps and --epochs"),
    planned("--steps -5", "--steps"),
    planned("--memory 6", "without a unit", "6GB"),
    planned("--memory 6gb4", "is not a size", "6GB"),
    planned("--context 999999", "context", code=2),
    planned("--device rtx4090", "'rtx4090'", "rtx-4090"),
    planned("--device gpu", "'gpu'"),
    planned("--device cuda", "no NVIDIA driver was found",
            link=thread("bitsandbytes-foundation/bitsandbytes", 463)),
    planned("--method qlora", "'qlora' is no method", "--quantization"),
    planned("--method lra", "Nearest: lora"),
    planned("--method prefix --rank 8", "rank"),
    planned("--device rtx-4060-laptop --placement resident --quantization none", "The nearest that would fit",
            model="llama-2-70b", code=3, link=thread("hiyouga/LlamaFactory", 4559)),
    planned("--memory 100MB", "MB", code=3, model="llama-3.1-8b",
            link=thread("juyongjiang/CodeUp", 1)),
    planned("--method full --device rtx-4090 --optimizer adamw --placement resident", "GB",
            code=3, model="llama-7b", link=thread("lm-sys/FastChat", 1110)),
    planned("--quiet --verbose", "contradict each other"),
    configured("learning_rate: 2e-5\n", code=0, link=thread("hiyouga/LlamaFactory", 4014)),
    configured("train: true\niters: 100\n", "`edgetune train` trains without it",
               link=thread("ml-explore/mlx-lm", 765)),
    configured("datasets:\n  - path: rows.jsonl\n    type: alpaca\nadapter: qlora\n", "datasets",
               link=thread("axolotl-ai-cloud/axolotl", 1500)),
    configured("base_model: mistral\nload_in_8bit: false\nstrict: false\n", "base_model", code=0,
               link=thread("axolotl-ai-cloud/axolotl", 1307)),
    configured("rank: sixteen\n", "'sixteen' is not a valid integer"),
    configured("model tiny\n", "is no config"),
    Mistake(line="plan --model tiny --config nowhere.yaml", code=2, says=("nowhere.yaml",)),
    Mistake(line="train --model tiny --data rows.jsonl --output full", code=2,
            says=("full", "not empty"), files={"full/adapter_model.bin": b"x"},
            link=thread("hiyouga/LlamaFactory", 6288)),
    Mistake(line="train --resume", code=2, says=("Which run?", "--resume --output DIR"),
            link=thread("hiyouga/LlamaFactory", 6106)),
    Mistake(line="train --resume --output nowhere", code=2, says=("nowhere",),
            link=thread("hiyouga/LlamaFactory", 721)),
    Mistake(line="train --resume --output run --rank 8", code=2, says=("--rank",)),
    Mistake(line="train --plan nowhere.yaml --data rows.jsonl", code=2, says=("nowhere.yaml",)),
    Mistake(line="train --model tiny --data rows.jsonl --log mlflow", code=2,
            says=("mlflow", "tensorboard"), link=thread("axolotl-ai-cloud/axolotl", 1307)),
    Mistake(line="train --model llama-7b --data rows.jsonl --device rtx-4090", code=5,
            says=("edgetune fetch huggyllama/llama-7b",)),
)  # fmt: skip
