"""The parts of a run, each built from the groups of settings that it takes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from openrlhf.config import SFTConfig
from openrlhf.datasets.settings import DataSettings
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.models import Actor
from openrlhf.models.attention import choose_attention
from openrlhf.models.limits import check_dtype
from openrlhf.models.loading import load_config
from openrlhf.models.tensor_parallel import check_tensor_parallel
from openrlhf.objectives import objective_named
from openrlhf.trainer.callbacks.standard import callbacks_named


def build_tokenizer(config: SFTConfig) -> Any:
    """The tokenizer saved with the model."""
    return get_tokenizer(config.model.model_name_or_path, trust_remote_code=config.model.trust_remote_code)


def data_settings(config: SFTConfig) -> DataSettings:
    """How rows become samples, in training and in evaluation."""
    data = config.data
    return DataSettings(
        input_key=data.input_key,
        output_key=data.output_key,
        input_template=data.input_template,
        apply_chat_template=data.apply_chat_template,
        tokenizer_chat_template=data.tokenizer_chat_template,
        multiturn=data.multiturn,
        format=data.format,
        targets=data.targets,
        max_len=data.max_len,
        overlong=data.overlong,
        max_bad_rows=data.max_bad_rows,
        pretrain_mode=config.model.pretrain_mode_enable,
    )


def check_plug_ins(config: SFTConfig) -> None:
    """Raises UserError where an objective or a callback that the settings name cannot be found."""
    objective_named(config.train.loss)
    callbacks_named(config.train.callbacks)


def check_layout(config: SFTConfig) -> PretrainedConfig:
    """The model's own configuration; raises UserError where the model cannot be laid out as the user asks.

    Before data is prepared, which may take minutes.
    """
    model_config = load_config(config.model.model_name_or_path, config.model.trust_remote_code)
    ds = config.ds
    check_tensor_parallel(model_config, ds.tensor_parallel_size)
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    check_dtype(ds.param_dtype, device_type)
    choose_attention(ds.attn_implementation, device_type, ds.packing_samples, ds.ring_attn_size)
    return model_config


def build_train_data(config: SFTConfig, tokenizer: Any) -> SFTDataset:
    """The samples to train on."""
    return SFTDataset.from_spec(
        config.data.dataset,
        tokenizer,
        data_settings(config),
        split=config.data.dataset_split,
        probabilities=config.data.dataset_probs,
        seed=config.train.seed,
        max_samples=config.data.max_samples,
        num_processors=config.data.num_processors,
        cache_dir=config.data.cache_dir,
    )


def build_eval_data(config: SFTConfig, tokenizer: Any) -> SFTDataset | None:
    """The samples to evaluate on, if the run has any."""
    if not config.eval.dataset:
        return None
    return SFTDataset.from_spec(
        config.eval.dataset,
        tokenizer,
        data_settings(config),
        split=config.eval.split,
        num_processors=config.data.num_processors,
        cache_dir=config.data.cache_dir,
    )


def build_actor(config: SFTConfig, ds_config: dict[str, Any]) -> Actor:
    """The model that is trained, before any engine holds it."""
    model, ds = config.model, config.ds
    actor = Actor(
        model.model_name_or_path,
        attn_implementation=ds.attn_implementation,
        param_dtype=ds.param_dtype,
        load_in_4bit=ds.load_in_4bit,
        lora_rank=ds.lora.rank,
        lora_alpha=ds.lora.alpha,
        lora_dropout=ds.lora.dropout,
        target_modules=ds.lora.target_modules,
        ds_config=ds_config,
        packing_samples=ds.packing_samples,
        use_liger_kernel=ds.use_liger_kernel,
        ring_attn_size=ds.ring_attn_size,
        ring_head_stride=ds.ring_head_stride,
        trust_remote_code=model.trust_remote_code,
    )
    if model.gradient_checkpointing_enable:
        actor.gradient_checkpointing_enable({"use_reentrant": model.gradient_checkpointing_reentrant})
    if model.compile_layers:
        actor.compile_layers()
    return actor
