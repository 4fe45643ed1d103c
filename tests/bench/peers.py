"""One piece of work done by what people use today; prints a JSON object like that of drydock's own bench.

    peers.py torch-train      --method lora|full --dtype f32|bf16 --batch 4 --length 256 --steps 4
    peers.py torch-perplexity --dtype f32|bf16 --windows 8 --length 512
    peers.py torch-generate   --batch 16 --prompt-length 64 --tokens 64
    peers.py llama-perplexity --gguf FILE --windows 8 --length 512
    peers.py llama-generate   --gguf FILE --prompt-length 64 --tokens 128
    peers.py ggml-quantize    --type Q4_0

Every work takes --model FOLDER, --text FILE and --threads N as well. Speeds are medians over steps or windows, without
the first one, which pays for warming up.
"""

import argparse
import json
import math
import resource
import statistics
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--gguf")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--type", default="Q4_0")
    for name, value in {"threads": 2, "batch": 4, "length": 256, "steps": 4, "windows": 8, "prompt-length": 64,
                        "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def text_ids(args: argparse.Namespace, count: int) -> list[int]:
    from tokenizers import Tokenizer

    # Tokenizing is not what is measured; a part of the text is enough.
    text = open(args.text).read()[: count * 8]
    ids = Tokenizer.from_file(f"{args.model}/tokenizer.json").encode(text, add_special_tokens=False).ids
    assert len(ids) >= count, f"the text has {len(ids)} tokens, {count} are needed"
    return ids[:count]


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def torch_model(args: argparse.Namespace):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    return torch, AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)


def autocast(torch, dtype: str):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")


def torch_train(args: argparse.Namespace) -> dict:
    started = time.perf_counter()
    torch, model = torch_model(args)
    torch.manual_seed(0)
    if args.method == "lora":
        from peft import LoraConfig, get_peft_model

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    tokens = args.batch * args.length
    ids = torch.tensor(text_ids(args, tokens * args.steps)).view(args.steps, args.batch, args.length)
    seconds, cpu, losses, ready = [], [], [], None
    for batch in ids:
        began, cpu_began = time.perf_counter(), time.process_time()
        with autocast(torch, args.dtype):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
        losses.append(loss.item())
        ready = ready or time.perf_counter() - started
    return {"tokens_per_second": spread([tokens / s for s in seconds[1:]]), "cpu_seconds": spread(cpu[1:]),
            "seconds_to_first_step": ready, "losses": losses}


def torch_perplexity(args: argparse.Namespace) -> dict:
    torch, model = torch_model(args)
    model.eval()
    ids = torch.tensor(text_ids(args, args.windows * args.length)).view(args.windows, args.length)
    seconds, loss = [], 0.0
    with torch.no_grad(), autocast(torch, args.dtype):
        for window in ids:
            began = time.perf_counter()
            loss += model(input_ids=window[None], labels=window[None], use_cache=False).loss.item()
            seconds.append(time.perf_counter() - began)
    return {"tokens_per_second": spread([args.length / s for s in seconds[1:]]),
            "perplexity": math.exp(loss / args.windows)}


def torch_generate(args: argparse.Namespace) -> dict:
    torch, model = torch_model(args)
    model.eval()
    prompts = torch.tensor(text_ids(args, args.batch * args.prompt_length)).view(args.batch, args.prompt_length)

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=tokens,
                       min_new_tokens=tokens, pad_token_id=0)
        return time.perf_counter() - began

    # The prompt is taken in with the first token; what is measured is the rest.
    speeds = [args.batch * (args.tokens - 1) / (seconds(args.tokens) - seconds(1)) for _ in range(3)]
    return {"tokens_per_second": spread(speeds[1:])}


