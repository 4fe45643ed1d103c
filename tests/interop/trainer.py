"""What the trainer makes is loaded by the programs that people use it with, and they agree.

    trainer.py WORKER FOLDER [--rows GSM8K.jsonl]

FOLDER is the one that tests/bench/venv.sh has prepared. Adapters go to PEFT, merged models to Transformers, GGUF files to
llama.cpp; logits and perplexities are compared. What is measured of a model is measured by lm-evaluation-harness, too. With rows of GSM8K's train split, the same recipe is also trained with
PEFT and compared where it ends (half an hour). Exits with 1 at the first thing that is not as it should be.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from worker import run_job

HERE = Path(__file__).parent
IDS = "504,3520,6330,16438,14014,690,260,23790,2767,30,1092,314,260,3575,282,4649,47"


def script(name: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, str(HERE / name), *map(str, arguments)])
    if done.returncode != 0:
        sys.exit(f"interop: {name} found something that is not as it should be")


def logits(worker: str, folder: Path, model: Path, adapter: Path | None = None) -> Path:
    out = folder / "logits.safetensors"
    over = ["--adapter", str(adapter)] if adapter else []
    subprocess.run([worker, "logits", "--model", str(model), *over, "--ids", IDS, "--out", str(out)], check=True)
    return out


def finetunes(worker: str, model: Path, folder: Path) -> Path:
    """Adapters and merged models of two methods; the merged model of the first is what comes back."""
    dataset = folder / "dataset"
    dataset.mkdir()
    rows = (HERE / "../../jobs/demo/drydock-qa.jsonl").read_text().splitlines()[:32]
    (dataset / "rows.jsonl").write_text("\n".join(rows))
    inputs = {"model": {"path": str(model), "name": "SmolLM2-135M-Instruct"}, "dataset": str(dataset)}
    for method in ["lora", "dora"]:
        print(f"interop: {method}, eight steps, adapter to PEFT and merged model to Transformers", flush=True)
        finetune = {"model": "m", "dataset": "d", "method": method, "keep": "both", "max_steps": 8, "learning_rate": 1e-3}
        run_job(worker, {"finetune": finetune}, inputs, folder / method)
        out = folder / method / "out"
        script("peft_logits.py", model, out / "adapter", IDS, logits(worker, folder, model, out / "adapter"))
        script("merged_logits.py", out / "model", IDS, logits(worker, folder, out / "model"))
    return folder / "lora" / "out" / "model"


def quantizations(worker: str, model: Path, text: Path, folder: Path) -> None:
    """GGUF files of a model that was finetuned here, measured by both sides."""
    dataset = folder / "text"
    dataset.mkdir()
    (dataset / "text.txt").write_text(text.read_text()[:12_000])
    for kind in ["F16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K"]:
        inputs = {"model": {"path": str(model), "name": "merged"}}
        run_job(worker, {"quantize": {"model": "m", "quant_type": kind}}, inputs, folder / kind)
        gguf = next((folder / kind / "out").rglob("*.gguf"))
        (folder / f"{kind}-model").mkdir()
        gguf.rename(folder / f"{kind}-model" / gguf.name)
        gguf = folder / f"{kind}-model" / gguf.name
        evaluate = {"model": "m", "dataset": "d", "measures": ["perplexity"], "max_seq_length": 512}
        inputs = {"model": {"path": str(gguf.parent), "name": kind}, "dataset": str(dataset)}
        reports = run_job(worker, {"evaluate": evaluate}, inputs, folder / f"{kind}-evaluation")
        ours = next(r["value"] for r in reports if r["type"] == "score" and r["metric"] == "perplexity")
        script("gguf_perplexity.py", gguf, model, dataset / "text.txt", ours)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    model = args.folder / "model"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        merged = finetunes(args.worker, model, Path(folder))
        quantizations(args.worker, merged, args.folder / "text.txt", Path(folder))
    print("interop: choices, texts and problems, beside lm-evaluation-harness", flush=True)
    script("harness.py", args.worker, model, args.folder / "text.txt")
    if args.rows:
        script("convergence.py", args.worker, model, args.rows)
    else:
        print("interop: skipped: convergence beside PEFT; it needs --rows with GSM8K's train split")
    print("interop: PEFT, Transformers, llama.cpp and lm-evaluation-harness agree with the trainer")


if __name__ == "__main__":
    main()
