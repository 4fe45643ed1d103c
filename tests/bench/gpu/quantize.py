"""Quantizing beside llama.cpp: whole files, from the same bf16 GGUF file, both on the CPUs of the GPU host, where drydock's
worker quantizes too. Speed is in gigabytes of the bf16 file a second, with reading and writing; the sides take turns.

    quantize.py SOURCE.gguf TARGET.gguf TYPE THREADS

is the peer by itself, which prints the seconds.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# llama_ftype, by the names that both sides have.
TYPES = {"Q8_0": 7, "Q4_K_M": 15}


def kinds(shape: str) -> list[str]:
    """The toy's rows are shorter than a super-block."""
    return ["Q8_0"] if shape == "toy" else list(TYPES)


def measure(bench, shape, kind: str, repeats: int, source: Path) -> dict:
    """Both sides in turns; a side that fails is told, and the other still counts."""
    seconds, why = {"drydock": [], "peer": []}, {}
    for _ in range(repeats):
        for side, work in [("drydock", ours), ("peer", theirs)]:
            if side in why:
                continue
            try:
                with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
                    seconds[side].append(work(bench, source, kind, Path(scratch)))
            except bench.Unmeasured as reason:
                why[side] = str(reason)
    gigabytes = source.stat().st_size / 1e9
    result = {"title": f"{shape.name} quantize to {kind}", "gigabytes": gigabytes, "seconds": seconds, "unmeasured": why}
    if seconds["drydock"] and seconds["peer"]:
        result["ratio"] = statistics.median(theirs / ours for ours, theirs in zip(seconds["drydock"], seconds["peer"]))
    return result


def line(result: dict) -> str:
    def speed(side: str) -> str:
        took = result["seconds"][side]
        return f"{result['gigabytes'] / statistics.median(took):>8.2f} GB/s" if took else f"{'-':>13}"

    ratio = f"{result['ratio']:.2f}x" if "ratio" in result else "-"
    return f"{result['title']:<34} {speed('drydock')}  {speed('peer')}  {ratio}"


def bf16_file(bench, model: Path) -> Path:
    """The model as one GGUF file in bf16, which llama.cpp can read."""
    file = model.with_name(f"{model.name}-bf16") / "model.gguf"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
            made, _ = written(bench, model, "BF16", Path(scratch))
            file.parent.mkdir(exist_ok=True)
            shutil.move(made, file)
    return file


def written(bench, model: Path, kind: str, scratch: Path) -> tuple[Path, float]:
    spec = {"quantize": {"model": "random", "quant_type": kind}}
    _, seconds = bench.job(spec, {"model": {"path": str(model), "name": "random"}}, scratch, gpus=0)
    return next((scratch / "out").rglob("*.gguf")), seconds


def ours(bench, source: Path, kind: str, scratch: Path) -> float:
    return written(bench, source.parent, kind, scratch)[1]


def theirs(bench, source: Path, kind: str, scratch: Path) -> float:
    target = str(scratch / "model.gguf")
    arguments = [sys.executable, str(HERE / "quantize.py"), str(source), target, kind, str(bench.threads)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines() or ["it said nothing"]
        raise bench.Unmeasured(f"llama.cpp failed: {why[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["seconds"]


def peer(source: str, target: str, kind: str, threads: str) -> None:
    import ctypes

    import llama_cpp

    # It tells of every tensor; the code that it returns says whether it worked.
    silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[kind], int(threads)
    started = time.perf_counter()
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if code != 0:
        sys.exit(f"it could not quantize {source} to {kind}: {code}")
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    peer(*sys.argv[1:])