def llama_context(args: argparse.Namespace, length: int):
    import ctypes

    import llama_cpp

    # What it says while loading is of no interest.
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(args.gguf.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    return llama_cpp, context, vocabulary, quiet


def llama_batch(llama_cpp, ids: list[int], first: int, logits_of_all: bool):
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, first + i, 1, 0
        batch.logits[i] = logits_of_all or i == len(ids) - 1
    return batch


def llama_perplexity(args: argparse.Namespace) -> dict:
    """The time is that of llama.cpp alone: what Python makes of the logits is not counted."""
    import numpy as np

    llama_cpp, context, vocabulary, _quiet = llama_context(args, args.length)
    ids = text_ids(args, args.windows * args.length)
    seconds, loss, counted = [], 0.0, 0
    for window in range(args.windows):
        part = ids[window * args.length : (window + 1) * args.length]
        batch = llama_batch(llama_cpp, part, 0, True)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        began = time.perf_counter()
        assert llama_cpp.llama_decode(context, batch) == 0
        first = llama_cpp.llama_get_logits(context)
        seconds.append(time.perf_counter() - began)
        logits = np.ctypeslib.as_array(first, shape=(args.length, vocabulary))[:-1].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        sums = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        loss += float((sums - logits[np.arange(args.length - 1), part[1:]]).sum())
        counted += args.length - 1
        llama_cpp.llama_batch_free(batch)
    return {"tokens_per_second": spread([args.length / s for s in seconds[1:]]), "perplexity": math.exp(loss / counted)}


def llama_generate(args: argparse.Namespace) -> dict:
    """Greedy, one text; the time is that of the answer, without the prompt."""
    import numpy as np

    llama_cpp, context, vocabulary, _quiet = llama_context(args, args.prompt_length + args.tokens)
    prompt = text_ids(args, args.prompt_length)
    speeds, answer = [], []
    for _ in range(3):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        assert llama_cpp.llama_decode(context, llama_batch(llama_cpp, prompt, 0, False)) == 0
        answer, began = [], time.perf_counter()
        for place in range(args.tokens):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(vocabulary,))
            answer.append(int(logits.argmax()))
            step = llama_batch(llama_cpp, answer[-1:], args.prompt_length + place, False)
            assert llama_cpp.llama_decode(context, step) == 0
            llama_cpp.llama_batch_free(step)
        speeds.append(args.tokens / (time.perf_counter() - began))
    return {"tokens_per_second": spread(speeds[1:]), "ids": answer}


def ggml_quantize(args: argparse.Namespace) -> dict:
    """Every `down_proj` of the model (rows of 1536 values, which suit every type), its rows cut among the threads; ctypes
    lets go of Python's lock while ggml works."""
    import ctypes
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import gguf
    import llama_cpp
    import numpy as np
    from safetensors import safe_open

    library = next(Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so*"))
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                         ctypes.c_int64, ctypes.c_void_p]
    kind = gguf.GGMLQuantizationType[args.type]
    ggml.ggml_quantize_init(int(kind))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # By way of PyTorch: NumPy has no bf16.
    with safe_open(f"{args.model}/model.safetensors", "pt") as weights:
        names = sorted(name for name in weights.keys() if name.endswith("down_proj.weight"))
        values = np.concatenate([weights.get_tensor(name).float().numpy() for name in names])
    rows, width = values.shape
    out = np.empty(rows * width // block * size, dtype=np.uint8)

    def part(index: int) -> None:
        first, last = rows * index // args.threads, rows * (index + 1) // args.threads
        ggml.ggml_quantize_chunk(int(kind), values.ctypes.data, out.ctypes.data, first * width, last - first, width, None)

    gigabytes = []
    with ThreadPoolExecutor(args.threads) as pool:
        for _ in range(4):
            began = time.perf_counter()
            list(pool.map(part, range(args.threads)))
            gigabytes.append(values.nbytes / 1e9 / (time.perf_counter() - began))
    widened = gguf.quants.dequantize(out, kind).reshape(values.shape)
    error = float(np.sqrt(np.square(widened - values, dtype=np.float64).mean() / np.square(values, dtype=np.float64).mean()))
    return {"gigabytes_per_second": spread(gigabytes[1:]), "relative_error": error}


def versions(work: str) -> str:
    from importlib.metadata import version

    names = {"torch-train": ["torch", "transformers", "peft"], "torch-perplexity": ["torch", "transformers"],
             "torch-generate": ["torch", "transformers"]}.get(work, ["llama-cpp-python"])
    return " ".join(f"{name} {version(name)}" for name in names)


def main() -> None:
    args = arguments()
    works = {"torch-train": torch_train, "torch-perplexity": torch_perplexity, "torch-generate": torch_generate,
             "llama-perplexity": llama_perplexity, "llama-generate": llama_generate, "ggml-quantize": ggml_quantize}
    result = works[args.work](args)
    print(json.dumps(result | {"work": args.work, "peak_rss_bytes": peak_rss(), "version": versions(args.work)}))


if __name__ == "__main__":
    main()
