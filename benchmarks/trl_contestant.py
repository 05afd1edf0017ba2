"""TRL's SFTTrainer on given rows, in TRL's own environment: `python trl_contestant.py SETTINGS.json`.

SETTINGS.json: {"model": folder, "rows": JSONL file, "step_file": file, "sft": arguments of SFTConfig}. After each
optimizer step a line goes to `step_file`: the step and the tokens that it trained (padding not counted, by TRL's own
count); and a line with the loss whenever TRL logs one.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from datasets import load_dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class StepLines(TrainerCallback):
    """One write a step; nothing is computed, so TRL's loop is as it would be."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._seen_tokens = 0
        self.trainer: SFTTrainer | None = None

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
    config = SFTConfig(use_cpu=not torch.cuda.is_available(), **settings["sft"])
    trainer = SFTTrainer(model=settings["model"], args=config, train_dataset=rows, callbacks=[lines])
    lines.trainer = trainer
    print(f"weights: {trainer.model.dtype}, attention: {trainer.model.config._attn_implementation}", flush=True)
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1])
