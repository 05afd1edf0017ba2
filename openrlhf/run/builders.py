"""The parts of a run, each built from the groups of settings that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from openrlhf.config import DataConfig, RMConfig, TrainingConfig
from openrlhf.config.disk import local_path
from openrlhf.datasets.sources.find import tables_here
from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.engine.devices import usable_device_type
from openrlhf.engine.engine_config import engine_config
from openrlhf.engine.operators import check_adam
from openrlhf.errors import UserError, first_line_of
from openrlhf.models import Actor, PreparedModel, RewardModel
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import check_packable, choose_attention
from openrlhf.models.layers import check_compile_layers, check_liger, check_muon
from openrlhf.models.limits import check_checkpointing, check_dtype, check_outputs, check_ring_dropout, check_zero3
from openrlhf.models.loading import set_experts_implementation
from openrlhf.models.lora import check_peft, freeze_all_but
from openrlhf.models.quantized import MADE_PLAIN, check_quantization, quantization_of
from openrlhf.models.tensor_parallel import check_tensor_parallel
from openrlhf.models.weights_check import check_weight_files

ModelT = TypeVar("ModelT", bound=PreparedModel)


class Prepare(Protocol):
    """How the rows that settings of data name become a data set, as of `prepare_sft_dataset`."""

    def __call__(self, data: Any, tokenizer: Any, *, seed: int = 42) -> Any: ...


def build_tokenizer(config: TrainingConfig) -> Any:
    """The tokenizer saved with the model."""
    model = config.model
    return get_tokenizer(
        model.model_name_or_path, trust_remote_code=model.trust_remote_code, eos_token=config.data.eos_token
    )


def read_facts(config: TrainingConfig, facts_of: Callable[..., ModelFacts]) -> ModelFacts:
    """What is known of the model before its weights are read. Raises UserError where its files cannot be used.

    Args: facts_of: by the model's name, dtype and trust in its code.
    """
    check_weight_files(config.model.model_name_or_path)
    _check_generation_settings(config.model.model_name_or_path)
    facts = facts_of(config.model.model_name_or_path, config.ds.param_dtype, config.model.trust_remote_code)
    check_quantization(facts.config, config.model.model_name_or_path, config.ds.load_in_4bit)
    if config.ckpt.merge_lora and quantization_of(facts.config) not in (None, *MADE_PLAIN):
        raise UserError(
            f"--ckpt.merge_lora: adapters cannot be merged into {config.model.model_name_or_path}, whose weights are "
            "quantized. Leave the flag out, and merge into an unquantized copy (openrlhf.cli.lora_combiner)."
        )
    return facts


def check_layout(config: TrainingConfig, model: ModelFacts) -> None:
    """Raises UserError where the model cannot be laid out so. Before data is prepared, which may take minutes."""
    ds, device_type = config.ds, usable_device_type()
    check_way(config, model)
    check_outputs(model.config)
    check_dtype(ds.param_dtype, device_type)
    if config.model.compile_layers:
        check_compile_layers(device_type)
    if config.optim == "muon":
        check_muon(device_type)
    if ds.packing_samples and model.model_class:
        check_packable(model.model_class, model.config)
    if ds.ring_attn_size > 1:
        check_ring_dropout(model.config)
    choose_attention(ds.attn_implementation, device_type, ds.packing_samples, ds.ring_attn_size, model)
    if ds.use_liger_kernel:
        check_liger(model.config)
    if ds.lora.is_used:
        check_peft()
    check_adam(config.adam.kernel, ds.adam_offload)


def check_way(config: TrainingConfig, model: ModelFacts) -> None:
    """Raises UserError where the model's weights cannot be split, or its layers not be recomputed, as is asked."""
    check_tensor_parallel(model.config, config.ds.tensor_parallel_size)
    check_zero3(model.config, config.ds.zero_stage)
    if config.model.gradient_checkpointing_enable and model.model_class:
        check_checkpointing(model.model_class)
    engine_config(config.ds, config.max_norm, pin_memory=False)


