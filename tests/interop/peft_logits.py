"""Compares an adapter's logits in the worker with those in Transformers and PEFT.

    drydock-worker logits --model MODEL --adapter ADAPTER --ids 1,2,3 --out logits.safetensors
    python tests/interop/peft_logits.py MODEL ADAPTER 1,2,3 logits.safetensors

MODEL is a Hugging Face folder, or a folder with one .gguf file. Prints the largest absolute difference, and fails if
it is 1e-3 or more. Loads the adapter folder's tokenizer as well, as people will.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-3


def load_model(folder: Path):
    ggufs = list(folder.glob("*.gguf"))
    where = {"gguf_file": ggufs[0].name} if ggufs else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)


def main(model_folder: str, adapter_folder: str, ids: str, logits_file: str) -> int:
    model = PeftModel.from_pretrained(load_model(Path(model_folder)), adapter_folder).eval()
    ids = torch.tensor([[int(token) for token in ids.split(",")]])
    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    print("text:", repr(tokenizer.decode(ids[0])))
    with torch.no_grad():
        want = model(input_ids=ids).logits[0]
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0]
    got = load_file(logits_file)["logits"]
    difference = (got - want).abs().max().item()
    print(f"largest difference {difference:.3e} over {tuple(want.shape)}; "
          f"the adapter itself changes logits by up to {(want - base).abs().max().item():.3e}")
    return 0 if difference < TOLERANCE else 1


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
