"""Makes `evaluate/reference.json`: what Transformers measures and generates with the model `llama_lora/tied`.

    pip install torch transformers
    python tests/reference/make_evaluate.py

The worker's tests read the file and need no Python.
"""

import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
OUT = HERE / "evaluate" / "reference.json"
PROMPT_LENGTHS = [5, 40, 1, 17, 23, 9, 31]
MAX_NEW_TOKENS = 24


def draw(count: int) -> list[int]:
    # The first tokens end texts; none of them is drawn.
    return torch.randint(3, 512, (count,)).tolist()


def log_likelihoods(model, ids: list[int]) -> torch.Tensor:
    """Of every token but the first."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def strided(model, ids: list[int], length: int, stride: int) -> dict:
    """The sliding window of Hugging Face's documentation, with the sum of the losses instead of the mean per window."""
    total, tokens, counted = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        losses = -log_likelihoods(model, ids[begin:end])[counted - begin - 1 :]
        total, tokens, counted = total + losses.sum().item(), tokens + len(losses), end
        if end == len(ids):
            break
    return {"length": length, "stride": stride, "tokens": tokens, "perplexity": float(torch.tensor(total / tokens, dtype=torch.float64).exp())}


def choices(model, context: list[int], continuations: list[list[int]]) -> dict:
    sums = [log_likelihoods(model, context + each)[len(context) - 1 :].sum().item() for each in continuations]
    return {"context": context, "continuations": continuations, "sums": sums}


def greedy(model, prompt: list[int], stops: list[int]) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS, eos_token_id=stops, pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def main() -> None:
    torch.manual_seed(5)
    model = LlamaForCausalLM.from_pretrained(HERE / "llama_lora" / "tied", dtype=torch.float32).eval()
    ids = draw(300)
    prompts = [draw(length) for length in PROMPT_LENGTHS]
    # A token that some answers hold ends them, so that rows leave the batch at different times.
    stops = [greedy(model, prompts[1], [0])[6], greedy(model, prompts[4], [0])[11]]
    reference = {
        "ids": ids,
        "strided": [strided(model, ids, length, stride) for length, stride in [(64, 24), (64, 63), (50, 1), (400, 399)]],
        "choices": [
            choices(model, draw(20), [draw(3), draw(1), draw(7)]),
            choices(model, draw(1), [draw(2), draw(5)]),
            choices(model, draw(60), [draw(4), draw(4), draw(2), draw(9)]),
        ],
        "generation": {
            "max_new_tokens": MAX_NEW_TOKENS,
            "stops": stops,
            "prompts": prompts,
            "answers": [greedy(model, prompt, stops) for prompt in prompts],
        },
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
