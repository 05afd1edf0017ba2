"""Models of a few thousand weights, built from a configuration: one for every shape the library promises to train.

model = tiny_model("qwen3")                       # float32, vocabulary 512, hidden 64, 2 layers, seeded weights
model = tiny_model("llama", dtype=torch.float64, num_hidden_layers=1)
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SIZES = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

_KINDS: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama"),
    "qwen3": dict(model_type="qwen3", head_dim=16, tie_word_embeddings=True),
    "gemma2": dict(
        model_type="gemma2",
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0,
    ),
    "gemma3": dict(model_type="gemma3_text", head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
    "gemma4": dict(
        model_type="gemma4_text",
        head_dim=16,
        global_head_dim=512,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=8,
    ),
    "mistral_window": dict(model_type="mistral", head_dim=16, sliding_window=5),
    # Rotary frequencies by a sample's length: other ones above 8 tokens.
    "longrope": dict(
        model_type="phi3",
        original_max_position_embeddings=8,
        rope_parameters=dict(
            rope_type="longrope",
            rope_theta=10000.0,
            short_factor=[1.0] * 8,
            long_factor=[4.0 + 0.5 * place for place in range(8)],
            original_max_position_embeddings=8,
            factor=4.0,
        ),
    ),
    "dynamic_rope": dict(
        model_type="llama",
        max_position_embeddings=8,
        rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0),
    ),
    "mixtral": dict(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": dict(
        model_type="qwen3_moe", head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    "cohere": dict(model_type="cohere", logit_scale=0.25, tie_word_embeddings=True),
    "granite": dict(model_type="granite", logits_scaling=4.0, attention_multiplier=0.25),
    "gpt2": dict(model_type="gpt2", n_inner=96),
    "opt": dict(model_type="opt", ffn_dim=96, word_embed_proj_dim=64),
    "phimoe": dict(
        model_type="phimoe", sliding_window=5, num_local_experts=4, num_experts_per_tok=2, lm_head_bias=True
    ),
    "gpt_oss": dict(
        model_type="gpt_oss",
        head_dim=16,
        sliding_window=5,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
    ),
}


def tiny_model(
    kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **config_overrides: Any
) -> PreTrainedModel:
    """A causal language model with random weights that depend on `seed` alone (biases and norms included).

    Args:
        kind: one of the keys of `_KINDS`, such as "llama", "qwen3" (tied weights), "gemma2" (soft-capped logits),
            "mixtral", "qwen3_moe", "cohere", "granite", "gpt2".
        config_overrides: fields of the model's configuration.
    """
    settings = {**_SIZES, **_KINDS[kind], **config_overrides}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        # before transformers 5.21 Gemma 2 computed by torch's own attention, which loses its cap
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        for parameter in model.parameters():
            noise = 0.08 * torch.randn_like(parameter)
            parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model.to(dtype).eval()
