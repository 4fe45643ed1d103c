"""Makes the fixtures in `architectures/`: what Transformers computes for a small model of each architecture.

    pip install torch transformers peft safetensors gguf
    python tests/reference/make_architectures.py [CASE...]

The weights are not stored: they are a function of the tensor's name and the index (`weight_values`), which the worker's
tests compute as well. Each case holds `config.json`, `reference.json` (rows, losses, and what a GGUF file of the model
says) and `reference.safetensors` (the gradient of every tensor, those of an adapter, and the logits of a row).
"""

import json
import sys
from pathlib import Path

import gguf
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parent / "architectures"
MASK = (1 << 64) - 1
# Longer than every window here, and shorter; one token; and more than Phi-3's original positions.
ROW_LENGTHS = [7, 23, 1, 12]
LOGITS_ROW = 1
LORA = {"r": 2, "lora_alpha": 3.0}

SMALL = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=32,
    vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-5, pad_token_id=None, bos_token_id=None, eos_token_id=1,
)
GEMMA = dict(head_dim=8, query_pre_attn_scalar=20, num_hidden_layers=3, sliding_window=4)

# Chosen so that each feature changes the numbers: windows shorter than the rows, caps within the logits' range.
CASES = {
    "llama_linear": dict(
        model_type="llama", attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
    ),
    "llama_yarn": dict(
        model_type="llama", head_dim=16,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 16,
            "beta_fast": 2.0, "beta_slow": 0.25,
        },
    ),
    "mistral": dict(model_type="mistral", sliding_window=5),
    "qwen2": dict(
        model_type="qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": dict(model_type="qwen3", head_dim=8),
    "gemma2": dict(model_type="gemma2", attn_logit_softcapping=0.75, final_logit_softcapping=2.0, **GEMMA),
    "gemma3": dict(
        model_type="gemma3_text", layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        **GEMMA,
    ),
    "phi3": dict(
        model_type="phi3", hidden_size=32, sliding_window=9, original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.25, 1.5], "long_factor": [1.5, 2.0, 4.0],
        },
    ),
}
ADAPTED = {"qwen2", "gemma2", "phi3"}


def mix(x: int) -> int:
    """The finaliser of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def weight_values(name: str, shape: torch.Size) -> torch.Tensor:
    """Multiples of 1/384 from -1/3 to 1/3, by the tensor's name and the index."""
    seed = 0
    for byte in name.encode():
        seed = mix(seed ^ byte)
    count = shape.numel()
    return torch.tensor([((mix(seed ^ index) >> 56) - 128) / 384 for index in range(count)]).reshape(shape)


def model_values(name: str, shape: torch.Size, gemma: bool) -> torch.Tensor:
    """Norms are around one; Gemma's files hold the distance from it."""
    values = weight_values(name, shape)
    return values + 1 if "norm" in name and not gemma else values


def make_model(options: dict):
    config = AutoConfig.for_model(**{**SMALL, **options})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(model_values(name, parameter.shape, config.model_type.startswith("gemma")))
    return model.train()


def make_rows(name: str, vocabulary: int) -> list[dict]:
    rows = []
    for number, length in enumerate(ROW_LENGTHS):
        seed = mix(len(name) ^ number << 32)
        ids = [mix(seed ^ index) % vocabulary for index in range(length)]
        rows.append({"ids": ids, "counts": [index >= length // 3 for index in range(length)]})
    return rows


def summed_loss(model, row: dict) -> tuple[torch.Tensor, int]:
    labels = torch.tensor([token if counts else -100 for token, counts in zip(row["ids"], row["counts"])])[1:]
    supervised = int((labels != -100).sum())
    if supervised == 0:
        return torch.zeros(()), 0
    logits = model(input_ids=torch.tensor([row["ids"]]), use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), supervised


def gradients(model, rows: list[dict]) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss over all supervised tokens, and the gradient of everything that is trained."""
    total, supervised = torch.zeros(()), 0
    for row in rows:
        loss, count = summed_loss(model, row)
        total, supervised = total + loss, supervised + count
    mean = total / supervised
    mean.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.values()), "a gradient is zero"
    return mean.item(), {name: parameter.grad.contiguous() for name, parameter in trained.items()}


def adapter_gradients(model, rows: list[dict]) -> tuple[float, dict[str, torch.Tensor]]:
    modules = sorted({name.split(".")[-2] for name, _ in model.named_parameters() if "proj.weight" in name})
    model.zero_grad()
    model = get_peft_model(model, LoraConfig(lora_dropout=0.0, target_modules=modules, **LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weight_values(name.replace(".default", ""), parameter.shape))
    loss, found = gradients(model, rows)
    return loss, {name.replace(".default", ""): gradient for name, gradient in found.items()}


def gguf_names(config, names: list[str]) -> dict[str, str]:
    """What the `gguf` package calls the tensors."""
    called = {"gemma3_text": "gemma3", "mistral": "llama"}.get(config.model_type, config.model_type)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == called)
    known = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    return {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}


def make_case(name: str, options: dict) -> None:
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(options)
    rows = make_rows(name, SMALL["vocab_size"])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rows[LOGITS_ROW]["ids"]]), use_cache=False).logits[0]
    loss, found = gradients(model, rows)
    tensors = {"logits": logits.contiguous()} | {f"gradient.{key}": value for key, value in found.items()}
    reference = {"rows": rows, "logits_row": LOGITS_ROW, "loss": loss, "gguf": gguf_names(model.config, list(found))}
    (folder / "config.json").write_text(model.config.to_json_string())
    if name in ADAPTED:
        adapted, found = adapter_gradients(model, rows)
        tensors |= {f"adapter.{key}": value for key, value in found.items()}
        reference["adapter"] = {**LORA, "loss": adapted}
    save_file(tensors, folder / "reference.safetensors")
    (folder / "reference.json").write_text(json.dumps(reference, separators=(",", ":")) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(name, loss, reference.get("adapter"), f"{logits.abs().max():.3f}", size)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])
