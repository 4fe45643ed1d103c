"""Compares a model that the worker has written with what Transformers makes of it.

    drydock-worker logits --model MODEL --ids 1,2,3 --out logits.safetensors
    python tests/interop/merged_logits.py MODEL 1,2,3 logits.safetensors [TOLERANCE]

MODEL is the folder that a finetune with `keep: merged` or `method: full`, or `drydock-worker merge`, has left. The
logits may also be those of the base model and the adapter, to compare a merged model with what it was merged from; the
tolerance (1e-3 by default) must then leave room for the rounding of the weights. Loads the tokenizer and renders the
chat template as well, as people will.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, ids: str, logits_file: str, tolerance: str = "1e-3") -> int:
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    left = {key: value for key, value in loading.items() if value}
    print("class:", type(model).__name__, "| keys left over or missing:", left or "none")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[int(token) for token in ids.split(",")]])
    print("text:", repr(tokenizer.decode(ids[0])))
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "Hello"}]
        print("chat:", repr(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)))
    print("answers end with:", model.generation_config.eos_token_id)
    with torch.no_grad():
        want = model.eval()(input_ids=ids).logits[0]
    got = load_file(logits_file)["logits"]
    difference = (got - want).abs().max().item()
    print(f"largest difference {difference:.3e} over {tuple(want.shape)}")
    return 0 if difference < float(tolerance) and not left else 1


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