def _check_generation_settings(name_or_path: str) -> None:
    """Those that transformers cannot read at all would end the loading of the weights."""
    path = local_path(name_or_path) / GENERATION_CONFIG_NAME
    try:
        if path.is_file():
            GenerationConfig.from_pretrained(path.parent)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be used: {first_line_of(error)} Mend it, or remove the file.") from None


def build_train_data(config: TrainingConfig, tokenizer: Any, prepare: Prepare) -> Any:
    """The data set to train on."""
    return prepare(config.data, tokenizer, seed=config.train.seed)


def build_eval_data(config: TrainingConfig, tokenizer: Any, prepare: Prepare) -> Any | None:
    """The data set to evaluate on, if the run has any: all rows of its own source, prepared as the others.

    Raises UserError where another split is asked for, and its rows are those that are trained.
    """
    if not config.eval.dataset:
        return None
    data, held_out = config.data, eval_settings(config)
    if data.dataset_split != held_out.dataset_split:
        _check_no_split_is_both(data, held_out)
    return prepare(held_out, tokenizer)


def _check_no_split_is_both(data: DataConfig, held_out: DataConfig) -> None:
    if both := tables_here(data.dataset, data.dataset_split) & tables_here(held_out.dataset, held_out.dataset_split):
        raise UserError(
            f"--eval.dataset {held_out.dataset} has no split {held_out.dataset_split!r} apart from "
            f"{data.dataset_split!r}: its evaluation would have rows that are trained ({', '.join(sorted(both)[:5])}). "
            "Put the evaluation's rows into a file, and name it --eval.dataset; or evaluate on the trained rows by "
            f"--eval.split {data.dataset_split}."
        )


def eval_settings(config: TrainingConfig) -> DataConfig:
    """The settings of the data that are evaluated: those of `config.data` for other rows."""
    return replace(
        config.data,
        dataset=config.eval.dataset or "",
        dataset_split=config.eval.split,
        dataset_probs=None,
        max_samples=None,
    )


def build_actor(config: TrainingConfig, ds_config: dict[str, Any], in_memory: PreTrainedModel | None = None) -> Actor:
    """The causal language model that is trained, before any engine holds it: the one that is named, or in memory."""
    model = Actor(in_memory or config.model.model_name_or_path, **_as_asked(config, ds_config))
    return _with_layers(config, model)


def build_reward_model(config: RMConfig, ds_config: dict[str, Any]) -> RewardModel:
    """The reward model that is trained, before any engine holds it."""
    model = RewardModel(
        config.model.model_name_or_path,
        **_as_asked(config, ds_config),
        head_prefix=config.ds.value_head_prefix,
        head_seed=config.train.seed,
    )
    return _with_layers(config, model)


def _as_asked(config: TrainingConfig, ds_config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every kind of model."""
    ds = config.ds
    return dict(
        attn_implementation=ds.attn_implementation,
        param_dtype=ds.param_dtype,
        load_in_4bit=ds.load_in_4bit,
        lora=ds.lora,
        ds_config=ds_config,
        packing_samples=ds.packing_samples,
        use_liger_kernel=ds.use_liger_kernel,
        ring_attn_size=ds.ring_attn_size,
        ring_head_stride=ds.ring_head_stride,
        trust_remote_code=config.model.trust_remote_code,
    )


def _with_layers(config: TrainingConfig, model: ModelT) -> ModelT:
    settings = config.model
    set_experts_implementation(model.scorer.base_model, config.ds.experts_implementation)
    if settings.trainable:
        freeze_all_but(model.model, settings.trainable)
    if settings.gradient_checkpointing_enable:
        model.gradient_checkpointing_enable({"use_reentrant": settings.gradient_checkpointing_reentrant})
    if settings.compile_layers:
        model.compile_layers()
    ds = config.ds
    if ds.zero_stage < 3 and ds.tensor_parallel_size == 1 and ds.ring_attn_size == 1:
        model.leave_out_unread()
    return model
