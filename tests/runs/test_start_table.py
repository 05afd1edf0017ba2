"""The start table and the memory that it promises."""

import io
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from openrlhf.batching import StepSchedule
from openrlhf.config import DeepspeedConfig, SFTConfig, TrainConfig
from openrlhf.datasets.report import DataReport, SourceReport
from openrlhf.engine.state_memory import estimate_memory
from openrlhf.models.attention.choice import AttentionChoice
from openrlhf.run import start_table
from openrlhf.run.memory_estimate import size_text
from openrlhf.run.start_table import print_start_table
from tests.helpers.workbench import flags, save_model, save_rows
from tests.runs.cases import said_by_run

GIB = 1024**3


class Data:
    def __init__(self, **left_out):
        self.report = DataReport(num_tokens=1_400_000, num_target_tokens=350_000, left_out=left_out)

    def __len__(self):
        return 7473


def trainer():
    """A trainer of 8 ranks on a model of 1,000 weights, of which 10 are trained; 59 steps an epoch."""
    loader = SimpleNamespace(
        num_micro_batches=lambda window_number: 2.5,
        num_steps_before=lambda consumed_samples: consumed_samples // 128,
        steps_per_epoch=59,
        schedule=StepSchedule(num_rows=7473, batch_size=128, seed=1),
    )
    module = torch.nn.ParameterList([torch.zeros(10), torch.nn.Parameter(torch.zeros(990), requires_grad=False)])
    model = SimpleNamespace(trainable_module=module, config=SimpleNamespace(_attn_implementation="sdpa"))
    model.attention = AttentionChoice("sdpa", "not flash_attention_2: it is not installed")
    strategy = SimpleNamespace(world_size=8, device=torch.device("cpu"), ds=DeepspeedConfig())
    trained = SimpleNamespace(engine=SimpleNamespace(optimizer=torch.optim.SGD(module.parameters())))
    return SimpleNamespace(train_dataloader=loader, model=model, strategy=strategy, trained=trained)


def printed(data, consumed_samples=0, config=None):
    console = Console(file=io.StringIO(), width=120)
    print_start_table(config or SFTConfig(), trainer(), data, None, consumed_samples, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "7,473 kept, none left out",
        "1,400,000 an epoch, 350,000 of them targets (25.0%)",
        "8 × cpu, ZeRO stage 2",
        "128 samples; micro-batches on each rank: 2.5",
        "59 an epoch, 118 in all",
        "1,000; 10 of them trained (1.00%)",
        "SGD",
        "bf16",
        "sdpa; not flash_attention_2: it is not installed",
    ],
)
def test_the_table_says(text):
    assert text in printed(Data())


@pytest.mark.parametrize(("capability", "is_told"), [((7, 5), True), ((8, 0), False)], ids=["T4", "A100"])
def test_a_gpu_that_emulates_bf16_is_told(monkeypatch, capability, is_told):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert ("--ds.param_dtype fp16 is the faster" in start_table._precision("bf16", "cuda")) == is_told
    assert start_table._precision("fp16", "cuda") == "fp16"


def test_the_table_tells_what_became_of_the_rows():
    data = Data(**{"longer than max_len": 7})
    data.report.sources = [SourceReport(name, ["text"], 9, 8, 7) for name in ("a.jsonl", "b.jsonl")]
    data.report.num_cut, data.report.num_weighted, data.report.remarks = 5, 4, {"a system turn twice": 3}
    data.report.notes = ["answers end with '[/INST]', not with the tokenizer's end token"]
    text = printed(data)
    for line in (
        "7,473 kept; left out: 7 longer than max_len",
        "a.jsonl: 7 samples of 8 rows taken (9 read, text)",
        "cut at max_len: 5",
        "samples weighted other than 1: 4",
        "a system turn twice: 3 rows",
        "answers end with '[/INST]', not with",
    ):
        assert line in text


