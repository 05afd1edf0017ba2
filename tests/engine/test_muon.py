"""Muon: what it trains, and that it moves matrices by its own learning rate at every stage of ZeRO."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from openrlhf.config import AdamConfig, LoraConfig, MuonConfig
from openrlhf.engine.optimizers import build_muon
from openrlhf.models.lora import add_lora
from tests.engine import muon_cases
from tests.helpers.slow import slow
from tests.helpers.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(2, "bf16"), (3, "bf16"), (0, "fp32"), *slow([(1, "bf16"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16")])],
)
def test_a_step_moves_matrices_by_muons_rate(two_ranks, stage, dtype):
    """However small --max_norm is."""
    for found in two_ranks.run(muon_cases.first_changes, stage, dtype):
        assert len(found) == 14
        assert all(0.5 < share < 1.3 for share in found.values()), found


def trained_by_muon(module: torch.nn.Module) -> set[str]:
    optimizer = build_muon(module, MuonConfig(), AdamConfig())
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)] for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}


def test_a_matrix_with_as_many_rows_as_an_embedding_is_trained():
    config = tiny_model("llama").config
    config.intermediate_size = config.vocab_size
    model = type(tiny_model("llama"))(config)
    assert len([name for name in trained_by_muon(model) if name.endswith(("up_proj.weight", "gate_proj.weight"))]) == 4


@pytest.mark.parametrize("lora", [None, LoraConfig(4, 16, 0.0, ("q_proj",))], ids=["whole", "adapters"])
def test_heads_and_embeddings_are_left_to_adam(lora):
    config = tiny_model("llama").config
    config.num_labels = 1
    for model in (tiny_model("llama"), AutoModelForSequenceClassification.from_config(config)):
        found = trained_by_muon(add_lora(model, lora) if lora else model)
        assert found
        assert not [name for name in found if "score" in name or "lm_head" in name or "embed" in name]
