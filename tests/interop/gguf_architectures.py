"""Compares llama.cpp's logits on the worker's GGUF files with Transformers' on the folders that they were made of.

    python tests/interop/gguf_architectures.py WORKER [CASE...]

WORKER is the drydock-worker program. For each architecture a small random model is saved, with a tokenizer of its kind,
and converted by the worker into F32 and Q8_0. Asserted: llama.cpp loads the file, cuts texts into the tokens that the
tokenizer makes, and computes the logits of F32 within 2e-4 of the largest (Gemma 1e-2: llama.cpp looks GELU up in a
table of half floats), those of Q8_0 within 8 %.

Some things are as GGUF or llama.cpp takes them for granted: text in Unicode's form NFC, into which llama.cpp does not
bring it for Qwen; no windows in Mistral and Qwen 2; no window shorter than the row in Phi-3, which llama.cpp reads
without; Gemma's attention scaled by its heads' dimension; the usual bounds of YaRN, as llama-cpp-python 0.3.36 computes
with these whatever the file says.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent / "reference"))
from gguf_llama_cpp import quantize
from make_architectures import CASES, SMALL, make_model, mix

VOCABULARY = 320
ROW = 23
TEXTS = ["the sea is calm", " she  sees 1999 teas\n", "ü 海 🙂", "", "  ", "two  three   four    spaces", "\t\ttabs\n\n\nlines\n",
         "<s>the</s>\nsea", "👩‍👩‍👧 é", "\u00a0no break\u2028", "seatheseathe" * 9]
YARN = {**CASES["llama_yarn"]["rope_parameters"], "beta_fast": 32.0, "beta_slow": 1.0}
EXPRESSIBLE = {
    "llama_yarn": dict(rope_parameters=YARN),
    "mistral": dict(sliding_window=None),
    "qwen2": dict(use_sliding_window=False),
    "gemma2": dict(query_pre_attn_scalar=8),
    "gemma3": dict(query_pre_attn_scalar=8, num_hidden_layers=7, layer_types=None),
    "phi3": dict(sliding_window=64),
}
GEMMA, BYTES = ("gemma2", "gemma3"), ("llama_linear", "llama_yarn", "qwen2", "qwen3")
MERGES = [("t", "h"), ("th", "e"), ("s", "e"), ("e", "a"), ("se", "a"), ("s", "ea")]


def byte_level(name: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [a + b for a, b in MERGES]
    tokens = ["<unk>", "<s>", "</s>", *alphabet, *dict.fromkeys(joined)]
    made = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, MERGES))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not name.startswith("qwen"))
    if name.startswith("qwen"):
        pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                   r"|\s+(?!\S)|\s+")
        made.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_only])
    made.decoder = decoders.ByteLevel()
    return made


def sentence_pieces(prefix: bool) -> Tokenizer:
    letters = [*"▁abcdefghijklmnopqrstuvwxyz\n"]
    joined = list(dict.fromkeys(a + b for a, b in MERGES))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *joined]
    made = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, MERGES, unk_token="<unk>",
                                fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def save(name: str, folder: Path):
    options = {**CASES[name], **EXPRESSIBLE.get(name, {}), "vocab_size": VOCABULARY}
    if options.get("layer_types", ...) is None:
        del options["layer_types"]
    model = make_model(options).eval()
    model.save_pretrained(folder)
    tokenizer = byte_level(name) if name in BYTES else sentence_pieces(prefix=name not in GEMMA)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return model, tokenizer


def logits(path: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp's, with keys and values kept in f32."""
    loaded = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False, n_threads=2, type_k=0,
                             type_v=0)
    loaded.eval(ids)
    return np.asarray(loaded.scores[: len(ids)], dtype="f8")


def check_tokens(path: Path, tokenizer: Tokenizer) -> None:
    loaded = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in TEXTS:
        got = loaded.tokenize(text.encode(), add_bos=False, special=True)
        want = tokenizer.encode(text, add_special_tokens=False).ids
        assert got == want, (text, got, want)


def check(name: str, worker: str, folder: Path) -> None:
    model, tokenizer = save(name, folder / "model")
    ids = [mix(index) % VOCABULARY for index in range(ROW)]
    with torch.no_grad():
        want = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().numpy()
    for kind, tolerance in (("F32", 1e-2 if name in GEMMA else 2e-4), ("Q8_0", 8e-2)):
        path = quantize(worker, folder / "model", kind, folder / kind)
        if kind == "F32":
            check_tokens(path, tokenizer)
        worst = np.abs(logits(path, ids) - want).max() / np.abs(want).max()
        print(f"{name} {kind}: logits within {worst:.1e} of the largest", flush=True)
        assert worst < tolerance, (name, kind, worst)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    asked = parser.parse_args()
    # Rows of blocks are 32 wide.
    SMALL.update(hidden_size=32)
    for name in asked.cases:
        with tempfile.TemporaryDirectory() as scratch:
            check(name, asked.worker, Path(scratch))


if __name__ == "__main__":
    main()
