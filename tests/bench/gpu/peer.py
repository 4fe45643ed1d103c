"""The same work by PyTorch, Transformers and PEFT, eager: prints one JSON object.

    peer.py train    --method lora|dora|full --model FOLDER --rows FILE --batch 4 --length 1024 --steps 12 [--checkpointing]
    peer.py evaluate --model FOLDER --rows FILE --batch 4 --length 1024 --steps 12
    peer.py answer   --model FOLDER --rows FILE --batch 4 --length 1024 --tokens 128
    peer.py limits

`train` computes in bf16: with LoRA and DoRA the frozen weights are bf16 and the adapter f32, as PEFT has it; in full the weights
are f32 and products bf16 (autocast), as drydock has it. `answer` takes the likeliest token each time. `limits` multiplies large matrices and copies a gigabyte: what
the card itself can do today, in the same minutes.
"""

import argparse
import json
import statistics
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["train", "evaluate", "answer", "limits"])
    for name in ["--method", "--model", "--rows"]:
        parser.add_argument(name)
    for name, value in {"--batch": 4, "--length": 1024, "--steps": 12, "--tokens": 128}.items():
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--checkpointing", action="store_true")
    return parser.parse_args()


def timed(torch, device: str, steps: int, step) -> tuple[list[float], list[float]]:
    """Seconds and results of each step."""
    seconds, results = [], []
    for i in range(steps):
        started = time.perf_counter()
        results.append(float(step(i)))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds, results


def ids(torch, args: argparse.Namespace, device: str):
    """Rows as drydock reads them: a byte a token, cut to the length."""
    rows = [json.loads(line)["text"].encode()[: args.length] for line in open(args.rows)]
    chosen = [list(rows[i % len(rows)]) for i in range(args.steps * args.batch)]
    return torch.tensor(chosen, device=device).view(args.steps, args.batch, args.length)


def load(torch, args: argparse.Namespace, device: str, dtype):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device)


def train(torch, args: argparse.Namespace, device: str) -> dict:
    lora = args.method != "full"
    model = load(torch, args, device, torch.bfloat16 if lora else torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=names, use_dora=args.method == "dora"))
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    batches = ids(torch, args, device)

    def step(i: int) -> float:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=batches[i], labels=batches[i], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return told(torch, args, device, *timed(torch, device, args.steps, step))


def evaluate(torch, args: argparse.Namespace, device: str) -> dict:
    model = load(torch, args, device, torch.bfloat16).eval()
    batches = ids(torch, args, device)

    @torch.no_grad()
    def step(i: int) -> float:
        return model(input_ids=batches[i], labels=batches[i], use_cache=False).loss.item()

    return told(torch, args, device, *timed(torch, device, args.steps, step))


def answer(torch, args: argparse.Namespace, device: str) -> dict:
    model = load(torch, args, device, torch.bfloat16).eval()
    rows = [list(json.loads(line)["prompt"].encode()[: args.length]) for line in open(args.rows)]
    prompts = torch.tensor(rows[: args.batch], device=device)

    @torch.no_grad()
    def step(_: int) -> int:
        given = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0,
                               min_new_tokens=args.tokens, max_new_tokens=args.tokens)
        return given[0, -1].item()

    seconds, _ = timed(torch, device, 2, step)
    # The first time, kernels are chosen.
    rate = args.batch * args.tokens / seconds[-1]
    return told(torch, args, device, seconds, []) | {"tokens_per_second": rate, "range": [rate, rate]}


def told(torch, args: argparse.Namespace, device: str, seconds: list[float], losses: list[float]) -> dict:
    warm = seconds[2:] or seconds
    rates = sorted(args.batch * args.length / second for second in warm)
    return {"tokens_per_second": statistics.median(rates), "range": [rates[0], rates[-1]], "losses": losses,
            "peak_gpu_bytes": torch.cuda.max_memory_reserved() if device == "cuda" else None,
            "version": f"torch {torch.__version__}"}


def limits(torch, device: str) -> dict:
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds, _ = timed(torch, device, 20, lambda i: (a @ b)[0, 0])
    x = torch.empty(size * size * 8, dtype=torch.bfloat16, device=device)
    y = torch.empty_like(x)
    copies, _ = timed(torch, device, 20, lambda i: y.copy_(x)[0])
    return {"products_flops": 2 * size**3 / statistics.median(seconds[5:]),
            "copy_bytes_per_second": 2 * x.nbytes / statistics.median(copies[5:])}


def main() -> None:
    import torch

    args = arguments()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = limits(torch, device) if args.work == "limits" else globals()[args.work](torch, args, device)
    print(json.dumps(result | {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}))


if __name__ == "__main__":
    main()
