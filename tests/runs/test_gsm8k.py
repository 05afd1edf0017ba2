"""A full epoch of GSM8K on two ranks; the exported model, read by plain transformers in float64, has the run's loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers.tiny_models import tiny_model
from tests.helpers.workbench import eval_lines, flags, step_lines
from tests.runs.cases import run

GSM8K = Path(__file__).parents[3] / "shared/data/gsm8k"
TEMPLATE = "Question: {}\nAnswer:"
NUM_TRAIN_ROWS, NUM_EVAL_ROWS = 7473, 200

pytestmark = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"the real data is not at {GSM8K}")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gsm8k")
    rows = [json.loads(line) for line in (GSM8K / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator((row["question"] + row["answer"] for row in rows), 2048, special_tokens=["<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>")
    tokenizer.save_pretrained(folder / "model")
    tiny_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=1024).save_pretrained(
        folder / "model"
    )
    lines = (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_EVAL_ROWS]
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("zero_stage", "dtype"),
    [(2, "fp32"), *(pytest.param(*one, marks=SLOW) for one in ((3, "bf16"), (3, "fp32"), (2, "bf16")))],
    ids=lambda value: str(value),
)
def test_a_full_epoch(two_ranks, bench, zero_stage, dtype):
    out = bench / f"zero{zero_stage}-{dtype}"
    settings = dict(
        data__input_template=TEMPLATE,
        data__max_len=1024,
        data__cache_dir=bench / "cache",
        eval__dataset=bench / "eval.jsonl",
        train__batch_size=128,
        train__max_tokens_per_micro_batch=8192,
        ds__packing_samples=True,
        ds__zero_stage=zero_stage,
        ds__param_dtype=dtype,
        adam__lr=3e-3,
    )
    two_ranks.run(run, flags(bench / "model", GSM8K / "train.jsonl", out, **settings))
    steps, (evaluation,) = step_lines(out), eval_lines(out)
    assert sum(line["num_tokens"] for line in steps) > 1_000_000
    assert steps[-1]["consumed_samples"] == NUM_TRAIN_ROWS
    assert_falls_steadily([line["loss"] for line in steps])
    loss, num_targets = loss_of_exported(out, bench / "eval.jsonl")
    assert evaluation["eval_num_target_tokens"] == num_targets
    assert evaluation["eval_loss"] == pytest.approx(loss, rel=1e-6 if dtype == "fp32" else 5e-3)


def assert_falls_steadily(losses: list[float]) -> None:
    """The mean of each sixth of the run is below that of the one before."""
    size = len(losses) // 6
    means = [sum(losses[i * size : (i + 1) * size]) / size for i in range(6)]
    assert means == sorted(means, reverse=True), f"means of the sixths: {means}"
    assert means[-1] < 0.75 * means[0]


def loss_of_exported(folder: Path, rows: Path) -> tuple[float, int]:
    """Plain transformers in float64, a row at a time: sum of -log p over the answers and their end / number."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = TEMPLATE.format(row["question"])
        encoded = tokenizer(prompt + row["answer"], return_offsets_mapping=True)
        ids = torch.tensor([*encoded["input_ids"], tokenizer.eos_token_id])
        num_prompt = sum(stop <= len(prompt) for _, stop in encoded["offset_mapping"])
        with torch.no_grad():
            log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        total -= sum(float(log_probs[place - 1, ids[place]]) for place in range(num_prompt, len(ids)))
        count += len(ids) - num_prompt
    return total / count, count
