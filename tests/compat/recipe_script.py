"""A client in the style of Open-R1's script of supervised fine-tuning: it knows TRL's names alone.

    python recipe_script.py --config recipe.yaml --num_train_epochs 2

The dataclasses of the script add fields to TRL's; the data are a mixture of files.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Optional

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from openrlhf.compat import trl

logger = logging.getLogger(__name__)


@dataclass
class ScriptArguments(trl.ScriptArguments):
    dataset_mixture: Optional[dict[str, Any]] = field(  # noqa: UP045  # as scripts write it
        default=None, metadata={"help": "sources, each with id, columns and weight"}
    )


@dataclass
class SFTConfig(trl.SFTConfig):
    callbacks: list[str] = field(default_factory=list, metadata={"help": "callbacks by name"})
    chat_template: Optional[str] = field(default=None, metadata={"help": "Jinja text"})  # noqa: UP045
    stop_after: int = field(default=0, metadata={"help": "the run is ended after that step; 0: it is not"})


class Recorder(TrainerCallback):
    """Writes each event down, and ends the run where it is told to."""

    def __init__(self, stop_after: int):
        self.stop_after = stop_after
        self.seen: list[list[Any]] = []

    def note(self, event: str, state: Any) -> None:
        self.seen.append([event, state.global_step])

    def on_train_begin(self, args, state, control, **kwargs):
        assert kwargs["model"] is not None
        assert kwargs["processing_class"] is not None
        self.note("on_train_begin", state)

    def on_step_end(self, args, state, control, **kwargs):
        self.note("on_step_end", state)
        control.should_training_stop = state.global_step == self.stop_after

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.note("on_log", state)

    def on_save(self, args, state, control, **kwargs):
        assert os.path.isdir(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))
        self.note("on_save", state)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        assert "eval_loss" in metrics
        self.note("on_evaluate", state)

    def on_train_end(self, args, state, control, **kwargs):
        self.note("on_train_end", state)


def get_dataset(args: ScriptArguments) -> datasets.DatasetDict:
    mixture = args.dataset_mixture
    parts = []
    for one in mixture["datasets"]:
        part = datasets.load_dataset("json", data_files=one["id"], split=one.get("split", "train"))
        part = part.select_columns(one["columns"]).shuffle(seed=mixture["seed"])
        parts.append(part.select(range(int(len(part) * one.get("weight", 1.0)))))
    mixed = datasets.concatenate_datasets(parts).shuffle(seed=mixture["seed"])
    return mixed.train_test_split(test_size=mixture["test_split_size"], seed=mixture["seed"])


def main(script_args: ScriptArguments, training_args: SFTConfig, model_args: trl.ModelConfig) -> None:
    set_seed(training_args.seed)
    logger.setLevel(training_args.get_process_log_level())
    last_checkpoint = get_last_checkpoint(training_args.output_dir) if os.path.isdir(training_args.output_dir) else None
    assert "wandb" not in training_args.report_to

    dataset = get_dataset(script_args)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    tokenizer.chat_template = training_args.chat_template
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        attn_implementation=model_args.attn_implementation,
        dtype=model_args.dtype,
        use_cache=not training_args.gradient_checkpointing,
    )
    if tokenizer.chat_template is None:
        model, tokenizer = trl.setup_chat_format(model, tokenizer, format="chatml")

    recorder = Recorder(training_args.stop_after)
    trainer = trl.SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=trl.get_peft_config(model_args),
        callbacks=[recorder],
    )
    checkpoint = training_args.resume_from_checkpoint or last_checkpoint
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = result.metrics
    metrics["train_samples"] = len(dataset[script_args.dataset_train_split])
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()

    trainer.model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer.save_model(training_args.output_dir)
    if trainer.accelerator.is_main_process:
        trainer.create_model_card(dataset_name=script_args.dataset_name, tags=["open-r1"])
        trainer.model.config.use_cache = True
        trainer.model.config.save_pretrained(training_args.output_dir)
    if training_args.do_eval:
        metrics = trainer.evaluate()
        metrics["eval_samples"] = len(dataset[script_args.dataset_test_split])
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name, tags=["open-r1"])
    if trainer.accelerator.is_main_process:
        with open(os.path.join(training_args.output_dir, "events.json"), "w") as file:
            json.dump({"seen": recorder.seen, "step": result.global_step, "loss": result.training_loss}, file)


if __name__ == "__main__":
    parser = trl.TrlParser((ScriptArguments, SFTConfig, trl.ModelConfig))
    main(*parser.parse_args_and_config(sys.argv[1:]))
