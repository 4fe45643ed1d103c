"""Measures drydock's worker on an NVIDIA GPU beside PyTorch + PEFT (eager, bf16), in the same run, and prints a table:
trainings, evaluations of texts, and answers; and quantizing on the GPU's host beside llama.cpp (quantize.py).

    bench.py WORKER FOLDER [--shapes 135m,1b,8b] [--repeats 3] [--steps 12] [--emulated LIBRARIES]

The worker does whole jobs, as a user's would be, and tells its speed itself; the peer's program is peer.py. The two
sides take turns. A model's weights are random. Speed is in tokens a second, medians of steps without the first two;
MFU is the share of the products that the GPU could have done by its data sheet, and beside it stands the share of what
it did in the same minutes in one large product. An answer's speed is in tokens that are written, after prompts as long as
they are, which count in the time. Memory is what the GPU's driver says that it gave, minus what it had given before. What
cannot be measured is listed in words with the reason. Where there are several GPUs of one kind, drydock's trainings are
run on more and more of them.

With --emulated the worker computes on the tests' GPU made of the CPU, at a toy's size, and the peer on the CPU: that
tells whether this program works, and nothing about speed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import quantize
import scaling
from models import SHAPES, Shape, make_model, make_questions, make_rows

HERE = Path(__file__).parent

# Dense bf16 products a second by NVIDIA's data sheets.
SHEETS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12,
          "L40S": 362e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


@dataclass(frozen=True)
class Row:
    """One piece of work for both sides."""

    shape: Shape
    method: str
    batch: int
    length: int
    checkpointing: bool = False

    def title(self) -> str:
        extra = ", checkpointing" if self.checkpointing else ""
        return f"{self.shape.name} {self.method}, {self.batch}x{self.length}{extra}"


def rows(names: list[str]) -> list[Row]:
    sizes = {"135m": [(16, 1024, False)], "1b": [(8, 2048, False)], "8b": [(4, 2048, False), (4, 2048, True)],
             "toy": [(2, 48, False), (2, 48, True)]}
    return [Row(SHAPES[name], method, batch, length, checkpointing)
            for name in names for method in ["lora", "dora", "full", "evaluate", "answer"]
            for batch, length, checkpointing in sizes[name] if not (checkpointing and method in ["evaluate", "answer"])]


class Unmeasured(Exception):
    """Why there is no number."""


class GpuMemory:
    """The most that the driver gave to anybody while something ran, in bytes above what it had given before."""

    def __init__(self, watched: bool):
        self.watched, self.peak, self.over = watched, 0, threading.Event()

    def used(self) -> int:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) << 20

    def watch(self) -> None:
        while not self.over.wait(0.1):
            self.peak = max(self.peak, self.used() - self.before)

    def __enter__(self):
        if self.watched:
            self.before, self.thread = self.used(), threading.Thread(target=self.watch)
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.watched:
            self.thread.join()


class Bench:
    Unmeasured = Unmeasured

    def __init__(self, args: argparse.Namespace):
        self.worker, self.folder, self.steps = args.worker.resolve(), args.folder, args.steps
        self.emulated = args.emulated
        self.threads = os.cpu_count() or 1

    def ours(self, row: Row, gpus: int = 1) -> dict:
        model = make_model(row.shape, self.folder / row.shape.name)
        if row.method == "answer":
            return self.our_answers(row, model)
        name = f"rows-{row.length}" if gpus == 1 else f"rows-{row.length}-{gpus}"
        data = make_rows(self.folder / name, self.steps * row.batch * gpus, row.length)
        recipe = {"model": "random", "dataset": "rows", "dtype": "bf16", "max_seq_length": row.length}
        if row.method == "evaluate":
            spec = {"evaluate": {"model": "random", "dataset": "rows", "measures": ["perplexity"], "dtype": "bf16",
                                 "batch_size": row.batch, "max_seq_length": row.length}}
        else:
            method = {"method": row.method} | ({} if row.method == "full" else {"lora_r": 16, "lora_alpha": 32.0})
            spec = {"finetune": recipe | method | {
                "per_device_train_batch_size": row.batch, "max_steps": self.steps, "logging_steps": 1, "test_size": 0.0,
                "gradient_accumulation_steps": gpus,
                "gradient_checkpointing": row.checkpointing, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
                "sample_prompts": []}}
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch, GpuMemory(not self.emulated) as memory:
            reports, seconds = self.job(spec, {"model": {"path": str(model), "name": "random"}, "dataset": str(data)}, Path(scratch), gpus)
        computed_on_gpu(reports)
        metrics = [report for report in reports if report["type"] == "metrics"]
        rates = sorted(report["tokens_per_second"] for report in (metrics[2:] or metrics))
        rates = rates or [pace(reports, self.steps * row.batch * row.length) or self.steps * row.batch * row.length / seconds]
        return {"tokens_per_second": statistics.median(rates), "range": [rates[0], rates[-1]], "job_seconds": seconds,
                "losses": [report["loss"] for report in metrics], "peak_gpu_bytes": memory.peak or None}

    def our_answers(self, row: Row, model: Path) -> dict:
        written = answer_tokens(row)
        data = make_questions(self.folder / f"questions-{row.length}", row.batch, row.length)
        spec = {"evaluate": {"model": "random", "dataset": "rows", "measures": ["exact_match"], "dtype": "bf16",
                             "batch_size": row.batch, "max_new_tokens": written, "apply_chat_template": False}}
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch, GpuMemory(not self.emulated) as memory:
            reports, seconds = self.job(spec, {"model": {"path": str(model), "name": "random"}, "dataset": str(data)}, Path(scratch))
            model = json.loads((Path(scratch) / "out" / "results.json").read_text())["models"][0]
        computed_on_gpu(reports)
        tokens = model["results"]["exact_match"]["answer_tokens,none"] * row.batch
        if tokens < 0.9 * written * row.batch:
            raise Unmeasured(f"the answers have {tokens:.0f} tokens, where {written * row.batch} were asked for")
        rate = tokens / model["total_evaluation_time_seconds"]
        return {"tokens_per_second": rate, "range": [rate, rate], "job_seconds": seconds, "losses": [],
                "peak_gpu_bytes": memory.peak or None}

    def job(self, spec: dict, inputs: dict, folder: Path, gpus: int = 1) -> tuple[list[dict], float]:
        (folder / "out").mkdir()
        events, attempt = folder / "events.jsonl", folder / "spec.json"
        attempt.write_text(json.dumps({
            "contract": 1, "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C", "attempt": 1, "trace_id": "0" * 32, "spec": spec,
            "inputs": inputs, "output": str(folder / "out"), "events": str(events), "threads": self.threads, "gpus": gpus}))
        environment = dict(os.environ)
        if self.emulated:
            environment |= {"LD_LIBRARY_PATH": str(self.emulated), "EMULATED_GPU_COUNT": str(scaling.EMULATED)}
        started = time.perf_counter()
        done = subprocess.run([self.worker, "run", str(attempt)], capture_output=True, text=True, env=environment)
        reports = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        if done.returncode != 0:
            last = reports[-1] if reports and reports[-1]["type"] == "failed" else {"message": done.stderr[-500:]}
            raise Unmeasured(f"the worker failed: {last['message']}")
        return reports, time.perf_counter() - started

    def on(self, row: Row, gpus: int, repeats: int) -> list[float] | str:
        try:
            return [self.ours(row, gpus)["tokens_per_second"] for _ in range(repeats)]
        except Unmeasured as reason:
            return str(reason)

    def peer(self, row: Row) -> dict:
        work = [row.method] if row.method in ["evaluate", "answer"] else ["train", "--method", row.method]
        if row.checkpointing:
            work.append("--checkpointing")
        rows = "questions" if row.method == "answer" else "rows"
        inputs = ["--model", str(self.folder / row.shape.name), "--rows", str(self.folder / f"{rows}-{row.length}" / "rows.jsonl")]
        if row.method == "answer":
            inputs += ["--tokens", str(answer_tokens(row))]
        sizes = ["--batch", str(row.batch), "--length", str(row.length), "--steps", str(self.steps)]
        with GpuMemory(not self.emulated) as memory:
            result = peer([*work, *inputs, *sizes])
        return result | {"peak_gpu_bytes": memory.peak or result["peak_gpu_bytes"]}


def computed_on_gpu(reports: list[dict]) -> None:
    started = next(report for report in reports if report["type"] == "started")
    if not started["device"].startswith("cuda"):
        raise Unmeasured(f"the worker computed on {started['device']}")


def answer_tokens(row: Row) -> int:
    """Tokens of an answer: an eighth of the prompt's."""
    return row.length // 8


