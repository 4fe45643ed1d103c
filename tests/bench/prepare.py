"""Makes what the bench works on: one model in every form that somebody measured needs, and a real text.

    prepare.py MODEL.gguf FOLDER

The model's weights are those of the GGUF, rounded to bf16, the form that models are published in: as a Hugging Face
folder for PyTorch, which widens them to f32 when it loads them, and for drydock, which uses them where they lie; and as
GGUF files of several types, made of the same values by llama.cpp itself, for llama.cpp and drydock. The text is the
reference manual that every Python carries (`pydoc_data.topics`).
"""

import ctypes
import json
import shutil
import sys
from pathlib import Path

QUANT_TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
BF16 = 32


def hugging_face_folder(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    # Transformers refuses to save a model that came out of a GGUF file; its parts can be saved.
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}, indent=2))
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
               if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def gguf_files(source: Path, folder: Path) -> None:
    import llama_cpp

    # It tells of every tensor; the code that it returns says whether it worked.
    silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silent, None)

    def quantize(source: Path, target: Path, ftype: int) -> None:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = ftype, 2, True
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
        if code != 0:
            sys.exit(f"llama.cpp could not quantize {source} to {target}: {code}")

    # The file as it is, for what can train on its blocks.
    (folder / "gguf").mkdir(exist_ok=True)
    shutil.copy(folder / "model" / "tokenizer.json", folder / "gguf")
    shutil.copy(source, folder / "gguf" / "model.gguf")
    rounded, widened = folder / "bf16.gguf", folder / "F32" / "model.gguf"
    quantize(source, rounded, BF16)
    for name, ftype in QUANT_TYPES.items():
        (folder / name).mkdir(exist_ok=True)
        # Both sides are to cut the text into the same tokens.
        shutil.copy(folder / "model" / "tokenizer.json", folder / name)
        quantize(rounded if name == "F32" else widened, folder / name / "model.gguf", ftype)
    rounded.unlink()


def main() -> None:
    gguf, folder = Path(sys.argv[1]), Path(sys.argv[2])
    # Not the name that it had while the folder held f32.
    ready = folder / "ready-bf16"
    if ready.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    from pydoc_data.topics import topics

    (folder / "text.txt").write_text("\n\n".join(topics.values()))
    hugging_face_folder(gguf, folder / "model")
    gguf_files(gguf, folder)
    ready.touch()


if __name__ == "__main__":
    main()
