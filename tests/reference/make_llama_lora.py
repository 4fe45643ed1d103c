"""Makes the fixtures in `llama_lora/`: what PyTorch, Transformers and PEFT compute for small random Llamas.

    pip install torch transformers peft safetensors
    python tests/reference/make_llama_lora.py

Each case is a model folder (weights in bf16, which both sides widen to f32 exactly), `lora.safetensors` with the
adapter's values (`start.*`) and the gradients of the first step (`gradient.*`), and `reference.json` with the rows, the
options and the losses. The worker's tests read these files and need no Python.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup

OUT = Path(__file__).parent / "llama_lora"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Odd lengths on purpose: one token, less than a vector register, more than a block of queries.
ROW_LENGTHS = [7, 65, 1, 12, 33, 18]
OPTIONS = {
    "lora_r": 4,
    "lora_alpha": 6.0,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "warmup_steps": 1,
    "max_steps": 5,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
}
STEPS = 4

CASES = {
    "tied": dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=512, tie_word_embeddings=True,
    ),
    "untied": dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=44,
        vocab_size=101, tie_word_embeddings=False,
    ),
    "llama3_rope": dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=44,
        vocab_size=101, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
}


def make_model(folder: Path, options: dict) -> LlamaForCausalLM:
    config = LlamaConfig(max_position_embeddings=128, rms_norm_eps=1e-5, attn_implementation="eager", **options)
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than the usual 0.02, so that attention and gates are far from their linear beginnings.
            values = 1 + 0.2 * torch.randn_like(weight) if "norm" in name else 0.15 * torch.randn_like(weight)
            weight.copy_(values.to(torch.bfloat16).to(torch.float32))
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config.to_json_string())
    return model


def make_rows(vocabulary: int) -> list[dict]:
    rows = []
    for length in ROW_LENGTHS:
        ids = torch.randint(0, vocabulary, (length,)).tolist()
        prompt = length // 3
        rows.append({"ids": ids, "counts": [index >= prompt for index in range(length)]})
    return rows


def summed_loss(model, row: dict) -> tuple[torch.Tensor, int]:
    ids = torch.tensor([row["ids"]])
    labels = torch.tensor([token if counts else -100 for token, counts in zip(row["ids"], row["counts"])])
    targets = labels[1:]
    supervised = int((targets != -100).sum())
    if supervised == 0:
        return torch.zeros(()), 0
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"), supervised


def adapter(model) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters under the names that PEFT saves them by."""
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert len(named) == 2 * len(MODULES) * model.config.num_hidden_layers
    return named


def make_case(name: str, options: dict) -> None:
    torch.manual_seed(sum(map(ord, name)))
    folder = OUT / name
    model = make_model(folder, options)
    lora = LoraConfig(r=OPTIONS["lora_r"], lora_alpha=OPTIONS["lora_alpha"], lora_dropout=0.0, target_modules=MODULES)
    model = get_peft_model(model, lora)
    parameters = adapter(model)
    with torch.no_grad():
        for parameter in parameters.values():
            # B is not zero here: with a zero B the gradient of A is zero, and would show nothing.
            parameter.copy_(0.1 * torch.randn_like(parameter))
    tensors = {f"start.{key}": parameter.detach().clone() for key, parameter in parameters.items()}
    rows = make_rows(options["vocab_size"])
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=OPTIONS["learning_rate"], weight_decay=OPTIONS["weight_decay"]
    )
    schedule = get_linear_schedule_with_warmup(optimizer, OPTIONS["warmup_steps"], OPTIONS["max_steps"])
    losses, norms, rates = [], [], []
    model.train()
    for step in range(STEPS):
        total, supervised = torch.zeros(()), 0
        for row in rows:
            loss, count = summed_loss(model, row)
            total, supervised = total + loss, supervised + count
        mean = total / supervised
        mean.backward()
        if step == 0:
            tensors |= {f"gradient.{key}": parameter.grad.clone() for key, parameter in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), OPTIONS["max_grad_norm"])
        losses.append(mean.item())
        norms.append(norm.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "lora.safetensors")
    reference = {"options": OPTIONS, "rows": rows, "losses": losses, "grad_norms": norms, "learning_rates": rates}
    (folder / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")
    print(name, losses, norms, rates)


if __name__ == "__main__":
    for name, options in CASES.items():
        make_case(name, options)
