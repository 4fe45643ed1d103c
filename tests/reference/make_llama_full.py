"""Makes the fixtures in `llama_full/`: every tensor of small random Llamas trained, by PyTorch and Transformers.

    pip install torch transformers safetensors
    python tests/reference/make_llama_full.py

Each case is a model folder, `full.safetensors` with the gradients of the first step (`gradient.*`), and
`reference.json` with the rows, the options and the losses. The rows have gaps in what counts, and are computed one by
one here, so that packing them must change nothing.
"""

from pathlib import Path

import torch
from small_llama import OPTIONS, make_model, make_rows, train, write_case

OUT = Path(__file__).parent / "llama_full"

CASES = {
    "tied": dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
        vocab_size=64, tie_word_embeddings=True,
    ),
    "untied": dict(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=20,
        vocab_size=101, tie_word_embeddings=False,
    ),
}


def make_case(name: str, options: dict) -> None:
    torch.manual_seed(sum(map(ord, name)))
    folder = OUT / name
    model = make_model(folder, options)
    rows = make_rows(options["vocab_size"])
    for row in rows:
        row["counts"] = [counts and index % 5 != 3 for index, counts in enumerate(row["counts"])]
    reference, gradients = train(model, dict(model.named_parameters()), rows)
    write_case(folder, OPTIONS, reference, "full", gradients)


if __name__ == "__main__":
    for name, options in CASES.items():
        make_case(name, options)
