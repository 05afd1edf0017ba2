"""What the table at the start of a run says, worked out from the run's parts."""

from __future__ import annotations

from typing import Any

from torch import nn

from openrlhf.batching import StepWindowLoader
from openrlhf.config import SFTConfig
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.engine.engine_config import gradient_dtype
from openrlhf.engine.model_internals import attention_name
from openrlhf.engine.parameters import whole_numel
from openrlhf.tracking import RunSummary, estimate_memory
from openrlhf.trainer.sft_trainer import SFTTrainer

ADAM_NUMBERS_A_WEIGHT = 2


def summarize_run(
    config: SFTConfig,
    trainer: SFTTrainer,
    train_data: SFTDataset,
    eval_data: SFTDataset | None,
    consumed_samples: int = 0,
) -> RunSummary:
    loader, strategy = trainer.train_dataloader, trainer.strategy
    assert isinstance(loader, StepWindowLoader)
    num_parameters, num_trainable = count_parameters(trainer.model.trainable_module)
    left_out: dict[str, Any] = dict(train_data.report.left_out)
    if train_data.report.num_bad_rows:
        left_out["unusable"] = train_data.report.num_bad_rows
    return RunSummary(
        num_samples=len(train_data),
        num_tokens=train_data.report.num_tokens,
        num_target_tokens=train_data.report.num_target_tokens,
        num_samples_left_out=left_out,
        num_eval_samples=len(eval_data) if eval_data is not None else None,
        num_ranks=strategy.world_size,
        zero_stage=config.ds.zero_stage,
        batch_size=config.train.batch_size,
        micro_batches_per_step=loader.num_micro_batches(window_number=0),
        num_steps_per_epoch=loader.schedule.steps_per_epoch,
        num_steps=loader.schedule.steps_per_epoch * config.train.max_epochs,
        num_parameters=num_parameters,
        num_trainable_parameters=num_trainable,
        memory=estimate_memory(
            num_parameters,
            num_trainable,
            num_ranks=strategy.world_size,
            zero_stage=config.ds.zero_stage,
            param_dtype=config.ds.param_dtype,
            gradient_dtype=gradient_dtype(strategy.ds),
            optimizer_numbers_per_weight=ADAM_NUMBERS_A_WEIGHT,
            optimizer_offload=config.ds.adam_offload,
        ),
        param_dtype=config.ds.param_dtype,
        attention=attention_name(trainer.model.config),
        device=str(strategy.device.type),
        resume_step=loader.num_steps_before(consumed_samples) or None,
    )


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(all, trained) elements, whole also where ZeRO-3 holds parts."""
    sizes = [(whole_numel(p), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
