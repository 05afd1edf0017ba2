"""A run that was stopped and resumed equals one never stopped, to the bit: losses, weights, optimizer state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.slow import slow
from tests.helpers.workbench import flags, save_model, save_rows, step_lines
from tests.runs.cases import run, run_until_asked_to_leave, said_by_run

NUM_STEPS = 18  # 22 rows, 4 a step: 6 steps an epoch, the last of 2 rows; 3 epochs
OF_THE_PROCESS = ("tokens_per_second", "step_seconds", "host_memory_bytes")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    save_rows(folder / "rows.jsonl", 22)
    save_model(folder / "qwen3")
    save_model(folder / "gpt2", kind="gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.0)
    return folder


def argv(bench: Path, out: str, model: str, **changes) -> list[str]:
    settings = dict(train__max_epochs=3, ckpt__save_steps=5, ckpt__max_num=9) | changes
    return flags(bench / model, bench / "rows.jsonl", bench / out, **settings)


def assert_same_run(one: Path, other: Path, num_steps: int = NUM_STEPS) -> None:
    lines = [
        [{k: v for k, v in line.items() if k not in OF_THE_PROCESS} for line in step_lines(out)] for out in (one, other)
    ]
    assert [line["global_step"] for line in lines[1]] == list(range(1, num_steps + 1))
    assert lines[0] == lines[1]
    assert_same_tensors(one / "model.safetensors", other / "model.safetensors")
    last = f"checkpoints/global_step{num_steps}"
    for path in sorted((one / last).glob("optim_states*.safetensors")):
        assert_same_tensors(path, other / last / path.name)


def assert_same_tensors(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), f"{name} differs between {one} and {other}"


@pytest.mark.parametrize(
    "stop_after", [3, 6, 11], ids=["inside an epoch", "at an epoch's border", "before a small window"]
)
def test_resumed_on_one_rank(one_rank, bench, stop_after):
    changes = dict(ds__zero_stage=0)
    if not (bench / "unbroken-1").exists():
        one_rank.run(run, argv(bench, "unbroken-1", "qwen3", **changes))
    out = f"stopped-{stop_after}"
    assert one_rank.run(run_until_asked_to_leave, argv(bench, out, "qwen3", **changes), stop_after, 0) == [75]
    assert len(step_lines(bench / out)) == stop_after
    one_rank.run(run, argv(bench, out, "qwen3", ckpt__load_enable=True, **changes))
    assert_same_run(bench / "unbroken-1", bench / out)
    pages = [(bench / folder / "report.html").read_text() for folder in ("unbroken-1", out)]
    assert ["gone on after step" in page for page in pages] == [False, True]
    assert f"1: gone on after step {stop_after} (" in pages[1]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        *slow([("qwen3", dict(ds__zero_stage=1))]),
        ("qwen3", dict(ds__zero_stage=2, ds__packing_samples=True, train__max_tokens_per_micro_batch=128)),
        ("qwen3", dict(ds__zero_stage=3, ds__param_dtype="bf16")),
        ("qwen3", dict(ds__zero_stage=2, ds__packing_samples=True, ds__ring_attn_size=2)),
        ("gpt2", dict(ds__zero_stage=2, ds__param_dtype="bf16")),
        *slow([("gpt2", dict(ds__zero_stage=3))]),
    ],
    ids=["zero1", "zero2 packed budget", "zero3 bf16", "ring", "dropout zero2 bf16", "dropout zero3"],
)
def test_resumed_on_two_ranks(two_ranks, bench, model, changes):
    name = f"{model}-{'-'.join(str(value) for value in changes.values())}"
    two_ranks.run(run, argv(bench, f"unbroken-{name}", model, **changes))
    stopped = argv(bench, f"stopped-{name}", model, **changes)
    assert two_ranks.run(run_until_asked_to_leave, stopped, 8, 1) == [75, 75]
    two_ranks.run(run, [*stopped, "--ckpt.load_enable"])
    assert_same_run(bench / f"unbroken-{name}", bench / f"stopped-{name}")


def test_dropout_really_drops(bench):
    """Without it the test above would show nothing: two seeds give two losses on the same first samples."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bench / "gpt2").train()
    ids = torch.arange(3, 20)[None]
    losses = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.add(float(model(input_ids=ids, labels=ids).loss))
    assert len(losses) == 2


