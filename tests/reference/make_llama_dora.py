"""Makes the fixtures in `llama_dora/`: what PEFT computes for DoRA adapters of small random Llamas.

    pip install torch transformers peft safetensors
    python tests/reference/make_llama_dora.py

Each case is a model folder, `adapter/` as PEFT saves it, `dora.safetensors` with the gradients of the first step
(`gradient.*`) and the logits of a row (`logits`), and `reference.json` with the rows, the options and the losses.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from small_llama import OPTIONS, make_model, make_rows, train, write_case

OUT = Path(__file__).parent / "llama_dora"
LORA_OPTIONS = {"lora_r": 3, "lora_alpha": 6.0}

CASES = {
    "all_projections": (
        dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=44,
            vocab_size=101, tie_word_embeddings=True,
        ),
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "some_projections": (
        dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=44,
            vocab_size=101, tie_word_embeddings=False,
        ),
        ["v_proj", "model.layers.1.mlp.down_proj"],
    ),
}


def make_case(name: str, options: dict, modules: list[str]) -> None:
    torch.manual_seed(sum(map(ord, name)))
    folder = OUT / name
    rank, alpha = LORA_OPTIONS.values()
    dora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=modules, use_dora=True)
    model = get_peft_model(make_model(folder, options), dora)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    # The saved names, in the order of the parameters' own.
    saved = {tensor.data_ptr(): name for name, tensor in get_peft_model_state_dict(model).items()}
    parameters = {saved[parameter.data_ptr()]: parameter for parameter in named.values()}
    with torch.no_grad():
        for key, parameter in parameters.items():
            noise = 0.1 * torch.randn_like(parameter)
            # The lengths start as those of the weight's rows; B starts as zero, which would hide A's gradient.
            parameter.copy_(parameter * (1 + noise) if "magnitude" in key else noise)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    rows = make_rows(options["vocab_size"])
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([rows[0]["ids"]]), use_cache=False).logits[0]
    reference, gradients = train(model, parameters, rows)
    write_case(folder, LORA_OPTIONS | OPTIONS, reference, "dora", gradients | {"logits": logits})


if __name__ == "__main__":
    for name, (options, modules) in CASES.items():
        make_case(name, options, modules)
