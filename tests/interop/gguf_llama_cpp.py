"""Compares the worker's GGUF files with those that llama.cpp makes of the same model.

    python tests/interop/gguf_llama_cpp.py WORKER MODEL TEXT [--types Q4_0,Q8_0,Q4_K_M,Q6_K] [--perplexity]

WORKER is the drydock-worker program, MODEL a folder with one .gguf file, TEXT a text file. The model is brought into
F16 by the worker; both sides quantize that file. Asserted for every type: each tensor has the type that llama.cpp
gives it, the bytes of formats without a search are the same, the error of the others is no larger (measured over all
values), metadata is the same, and llama.cpp loads the file. With --perplexity also that the model is no worse by more
than 2 %, measured by llama.cpp on both files in windows of 512 tokens.
"""

import argparse
import ctypes
import json
import subprocess
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import quants

SEARCHED = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
WINDOW, WINDOWS = 512, 4


def quantize(worker: str, model: Path, kind: str, folder: Path) -> Path:
    """The worker's file, made by a whole attempt."""
    (folder / "out").mkdir(parents=True)
    spec = {
        "contract": 1, "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C", "attempt": 1,
        "trace_id": "0123456789abcdef0123456789abcdef", "threads": 2,
        "spec": {"quantize": {"model": "m", "quant_type": kind}},
        "inputs": {"model": {"path": str(model), "name": "m"}},
        "output": str(folder / "out"), "events": str(folder / "events.jsonl"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    done = subprocess.run([worker, "run", str(folder / "spec.json")], check=False)
    last = (folder / "events.jsonl").read_text().splitlines()[-1]
    assert done.returncode == 0, last
    (made,) = (folder / "out" / "model").glob("*.gguf")
    return made


def quantize_by_llama_cpp(source: Path, kind: str, target: Path) -> Path:
    parameters = llama_cpp.llama_model_quantize_default_params()
    name = "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}"
    parameters.ftype = getattr(llama_cpp, name)
    parameters.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert code == 0, f"llama.cpp refuses {kind}"
    return target


def tensors(path: Path) -> dict:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def metadata(path: Path) -> dict:
    fields = gguf.GGUFReader(path).fields
    # The reader's own entries, and what a copy counts or names anew.
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def values(tensor) -> np.ndarray:
    return quants.dequantize(tensor.data, tensor.tensor_type).astype("f8").ravel()


def compare(source: Path, ours: Path, theirs: Path, kind: str) -> None:
    original, ours_by_name, theirs_by_name = tensors(source), tensors(ours), tensors(theirs)
    assert ours_by_name.keys() == theirs_by_name.keys()
    same, errors = 0, np.zeros(2)
    for name, theirs_one in theirs_by_name.items():
        ours_one = ours_by_name[name]
        assert ours_one.tensor_type == theirs_one.tensor_type, (name, ours_one.tensor_type, theirs_one.tensor_type)
        if ours_one.tensor_type.name in SEARCHED:
            want = values(original[name])
            pair = [((values(one) - want) ** 2).sum() for one in (ours_one, theirs_one)]
            errors += pair
            assert pair[0] <= pair[1] * (1 + 1e-6), (name, pair)
        else:
            assert np.array_equal(ours_one.data, theirs_one.data), f"{name}: other bytes"
            same += 1
    ratio = f"root mean square error {np.sqrt(errors[0] / errors[1]):.4f} of llama.cpp's" if errors[1] else "no search"
    print(f"{kind}: {len(ours_by_name)} tensors of the same types, {same} of the same bytes; {ratio}")
    assert metadata(ours) == metadata(theirs), [
        name for name in metadata(ours) | metadata(theirs) if metadata(ours).get(name) != metadata(theirs).get(name)
    ]


def perplexity(path: Path, text: str) -> float:
    model = llama_cpp.Llama(str(path), n_ctx=WINDOW, logits_all=True, verbose=False, n_threads=2)
    ids = model.tokenize(text.encode(), add_bos=False)
    losses = []
    for window in range(WINDOWS):
        row = ids[window * WINDOW:(window + 1) * WINDOW]
        model.reset()
        model.eval(row)
        logits = np.asarray(model.scores[: len(row)], dtype="f8")
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.extend(-logits[np.arange(len(row) - 1), row[1:]])
    return float(np.exp(np.mean(losses)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--types", default="Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,"
                                           "Q5_K_S,Q5_K_M,Q6_K,F16,BF16,F32")
    parser.add_argument("--perplexity", action="store_true")
    asked = parser.parse_args()
    text = asked.text.read_text(errors="ignore")[:40_000]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = quantize(asked.worker, asked.model, "F16", folder / "source")
        # A folder with nothing but the file.
        alone = folder / "alone"
        alone.mkdir()
        source = source.rename(alone / "source.gguf")
        if asked.perplexity:
            print(f"F16: perplexity {perplexity(source, text):.4f}")
        for kind in asked.types.split(","):
            ours = quantize(asked.worker, alone, kind, folder / kind)
            theirs = quantize_by_llama_cpp(source, kind, folder / f"{kind}.gguf")
            compare(source, ours, theirs, kind)
            if asked.perplexity:
                one, other = perplexity(ours, text), perplexity(theirs, text)
                print(f"{kind}: perplexity {one:.4f}, of llama.cpp's file {other:.4f}")
                assert one < other * 1.02
            else:
                llama_cpp.Llama(str(ours), n_ctx=32, verbose=False)
            ours.unlink()
            theirs.unlink()


if __name__ == "__main__":
    main()
