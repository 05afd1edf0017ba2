"""The loss of step one, against arithmetic that shares no code with the package: the first window is all the data."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.workbench import flags, save_model, save_rows, step_lines
from tests.runs.cases import run

NUM_ROWS = 12


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_step")
    save_model(folder / "model")
    save_rows(folder / "rows.jsonl", NUM_ROWS)
    return folder


def nll_of_rows(bench) -> list[torch.Tensor]:
    """For each row the -log p of its answer's tokens and of the end token, in float64."""
    model = AutoModelForCausalLM.from_pretrained(bench / "model", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(bench / "model")
    found = []
    for line in (bench / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        encoded = tokenizer(row["question"] + row["answer"], return_offsets_mapping=True)
        ids = [*encoded["input_ids"], tokenizer.eos_token_id]
        num_prompt = sum(stop <= len(row["question"]) for _, stop in encoded["offset_mapping"])
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(-torch.stack([log_probs[place - 1, ids[place]] for place in range(num_prompt, len(ids))]))
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_loss_of_step_one(two_ranks, bench, packed):
    out = bench / f"out-{packed}"
    changes = dict(train__batch_size=NUM_ROWS, ds__packing_samples=packed)
    two_ranks.run(run, flags(bench / "model", bench / "rows.jsonl", out, **changes))
    (step,) = step_lines(out)
    nll = nll_of_rows(bench)
    assert step["num_target_tokens"] == sum(len(row) for row in nll)
    assert step["loss"] == pytest.approx(float(torch.cat(nll).mean()), rel=1e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_pad_token_without_an_embedding_fills_no_place(two_ranks, bench, packed):
    """Of the last window, which has one row, a rank gets nothing but padding."""
    model, out, num_rows_a_step = bench / f"pads_beyond-{packed}", bench / f"out-beyond-{packed}", NUM_ROWS - 1
    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(bench / "model", model))
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.save_pretrained(model)
    changes = dict(train__batch_size=num_rows_a_step, ds__packing_samples=packed)
    two_ranks.run(run, flags(model, bench / "rows.jsonl", out, **changes))
    two_ranks.run(run, flags(bench / "model", bench / "rows.jsonl", bench / f"{out.name}-known", **changes))
    assert [step["loss"] for step in step_lines(out)] == [
        step["loss"] for step in step_lines(bench / f"{out.name}-known")
    ]