def test_the_table_of_a_run_has_its_memory_by_parts(one_rank, tmp_path):
    model, rows = save_model(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl", 4)
    (said,) = one_rank.run(said_by_run, flags(model, rows, tmp_path / "out", ds__zero_stage=0))
    told = " ".join(said.partition("memory a rank")[2].replace("│", " ").split())
    sizes = re.match(r"about (.+) at the most \(weights (.+) \+ gradients (.+) \+ optimizer (.+) \+ activations ", told)
    assert sizes is not None, told
    units = {"KiB": 2**10, "MiB": 2**20}
    all_of_it, weights, gradients, adam = (float(size.split()[0]) * units[size.split()[1]] for size in sizes.groups())
    on_disk = (model / "model.safetensors").stat().st_size
    assert weights == gradients == pytest.approx(adam / 2, rel=0.01) == pytest.approx(on_disk, rel=0.02)
    assert all_of_it > weights + gradients + adam


@pytest.mark.parametrize(("more", "is_told"), [({}, True), ({"ckpt__background_save": "false"}, False)])
def test_the_table_tells_what_a_save_beside_the_training_keeps(one_rank, tmp_path, more, is_told):
    model, rows = save_model(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl", 4)
    (said,) = one_rank.run(said_by_run, flags(model, rows, tmp_path / "out", ds__zero_stage=0, **more))
    told = " ".join(said.partition("memory a rank")[2].replace("│", " ").split())
    found = re.search(r"a save beside the training (\S+) (KiB|MiB) of the host's", told)
    assert bool(found) == is_told, told
    if found:
        num_bytes = float(found[1]) * {"KiB": 2**10, "MiB": 2**20}[found[2]]
        assert num_bytes == pytest.approx(3 * (model / "model.safetensors").stat().st_size, rel=0.05)


@pytest.mark.parametrize(("param_dtype", "is_said"), [("bf16", True), ("fp32", False)])
def test_the_table_says_that_float32_is_faster_here(monkeypatch, param_dtype, is_said):
    monkeypatch.setattr(start_table, "faster_in_float32", lambda: "float32 is faster here")
    text = printed(Data(), config=SFTConfig(ds=DeepspeedConfig(param_dtype=param_dtype)))
    assert ("float32 is faster here" in text) == is_said


@pytest.mark.parametrize("is_so", [True, False])
def test_the_table_says_where_products_are_made_in_float32(monkeypatch, is_so):
    monkeypatch.setattr(start_table, "faster_in_float32", lambda: "")
    monkeypatch.setattr(start_table, "multiply_in_float32", lambda: is_so)
    text = printed(Data(), config=SFTConfig(ds=DeepspeedConfig(param_dtype="bf16")))
    assert ("products are made in float32, as this processor has none of bf16" in text) == is_so


def test_the_table_says_what_was_left_out_and_why():
    data = Data(**{"longer than 2048 tokens": 12, "empty": 0, "without target": 1})
    assert "left out: 12 longer than 2048 tokens; 1 without target" in printed(data)


def test_the_table_counts_the_steps_of_the_run_and_not_of_its_epochs():
    assert "59 an epoch, 70 in all" in printed(Data(), config=SFTConfig(train=TrainConfig(max_steps=70)))


def test_the_table_says_where_a_resumed_run_goes_on():
    assert "going on after step 40" in printed(Data(), consumed_samples=40 * 128)


@pytest.mark.parametrize(
    ("zero_stage", "param_dtype", "weights", "gradients", "optimizer"),
    [
        (0, "fp32", 4, 4, 8),
        (0, "bf16", 2, 2, 12),
        (1, "bf16", 2, 2, 12 / 4),
        (2, "bf16", 2, 2 / 4, 12 / 4),
        (3, "bf16", 2 / 4, 2 / 4, 12 / 4),
        (2, "fp32", 4, 4 / 4, 12 / 4),
    ],
)
def test_bytes_a_parameter_by_stage(zero_stage, param_dtype, weights, gradients, optimizer):
    memory = estimate_memory(GIB, GIB, num_ranks=4, zero_stage=zero_stage, param_dtype=param_dtype)
    found = (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes)
    assert [size / GIB for size in found] == [weights, gradients, optimizer]


def test_offload_moves_the_optimizer_to_the_host():
    memory = estimate_memory(GIB, GIB, num_ranks=4, zero_stage=2, param_dtype="bf16", optimizer_offload=True)
    assert memory.optimizer_bytes == 0
    assert memory.host_bytes == (12 + 10) * GIB // 4


def test_frozen_weights_need_no_gradient_and_no_optimizer_state():
    memory = estimate_memory(GIB, 0, num_ranks=1, zero_stage=0, param_dtype="bf16")
    assert memory.device_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 1024**2, "3.0 MiB"), (1536 * 1024**3, "1.5 TiB")],
)
def test_sizes_as_people_read_them(size_bytes, text):
    assert size_text(size_bytes) == text
