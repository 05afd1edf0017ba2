"""Other names of the settings: the flat ones of OpenRLHF up to 0.9, and a few dotted ones."""

from __future__ import annotations

from typing import Any

# Other name → dotted name; the value stays as it is.
RENAMED = {
    "pretrain": "model.model_name_or_path",
    "gradient_checkpointing": "model.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "model.gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "ds.gradient_checkpointing_use_reentrant": "model.gradient_checkpointing_reentrant",
    "aux_loss_coef": "model.aux_loss_coef",
    "pretrain_mode": "model.pretrain_mode_enable",
    "trust_remote_code": "model.trust_remote_code",
    "dataset": "data.dataset",
    "dataset_probs": "data.dataset_probs",
    "dataset_split": "data.dataset_split",
    "train_split": "data.dataset_split",
    "max_samples": "data.max_samples",
    "max_len": "data.max_len",
    "input_key": "data.input_key",
    "output_key": "data.output_key",
    "input_template": "data.input_template",
    "apply_chat_template": "data.apply_chat_template",
    "tokenizer_chat_template": "data.tokenizer_chat_template",
    "multiturn": "data.multiturn",
    "format": "data.format",
    "targets": "data.targets",
    "overlong": "data.overlong",
    "max_bad_rows": "data.max_bad_rows",
    "cache_dir": "data.cache_dir",
    "eval_dataset": "eval.dataset",
    "eval_split": "eval.split",
    "eval_steps": "eval.steps",
    "train_batch_size": "train.batch_size",
    "micro_train_batch_size": "train.micro_batch_size",
    "max_epochs": "train.max_epochs",
    "seed": "train.seed",
    "full_determinism": "train.full_determinism_enable",
    "zero_stage": "ds.zero_stage",
    "param_dtype": "ds.param_dtype",
    "attn_implementation": "ds.attn_implementation",
    "packing_samples": "ds.packing_samples",
    "ring_attn_size": "ds.ring_attn_size",
    "ring_head_stride": "ds.ring_head_stride",
    "ds_tensor_parallel_size": "ds.tensor_parallel_size",
    "adam_offload": "ds.adam_offload",
    "zpg": "ds.zpg",
    "overlap_comm": "ds.overlap_comm",
    "grad_accum_dtype": "ds.grad_accum_dtype",
    "use_liger_kernel": "ds.use_liger_kernel",
    "load_in_4bit": "ds.load_in_4bit",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt",
    "deepcompile": "ds.deepcompile",
    "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha",
    "lora_dropout": "ds.lora.dropout",
    "target_modules": "ds.lora.target_modules",
    "learning_rate": "adam.lr",
    "adam_betas": "adam.betas",
    "l2": "adam.weight_decay",
    "save_path": "ckpt.output_dir",
    "ckpt_path": "ckpt.path",
    "save_steps": "ckpt.save_steps",
    "save_hf_ckpt": "ckpt.save_hf",
    "disable_ds_ckpt": "ckpt.disable_ds",
    "max_ckpt_num": "ckpt.max_num",
    "max_ckpt_mem": "ckpt.max_mem",
    "load_checkpoint": "ckpt.load_enable",
    "logging_steps": "logger.logging_steps",
    "use_tensorboard": "logger.tensorboard_dir",
    "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.name",
    "wandb_group": "logger.wandb.group",
    "wandb_org": "logger.wandb.org",
    "logger.wandb.use": "logger.wandb.enable",
    "logger.wandb.run_name": "logger.wandb.name",
}

# Flat switch → the setting, and what it stands for when on and when off.
SWITCHES = {
    "bf16": ("ds.param_dtype", "bf16", "fp32"),
    "flash_attn": ("ds.attn_implementation", "flash_attention_2", "auto"),
}

# What a launcher adds and the environment says too.
IGNORED = ("local_rank",)

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")


def resolve(name: str, value: Any) -> list[tuple[str, Any]]:
    """A name and its value → the settings that they mean, by dotted name. An unknown name stays as it is."""
    if name in IGNORED:
        return []
    if name in SWITCHES:
        return [_resolve_switch(name, value)]
    if name == "use_wandb":
        return _resolve_use_wandb(value)
    return [(RENAMED.get(name, name), value)]


def _resolve_switch(name: str, value: Any) -> tuple[str, Any]:
    target, on, off = SWITCHES[name]
    switch = _as_switch(value)
    return target, value if switch is None else on if switch else off


def _resolve_use_wandb(value: Any) -> list[tuple[str, Any]]:
    """`--use_wandb` was a switch that took the key."""
    switch = _as_switch(value)
    if isinstance(switch, bool):
        return [("logger.wandb.enable", switch)]
    return [("logger.wandb.enable", True), ("logger.wandb.key", value)]


def _as_switch(value: Any) -> bool | None:
    """True or False for the words that say so, None for any other value."""
    word = str(value).lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None
