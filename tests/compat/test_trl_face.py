"""TRL's SFTTrainer in one process: callbacks and control, results after a resume, targets, refusals, adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import SaveStrategy

from openrlhf.checkpoint import lease
from openrlhf.compat import trl
from openrlhf.compat.trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    clone_chat_template,
    get_dataset,
    get_last_checkpoint,
    get_peft_config,
    get_quantization_config,
    hub,
    setup_chat_format,
)
from openrlhf.compat.trl.run import TrlRun
from openrlhf.errors import UserError
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer
from tests.helpers.workbench import save_model

EIGHT_BITS = BitsAndBytesConfig(load_in_8bit=True)
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
ROWS = [
    {"messages": [{"role": "user", "content": f"sum of {n}"}, {"role": "assistant", "content": f"seven and {n % 5}"}]}
    for n in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENRLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


COFFEE = tiny_tokenizer()("coffee with oat milk")["input_ids"]


def arguments(out: Path, **changes: Any) -> SFTConfig:
    """6 steps of 2 samples, fp32."""
    values = dict(
        output_dir=str(out),
        per_device_train_batch_size=2,
        num_train_epochs=1,
        learning_rate=1e-3,
        max_length=64,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=2,
        save_strategy="no",
        dataset_num_proc=1,
    )
    return SFTConfig(**(values | changes))


def trainer(model: Path, args: SFTConfig, rows: Any = ROWS, **more: Any) -> SFTTrainer:
    return SFTTrainer(model=str(model), args=args, train_dataset=Dataset.from_list(rows), **more)


class Steering(TrainerCallback):
    """Takes back the save that is due after step 2, asks for one and for an evaluation after 3, and stops after 5."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.evaluated: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            assert control.should_save
            control.should_save = False
        if state.global_step == 3:
            control.should_save = control.should_evaluate = True
        if state.global_step == 5:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved.append(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self.evaluated.append(state.global_step)
        assert metrics["eval_loss"] > 0


def test_control_is_obeyed(model: Path, tmp_path: Path) -> None:
    steering = Steering()
    args = arguments(tmp_path / "out", save_strategy="steps", save_steps=2)
    result = trainer(model, args, eval_dataset=Dataset.from_list(ROWS[:3]), callbacks=[steering]).train()
    assert result.global_step == 5
    assert steering.evaluated == [3]
    assert steering.saved == [3, 4]


def test_a_save_at_no_step_is_one_at_the_end(model: Path, tmp_path: Path) -> None:
    trainer(model, arguments(tmp_path / "out", save_strategy="steps", save_steps=-1, max_steps=2)).train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


class Probing(TrainerCallback):
    """Evaluates other rows after step 2, and asks for an evaluation whenever numbers of step 3 are logged."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.trainer: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(("built", state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.trainer.evaluate(Dataset.from_list(ROWS[3:5]), metric_key_prefix="probe")
            self.trainer.evaluate(Dataset.from_list(ROWS[3:5]))
            assert state.best_global_step is None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = state.global_step == 3

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self.seen += [(name, state.global_step) for name in metrics if name.endswith(("_loss", "_mean_token_accuracy"))]


def test_an_evaluation_of_other_rows_is_none_of_the_runs(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    probing = Probing()
    args = arguments(tmp_path / "out", logging_steps=1)
    run = trainer(model, args, eval_dataset=Dataset.from_list(ROWS[:3]), callbacks=[probing])
    probing.trainer = run
    run.train()
    names = ("eval_loss", "eval_mean_token_accuracy")
    evaluated = [
        (name.replace("eval", prefix), step)
        for prefix, step in (("probe", 2), ("eval", 2), ("eval", 3))
        for name in names
    ]
    assert probing.seen == [("built", 0), *evaluated]
    assert [one["step"] for one in run.state.log_history if "probe_loss" in one] == [2]
    assert run.state.best_global_step == 3
    assert "after step 2: probe_loss" in capfd.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["global_step"], "eval_loss" in line) for line in lines if "probe_loss" in line] == [(2, False)]
    assert [line["global_step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


class Epochs(TrainerCallback):
    """Notes the ends of epochs, and what is made there; stops after a step."""

    def __init__(self, last: int) -> None:
        self.last, self.seen = last, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.last

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(("end", state.global_step))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(("evaluate", state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(("save", state.global_step))


@pytest.mark.parametrize(("more", "last", "at"), [({"max_steps": 4}, 9, 4), ({}, 2, 2)])
def test_a_run_that_ends_within_an_epoch_ends_it(
    model: Path, tmp_path: Path, more: dict[str, Any], last: int, at: int
) -> None:
    epochs = Epochs(last)
    args = arguments(tmp_path / "out", eval_strategy="epoch", save_strategy="epoch", **more)
    trainer(model, args, eval_dataset=Dataset.from_list(ROWS[:3]), callbacks=[epochs]).train()
    assert epochs.seen == [("end", at), ("evaluate", at), ("save", at)]


def test_early_stopping_of_transformers_ends_the_run(model: Path, tmp_path: Path) -> None:
    args = arguments(
        tmp_path / "out",
        learning_rate=1e-12,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    patience = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=0.5)
    run = trainer(model, args, eval_dataset=Dataset.from_list(ROWS[:3]), callbacks=[patience])
    assert run.train().global_step == 3
    assert run.state.best_metric is not None
    assert run.state.best_global_step is not None


def test_the_best_model_is_loaded_at_the_end(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = arguments(
        out, learning_rate=0.3, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True,
    )  # fmt: skip
    run = trainer(model, args, eval_dataset=Dataset.from_list(ROWS[:3]))
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    best = min(losses, key=losses.__getitem__)
    assert run.state.best_global_step == best
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    run.save_model()
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (out / f"checkpoint-{best}", out))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_resumed_run_tells_of_the_whole_run(model: Path, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    class Probe(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                self.trainer.evaluate(Dataset.from_list(ROWS[3:5]), metric_key_prefix="probe")

    args = {"save_strategy": "steps", "save_steps": 3}
    probe = Probe()
    probe.trainer = whole = trainer(model, arguments(tmp_path / "whole", **args), callbacks=[probe])
    expected = whole.train()
    probe.trainer = broken = trainer(model, arguments(tmp_path / "out", **args), callbacks=[Stop, probe])
    broken.train()
    checkpoint = get_last_checkpoint(str(tmp_path / "out"))
    assert checkpoint == str(tmp_path / "out" / "checkpoint-3")
    resumed = trainer(model, arguments(tmp_path / "out", **args))
    result = resumed.train(resume_from_checkpoint=True)
    assert (result.global_step, result.training_loss) == (6, expected.training_loss)
    whole_history, history = (
        [one for one in run.state.log_history if "train_loss" not in one] for run in (whole, resumed)
    )
    assert whole_history == history
    assert [one["step"] for one in history if "probe_loss" in one] == [2]
    theirs, ours = (dict(run.model.named_parameters()) for run in (whole, resumed))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize(
    ("row", "given", "trained"),
    [
        ({"prompt": "sum of three", "completion": " is seven"}, {}, "is seven"),
        (
            {"prompt": [{"role": "user", "content": "sum"}], "completion": [{"role": "assistant", "content": "seven"}]},
            {},
            "seven",
        ),
        (ROWS[0], {}, "user\nsum of 0<|im_end|>\n<|im_start|>assistant\nseven and 0"),
        (ROWS[0], {"assistant_only_loss": True}, "seven and 0"),
        ({"prompt": "sum of three", "completion": " is"}, {"completion_only_loss": False}, "of three is"),
        ({"text": "coffee with oat milk"}, {}, "with oat milk"),
        ({"text": "coffee with oat milk", "instruction": "sum", "output": "seven"}, {}, "with oat milk"),
        ({"prose": "coffee with oat milk"}, {"dataset_text_field": "prose"}, "with oat milk"),
        (ROWS[0], {"dataset_text_field": "prose"}, "assistant\nseven and 0"),
        (ROWS[0], {"dataset_text_field": "messages"}, "assistant\nseven and 0"),
        ({"input_ids": COFFEE}, {}, "with oat milk"),
        ({"input_ids": COFFEE, "assistant_masks": [1] * len(COFFEE)}, {"assistant_only_loss": True}, "with oat milk"),
        (
            {"input_ids": COFFEE, "assistant_masks": torch.ones(len(COFFEE)), "completion_mask": None},
            {},
            "with oat milk",
        ),
    ],
)
def test_targets_are_trls(
    model: Path, tmp_path: Path, row: dict[str, Any], given: dict[str, Any], trained: str
) -> None:
    run = trainer(model, arguments(tmp_path / "out", **given), [row])
    ids, _, mask = run._run.train_data[0]
    text = run.processing_class.decode([ids[t + 1] for t in range(len(ids) - 1) if mask[t]])
    assert trained in text
    asked = row.get("prompt") if "completion" in row and not given else None
    assert asked is None or "sum" not in text


@pytest.mark.parametrize(
    ("completion_only", "trained"),
    [(None, "five<|im_end|>"), (True, "five<|im_end|>"), (False, "two<|im_end|>five<|im_end|>")],
)
def test_assistants_of_a_prompt_are_trained_only_where_trl_does(
    model: Path, tmp_path: Path, completion_only: bool | None, trained: str
) -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "five")]
    messages = [{"role": role, "content": content} for role, content in turns]
    args = arguments(tmp_path / "out", assistant_only_loss=True, completion_only_loss=completion_only)
    run = trainer(model, args, [{"prompt": messages[:3], "completion": messages[3:]}])
    ids, _, mask = run._run.train_data[0]
    assert run.processing_class.decode(ids[1:][mask[:-1] > 0]) == trained


def test_evaluations_have_the_targets_of_the_trained_rows(model: Path, tmp_path: Path) -> None:
    """TRL decides by the first trained row whether completions alone count."""
    pair = {"prompt": "sum of three", "completion": " is seven"}
    for row, is_whole in (({"text": "oat milk"}, True), (pair, False)):
        run = trainer(model, arguments(tmp_path / "out"), [row], eval_dataset=Dataset.from_list([pair]))
        num_targets = int(run._run.eval_data.num_target_tokens[0])
        assert (num_targets == len(run._run.eval_data[0][0]) - 1) == is_whole
        assert run.evaluate(Dataset.from_list([pair]))["eval_num_target_tokens"] == num_targets


@pytest.mark.parametrize(
    ("masks", "completion_only", "num_trained"),
    [
        (["completion_mask"], True, 1),
        (["completion_mask"], False, len(COFFEE) - 1),
        (["completion_mask"], None, len(COFFEE) - 1),
        (["assistant_masks", "completion_mask"], None, 2),
        (["assistant_masks", "completion_mask"], True, 1),
        (["prompt", "completion", "completion_mask"], None, 1),
    ],
)
def test_masks_of_token_rows_count_where_trl_reads_them(
    model: Path, tmp_path: Path, masks: list[str], completion_only: bool | None, num_trained: int
) -> None:
    num_before = {"completion_mask": len(COFFEE) - 1, "assistant_masks": len(COFFEE) - 2}
    row = {name: [0] * num_before[name] + [1] * (len(COFFEE) - num_before[name]) for name in masks if "mask" in name}
    row |= {"input_ids": COFFEE} | {name: "oat" for name in masks if name not in row}
    for rows in ([row], Dataset.from_list([row])):
        args = arguments(tmp_path / "out", completion_only_loss=completion_only)
        data = SFTTrainer(str(model), args, train_dataset=rows)._run.train_data
        assert int(data.num_target_tokens[0]) == num_trained
        is_passed_over = any("'completion_mask' is not read" in remark for remark in data.report.remarks)
        assert is_passed_over == (num_trained > 1)


def test_remedies_in_a_script_are_ones_that_it_can_follow(model: Path, tmp_path: Path) -> None:
    class Weighted(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Any: ...

    args = arguments(tmp_path / "out")
    with pytest.raises(UserError) as given:
        SFTTrainer(str(model), args, train_dataset=ROWS, compute_loss_func=print, compute_metrics=print)
    with pytest.raises(UserError) as overridden:
        Weighted(str(model), args, train_dataset=ROWS)
    for said in (str(given.value), str(overridden.value)):
        assert "the setting" not in said
        assert "TrainerCallback" in said
        assert "python -m openrlhf.cli.train_sft with the recipe takes --train.loss module:Name" in said


def test_adapters_are_trained_and_exported(model: Path, tmp_path: Path) -> None:
    peft_config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    run = trainer(model, arguments(tmp_path / "out", max_steps=2), peft_config=peft_config)
    run.train()
    run.save_model()
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    assert adapted.peft_config["default"].r == 4
    assert set(adapted.peft_config["default"].target_modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"compute_metrics": print}, "SFTTrainer(compute_metrics=) is not here"),
        ({"data_collator": print}, "SFTTrainer(data_collator=) is not here"),
        ({"callbacks": [print]}, "which is no TrainerCallback of transformers"),
        ({"peft_config": LoraConfig(bias="all")}, "peft_config has bias='all', which is not here"),
        ({"peft_config": LoraConfig(exclude_modules=["q_proj"])}, "peft_config has exclude_modules="),
        ({"peft_config": LoraConfig(target_modules=[], target_parameters=["x"])}, "target_modules=[], no layer"),
        ({"args": TrainingArguments("out")}, "SFTTrainer(args=) is a TrainingArguments"),
        ({"args": SFTConfig("out", model_init_kwargs={"quantization_config": EIGHT_BITS})}, "load_in_8bit true"),
        ({"args": SFTConfig("out", model_init_kwargs={"quantization_config": FOUR_BITS})}, "--ds.load_in_4bit"),
        ({"train_dataset": iter(ROWS)}, "give a datasets.Dataset"),
        ({"train_dataset": None}, "SFTTrainer has no train_dataset"),
        ({"eval_dataset": {"a": ROWS, "b": ROWS}}, "eval_dataset is a dict: give a datasets.Dataset"),
        ({"args": SFTConfig(output_dir="out", neftune_noise_alpha=5)}, "neftune_noise_alpha 5 cannot be had here"),
        ({"model": 7}, "SFTTrainer(model=) is a int"),
        (
            {"args": SFTConfig("out", eval_strategy="epoch")},
            "eval_strategy is epoch, and SFTTrainer has no eval_dataset",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(model: Path, tmp_path: Path, more: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"model": str(model), "args": arguments(tmp_path / "out"), "train_dataset": ROWS}
    with pytest.raises(UserError) as caught:
        SFTTrainer(**(given | more))
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "rows", "said"),
    [
        (
            {"assistant_only_loss": True},
            [{"text": "coffee"}],
            "assistant_only_loss is true, and train_dataset holds no",
        ),
        ({"completion_only_loss": True}, ROWS, "completion_only_loss is true, and train_dataset has no columns"),
        ({"dataset_text_field": "prose"}, [{"text": "coffee"}], "has no column 'prose'"),
        ({}, [{"prompt": "coffee"}], "or name the column of a text by SFTConfig(dataset_text_field=…)"),
        ({}, [{"text": "coffee"}, {"text": ""}], "A script has no flags --data.*: remove rows by dataset.filter(…)"),
        (
            {"completion_only_loss": True},
            [{"input_ids": [5, 6], "completion_mask": [1]}],
            "labels has 1 entries, input_ids has 2",
        ),
    ],
)
def test_a_loss_that_the_rows_do_not_allow_is_refused(
    model: Path, tmp_path: Path, given: dict[str, Any], rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        trainer(model, arguments(tmp_path / "out", **given), rows)
    assert said in str(caught.value)


def test_a_method_that_would_never_be_called_is_refused(model: Path, tmp_path: Path) -> None:
    class Weighted(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Any:
            return 0

        def my_own(self) -> None: ...

    with pytest.raises(UserError, match="Weighted overrides compute_loss, which is never called here"):
        Weighted(str(model), arguments(tmp_path / "out"), train_dataset=ROWS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("_prepare_dataset", "Mine overrides _prepare_dataset, which is never called here"),
        ("_prepare_peft_model", "Mine overrides _prepare_peft_model, which is never called here"),
        ("evaluate", "Mine overrides evaluate, which is not called along the way here: a TrainerCallback is, on_eval"),
        ("save_model", "Mine overrides save_model, which is not called along the way here: a TrainerCallback is, on_s"),
    ],
)
def test_a_method_that_trl_alone_would_call_is_refused(model: Path, tmp_path: Path, name: str, said: str) -> None:
    mine = type("Mine", (SFTTrainer,), {name: lambda self, *given, **more: None})
    with pytest.raises(UserError) as caught:
        mine(str(model), arguments(tmp_path / "out"), train_dataset=ROWS)
    assert said in str(caught.value)


def test_what_a_built_trainer_reads_no_more_is_refused(model: Path, tmp_path: Path) -> None:
    run = trainer(model, arguments(tmp_path / "out"))
    for name, said in {
        "train_dataset": "trainer.train_dataset is set, which nothing here reads once the trainer is built",
        "eval_dataset": "or to evaluate",
        "args": "give it to SFTTrainer",
        "model": "save_pretrained",
        "data_collator": "batches are made of prepared rows",
        "compute_loss_func": "an objective of your own",
        "optimizer": "the arguments say the optimizer",
        "compute_loss": "The script sets on its trainer compute_loss, which is never called here",
        "_prepare_dataset": "which is never called here",
        "save_model": "which is not called along the way here",
    }.items():
        with pytest.raises(UserError, match=said):
            setattr(run, name, print)
    run.train_dataset, run.compute_metrics = run.train_dataset, None
    run.my_own = print


def test_a_model_that_is_saved_is_pushed_where_that_is_asked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr(hub, "push_folder", lambda folder, name, **more: pushed.append((folder, name, more["message"])))
    run = trainer(model, arguments(tmp_path / "out", push_to_hub=True, hub_model_id="me/it"))
    run.save_model(str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere/config.json").is_file()
    assert (tmp_path / "out/config.json").is_file(), "what is uploaded"
    run.save_model(f"{tmp_path / 'out'}/")
    run.push_to_hub()
    messages = ("Model save", "Model save", "End of training")
    assert pushed == [(tmp_path / "out", "me/it", message) for message in messages]
    assert (tmp_path / "out" / "README.md").is_file()
    run.args.push_to_hub = False
    run.save_model()
    assert len(pushed) == 3


def test_arguments_that_are_set_too_late_are_refused(model: Path, tmp_path: Path) -> None:
    class Slower(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.logging_steps = 5

    run = trainer(model, arguments(tmp_path / "out", lr_scheduler_kwargs={}), callbacks=[Slower])
    run.args.learning_rate, run.args.lr_scheduler_kwargs["min_lr"], run.args.hub_model_id = 1.0, 0.1, "me/it"
    said = "args.learning_rate, args.lr_scheduler_kwargs is set after the trainer was built, which has read it"
    with pytest.raises(UserError, match=said):
        run.train()
    run.args.learning_rate, run.args.lr_scheduler_kwargs = 1e-3, {}
    with pytest.raises(Exception, match="args.logging_steps is set after the trainer was built"):
        run.train()
    assert run.state.global_step == 1


def test_a_name_of_transformers_that_is_not_here_is_told(model: Path, tmp_path: Path) -> None:
    run = trainer(model, arguments(tmp_path / "out"))
    with pytest.raises(AttributeError, match="get_train_dataloader of transformers' Trainer is not here"):
        run.get_train_dataloader()
    with pytest.raises(AttributeError, match="accelerator.gather is not here, which has is_main_process"):
        run.accelerator.gather([])
    assert not hasattr(run, "predict")
    with pytest.raises(AttributeError, match="object has no attribute 'my_own'"):
        run.my_own  # noqa: B018
    assert (run.args.eval_batch_size, run.args.parallel_mode.value) == (8, "not_parallel")


def test_the_state_is_saved_at_any_time(model: Path, tmp_path: Path) -> None:
    trainer(model, arguments(tmp_path / "out")).save_state()
    assert (tmp_path / "out" / "trainer_state.json").is_file()


def test_precision_is_told_to_the_script() -> None:
    assert [SFTConfig(**more).bf16 for more in ({}, {"fp16": True}, {"bf16": False})] == [True, False, False]


def test_a_trainer_without_arguments_has_trls_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (str(model), AutoModelForCausalLM.from_pretrained(model)):
        assert SFTTrainer(given, train_dataset=ROWS).args.output_dir == f"{model.name}-SFT"


def test_a_subclass_may_have_annotated_attributes(model: Path, tmp_path: Path) -> None:
    class Labelled(SFTTrainer):
        label: str = "mine"

    assert Labelled(str(model), arguments(tmp_path / "out"), train_dataset=ROWS).label == "mine"


def test_what_a_subclass_of_trls_says_of_itself_is_taken(model: Path, tmp_path: Path) -> None:
    class Tagged(SFTTrainer):
        _tag_names = ("distilled",)
        loss_is_scaled_for_ga = True

    trainer = Tagged(str(model), arguments(tmp_path / "out"), train_dataset=ROWS)
    trainer.create_model_card(tags="small")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert {"- small", "- distilled"} <= set(card.splitlines())


def test_a_callback_that_ends_an_epoch_early_is_told_that_it_cannot(model: Path, tmp_path: Path) -> None:
    class Early(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_epoch_stop = state.global_step == 2

    run = trainer(model, arguments(tmp_path / "out"), callbacks=[Early])
    assert isinstance(run.pop_callback(Early), Early)
    run.add_callback(Early)
    with pytest.raises(Exception, match="should_epoch_stop, which is not here: should_training_stop ends the run"):
        run.train()


def test_a_folder_that_is_no_checkpoint_is_refused(model: Path, tmp_path: Path) -> None:
    run = trainer(model, arguments(tmp_path / "out"))
    with pytest.raises(UserError, match="is no checkpoint of a run here"):
        run.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))


def test_a_living_runs_folder_is_left_as_it_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=1)
    trainer(model, args).train()
    before = {path: path.lstat().st_mtime_ns for path in files_of(args)}
    lease.Lease(Path(args.output_dir)).acquire(print)
    monkeypatch.setattr(lease, "SECONDS_UNTIL_REFUSED", 0.0)
    with pytest.raises(UserError, match="belongs to a run that is still going on"):
        trainer(model, args).train()
    assert {path: path.lstat().st_mtime_ns for path in files_of(args)} == before


@pytest.mark.parametrize(("strategy", "saves"), [("no", False), ("steps", True), (SaveStrategy.EPOCH, True)])
def test_a_script_that_saves_must_be_able_to(monkeypatch: pytest.MonkeyPatch, strategy: Any, saves: bool) -> None:
    """Its settings do not say that it saves: a callback asks for each save."""
    asked: list[Any] = []
    run = TrlRun.__new__(TrlRun)
    run._args, run.config = SimpleNamespace(save_strategy=strategy), SimpleNamespace(ckpt=None)  # type: ignore
    checkpointers = SimpleNamespace(owning_folders=lambda *_, must_save: asked.append(must_save))
    run.strategy = SimpleNamespace(checkpointers=checkpointers, print=print)  # type: ignore
    run.owning_folders()
    assert asked == [saves]


def files_of(args: SFTConfig) -> list[Path]:
    """All below the output folder but the lease."""
    return sorted(path for path in Path(args.output_dir).rglob("*") if path.is_file() and path.name != lease.FILE_NAME)


def test_chat_format_gives_a_base_model_its_tokens() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model, tokenizer = setup_chat_format(model, tokenizer)
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith(
        "<|im_start|>user"
    )
    with pytest.raises(UserError, match="has a chat template"):
        setup_chat_format(model, tokenizer)


def test_a_token_of_the_hub_is_shown_nowhere(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = arguments(tmp_path / "out", hub_token="hf_abcdef")
    trainer(model, args)
    shown = "".join(capfd.readouterr()) + repr(args) + args.to_json_string()
    assert "hub_token [hidden]" in shown
    assert "hf_abcdef" not in shown


@dataclass
class OwnConfig(SFTConfig):
    """A script's own."""

    benchmarks: list[str] = field(default_factory=list)


def test_parser_reads_a_recipe_flags_win_and_unknown_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model_name_or_path: m\nlearning_rate: 2e-5\nmax_length: 32\nbenchmarks: [aime24]\nreport_to: [wandb]\n"
        "lr_scheduler_kwargs: {min_lr_rate: 0.1}\noutput_dir: out\n"
    )
    parser = TrlParser((OwnConfig, ModelConfig))
    args, model_args = parser.parse_args_and_config(["--config", str(path), "--max_length", "64"])
    assert (args.learning_rate, args.max_length, args.benchmarks) == (2e-5, 64, ["aime24"])
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert "wandb" in args.report_to
    assert model_args.model_name_or_path == "m"
    assert parser.parse_args_and_config([f"--config={path}"])[0].max_length == 32
    broken = tmp_path / "broken.yaml"
    broken.write_text("max_length: 32\nhub_token: {secret-of-the-hub\n")
    with pytest.raises(UserError, match=r"broken\.yaml is broken: .* \(line 3, column 1\)$"):  # and not the line
        parser.parse_args_and_config(["--config", str(broken)])
    path.write_text("learning_rate: fast\n")
    with pytest.raises(SystemExit):
        TrlParser((OwnConfig, ModelConfig)).parse_args_and_config(["--config", str(path)])
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("invalid float value: 'fast'")
    path.write_text("lerning_rate: 2e-5\n")
    with pytest.raises(UserError, match="lerning_rate is unknown. Did you mean learning_rate?"):
        TrlParser((OwnConfig, ModelConfig)).parse_args_and_config(["--config", str(path)])


