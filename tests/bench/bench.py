"""Measures drydock's worker beside what people use, in the same run, and prints a table.

    bench.py WORKER_BENCH FOLDER [--rows NAME,...] [--repeats 3] [--plots] [--threads 2]

Every measurement is a process of its own. The two sides of a row take turns, so that whatever else the machine does
meets both; a ratio is that of neighbours, and what stands in the table is the median of the ratios with their range.
Memory is the peak of the process's resident memory, weights included. All numbers go into FOLDER/results.json.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass
class Row:
    """A piece of work that both sides do. `goal` is the least ratio of speeds that satisfies us."""

    name: str
    title: str
    ours: list[str]
    peer: list[str]
    goal: float
    memory_goal: float | None = None
    metric: str = "tokens_per_second"
    # What both must agree on, and how closely (relative).
    agree: tuple[str, float] | None = None
    # The folder with the weights that drydock takes.
    weights: str = "model"


def train(method: str, dtype: str) -> tuple[list[str], list[str]]:
    shape = ["--batch", "4", "--length", "256", "--steps", "4", "--dtype", dtype]
    return [method, *shape], ["torch-train", "--method", method, *shape]


def rows(folder: Path) -> list[Row]:
    gguf = lambda name: str(folder / name / "model.gguf")
    windows = ["perplexity", "--batch", "1", "--length", "512", "--steps", "8"]
    peer_windows = ["--windows", "8", "--length", "512"]
    first_loss = ("first_loss", 1e-4)
    found = [
        Row("lora-f32", "LoRA r=8, 4x256, f32 / PyTorch + PEFT f32", *train("lora", "f32"), 2.5, 4.0, agree=first_loss),
        # PyTorch has these values rounded to bf16.
        Row("lora-f32-gguf", "the same, drydock's weights in the blocks of their GGUF file", *train("lora", "f32"), 2.5, 4.0,
            agree=("first_loss", 1e-3), weights="gguf"),
        Row("lora-bf16", "LoRA r=8, 4x256, bf16 / PyTorch + PEFT bf16 autocast", *train("lora", "bf16"), 1.3,
            agree=("first_loss", 1e-2)),
        Row("full-f32", "full, 4x256, f32 / PyTorch f32", *train("full", "f32"), 2.2, agree=first_loss),
        Row("full-bf16", "full, 4x256, bf16 / PyTorch bf16 autocast", *train("full", "bf16"), 1.1,
            agree=("first_loss", 1e-2)),
        Row("perplexity-torch", "perplexity, 8x512, f32 / PyTorch f32", windows, ["torch-perplexity", *peer_windows],
            2.0, agree=("perplexity", 1e-4)),
        Row("perplexity-f32", "perplexity, 8x512, f32 / llama.cpp F32", windows,
            ["llama-perplexity", "--gguf", gguf("F32"), *peer_windows], 1.2, agree=("perplexity", 1e-3)),
    ]
    for kind in ["Q4_0", "Q8_0", "Q4_K_M"]:
        found.append(Row(f"perplexity-{kind}", f"perplexity, 8x512, {kind} / llama.cpp {kind}",
                         [*windows, "--dtype", "int8"], ["llama-perplexity", "--gguf", gguf(kind), *peer_windows], 1.0,
                         agree=("perplexity", 1e-2), weights=kind))
    for kind, goal in [("Q4_0", 1.5), ("Q8_0", 1.5), ("Q4_K", 2.0), ("Q6_K", 2.0)]:
        found.append(Row(f"quantize-{kind}", f"quantize to {kind} / ggml", ["quantize", "--type", kind],
                         ["ggml-quantize", "--type", kind], goal, metric="gigabytes_per_second",
                         agree=("relative_error", 1e-6)))
    # The first step takes the prompt in; each of the others answers with a token.
    answer = ["generate", "--length", "64", "--steps", "129", "--batch", "1", "--dtype", "int8"]
    for kind in ["Q4_0", "Q8_0", "Q4_K_M"]:
        found.append(Row(f"generate-{kind}", f"answer, 1 at a time, {kind} / llama.cpp {kind}", answer,
                         ["llama-generate", "--gguf", gguf(kind), "--prompt-length", "64", "--tokens", "128"], 0.9,
                         weights=kind))
    found.append(Row("generate-16", "answer, 16 at once, f32 / Transformers f32",
                     ["generate", "--length", "64", "--steps", "65", "--batch", "16"],
                     ["torch-generate", "--batch", "16", "--prompt-length", "64", "--tokens", "64"], 2.0))
    return found


def measure(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    if losses := result.get("losses"):
        result["first_loss"] = losses[0]
        result.setdefault("perplexity", math.exp(statistics.mean(losses)))
    return result


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.worker, self.folder, self.repeats = args.worker, args.folder, args.repeats
        self.inputs = ["--text", str(args.folder / "text.txt"), "--threads", str(args.threads)]

    def ours(self, work: list[str], weights: str = "model") -> dict:
        return measure([self.worker, *work, "--model", str(self.folder / weights), *self.inputs])

    def peer(self, work: list[str]) -> dict:
        model = ["--model", str(self.folder / "model")]
        return measure([sys.executable, str(HERE / "peers.py"), *work, *model, *self.inputs])

    def row(self, row: Row) -> dict:
        pairs = [(self.ours(row.ours, row.weights), self.peer(row.peer)) for _ in range(self.repeats)]
        speed = lambda side: [pair[side][row.metric]["median"] for pair in pairs]
        memory = [statistics.median(pair[side]["peak_rss_bytes"] for pair in pairs) for side in (0, 1)]
        ratios = sorted(ours / peer for ours, peer in zip(speed(0), speed(1)))
        result = {"name": row.name, "title": row.title, "metric": row.metric, "goal": row.goal,
                  "ratio": statistics.median(ratios), "ratios": ratios, "drydock": statistics.median(speed(0)),
                  "peer": statistics.median(speed(1)), "drydock_peak_bytes": memory[0], "peer_peak_bytes": memory[1],
                  "memory_goal": row.memory_goal, "peer_version": pairs[0][1]["version"], "runs": pairs}
        if row.agree:
            field, tolerance = row.agree
            values = [pairs[0][side].get(field) for side in (0, 1)]
            result["agree"] = {"field": field, "drydock": values[0], "peer": values[1], "tolerance": tolerance}
        return result


def verdict(result: dict) -> str:
    """What a row came to, in one line."""
    unit = "GB/s" if result["metric"].startswith("gigabytes") else "tok/s"
    low, high = result["ratios"][0], result["ratios"][-1]
    met = "met" if result["ratio"] >= result["goal"] else "MISSED"
    line = (f"{result['title']:<58} {result['drydock']:>8.1f} {result['peer']:>8.1f} {unit:<5} "
            f"{result['ratio']:>5.2f}x ({low:.2f}-{high:.2f})  goal {result['goal']}x {met:<6} "
            f"{megabytes(result['drydock_peak_bytes']):>9} / {megabytes(result['peer_peak_bytes']):>9}")
    if result["memory_goal"]:
        share = result["peer_peak_bytes"] / result["drydock_peak_bytes"]
        line += f" = 1/{share:.1f}, goal 1/{result['memory_goal']:.0f} {'met' if share >= result['memory_goal'] else 'MISSED'}"
    if agree := result.get("agree"):
        ours, peer = agree["drydock"], agree["peer"]
        close = abs(ours - peer) <= agree["tolerance"] * abs(peer) or (agree["field"] == "relative_error" and ours <= peer)
        line += f"  {agree['field']} {ours:.6g} / {peer:.6g}{'' if close else ' DISAGREE'}"
    return line


def growth(bench: Bench) -> list[dict]:
    """How time and memory grow with the length of the rows and with their number."""
    points = []
    for batch, length in [(1, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (1, 2048), (2, 256), (4, 256), (8, 256), (16, 256)]:
        work = ["lora", "--batch", str(batch), "--length", str(length), "--steps", "3", "--dtype", "f32"]
        result = bench.ours(work)
        points.append({"batch": batch, "length": length, "tokens_per_second": result["tokens_per_second"]["median"],
                       "seconds": batch * length / result["tokens_per_second"]["median"],
                       "peak_rss_bytes": result["peak_rss_bytes"]})
        print(f"  {batch:>2} x {length:<5} {points[-1]['seconds']:7.3f} s/step  {megabytes(result['peak_rss_bytes']):>9}", flush=True)
    return points


def plot(points: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    by_length = [point for point in points if point["batch"] == 1]
    by_batch = [point for point in points if point["length"] == 256]
    for column, (series, key, label) in enumerate([(by_length, "length", "tokens a row, 1 row"), (by_batch, "batch", "rows of 256 tokens")]):
        for line, (value, scale, unit) in enumerate([("seconds", 1, "seconds a step"), ("peak_rss_bytes", 1e-9, "peak memory, GB")]):
            series = sorted(series, key=lambda point: point[key])
            axes[line][column].plot([point[key] for point in series], [point[value] * scale for point in series], "o-")
            axes[line][column].set(xlabel=label, ylabel=unit, ylim=(0, None))
            axes[line][column].grid(alpha=0.3)
    figure.suptitle("LoRA r=8 of SmolLM2-135M, f32: time and memory of a step")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", help="names of rows, with commas; all without it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--plots", action="store_true", help="also draw how time and memory grow")
    args = parser.parse_args()
    bench, wanted, known = Bench(args), args.rows and args.rows.split(","), rows(args.folder)
    if unknown := set(wanted or []) - {row.name for row in known}:
        sys.exit(f"bench: no row is called {', '.join(sorted(unknown))}; known are {', '.join(row.name for row in known)}")
    print(f"bench: {args.threads} threads, load {os.getloadavg()[0]:.1f}; drydock beside its peer, median of {args.repeats}", flush=True)
    results = []
    for row in known:
        if not wanted or row.name in wanted:
            results.append(bench.row(row))
            print(verdict(results[-1]), flush=True)
    report = {"threads": args.threads, "rows": results}
    if args.plots:
        print("bench: how a step grows")
        report["growth"] = growth(bench)
        plot(report["growth"], args.folder / "growth.png")
        print(f"bench: drawn in {args.folder / 'growth.png'}")
    (args.folder / "results.json").write_text(json.dumps(report, indent=2))
    for version in sorted({result["peer_version"] for result in results}):
        print(f"bench: peer {version}")


if __name__ == "__main__":
    main()
