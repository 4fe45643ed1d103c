"""Llama-shaped models with random weights, and rows of text for them: how fast they train does not depend on what they
know."""

import json
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """A decoder's widths; `tied` where the head is the embedding."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    tied: bool

    def products(self) -> int:
        """Weights that every token is multiplied with: all but the embedding and the norms."""
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.vocabulary * self.hidden

    def flops(self, length: int, method: str) -> float:
        """Operations of a training step for each of `length` tokens of a row.

        As in PaLM's appendix B: 2 a weight forward and 2 backward for the activations, 2 more where the weight itself is
        trained, and 12 * layers * width * length for attention, of which the causal half is not taken off. An adapter's
        own products are left out: they are a hundredth. So are the prompt's of an answer.
        """
        forward = method in ["evaluate", "answer"]
        weights = (2 if forward else 6 if method == "full" else 4) * self.products()
        return weights + (4 if forward else 12) * self.layers * self.heads * self.head * length


SHAPES = {shape.name: shape for shape in [
    Shape("135m", 576, 30, 9, 3, 64, 1536, 49152, True),
    Shape("1b", 2048, 16, 32, 8, 64, 8192, 128256, True),
    Shape("8b", 4096, 32, 32, 8, 128, 14336, 128256, False),
    Shape("toy", 64, 2, 4, 2, 16, 128, 384, True),
]}


def config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head, "intermediate_size": shape.inner, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        "max_position_embeddings": 8192, "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
        "bos_token_id": 256, "eos_token_id": 257,
    }


def tokenizer() -> dict:
    """A token a byte: so many characters are so many tokens. Texts are cut as GPT-2 does it, for which GGUF has a name."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    special = [{"id": 256 + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i, content in enumerate(["<s>", "</s>"])]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                            "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": letters, "merges": []},
    }


def weights(shape: Shape):
    """Names and sizes of all tensors, layer by layer."""
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    for layer in range(shape.layers):
        place = f"model.layers.{layer}"
        yield f"{place}.input_layernorm.weight", (shape.hidden,)
        yield f"{place}.self_attn.q_proj.weight", (queries, shape.hidden)
        yield f"{place}.self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{place}.self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{place}.self_attn.o_proj.weight", (shape.hidden, queries)
        yield f"{place}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{place}.mlp.gate_proj.weight", (shape.inner, shape.hidden)
        yield f"{place}.mlp.up_proj.weight", (shape.inner, shape.hidden)
        yield f"{place}.mlp.down_proj.weight", (shape.hidden, shape.inner)
    yield "model.norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, shape.hidden)


def make_model(shape: Shape, folder: Path) -> Path:
    """Writes a model in bf16, a gigabyte a file, unless it is there."""
    import torch
    from safetensors.torch import save_file

    done = folder / "model.safetensors.index.json"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    generator = torch.Generator().manual_seed(0)
    where, part, held, number = {}, {}, 0, 1

    def write() -> None:
        nonlocal part, held, number
        file = f"model-{number:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
        part, held, number = {}, 0, number + 1

    for name, size in weights(shape):
        tensor = torch.ones(size) if len(size) == 1 else torch.randn(size, generator=generator) * 0.02
        part[name] = tensor.to(torch.bfloat16)
        held += part[name].nbytes
        if held > 1 << 30:
            write()
    if part:
        write()
    done.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def make_rows(folder: Path, count: int, length: int) -> Path:
    """`count` rows of more than `length` tokens: cut, each has as many as asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = random.Random(0)
    rows = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz     ", k=length + 8)) for _ in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


def make_questions(folder: Path, count: int, length: int) -> Path:
    """`count` prompts of `length` tokens each, with answers that no model gives."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = random.Random(1)
    rows = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz     ", k=length - 1)) + "?" for _ in range(count)]
    lines = [json.dumps({"prompt": row, "completion": "7"}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder
