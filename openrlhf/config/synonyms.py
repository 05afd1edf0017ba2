"""Other names of the settings: the flat ones of OpenRLHF up to 0.9, and a few dotted ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")


@dataclasses.dataclass(frozen=True)
class Synonyms:
    """Other names of settings, by other name.

    Attributes:
        renamed: dotted name; the value stays as it is.
        switches: (dotted name, its value when the switch is on, its value when it is off).
        keyed: (dotted name of a switch, dotted name of a secret): a switch that takes the secret as its value.
    """

    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    switches: Mapping[str, tuple[str, Any, Any]] = dataclasses.field(default_factory=dict)
    keyed: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        """The other names, those of switches first."""
        return iter((*self.switches, *self.keyed, *self.renamed))

    def __or__(self, more: Synonyms) -> Synonyms:
        """Both; of a name that both have, the right one holds."""
        return Synonyms(*({**left, **right} for left, right in zip(self._tables, more._tables, strict=True)))

    def without(self, *names: str) -> Synonyms:
        """All but these other names."""
        return Synonyms(*({old: new for old, new in table.items() if old not in names} for table in self._tables))

    def restricted_to(self, settings: Collection[str]) -> Synonyms:
        """Those that mean settings among `settings`, dotted names, alone."""
        lacking = [old for old in self if any(name not in settings for name, _ in self.resolve(old, None))]
        return self.without(*lacking)

    def resolve(self, name: str, value: Any) -> list[tuple[str, Any]]:
        """A name and its value → the settings that they mean, by dotted name. An unknown name stays as it is."""
        if name in self.switches:
            target, on, off = self.switches[name]
            switch = _as_switch(value)
            return [(target, value if switch is None else on if switch else off)]
        if name in self.keyed:
            target, secret = self.keyed[name]
            switch = _as_switch(value)
            return [(target, True), (secret, value)] if switch is None else [(target, switch)]
        return [(self.renamed.get(name, name), value)]

    @property
    def _tables(self) -> tuple[Mapping[str, Any], ...]:
        return self.renamed, self.switches, self.keyed


def _as_switch(value: Any) -> bool | None:
    """True or False for the words that say so, None for any other value."""
    word = str(value).lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


_RENAMED = {
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

COMMON_SYNONYMS = Synonyms(
    renamed=_RENAMED,
    switches={
        "bf16": ("ds.param_dtype", "bf16", "fp32"),
        "flash_attn": ("ds.attn_implementation", "flash_attention_2", "auto"),
    },
    keyed={"use_wandb": ("logger.wandb.enable", "logger.wandb.key")},
)
