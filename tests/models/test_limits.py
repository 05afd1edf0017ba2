"""What a model or a machine cannot do is said before data is prepared."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from openrlhf.errors import UserError
from openrlhf.models import limits


def test_float16_is_refused_where_the_processor_lacks_it(monkeypatch):
    monkeypatch.setattr(limits, "cpu_computes_fp16", lambda: False)
    with pytest.raises(UserError, match="--ds.param_dtype fp16: .* Use bf16 or fp32"):
        limits.check_dtype("fp16", "cpu")
    limits.check_dtype("bf16", "cpu")
    limits.check_dtype("fp16", "cuda")


def test_float16_is_taken_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(limits, "cpu_computes_fp16", lambda: True)
    limits.check_dtype("fp16", "cpu")


def _rope(rope_type, factor, **more):
    return dict(rope_type=rope_type, rope_theta=10000.0, factor=factor, **more)


POSITIONS = {
    "none": (dict(), 64),
    "yarn, as model cards say": (dict(rope_scaling=_rope("yarn", 4.0, original_max_position_embeddings=32)), 128),
    "yarn, raised with it": (dict(rope_parameters=_rope("yarn", 2.0, original_max_position_embeddings=32)), 64),
    "yarn of the positions": (dict(rope_parameters=_rope("yarn", 4.0)), 256),
    "linear": (dict(rope_scaling=dict(type="linear", factor=4.0)), 256),
    "linear in some layers": (
        dict(model_type="gemma3_text", rope_scaling=dict(rope_type="linear", factor=8.0), sliding_window=8),
        64,
    ),
    "dynamic": (dict(rope_parameters=_rope("dynamic", 2.0)), None),
    "llama3, raised with it": (
        dict(
            rope_parameters=_rope(
                "llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
            )
        ),
        64,
    ),
    "learned": (dict(model_type="gpt2", n_positions=64), 64),
    "not told": (dict(model_type="bloom"), None),
    "Whisper's": (dict(model_type="whisper", max_target_positions=64, pad_token_id=1), 64),
    "MPT's": (dict(model_type="mpt", max_seq_len=64), 64),
    "counted from padding": (dict(model_type="roberta", pad_token_id=1), 62),
    "with rows for padding besides": (dict(model_type="opt", pad_token_id=1), 64),
}


@pytest.mark.parametrize(("fields", "expected"), POSITIONS.values(), ids=POSITIONS.keys())
def test_positions_are_those_that_a_scaling_makes(fields, expected):
    sizes = dict(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    if fields.get("model_type") not in ("gpt2", "bloom", "whisper", "mpt"):
        sizes["max_position_embeddings"] = 64
    config = AutoConfig.for_model(**{"model_type": "llama", **sizes, **fields})
    assert limits.num_positions(config) == expected
    if expected is None:
        limits.check_positions(config, 1_000_000, "row 1")
        return
    limits.check_positions(config, expected, "row 1")
    with pytest.raises(UserError, match=f"row 1 has {expected + 1} tokens, the model {expected} positions"):
        limits.check_positions(config, expected + 1, "row 1")