def test_none_is_a_value_of_a_flag_that_may_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    parser = TrlParser(SFTConfig)
    (args,) = parser.parse_args_and_config(
        ["--max_length", "None", "--save_total_limit", "null", "--report_to", "none"]
    )
    assert (args.max_length, args.save_total_limit, args.report_to) == (None, None, [])
    assert parser.parse_args_and_config(["--max_length", "64"])[0].max_length == 64
    for words in (["--max_length", "long"], ["--max_steps", "None"]):  # no number; no name that may be none
        with pytest.raises(SystemExit):
            parser.parse_args_and_config(words)
        assert f"invalid int value: '{words[1]}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("DPOTrainer", "use python -m openrlhf.cli.train_dpo"),
        ("RewardConfig", "use python -m openrlhf.cli.train_rm"),
        ("GRPOTrainer", "SFTTrainer and SFTConfig are"),
        ("DataCollatorForCompletionOnlyLM", "SFTTrainer and SFTConfig are"),
        ("something", "cannot import name"),
    ],
)
def test_a_name_that_trl_alone_has_is_told(name: str, remedy: str) -> None:
    with pytest.raises(ImportError, match=remedy):
        exec(f"from openrlhf.compat.trl import {name}")
    assert not hasattr(trl, "something")


class Beginning(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...


def test_evaluation_before_and_after_training(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steering = Steering()
    args = arguments(tmp_path / "out")
    run = trainer(model, args, eval_dataset=Dataset.from_list(ROWS[:3]), callbacks=[steering])
    before = run.evaluate()
    assert steering.evaluated == [0]
    assert [one["eval_loss"] for one in run.state.log_history] == [before["eval_loss"]]
    run.remove_callback(steering)
    run.add_callback(Beginning)
    assert "Beginning.on_step_begin is never called here" in capfd.readouterr().out
    run.train()
    assert "eval_loss" not in run.state.log_history[0]
    assert run.state.best_global_step is None
    run.args.output_dir = str(tmp_path / "elsewhere")  # for what the script itself does then
    after, other = run.evaluate(), run.evaluate(Dataset.from_list(ROWS[3:5]), metric_key_prefix="test")
    assert after["eval_loss"] < before["eval_loss"]
    assert after["epoch"] == 1.0
    assert other["test_loss"] > 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_tokenizer_and_a_model_in_memory_are_trained(model: Path, tmp_path: Path) -> None:
    in_memory = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    args = arguments(tmp_path / "out", max_steps=1, pad_token="<|im_start|>")
    run = SFTTrainer(
        in_memory, args, train_dataset=[{"a": "coffee with oat milk"}], processing_class=tokenizer,
        formatting_func=lambda row: row["a"],
    )  # fmt: skip
    assert run.train().global_step == 1
    run.save_model()
    assert AutoTokenizer.from_pretrained(args.output_dir).pad_token == "<|im_start|>"
    with pytest.raises(UserError, match="pad_token '<none>' is no token of the tokenizer's vocabulary"):
        trainer(model, arguments(tmp_path / "out", pad_token="<none>"))
    assert run.train_dataset == [{"a": "coffee with oat milk"}]


def test_a_script_in_the_style_of_trls_own(model: Path, tmp_path: Path) -> None:
    """Its parser, a mixture, a model by name with what it is loaded by, every kind of adapter."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row | {"source": name}) + "\n" for row in ROWS))
    files = [
        {"path": "json", "data_files": str(tmp_path / f"{n}.jsonl"), "columns": ["messages"]} for n in ("one", "two")
    ]
    recipe = {
        "model_name_or_path": str(model), "output_dir": str(tmp_path / "out"), "datasets": files, "test_split_size": 4,
        "eval_strategy": "epoch", "num_train_epochs": 1, "per_device_train_batch_size": 5, "max_length": 64,
        "bf16": False, "use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "use_dora": True,
        "use_rslora": True, "lora_modules_to_save": ["lm_head"], "save_strategy": "no",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    words = ["--config", str(tmp_path / "recipe.yaml"), "--own_word", "7"]
    script_args, args, model_args, mixture, rest = parser.parse_args_and_config(words, return_remaining_strings=True)
    assert rest == ["--own_word", "7"]
    args.model_init_kwargs = dict(
        revision=model_args.model_revision, attn_implementation=model_args.attn_implementation, dtype="float32",
        use_cache=not args.gradient_checkpointing, quantization_config=get_quantization_config(model_args),
    )  # fmt: skip
    with args.main_process_first(desc="rows"):
        dataset = get_dataset(mixture)
    run = SFTTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split],
        peft_config=get_peft_config(model_args),
    )
    result = run.train()
    assert (result.global_step, run.args.device.type, args.n_gpu) == (4, "cpu", 0)
    assert [entry["epoch"] for entry in run.state.log_history if "eval_loss" in entry] == [1.0]
    run.accelerator.print("done")
    run.save_model(args.output_dir)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), args.output_dir)
    settings = adapted.peft_config["default"]
    assert (settings.r, settings.use_dora, settings.use_rslora, settings.modules_to_save) == (
        4,
        True,
        True,
        ["lm_head"],
    )


def test_a_script_that_does_what_trl_1_16_does(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its own script of supervised fine-tuning asks of arguments, trainer and parser, to the last call."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig), prog="sft.py")
    words = (
        f"--model_name_or_path {model} --dataset_name {tmp_path / 'data'} --output_dir {tmp_path / 'out'} "
        "--max_steps 1 --per_device_train_batch_size 2 --max_length 64 --save_strategy no "
        "--trust_remote_code --hub_model_id me/tiny"
    ).split()
    script_args, args, model_args, mixture = parser.parse_args_and_config(words, fail_with_unknown_args=False)
    assert model_args.trust_remote_code, "older scripts read it there"
    assert not ModelConfig().trust_remote_code
    kwargs = dict(
        revision=model_args.model_revision, trust_remote_code=args.trust_remote_code,
        attn_implementation=model_args.attn_implementation, dtype=model_args.dtype,
    )  # fmt: skip
    args.model_init_kwargs = kwargs | (args.model_init_kwargs or {})
    assert not mixture.datasets
    run = SFTTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=load_dataset(script_args.dataset_name)[script_args.dataset_train_split],
        eval_dataset=None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    run.train(resume_from_checkpoint=args.resume_from_checkpoint)
    run.save_model(args.output_dir)
    run.accelerator.print(run.hub_model_id)
    assert run.hub_model_id == "me/tiny"
    assert run._run.config.model.trust_remote_code
    parted: list[str] = []  # the other tests of this process are to find its group
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: parted.append("parted"))
    run.end()
    assert parted == ["parted"]


def test_quantization_that_a_script_asks_for_is_refused_or_done(model: Path, tmp_path: Path) -> None:
    eight = get_quantization_config(ModelConfig(load_in_8bit=True))
    with pytest.raises(UserError, match="load_in_8bit true cannot be had here"):
        trainer(model, arguments(tmp_path / "out"), quantization_config=eight)
    both = arguments(tmp_path / "out", model_init_kwargs={"quantization_config": FOUR_BITS})
    with pytest.raises(UserError, match="both have one"):
        trainer(model, both, quantization_config=FOUR_BITS)
    in_memory = AutoModelForCausalLM.from_pretrained(model)
    with pytest.raises(UserError, match="is for a model that is given by its name"):
        SFTTrainer(in_memory, arguments(tmp_path / "out"), train_dataset=ROWS, quantization_config=FOUR_BITS)


def test_fractions_are_shares_of_the_mixture(tmp_path: Path) -> None:
    sources: list[dict[str, Any]] = []
    for name, num, fraction in (("one", 9, 3), ("two", 4, 1)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {n}"}}\n' for n in range(num)))
        sources.append({"path": "json", "data_files": str(tmp_path / f"{name}.jsonl"), "fraction": fraction})
    rows = get_dataset(DatasetMixtureConfig(datasets=sources))["train"]
    assert list(rows["text"]) == [*(f"one {n}" for n in range(9)), *(f"two {n}" for n in range(3))]
    with pytest.raises(UserError, match="give every data set one"):
        get_dataset(DatasetMixtureConfig(datasets=[sources[0], sources[1] | {"fraction": None}]))


@pytest.mark.parametrize(("given", "expected"), [({}, 0.25), ({"router_aux_loss_coef": 0.0}, 0.0)])
def test_experts_are_balanced_as_the_model_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], given: dict[str, Any], expected: float
) -> None:
    experts = tiny_model("qwen3_moe", vocab_size=len(tiny_tokenizer()))
    experts.config.router_aux_loss_coef = 0.25
    experts.save_pretrained(tmp_path / "experts")
    tiny_tokenizer().save_pretrained(tmp_path / "experts")
    run = trainer(tmp_path / "experts", arguments(tmp_path / "out", max_steps=1, **given), [{"text": "oat milk"}])
    assert run._run.config.model.aux_loss_coef == expected
    assert f"model.aux_loss_coef {expected:g}" in capfd.readouterr().err
    run.train()
    assert ("aux_loss" in json.loads((tmp_path / "out" / "metrics.jsonl").read_text())) == bool(expected)


@pytest.mark.parametrize("more", [{}, {"dataset_text_field": "answer"}])
def test_rows_by_a_function_of_the_scripts(model: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    rows = [{"question": f"sum of {n}", "answer": "seven"} for n in range(4)]
    args = arguments(tmp_path / "out", **more)
    run = trainer(model, args, rows, formatting_func=lambda row: f"{row['question']} is {row['answer']}")
    assert "sum of 0 is seven" in run.processing_class.decode(run._run.train_data[0][0])


def test_a_template_of_another_tokenizer(tmp_path: Path) -> None:
    source, tokenizer = tiny_tokenizer(chat_template="{{ messages[0].content }}<|done|>"), tiny_tokenizer()
    source.add_special_tokens({"additional_special_tokens": ["<|done|>"]})
    source.eos_token = "<|done|>"
    source.save_pretrained(tmp_path)
    base = tiny_model("llama", vocab_size=len(tokenizer))
    base, tokenizer, added = clone_chat_template(base, tokenizer, str(tmp_path))
    assert tokenizer.chat_template == source.chat_template
    assert tokenizer.convert_ids_to_tokens(added) == ["<|done|>"]
    assert (tokenizer.eos_token, base.config.eos_token_id) == ("<|done|>", added[0])
    assert base.get_input_embeddings().num_embeddings % 64 == 0
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="has no chat template"):
        clone_chat_template(base, tokenizer, str(tmp_path / "plain"))
