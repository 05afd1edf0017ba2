"""A trainer of TRL's on given rows, in TRL's own environment.

    python -m benchmarks.trl_contestant SETTINGS.json

SETTINGS.json: {"task": sft, dpo or rm, "model": folder, "reference": folder or null, "rows": JSONL file, "step_file":
file, "arguments": of the trainer's configuration}. After each optimizer step a line goes to `step_file`: the step and
the tokens that it trained (padding not counted, by TRL's own count); and a line with the loss whenever TRL logs one.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from datasets import load_dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import create_model_from_path

TASKS = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer), "rm": (RewardConfig, RewardTrainer)}


class StepLines(TrainerCallback):
    """One write a step; nothing is computed, so TRL's loop is as it would be."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._seen_tokens = 0
        self.trainer: SFTTrainer | DPOTrainer | RewardTrainer | None = None

    def on_step_end(self, args, state, control, **kwargs):
        seen_tokens = int(self.trainer._total_train_tokens)
        line = {"step": state.global_step, "num_tokens": seen_tokens - self._seen_tokens}
        self._seen_tokens = seen_tokens
        self._write(line)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self._write({"step": state.global_step, "loss": float(logs["loss"])})

    def _write(self, line: dict) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    lines = StepLines(settings["step_file"])
    rows = load_dataset("json", data_files=settings["rows"], split="train")
    make_config, make_trainer = TASKS[settings["task"]]
    config = make_config(use_cpu=not torch.cuda.is_available(), **settings["arguments"])
    reference = {"ref_model": create_model_from_path(settings["reference"])} if settings["reference"] else {}
    trainer = make_trainer(settings["model"], args=config, train_dataset=rows, callbacks=[lines], **reference)
    lines.trainer = trainer
    print(f"weights: {trainer.model.dtype}, attention: {trainer.model.config._attn_implementation}", flush=True)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
