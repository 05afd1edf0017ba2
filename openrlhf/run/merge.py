"""Adapters merged into the model that they stand beside, from their folders."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from openrlhf.checkpoint.export import DEFAULT_MAX_SHARD_BYTES, export_model
from openrlhf.checkpoint.manifest import saved_identity
from openrlhf.config import LoraConfig, TrainingConfig
from openrlhf.datasets.tokenizer import get_tokenizer
from openrlhf.errors import UserError, first_line_of
from openrlhf.models.classifier import HEAD
from openrlhf.models.loading import PARAM_DTYPES, check_weights, load_weights
from openrlhf.models.lora import add_lora
from openrlhf.models.quantized import check_quantization, finish_plain_loading, plain_config
from openrlhf.models.reward_statistics import take_from_adapter
from openrlhf.models.text_part import without_other_parts


def merge_exported(config: TrainingConfig) -> None:
    """The model under the adapter that a run has exported, with it, in the run's dtype; on one rank.

    Raises UserError that says how to do it again.
    """
    model, adapter, merged = config.model, config.ckpt.output_dir, config.ckpt.merged_dir
    dtype = config.ds.param_dtype
    try:
        merge_adapters(
            model.model_name_or_path,
            [adapter],
            merged,
            PARAM_DTYPES[dtype],
            model.trust_remote_code,
            saved_identity(Path(adapter)),
            config.ckpt.export_shard_bytes,
        )
    except UserError as error:
        again = f"python -m openrlhf.cli.lora_combiner --model_path {model.model_name_or_path} --lora_path {adapter}"
        raise UserError(f"{error} Again: {again} --output_path {merged} --param_dtype {dtype}") from None


def merge_adapters(
    model_path: str,
    lora_paths: Sequence[str],
    output_path: str,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    identity: dict[str, Any] | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
) -> None:
    """Writes the base with all adapters, one after the other, in safetensors, and the last adapter's tokenizer.

    A merged reward model has the mean and deviation of rewards that stand beside the last adapter, or none.

    Works in the host's memory.

    Args:
        dtype: of the merged model; None: the base's.
        identity: of the run that the merged model is of, for its manifest.

    Raises UserError where they do not fit together, or the model cannot be written.
    """
    try:
        model = _base_of(model_path, lora_paths[-1], dtype, trust_remote_code)
        for lora_path in lora_paths:
            _tell_of_another_base(model_path, lora_path)
            model = _merged(model, lora_path)
    except Exception as error:  # damaged files, and values of wrong types, fail in any way
        first, *more = error.problems if isinstance(error, UserError) else [first_line_of(error)]
        raise UserError(f"{', '.join(lora_paths)} cannot be merged into {model_path}: {first}", *more) from None
    has_tokenizer = (Path(lora_paths[-1]) / "tokenizer_config.json").is_file()
    tokenizer = get_tokenizer(lora_paths[-1] if has_tokenizer else model_path, trust_remote_code=trust_remote_code)
    export_model(model, tokenizer, output_path, max_shard_bytes=max_shard_bytes, identity=identity)


def _base_of(model_path: str, lora_path: str, dtype: torch.dtype | None, trust_remote_code: bool) -> Any:
    """The model of the kind that the adapter is for."""
    from peft import PeftConfig, TaskType
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    is_reward_model = PeftConfig.from_pretrained(lora_path).task_type == TaskType.SEQ_CLS
    kind: Any = AutoModelForSequenceClassification if is_reward_model else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    check_quantization(config, model_path, load_in_4bit=False)
    config = plain_config(config, model_path)
    if is_reward_model:
        config.num_labels = 1
        take_from_adapter(config, Path(lora_path))
    model, info = load_weights(
        kind, model_path, config=config, dtype=dtype or config.dtype or "auto", trust_remote_code=trust_remote_code
    )
    if is_reward_model:  # its head is the adapter's, whatever the base has in its place
        missing = {name for name in info["missing_keys"] if not name.startswith(f"{HEAD}.")}
        info |= {"missing_keys": missing, "unexpected_keys": set()}
    check_weights(model, without_other_parts(info, model, config, model_path), model_path)
    finish_plain_loading(model, config, model_path)
    return model


def _tell_of_another_base(model_path: str, lora_path: str) -> None:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(lora_path).base_model_name_or_path
    if base and Path(base).name != Path(model_path).name:
        print(f"note: the adapter {lora_path} was trained on {base}, and is merged into {model_path}.")


def _merged(model: Any, lora_path: str) -> Any:
    tied = _untied(model)  # an adapter of one of the two, or a copy of it that was trained, must not reach the other
    with_adapter: Any = add_lora(model, LoraConfig(adapter_name_or_path=lora_path), keeps_dtype=False)
    with warnings.catch_warnings():  # it looks while they are apart, and cannot know that they are tied again below
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        merged = with_adapter.merge_and_unload(safe_merge=True)
    if not tied:
        return merged
    weights = dict(merged.named_parameters())
    stay_tied = all(torch.equal(weights[one], weights[other]) for one, other in tied.items())
    for config in (merged.config, merged.config.get_text_config()):
        config.tie_word_embeddings = stay_tied  # one setting for all of them; PEFT's merge has set it to False
    if stay_tied:
        merged.tie_weights()
    return merged


def _untied(model: Any) -> dict[str, str]:
    """Gives each weight that is another one's too a copy of its own: biases and further embeddings as well as the head.

    Returns: their names, and for each the name of the other.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    tied = {one: other for one, other in model.all_tied_weights_keys.items() if weights[one] is weights[other]}
    for name in tied:
        module, _, field = name.rpartition(".")
        setattr(model.get_submodule(module), field, torch.nn.Parameter(weights[name].detach().clone()))
    return tied
