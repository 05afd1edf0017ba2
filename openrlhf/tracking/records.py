"""What a record of a step and of an evaluation holds: the names in `metrics.jsonl`, which scripts rely on."""

from __future__ import annotations

from typing import TypedDict


class _StepRecord(TypedDict):
    global_step: int  # optimizer steps done, this one included
    epoch: float
    loss: float  # sum of -log p over the step's target tokens on all ranks / their number
    lr: float
    grad_norm: float
    num_tokens: int  # of this step, all ranks
    num_target_tokens: int  # of this step, all ranks
    consumed_samples: int  # so far
    tokens_per_second: float
    step_seconds: float


class StepRecord(_StepRecord, total=False):
    """One optimizer step."""

    aux_loss: float  # MoE models only


class EvalRecord(TypedDict):
    """One evaluation, after `global_step` optimizer steps."""

    global_step: int
    eval_loss: float
    eval_perplexity: float
    eval_num_target_tokens: int
