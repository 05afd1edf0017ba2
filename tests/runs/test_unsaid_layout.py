"""Runs that say nothing of their layout."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.workbench import flags, save_model, save_rows, step_lines
from tests.runs.cases import num_models_as_built, run, said_by_run

NUM_ROWS = 24


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unsaid")
    save_model(folder / "model")
    save_rows(folder / "rows.jsonl", NUM_ROWS)
    return folder


def losses(ranks, bench, name, **changes):
    out = bench / name
    ranks.run(run, flags(bench / "model", bench / "rows.jsonl", out, **changes))
    return [(step["loss"], step["grad_norm"]) for step in step_lines(out)]


@pytest.mark.parametrize(("ranks", "zero_stage"), [("one_rank", 0), ("two_ranks", 1)])
def test_they_compute_what_a_padded_run_does(request, ranks, zero_stage, bench):
    pool = request.getfixturevalue(ranks)
    said = losses(pool, bench, f"{ranks}-padded", train__micro_batch_size=1)
    unsaid = losses(pool, bench, f"{ranks}-unsaid", train__micro_batch_size=None)
    assert len(unsaid) == NUM_ROWS // 4
    assert sum(unsaid, ()) == pytest.approx(sum(said, ()), rel=1e-6)
    assert f"zero_stage: {zero_stage}" in (bench / f"{ranks}-unsaid" / "run_config.yaml").read_text()


@pytest.fixture(scope="module")
def mixing_model(bench):
    """Its configuration says that it may be packed; a look at it shows that samples meet."""
    tokenizer_sizes = AutoConfig.from_pretrained(bench / "model")
    config = AutoConfig.for_model(
        "nemotron", num_attention_heads=4, num_key_value_heads=4, hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, vocab_size=tokenizer_sizes.vocab_size,
    )  # fmt: skip
    save_model(bench / "mixes")
    AutoModelForCausalLM.from_config(config).save_pretrained(bench / "mixes")
    return bench / "mixes"


def test_a_model_that_mixes_its_packs_is_padded(one_rank, bench, mixing_model):
    words = flags(mixing_model, bench / "rows.jsonl", bench / "mixed", train__micro_batch_size=None)
    (text,) = one_rank.run(said_by_run, words)
    assert "NemotronForCausalLM cannot be trained on packed samples" in text
    assert "So they are padded." in text
    assert "padded: this model cannot pack" in text
    assert len(step_lines(bench / "mixed")) == NUM_ROWS // 4


def test_the_engine_of_packs_is_gone_before_that_of_padded_batches_is_built(one_rank, bench, mixing_model):
    words = flags(
        mixing_model, bench / "rows.jsonl", bench / "one-engine", train__micro_batch_size=None, ds__zero_stage=3
    )
    ((at_first, at_second),) = one_rank.run(num_models_as_built, words)
    assert at_second == at_first, "under ZeRO-3 a model is looked at in its engine, which was there still"
