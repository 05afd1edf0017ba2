"""What SFTTrainer may be given, and what to do instead of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from openrlhf.compat.trl.callbacks import is_trainer_callback
from openrlhf.config.trl_names import BESIDE_A_RECIPE
from openrlhf.errors import UserError

NOT_HERE = {  # what TRL would be given → what to do instead
    "data_collator": "batches are made of prepared rows",
    "compute_loss_func": f"{BESIDE_A_RECIPE} --train.loss module:Name, an objective of your own",
    "compute_metrics": "a TrainerCallback has the numbers of an evaluation, in on_evaluate",
    "optimizers": "the arguments say the optimizer and the schedule",
    "optimizer_cls_and_kwargs": "the arguments say the optimizer",
    "preprocess_logits_for_metrics": "an evaluation keeps no logits",
    "model_init": "give the model",
}


def check_given(given: dict[str, Any], train_dataset: Any, callbacks: Sequence[Any]) -> None:
    """Raises UserError with all that is given and not here, and with what is missing."""
    problems = [
        f"SFTTrainer({name}=) is not here: {NOT_HERE[name]}." for name, value in given.items() if value is not None
    ]
    if train_dataset is None:
        problems.append("SFTTrainer has no train_dataset: give a datasets.Dataset.")
    problems += [
        f"SFTTrainer(callbacks=) has {one!r}, which is no TrainerCallback of transformers."
        for one in callbacks
        if not is_trainer_callback(one)
    ]
    if problems:
        raise UserError(*problems)


def check_model(model: Any, quantization_config: Any) -> None:
    """Raises UserError for what cannot be trained."""
    if hasattr(model, "peft_config"):
        raise UserError("SFTTrainer(model=) has adapters already: give the model that they are for, and peft_config.")
    if not isinstance(model, str | PreTrainedModel):
        raise UserError(f"SFTTrainer(model=) is a {type(model).__name__}: give a folder, a hub name or a causal model.")
    if quantization_config is not None and not isinstance(model, str):
        raise UserError(
            "SFTTrainer(quantization_config=) is for a model that is given by its name; this one is loaded: load it by "
            "from_pretrained(…, quantization_config=…), and leave it out here."
        )
