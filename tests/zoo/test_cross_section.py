"""26 models of the zoo, one or two of each kind: right, or refused where they must be. 15 are for the test command."""

from __future__ import annotations

import pytest

from tests.helpers.slow import slow
from tests.zoo.__main__ import look_at
from tests.zoo.cells import CELLS, Finding
from tests.zoo.shrink import CannotBeBuilt, small_model_named
from tests.zoo.table import Results

_PACKS = {"packed", "eager", "sdpa", "ring of 2"}
_WRITTEN_MASKS = {"eager", "sdpa"}

CROSS_SECTION: dict[str, tuple[str, set[str]]] = {  # name: what it stands for, and the cells that are refused
    "llama": ("dense", set()),
    "phi3, longrope": ("factors by the row's length", set()),
    "qwen2, sliding window": ("windows in some layers", set()),
    "gemma2": ("soft caps and windows", {"sdpa"}),
    "gemma4_text": ("heads of two sizes, embeddings of each layer", set()),
    "gpt_oss": ("sinks, biased experts", _WRITTEN_MASKS),
    "mixtral": ("softmax router", set()),
    "deepseek_v3": ("latent attention, grouped sigmoid router with a bias", set()),
    "llama4": ("a backbone under another name, chunked attention", _PACKS),
    "gpt2": ("learned positions", set()),
    "opt": ("a mask without positions", _WRITTEN_MASKS),
    "roberta": ("positions that count from the padding token", _WRITTEN_MASKS),
    "bert, encoder": ("bidirectional", CELLS.keys() - {"aux loss"}),  # which it has not
    "mamba": ("state space", _PACKS),
    "deepseek_v32": ("sparse attention by an index", _PACKS),
}
MORE: dict[str, tuple[str, set[str]]] = {  # for `python -m tests.slow`
    "llama, tied": ("tied embeddings, grouped queries", set()),
    "llama, dynamic rope": ("frequencies by the row's length", set()),
    "gemma3": ("composite of text and pictures", set()),
    "gemma4_text, shared keys": ("layers that take the keys and values of earlier ones", set()),
    "granitemoehybrid, attention only": ("a hybrid's class without a state", _WRITTEN_MASKS),
    "qwen3_moe": ("softmax router, weights added up to 1", set()),
    "qwen3_moe, dense layers only": ("an MoE family without an expert", set()),
    "phimoe": ("a router that is linear by class and returns tuples", set()),
    "glm4": ("several end tokens", set()),
    "bloom": ("ALiBi", _PACKS),
    "qwen3_next": ("linear attention beside full, shared experts", _PACKS),
}


@pytest.mark.parametrize("name", [*CROSS_SECTION, *slow(MORE)])
def test_a_model_is_trained_right_or_refused(name, two_ranks):
    found = look_at(name, two_ranks)
    assert not isinstance(found, str), f"{name} cannot be built: {found}"
    assert Results(findings={name: found}).problems == []
    refused = {cell for cell, finding in found.items() if finding.verdict == "refused"}
    assert refused == (CROSS_SECTION | MORE)[name][1], {cell: found[cell].text for cell in refused}


def test_a_type_that_stays_large_is_left_out_by_name(monkeypatch):
    monkeypatch.setattr("tests.zoo.shrink._NUMBERS", ())
    with pytest.raises(CannotBeBuilt, match=r"parameters; model.* has the shape"):
        small_model_named("llama")


def test_results_are_read_as_they_were_written(tmp_path):
    results = Results(not_built={"large": "5,000,001 parameters"})
    assert Results.read(tmp_path) == Results()
    results.add("llama", {cell: Finding("refused", f"why {cell}", cell == "export") for cell in CELLS})
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    assert "| llama | refused |" in (tmp_path / "zoo.md").read_text(encoding="utf-8")
