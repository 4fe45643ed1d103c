"""Loads a GGUF file in llama.cpp and compares the perplexity of a text with the one that the worker has measured.

    gguf_perplexity.py FILE.gguf MODEL_FOLDER TEXT PERPLEXITY [TOLERANCE]

MODEL_FOLDER is the Hugging Face folder that the file was made of; both tokenizers and both chat templates must be the
same. llama.cpp rounds what goes into a product with quantized weights to 8 bits: the tolerance (1 % by default) is for
that.
"""

import ctypes
import math
import sys

import llama_cpp
import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer

LENGTH = 512


def main(gguf: str, folder: str, text_file: str, measured: str, tolerance: str = "0.01") -> int:
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama = llama_cpp.Llama(gguf, n_ctx=LENGTH, n_batch=LENGTH, n_threads=1, logits_all=True, verbose=False)
    text = open(text_file).read()
    ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text, add_special_tokens=False).ids
    theirs = llama.tokenize(text.encode(), add_bos=False, special=True)
    if theirs != ids:
        different = sum(a != b for a, b in zip(theirs, ids)) + abs(len(theirs) - len(ids))
        print(f"the tokens differ at {different} of {len(ids)} places")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if llama.metadata.get("tokenizer.chat_template") != tokenizer.chat_template:
        print("the chat template did not survive")
        return 1
    if llama.token_eos() != tokenizer.eos_token_id:
        print(f"texts end with {llama.token_eos()} in the GGUF, with {tokenizer.eos_token_id} in the folder")
        return 1
    loss, count = 0.0, 0
    # As the worker cuts it: each window begins with the token that the one before ended with, so that none is left out.
    for start in range(0, len(ids) - 1, LENGTH - 1):
        window = ids[start : start + LENGTH]
        if len(window) < 2:
            break
        llama.reset()
        llama.eval(window)
        logits = np.asarray(llama.scores[: len(window) - 1], dtype=np.float64)
        top = logits.max(axis=1, keepdims=True)
        sums = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        loss += float((sums - logits[np.arange(len(window) - 1), window[1:]]).sum())
        count += len(window) - 1
    perplexity, ours = math.exp(loss / count), float(measured)
    apart = ours / perplexity - 1
    print(f"{gguf.rsplit('/', 1)[-1]}: perplexity {ours:.4f} by drydock, {perplexity:.4f} by llama.cpp, {100 * apart:+.3f} %")
    return 0 if abs(apart) <= float(tolerance) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
