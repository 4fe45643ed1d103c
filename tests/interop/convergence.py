"""Trains the same recipe with drydock's worker and with PEFT, and compares where the held-out loss ends.

    convergence.py WORKER MODEL_FOLDER ROWS.jsonl [--steps 200]

ROWS.jsonl holds `question` and `answer` (GSM8K's train split does). Both sides learn the same rows, each in an order of
its own, from adapters that start at random values of the same distribution; so the losses agree in the mean, not in
their digits. Exits with 1 if the held-out losses lie more than 1 % apart.
"""

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

from worker import run_job

BATCH, LENGTH, RANK, ALPHA, RATE, WARMUP, HELD_OUT = 4, 384, 8, 16, 2e-4, 10, 120
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows_of(path: Path, count: int) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    random.Random(7).shuffle(rows)
    if len(rows) < count:
        sys.exit(f"{path} has {len(rows)} rows; {count} are needed: lower --steps")
    return [{"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"} for row in rows[:count]]


def by_drydock(worker: str, model: Path, train: list[dict], held_out: list[dict], folder: Path, threads: int) -> dict:
    for name, rows in {"train": train, "eval": held_out}.items():
        (folder / name).mkdir()
        (folder / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finetune = {"model": "m", "dataset": "train", "eval_dataset": "eval", "lora_r": RANK, "lora_alpha": ALPHA,
                "learning_rate": RATE, "warmup_steps": WARMUP, "per_device_train_batch_size": BATCH,
                "max_seq_length": LENGTH, "num_train_epochs": 1.0, "max_grad_norm": 1.0, "target_modules": MODULES}
    inputs = {"model": {"path": str(model), "name": "m"}, "dataset": str(folder / "train"),
              "eval_dataset": str(folder / "eval")}
    began = time.perf_counter()
    reports = run_job(worker, {"finetune": finetune}, inputs, folder / "job", threads)
    losses = {report["phase"]: report["loss"] for report in reports if report["type"] == "evaluation"}
    return {"before": losses["before"], "after": losses["after"], "seconds": time.perf_counter() - began}


def by_peft(model: Path, train: list[dict], held_out: list[dict], threads: int) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

    torch.set_num_threads(threads)
    torch.manual_seed(42)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    eos = AutoTokenizer.from_pretrained(model).eos_token
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    net = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def tokens(row: dict) -> tuple[list[int], list[int]]:
        encoded = tokenizer.encode(row["prompt"] + row["completion"] + eos)
        start = len(row["prompt"])
        labels = [i if offset[1] > start else -100 for i, offset in zip(encoded.ids, encoded.offsets)]
        return encoded.ids[:LENGTH], labels[:LENGTH]

    def batch(rows: list[dict]) -> tuple:
        pairs = [tokens(row) for row in rows]
        longest = max(len(ids) for ids, _ in pairs)
        pad = lambda values, fill: torch.tensor([v + [fill] * (longest - len(v)) for v in values])
        ids, labels = pad([p[0] for p in pairs], 0), pad([p[1] for p in pairs], -100)
        mask = pad([[1] * len(p[0]) for p in pairs], 0)
        return ids, labels, mask

    def loss_of(rows: list[dict]):
        ids, labels, mask = batch(rows)
        logits = net(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        counted = labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), counted.flatten(), ignore_index=-100, reduction="sum")
        return loss, int((counted != -100).sum())

    def held_out_loss() -> float:
        net.eval()
        with torch.no_grad():
            pairs = [loss_of(held_out[i : i + BATCH]) for i in range(0, len(held_out), BATCH)]
        net.train()
        return sum(loss.item() for loss, _ in pairs) / sum(count for _, count in pairs)

    began, before = time.perf_counter(), held_out_loss()
    order = random.Random(1).sample(train, len(train))
    steps = math.ceil(len(order) / BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, steps)
    for step in range(steps):
        loss, count = loss_of(order[step * BATCH : (step + 1) * BATCH])
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(f"  PEFT: step {step}, loss {loss.item() / count:.4f}", flush=True)
    return {"before": before, "after": held_out_loss(), "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = rows_of(args.rows, args.steps * BATCH + HELD_OUT)
    train, held_out = rows[HELD_OUT:], rows[:HELD_OUT]
    with tempfile.TemporaryDirectory() as folder:
        ours = by_drydock(args.worker, args.model, train, held_out, Path(folder), args.threads)
    print(f"drydock: held-out loss {ours['before']:.4f} -> {ours['after']:.4f} in {ours['seconds']:.0f} s", flush=True)
    theirs = by_peft(args.model, train, held_out, args.threads)
    print(f"PEFT:    held-out loss {theirs['before']:.4f} -> {theirs['after']:.4f} in {theirs['seconds']:.0f} s")
    apart = ours["after"] / theirs["after"] - 1
    print(f"after {args.steps} steps drydock ends {100 * apart:+.2f} % from PEFT")
    if abs(ours["before"] / theirs["before"] - 1) > 1e-4:
        sys.exit("the two do not start from the same loss: they do not see the same rows")
    if abs(apart) > 0.01:
        sys.exit("more than 1 % apart")


if __name__ == "__main__":
    main()
