"""Makes `configs.json`: `config.json` files of well-known checkpoints, and what Transformers makes of them.

    python tests/reference/make_configs.py

Beside each file as it was published stands the same as Transformers 5 writes it (`rope_parameters`, `dtype`), and what
comes of it: the number of parameters, each layer's window and attention scale, the angles of its heads, the caps. No
weights are needed. The factors of LongRoPE are rounded; all else is as published.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = Path(__file__).parent / "configs.json"

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "bos_token_id": 1,
         "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True}
LLAMA_3 = {**LLAMA, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
           "rope_theta": 500000.0, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
           "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16",
           "pretraining_tp": 1}
STRETCHED = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
             "rope_type": "llama3"}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
           "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
           "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "bos_token_id": 1,
           "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True}
QWEN = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False}
QWEN_25 = {**QWEN, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643,
           "eos_token_id": 151645, "max_position_embeddings": 32768}
QWEN_3 = {**QWEN, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": False,
          "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "max_position_embeddings": 40960,
          "rope_scaling": None, "sliding_window": None, "vocab_size": 151936}
PHI_3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
         "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
         "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
         "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
         "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
         "attention_bias": False, "vocab_size": 32064}
SHORT = [1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29, 1.34, 1.68, 1.79,
         1.82, 1.85, 1.88, 1.91, 1.94, 1.99, *[2.02] * 6, *[2.03] * 8, *[2.08] * 4, 2.19, 2.22, 2.59, 2.74, 3.03]
LONG = [1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67, 24.46, 28.57,
        30.42, 30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62, 62.71, 63.14,
        63.14, 63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84]

PUBLISHED = {
    "Llama-2-7b": {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
                   "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
                   "rms_norm_eps": 1e-5, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
                   "vocab_size": 32000},
    "Llama-3.1-8B-Instruct": {**LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
                              "num_hidden_layers": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
                              "rope_scaling": {**STRETCHED, "factor": 8.0}},
    "Llama-3.2-1B-Instruct": {**LLAMA_3, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
                              "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
                              "tie_word_embeddings": True, "rope_scaling": {**STRETCHED, "factor": 32.0}},
    "TinyLlama-1.1B": {**LLAMA, "attention_bias": False, "hidden_size": 2048, "intermediate_size": 5632,
                       "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22,
                       "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None,
                       "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
                       "vocab_size": 32000},
    "SmolLM2-135M-Instruct": {**LLAMA, "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 2,
                              "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
                              "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9,
                              "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1,
                              "rms_norm_eps": 1e-5, "rope_interleaved": False, "rope_scaling": None,
                              "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
                              "vocab_size": 49152},
    "Mistral-7B-v0.1": {**MISTRAL, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
    "Mistral-7B-v0.3": {**MISTRAL, "attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None,
                        "vocab_size": 32768},
    "Qwen2.5-0.5B-Instruct": {**QWEN_25, "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 21,
                              "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
                              "sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 151936},
    "Qwen2.5-7B-Instruct": {**QWEN_25, "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
                            "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
                            "sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064},
    "Qwen3-0.6B": {**QWEN_3, "hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28,
                   "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
                   "tie_word_embeddings": True},
    "Qwen3-8B": {**QWEN_3, "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36,
                 "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
                 "tie_word_embeddings": False},
    "gemma-2-2b-it": {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attention_bias": False,
                      "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
                      "cache_implementation": "hybrid", "eos_token_id": [1, 107], "final_logit_softcapping": 30.0,
                      "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
                      "hidden_size": 2304, "initializer_range": 0.02, "intermediate_size": 9216,
                      "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
                      "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
                      "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16", "use_cache": True,
                      "vocab_size": 256000},
    "gemma-3-1b-it": {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
                      "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2,
                      "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": None,
                      "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
                      "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
                      "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
                      "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000,
                      "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
                      "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144},
    # The part of gemma-3-4b-it that reads, with the ends that stand outside of it; the whole also sees, and is refused.
    "gemma-3-4b-it": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                      "num_hidden_layers": 34, "sliding_window": 1024, "eos_token_id": [1, 106],
                      "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "Phi-3-mini-4k-instruct": {**PHI_3, "max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    "Phi-3-mini-128k-instruct": {**PHI_3, "max_position_embeddings": 131072, "sliding_window": 262144,
                                 "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"}},
    "Phi-4-mini-instruct": {**PHI_3, "vocab_size": 200064, "bos_token_id": 199999, "eos_token_id": 199999,
                            "pad_token_id": 199999, "max_position_embeddings": 131072, "num_attention_heads": 24,
                            "num_key_value_heads": 8, "partial_rotary_factor": 0.75, "sliding_window": 262144,
                            "tie_word_embeddings": True,
                            "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"}},
}


def angles(config, model) -> dict:
    """Inverse frequencies and the factor of cosine and sine: of all layers, or of both kinds of them."""
    rotary = type(model.model.rotary_emb)(config)
    names = [name for name, _ in rotary.named_buffers() if name.endswith("inv_freq") and "original" not in name]
    found = {"full_attention" if name == "inv_freq" else name.removesuffix("_inv_freq"):
             getattr(rotary, name).tolist() for name in names}
    factor = getattr(rotary, "attention_scaling", None) or rotary.full_attention_attention_scaling
    if config.model_type == "phi3" and config.rope_parameters["rope_type"] == "longrope":
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=4097)
        found["long"] = long.tolist()
    return {"frequencies": {name: [float(f"{x:.6g}") for x in values] for name, values in found.items()},
            "factor": float(factor)}


def rewritten(config) -> dict:
    written = config.to_diff_dict()
    return {name: value for name, value in written.items() if name != "transformers_version"}


def facts(published: dict) -> dict:
    options = {name: value for name, value in published.items() if name != "model_type"}
    config = AutoConfig.for_model(published["model_type"], **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = model.model.layers
    scales = {float(layer.self_attn.scaling) for layer in layers}
    assert len(scales) == 1
    window = lambda layer: getattr(layer.self_attn, "sliding_window", None)
    # Of all layers of these two, or of none.
    everywhere = config.sliding_window if published["model_type"] in ("mistral", "phi3") else None
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "windows": [window(layer) or everywhere for layer in layers],
        "attention_scale": scales.pop(),
        "attention_softcap": getattr(layers[0].self_attn, "attn_logit_softcapping", None),
        "logit_softcap": getattr(config, "final_logit_softcapping", None),
        "norm_epsilon": config.rms_norm_eps,
        "max_positions": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
        **angles(config, model),
        "rewritten": rewritten(config),
    }


if __name__ == "__main__":
    cases = [{"name": name, "published": published, **facts(published)} for name, published in PUBLISHED.items()]
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f"[\n{lines}\n]\n")