def test_a_finished_run_says_so_and_touches_nothing(one_rank, bench):
    arguments = argv(bench, "finished", "qwen3", ds__zero_stage=0)
    one_rank.run(run, arguments)
    before = {path: path.stat().st_mtime_ns for path in (bench / "finished").rglob("*") if path.is_file()}
    one_rank.run(run, [*arguments, "--ckpt.load_enable"])
    after = {path: path.stat().st_mtime_ns for path in (bench / "finished").rglob("*") if path.is_file()}
    assert after == before


def test_other_data_is_another_run(one_rank, bench):
    arguments = argv(bench, "mismatch", "qwen3", ds__zero_stage=0)
    one_rank.run(run_until_asked_to_leave, arguments, 5, 0)
    save_rows(bench / "other_rows.jsonl", 22, seed=9)
    changed = [*arguments, "--ckpt.load_enable", "--data.dataset", str(bench / "other_rows.jsonl")]
    with pytest.raises(AssertionError, match="the training data differs"):
        one_rank.run(run, changed)


def test_a_new_run_sets_the_checkpoints_of_an_earlier_one_aside(one_rank, bench):
    arguments = argv(bench, "again", "qwen3", ds__zero_stage=0)
    one_rank.run(run, arguments)
    earlier = {path.name for path in (bench / "again/checkpoints").iterdir() if path.is_dir()}
    one_rank.run(run, arguments)
    assert {path.name for path in (bench / "again/checkpoints/earlier_run_1").iterdir() if path.is_dir()} == earlier


def test_a_finished_run_with_more_epochs_goes_on(one_rank, bench):
    """The way to train longer: the first epoch's steps stay, and the schedule goes to the new end."""
    arguments = argv(bench, "more", "qwen3", ds__zero_stage=0, train__max_epochs=1)
    one_rank.run(run, arguments)
    first = step_lines(bench / "more")
    said = one_rank.run(said_by_run, [*arguments, "--ckpt.load_enable", "--train.max_epochs", "3"])[0]
    assert "(--train.max_epochs, --train.max_steps) is 18 from here on; the checkpoint's was 6" in said
    lines = step_lines(bench / "more")
    assert [line["global_step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    assert lines[:6] == first
    assert [line["epoch"] for line in lines[6:]] == [1] * 6 + [2] * 6
    if not (bench / "unbroken-1").exists():
        one_rank.run(run, argv(bench, "unbroken-1", "qwen3", ds__zero_stage=0))
    assert [line["lr"] for line in lines[6:]] == [line["lr"] for line in step_lines(bench / "unbroken-1")[6:]]


def test_a_run_that_left_once_and_finished_is_not_trained_again(one_rank, bench):
    """It saves nothing by itself: the checkpoint of its leaving must not be its last one."""
    arguments = argv(bench, "left_once", "qwen3", ds__zero_stage=0, train__max_epochs=1, ckpt__save_steps=None)
    assert one_rank.run(run_until_asked_to_leave, arguments, 3, 0) == [75]
    one_rank.run(run, [*arguments, "--ckpt.load_enable"])
    before = (bench / "left_once/metrics.jsonl").read_bytes()
    said = one_rank.run(said_by_run, [*arguments, "--ckpt.load_enable"])[0]
    assert "Nothing is done." in said
    assert (bench / "left_once/metrics.jsonl").read_bytes() == before


def test_fewer_epochs_than_the_run_had_are_another_run(one_rank, bench):
    arguments = argv(bench, "fewer", "qwen3", ds__zero_stage=0, train__max_epochs=2)
    one_rank.run(run_until_asked_to_leave, arguments, 5, 0)
    with pytest.raises(AssertionError, match="the horizon of the learning rate schedule"):
        one_rank.run(run, [*arguments, "--ckpt.load_enable", "--train.max_epochs", "1"])


def test_exports_of_an_earlier_run_are_set_aside_too(one_rank, bench):
    arguments = argv(bench, "exports", "qwen3", ds__zero_stage=0, train__max_epochs=1, ckpt__save_hf=True)
    one_rank.run(run, arguments)
    one_rank.run(run, arguments)
    aside = bench / "exports/checkpoints/earlier_run_1"
    assert {path.name for path in aside.iterdir() if path.name.endswith("_hf")} >= {
        "global_step5_hf",
        "global_step6_hf",
    }


def test_a_run_of_one_step_trains(one_rank, bench):
    """A warm-up that lasted the whole run would leave the model as it was."""
    arguments = argv(bench, "one-step", "qwen3", ds__zero_stage=0, train__max_epochs=1, train__batch_size=128)
    one_rank.run(run, arguments)
    assert step_lines(bench / "one-step")[0]["lr"] > 0
    before, after = load_file(bench / "qwen3/model.safetensors"), load_file(bench / "one-step/model.safetensors")
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(optim="muon"), "--optim"),
        (dict(ds__param_dtype="bf16"), "--ds.param_dtype"),
    ],
    ids=["optimizer", "dtype"],
)
def test_what_makes_the_next_step_another_one_is_refused(one_rank, bench, changes, words):
    stopped_run(one_rank, bench, "other-step")
    with pytest.raises(AssertionError, match=words):
        one_rank.run(run, argv(bench, "other-step", "qwen3", ds__zero_stage=0, ckpt__load_enable=True, **changes))


