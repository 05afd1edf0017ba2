"""The dataclasses that scripts of TRL fill: names and defaults of TRL, as scripts read and change them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from openrlhf.config.trl_names import ModelNames, ScriptArgumentNames, SftNames
from openrlhf.engine.devices import device_of_rank

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "detail": 20, "passive": 30}
_READ_LATER = ("hub_", "resume_from_checkpoint")  # by a push; by the script itself


@dataclasses.dataclass
class TrlSFTConfig(SftNames):
    """`SFTConfig`: a subclass may add fields of the script's own."""

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or "trainer_output"
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.eval_strategy == "steps" and self.eval_steps is None:
            self.eval_steps = self.logging_steps
        self.do_eval = self.do_eval or self.eval_strategy != "no"
        reported = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        self.report_to = [] if reported == ["none"] else reported
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        if self.bf16 is None:
            self.bf16 = not self.fp16
        for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "model_init_kwargs"):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, json.loads(value))

    def settings_now(self) -> dict[str, Any]:
        """By TRL's names, what a trainer reads when it is built; it stays as it is where a script sets others later."""
        names = [one.name for one in dataclasses.fields(SftNames) if not one.name.startswith(_READ_LATER)]
        return {name: copy.copy(getattr(self, name)) for name in names}

    @property
    def world_size(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def process_index(self) -> int:
        return int(os.environ.get("RANK", "0"))

    @property
    def local_process_index(self) -> int:
        return int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return device_of_rank()

    @property
    def n_gpu(self) -> int:
        """GPUs of this process."""
        return int(torch.cuda.is_available())

    @property
    def should_log(self) -> bool:
        return self.process_index == 0

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """The block runs on every rank at once: what `datasets` keeps on disk may be written by several."""
        yield

    @property
    def train_batch_size(self) -> int:
        """Samples a rank computes at once."""
        return self.per_device_train_batch_size

    @property
    def eval_batch_size(self) -> int:
        """As the script gives it; an evaluation has the training's micro-batches, and the same numbers."""
        return self.per_device_eval_batch_size

    @property
    def parallel_mode(self) -> Any:
        """transformers' ParallelMode: distributed where there are several ranks."""
        from transformers.training_args import ParallelMode

        return ParallelMode.DISTRIBUTED if self.world_size > 1 else ParallelMode.NOT_PARALLEL

    @property
    def should_save(self) -> bool:
        return self.process_index == 0

    def get_process_log_level(self) -> int:
        """The level for a script's own loggers: `log_level` on rank 0, `log_level_replica` on the others."""
        name = self.log_level if self.process_index == 0 else self.log_level_replica
        return _LEVELS.get(str(name), logging.WARNING)

    def to_dict(self) -> dict[str, Any]:
        """All names with their values, without the token."""
        return {**dataclasses.asdict(self), "hub_token": None}

    def to_sanitized_dict(self) -> dict[str, Any]:
        """As text where a value is none of a tracker's."""
        plain = (bool, int, float, str)
        return {name: value if isinstance(value, plain) else str(value) for name, value in self.to_dict().items()}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, default=str)


def output_dir_for(model: Any) -> str:
    """TRL's own, where a trainer is given no arguments."""
    return f"{Path(model if isinstance(model, str) else model.config.name_or_path).name}-SFT"


@dataclasses.dataclass
class TrlModelConfig(ModelNames):
    """`ModelConfig`."""

    # no field, since the flag is SFTConfig's; TrlParser copies it to where older scripts read it
    trust_remote_code = False


@dataclasses.dataclass
class TrlScriptArguments(ScriptArgumentNames):
    """`ScriptArguments`."""