def pace(reports: list[dict], tokens: int) -> float | None:
    """Tokens a second of an evaluation, by when it said how far it was; without loading, and without the first batch."""
    told = [report for report in reports if report["type"] == "progress" and report["stage"] == "evaluate" and report["done"] > 0]
    if len(told) < 2 or told[-1]["elapsed_ms"] == told[0]["elapsed_ms"]:
        return None
    share = (told[-1]["done"] - told[0]["done"]) / told[-1]["total"]
    return tokens * share / (told[-1]["elapsed_ms"] - told[0]["elapsed_ms"]) * 1e3


def peer(work: list[str]) -> dict:
    done = subprocess.run([sys.executable, str(HERE / "peer.py"), *work], capture_output=True, text=True)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines() or ["it said nothing"]
        raise Unmeasured(f"the peer failed: {why[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(bench: Bench, row: Row, repeats: int, could: dict) -> dict:
    """Both sides of a row in turns; a side that fails is told, and the other still counts."""
    sides, why = {"drydock": [], "peer": []}, {}
    for _ in range(repeats):
        for side, work in [("drydock", bench.ours), ("peer", bench.peer)]:
            if side not in why:
                try:
                    sides[side].append(work(row))
                except Unmeasured as reason:
                    why[side] = str(reason)
    result = {"title": row.title(), "unmeasured": why}
    for side, measured in sides.items():
        if measured:
            speed = statistics.median(run["tokens_per_second"] for run in measured)
            done = speed * row.shape.flops(row.length, row.method)
            result[side] = {"tokens_per_second": speed, "flops": done, "mfu": done / could["sheet"] if could["sheet"] else None,
                            "of_products": done / could["products_flops"], "peak_gpu_bytes": measured[0]["peak_gpu_bytes"],
                            "losses": measured[0]["losses"], "runs": measured}
    if len(sides["drydock"]) == len(sides["peer"]) > 0:
        ratios = sorted(a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(sides["drydock"], sides["peer"]))
        result |= {"ratio": statistics.median(ratios), "ratios": ratios}
    return result


def quantizations(bench: Bench, shape: Shape, repeats: int) -> list[dict]:
    try:
        source = quantize.bf16_file(bench, make_model(shape, bench.folder / shape.name))
    except Unmeasured as reason:
        nothing = {"drydock": [], "peer": []}
        return [{"title": f"{shape.name} quantize", "seconds": nothing, "unmeasured": {"drydock": str(reason)}}]
    return [quantize.measure(bench, shape, kind, repeats, source) for kind in quantize.kinds(shape.name)]


def side(result: dict | None) -> str:
    if not result:
        return f"{'-':>10} {'-':>6} {'-':>6} {'-':>8}"
    mfu = f"{result['mfu']:.0%}" if result["mfu"] else "-"
    memory = f"{result['peak_gpu_bytes'] / 1e9:.1f} GB" if result["peak_gpu_bytes"] else "-"
    return f"{result['tokens_per_second']:>10,.0f} {mfu:>6} {result['of_products']:>6.0%} {memory:>8}"


def line(result: dict) -> str:
    ratio = f"{result['ratio']:.2f}x ({result['ratios'][0]:.2f}-{result['ratios'][-1]:.2f})" if "ratio" in result else "-"
    return f"{result['title']:<34} {side(result.get('drydock'))}  {side(result.get('peer'))}  {ratio}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--emulated", type=Path)
    args = parser.parse_args()
    there = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    if not there and not args.emulated:
        print("skipped: no NVIDIA GPU answers here (`nvidia-smi -L`), and nothing was measured: neither tokens a second, "
              "MFU and memory of LoRA, DoRA, full finetunes, evaluations and answers at 135M, 1B and 8B, nor PyTorch's beside "
              "them, nor what several GPUs make of a training, nor quantizing beside llama.cpp. "
              "`make bench-gpu BENCH=--emulated` tries this program itself.")
        return
    names = (args.shapes or ("toy" if args.emulated else "135m,1b,8b")).split(",")
    args.folder.mkdir(parents=True, exist_ok=True)
    could = peer(["limits"])
    could["sheet"] = next((flops for name, flops in SHEETS.items() if name in could["device"]), None)
    print(f"bench: peer on {could['device']}: one large product {could['products_flops'] / 1e12:.1f} TFLOP/s, "
          f"copying {could['copy_bytes_per_second'] / 1e9:.0f} GB/s; median of {args.repeats}", flush=True)
    columns = f"{'tokens/s':>10} {'MFU':>6} {'limit':>6} {'memory':>8}"
    print(f"{'':<34} {'drydock':>33}  {'PyTorch + PEFT':>33}\n{'':<34} {columns}  {columns}  ratio", flush=True)
    bench, results = Bench(args), []
    for row in rows(names):
        results.append(measure(bench, row, args.repeats, could))
        print(line(results[-1]), flush=True)
    gpus, scaled = scaling.alike(bool(args.emulated)), []
    if gpus > 1:
        print("\ntokens/s by GPUs in one training, and the share of as many times one alone", flush=True)
        for row in [row for row in rows(names) if row.method not in ["evaluate", "answer"]]:
            scaled.append(scaling.scaling(row.title(), lambda count, row=row: bench.on(row, count, args.repeats), gpus))
            print(scaling.line(scaled[-1]), flush=True)
    print(f"\n{'on the CPU':<34} {'drydock':>13}  {'llama.cpp':>13}  ratio", flush=True)
    for name in names:
        quantized = quantizations(bench, SHAPES[name], args.repeats)
        results += quantized
        print("\n".join(quantize.line(result) for result in quantized if result["seconds"]["drydock"]), flush=True)
    told = results + scaled
    unmeasured = [f"{result['title']}, {who}: {why}" for result in told for who, why in result["unmeasured"].items()]
    if gpus < 2:
        unmeasured.append("several GPUs in one training: there is one here")
    if not could["sheet"]:
        unmeasured.append(f"MFU: there is no data sheet of `{could['device']}` in {Path(__file__).name}")
    if args.emulated:
        unmeasured.append("GPU memory: an emulated GPU has no nvidia-smi")
    print("not measured:\n" + "\n".join(f"  {why}" for why in unmeasured))
    (args.folder / "results.json").write_text(json.dumps({"could": could, "rows": results, "scaling": scaled, "unmeasured": unmeasured}, indent=2))
    failed = any("drydock" in result["unmeasured"] for result in results)
    if args.emulated and (failed or any(result["unmeasured"] for result in scaled)):
        sys.exit("bench: a job on the emulated GPU failed")


if __name__ == "__main__":
    main()
