"""Makes the fixtures in `llama_lora/`: what PyTorch, Transformers and PEFT compute for small random Llamas.

    pip install torch transformers peft safetensors
    python tests/reference/make_llama_lora.py

Each case is a model folder, `lora.safetensors` with the adapter's values (`start.*`) and the gradients of the first
step (`gradient.*`), and `reference.json` with the rows, the options and the losses. The worker's tests read these files
and need no Python.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from small_llama import OPTIONS, make_model, make_rows, train, write_case

OUT = Path(__file__).parent / "llama_lora"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_OPTIONS = {"lora_r": 4, "lora_alpha": 6.0}

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


def adapter(model) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters under the names that PEFT saves them by."""
    named = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert len(named) == 2 * len(MODULES) * model.config.num_hidden_layers
    return named


def make_case(name: str, options: dict) -> None:
    torch.manual_seed(sum(map(ord, name)))
    folder = OUT / name
    model = make_model(folder, options)
    rank, alpha = LORA_OPTIONS.values()
    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=MODULES)
    model = get_peft_model(model, lora)
    parameters = adapter(model)
    with torch.no_grad():
        for parameter in parameters.values():
            # B is not zero here: with a zero B the gradient of A is zero, and would show nothing.
            parameter.copy_(0.1 * torch.randn_like(parameter))
    tensors = {f"start.{key}": parameter.detach().clone() for key, parameter in parameters.items()}
    reference, gradients = train(model, parameters, make_rows(options["vocab_size"]))
    write_case(folder, LORA_OPTIONS | OPTIONS, reference, "lora", tensors | gradients)


if __name__ == "__main__":
    for name, options in CASES.items():
        make_case(name, options)
