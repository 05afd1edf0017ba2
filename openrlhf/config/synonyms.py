"""Other names of the settings: the flat ones of OpenRLHF up to 0.9, and a few dotted ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")


@dataclasses.dataclass(frozen=True)
class Switch:
    """An old switch that stands for a value.

    Attributes:
        name: dotted name of the setting.
        on, off: its value when the switch is on and when it is off.
        secret: dotted name of a secret that the switch takes in place of a word; '' for none.
    """

    name: str
    on: Any = True
    off: Any = False
    secret: str = ""


Synonyms = Mapping[str, "str | Switch"]
"""Other name → dotted name, or a switch. Of several that are given for one setting, the later of the mapping holds."""


def resolve(synonyms: Synonyms, name: str, value: Any) -> list[tuple[str, Any]]:
    """A name and its value → the settings that they mean, by dotted name. An unknown name stays as it is."""
    meant = synonyms.get(name, name)
    if isinstance(meant, str):
        return [(meant, value)]
    word = str(value).lower()
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return [(meant.name, meant.on if word in TRUE_WORDS else meant.off)]
    return [(meant.name, True), (meant.secret, value)] if meant.secret else [(meant.name, value)]


# Old names that are the setting's own, without its group.
_SAME_NAME = {
    "model": "aux_loss_coef trust_remote_code beta label_smoothing nll_loss_coef",
    "data": (
        "dataset dataset_probs dataset_split max_samples max_len input_key output_key input_template "
        "apply_chat_template tokenizer_chat_template multiturn format targets overlong control_tokens max_bad_rows "
        "cache_dir prompt_key chosen_key rejected_key"
    ),
    "train": "max_epochs seed",
    "ds": (
        "zero_stage param_dtype attn_implementation packing_samples ring_attn_size ring_head_stride "
        "adam_offload zpg overlap_comm grad_accum_dtype use_liger_kernel load_in_4bit deepcompile "
        "value_head_prefix experts_implementation"
    ),
    "ds.lora": "target_modules",
    "ckpt": "save_steps",
    "logger": "logging_steps",
}

COMMON_SYNONYMS: Synonyms = {
    "bf16": Switch("ds.param_dtype", "bf16", "fp32"),
    "flash_attn": Switch("ds.attn_implementation", "flash_attention_2", "auto"),
    "use_wandb": Switch("logger.wandb.enable", secret="logger.wandb.key"),
    "pretrain": "model.model_name_or_path",
    "gradient_checkpointing": "model.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "model.gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "ds.gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "pretrain_mode": "model.pretrain_mode_enable",
    "loss": "model.loss_type",
    "loss_type": "model.loss_type",
    "margin_loss": "model.margin_loss_enable",
    "ipo": "model.ipo_enable",
    "ref_pretrain": "ref.model_name_or_path",
    "ref_offload": "ref.offload",
    "train_split": "data.dataset_split",
    "eval_dataset": "eval.dataset",
    "eval_split": "eval.split",
    "eval_steps": "eval.steps",
    "train_batch_size": "train.batch_size",
    "micro_train_batch_size": "train.micro_batch_size",
    "full_determinism": "train.full_determinism_enable",
    "ds_tensor_parallel_size": "ds.tensor_parallel_size",
    "ring_attn_head_stride": "ds.ring_head_stride",
    "ds.ring_attn_head_stride": "ds.ring_head_stride",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt",
    "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha",
    "lora_dropout": "ds.lora.dropout",
    "learning_rate": "adam.lr",
    "adam_betas": "adam.betas",
    "l2": "adam.weight_decay",
    "save_path": "ckpt.output_dir",
    "ckpt_path": "ckpt.path",
    "save_hf_ckpt": "ckpt.save_hf",
    "disable_ds_ckpt": "ckpt.disable_ds",
    "max_ckpt_num": "ckpt.max_num",
    "max_ckpt_mem": "ckpt.max_mem",
    "load_checkpoint": "ckpt.load_enable",
    "use_tensorboard": "logger.tensorboard_dir",
    "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.name",
    "wandb_group": "logger.wandb.group",
    "wandb_org": "logger.wandb.org",
    "logger.wandb.use": "logger.wandb.enable",
    "logger.wandb.run_name": "logger.wandb.name",
    **{name: f"{group}.{name}" for group, names in _SAME_NAME.items() for name in names.split()},
}
