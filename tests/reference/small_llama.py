"""What the reference scripts share: small random Llamas, made-up rows, and a training loop in plain PyTorch.

The options, the loop and the sums are those of the worker's tests, which compare with what comes out here.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, get_linear_schedule_with_warmup

# Odd lengths on purpose: one token, less than a vector register, more than a block of queries.
ROW_LENGTHS = [7, 65, 1, 12, 33, 18]
# What all trainings share; the adapters' options are added where there are adapters.
OPTIONS = {
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "warmup_steps": 1,
    "max_steps": 5,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
}
STEPS = 4


def make_model(folder: Path, options: dict) -> LlamaForCausalLM:
    """A model with random weights, saved in bf16, which both sides widen to f32 exactly."""
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
    """Rows whose first third is a prompt."""
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


def decaying(model, parameters: dict) -> list[dict]:
    """AdamW's groups as Transformers' Trainer makes them: norms and biases do not decay."""
    names = set(Trainer.get_decay_parameter_names(None, model))
    decays = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    groups = [[p for p in parameters.values() if (id(p) in decays) == decay] for decay in (True, False)]
    return [
        {"params": group, "weight_decay": decay}
        for group, decay in zip(groups, (OPTIONS["weight_decay"], 0.0)) if group
    ]


def train(model, parameters: dict, rows: list[dict]) -> tuple[dict, dict]:
    """Some steps of AdamW, each over all rows, one row at a time: no row sees another, and nothing is padded.

    Returns what goes into `reference.json`, and the gradients of the first step.
    """
    optimizer = torch.optim.AdamW(decaying(model, parameters), lr=OPTIONS["learning_rate"])
    schedule = get_linear_schedule_with_warmup(optimizer, OPTIONS["warmup_steps"], OPTIONS["max_steps"])
    losses, norms, rates, gradients = [], [], [], {}
    model.train()
    for step in range(STEPS):
        total, supervised = torch.zeros(()), 0
        for row in rows:
            loss, count = summed_loss(model, row)
            total, supervised = total + loss, supervised + count
        mean = total / supervised
        mean.backward()
        if step == 0:
            gradients = {f"gradient.{key}": parameter.grad.clone() for key, parameter in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), OPTIONS["max_grad_norm"])
        losses.append(mean.item())
        norms.append(norm.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {"rows": rows, "losses": losses, "grad_norms": norms, "learning_rates": rates}, gradients


def write_case(folder: Path, options: dict, reference: dict, name: str, tensors: dict) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "reference.json").write_text(json.dumps({"options": options, **reference}, indent=1) + "\n")
    print(folder.name, reference["losses"], reference["grad_norms"], reference["learning_rates"])
