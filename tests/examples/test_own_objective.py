"""The example's objective of one's own: packed, in a ring of two, under ZeRO-3, stopped and resumed.

That it equals a float64 loop is a row of the equivalence matrix (tests/equivalence/matrix.py, OBJECTIVES).
"""

from __future__ import annotations

from pathlib import Path

from tests.helpers.workbench import flags, save_model, save_rows, step_lines
from tests.runs.cases import run, run_as_command, run_until_asked_to_leave
from tests.runs.test_resume import OF_THE_PROCESS, assert_same_tensors

MINE = "examples.own_objective:FocalObjective"
LAYOUT = dict(ds__zero_stage=3, ds__packing_samples=True, ds__ring_attn_size=2, train__max_tokens_per_micro_batch=128)


def test_it_trains_in_a_ring_under_zero3_and_resumes_to_the_bit(two_ranks, tmp_path):
    save_rows(tmp_path / "rows.jsonl", 14)
    save_model(tmp_path / "model")

    def argv(out: str, **changes) -> list[str]:
        settings = dict(train__loss=MINE, train__max_epochs=2, ckpt__save_steps=3) | LAYOUT | changes
        return flags(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / out, **settings)

    two_ranks.run(run, argv("unbroken"))
    assert two_ranks.run(run_until_asked_to_leave, argv("stopped"), 3, 1) == [75, 75]
    words = argv("stopped", ckpt__load_enable=True, train__loss="nll")
    codes, errors = zip(*two_ranks.run(run_as_command, words), strict=True)
    assert codes == (2, 2), "another objective is another run"
    assert f"--train.loss differs: {MINE} in the checkpoint, nll now" in "".join(errors)
    two_ranks.run(run, argv("stopped", ckpt__load_enable=True))
    assert _numbers(tmp_path / "unbroken") == _numbers(tmp_path / "stopped")
    assert_same_tensors(tmp_path / "unbroken/model.safetensors", tmp_path / "stopped/model.safetensors")


def test_it_is_short():
    assert len((Path(__file__).parents[2] / "examples/own_objective.py").read_text().splitlines()) <= 60


def _numbers(out: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in OF_THE_PROCESS} for line in step_lines(out)]