@pytest.mark.parametrize(
    ("changed", "words"),
    [("alpha", "alpha differs: 16 in the checkpoint, 32"), ("base", "the model whose weights are not trained")],
)
def test_other_adapters_or_another_base_are_refused(one_rank, bench, changed, words):
    lora = dict(ds__zero_stage=0, ds__lora__rank=2)
    stopped_run(one_rank, bench, "adapters", **lora)
    if changed == "base" and not (bench / "other-base").exists():
        save_model(bench / "other-base", seed=1)
    changes = dict(ds__lora__alpha=32) if changed == "alpha" else {}
    model = "other-base" if changed == "base" else "qwen3"
    with pytest.raises(AssertionError, match=words):
        one_rank.run(run, argv(bench, "adapters", model, ckpt__load_enable=True, **lora, **changes))


@pytest.mark.parametrize("rank", [0, 2], ids=["whole model", "adapters"])
def test_a_base_whose_config_computes_another_function_is_refused(one_rank, bench, rank):
    settings, out = dict(ds__zero_stage=0, ds__lora__rank=rank), "adapters" if rank else "other-step"
    stopped_run(one_rank, bench, out, **settings)
    edited = shutil.copytree(bench / "qwen3", bench / "edited", dirs_exist_ok=True)
    config = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    words = r"config.json: rms_norm_eps\) differs: 1e-06 in the checkpoint, 0.5 now"
    with pytest.raises(AssertionError, match=words):
        one_rank.run(run, argv(bench, out, "edited", ckpt__load_enable=True, **settings))


def test_settings_that_may_change_are_said_to_be_taken_or_ignored(one_rank, bench):
    out = "changed-settings"
    stopped_run(one_rank, bench, out)
    changes = dict(adam__lr=1e-5, adam__weight_decay=0.1, min_lr_ratio=0.5)
    words = argv(bench, out, "qwen3", ds__zero_stage=0, ckpt__load_enable=True, **changes)
    said = one_rank.run(said_by_run, words)[0]
    assert "--adam.lr 1e-05 is ignored: the checkpoint's 0.001 stays" in said
    assert "--adam.weight_decay 0.1 is taken from here on; the checkpoint was made with 0.0" in said
    assert "--min_lr_ratio 0.5 is taken from here on; the checkpoint was made with 0.1" in said
    rates = [line["lr"] for line in step_lines(bench / out)]
    assert min(rates[5:]) == pytest.approx(0.5 * 1e-3, rel=0.05), "the checkpoint's rate, the new floor"


def test_allowed_differences_are_told(one_rank, bench):
    stopped_run(one_rank, bench, "allowed")
    changes = dict(ds__zero_stage=0, ckpt__load_enable=True, train__seed=7, ckpt__allow_mismatch=True)
    said = one_rank.run(said_by_run, argv(bench, "allowed", "qwen3", **changes))[0]
    assert "--train.seed differs: 42 in the checkpoint, 7 now; --ckpt.allow_mismatch goes on" in said


def stopped_run(one_rank, bench: Path, out: str, **changes) -> None:
    """Stopped after step 5, once for all tests that go on from it."""
    if not (bench / out / "checkpoints").exists():
        arguments = argv(bench, out, "qwen3", **(dict(ds__zero_stage=0) | changes))
        one_rank.run(run_until_asked_to_leave, arguments, 5, 0)
