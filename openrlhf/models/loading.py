"""A causal language model from a folder, a hub name or memory, made ready for training: attention, head, adapters."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.config.disk import ADAPTER_FILE, is_adapter
from openrlhf.engine.model_internals import train_end_tokens
from openrlhf.engine.patches.tied_in_parts import compared_whole
from openrlhf.errors import UserError, first_line_of, is_out_of_memory
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import check_causal, check_packable
from openrlhf.models.causality import check_looks_back
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.head.probe import probe_head
from openrlhf.models.head.tied_embedding import TiedEmbedding
from openrlhf.models.layers import apply_liger_kernels
from openrlhf.models.limits import check_sizes
from openrlhf.models.lora import add_lora
from openrlhf.models.moe import num_experts_per_token
from openrlhf.models.notes import tell_once
from openrlhf.models.quantized import finish_plain_loading, plain_config
from openrlhf.models.text_part import trained_part, without_other_parts
from openrlhf.models.weights_check import check_loaded, check_weight_files
from openrlhf.parallel.collectives import is_lost_rank

PARAM_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

logger = logging.getLogger(__name__)


def prepare_causal_lm(
    pretrain_or_model: str | PreTrainedModel,
    *,
    attn_implementation: str | None,
    param_dtype: str,
    load_in_4bit: bool,
    device_map: Any,
    trust_remote_code: bool,
    is_packed: bool,
    use_liger_kernel: bool,
    temperature: float,
    lora: LoraConfig,
) -> nn.Module:
    """The model that an actor trains; arguments as of `Actor`.

    Args:
        attn_implementation: as `choose_attention` names it.
        is_packed: the model will be given packs, and is refused if it could not keep their samples apart.

    Returns:
        A causal language model of transformers with our head where its own is plain; inside PEFT's wrapper with LoRA.
    """
    if isinstance(pretrain_or_model, str):
        config = plain_config(load_config(pretrain_or_model, trust_remote_code), pretrain_or_model, load_in_4bit)
        if is_packed and (model_class := causal_lm_class(config)):
            check_packable(model_class, config)  # before the weights are read
        model: Any = load_causal_lm(
            pretrain_or_model,
            config=config,
            param_dtype=param_dtype,
            attn_implementation=attn_implementation,
            load_in_4bit=load_in_4bit,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
        finish_plain_loading(model, config, pretrain_or_model)
    else:
        model = with_attention(pretrain_or_model, attn_implementation)
    check_looks_back(model.config, type(model).__name__, model)
    make_ready(model, is_packed, use_liger_kernel)
    _install_log_prob_head(model, temperature)
    return add_lora(model, lora) if lora.is_used else model


def with_attention(model: PreTrainedModel, attn_implementation: str | None) -> PreTrainedModel:
    """A model from memory, which computes by that attention from now on; None: by its own."""
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    return model


def make_ready(model: PreTrainedModel, is_packed: bool, use_liger_kernel: bool) -> None:
    """Refuses a model that could not be packed; lets its end tokens be trained; puts Liger's kernels into it."""
    if is_packed:
        check_packable(type(model), model.config)
        check_causal(model)
    if train_end_tokens(model):
        name = type(model).__name__
        tell_once(f"{name}: the pad_token_id of config.json ends answers; its embedding may be trained, too.")
    if use_liger_kernel:
        apply_liger_kernels(model)


def set_experts_implementation(model: PreTrainedModel, name: str | None) -> None:
    """How transformers computes the experts, such as "grouped_mm"; None: its own choice. UserError where it cannot."""
    if name is None:
        return
    if num_experts_per_token(model.config) is None:
        logger.warning("%s has no experts: --ds.experts_implementation changes nothing.", type(model).__name__)
        return
    try:
        model.set_experts_implementation(name)
    except (ValueError, ImportError) as error:
        raise UserError(f"--ds.experts_implementation {name}: {first_line_of(error)}") from None


def _install_log_prob_head(model: PreTrainedModel, temperature: float) -> None:
    """Puts our head in the place of a plain one; leaves any other, with a line in the log."""
    finding = probe_head(model)
    if finding.transform is None:
        logger.warning("%s: log-probs are computed from full logits: %s", type(model).__name__, finding.reason)
        return
    head = LogProbHead(model.get_output_embeddings(), replace(finding.transform, temperature=temperature))
    model.set_output_embeddings(head)
    TiedEmbedding.install(model.get_input_embeddings(), head)


def facts_of(pretrain_or_model: str | PreTrainedModel, param_dtype: str, trust_remote_code: bool = False) -> ModelFacts:
    """What is known of a model before its weights are read; arguments as of `Actor`.

    Raises UserError as `load_config`, and for a model whose tokens would see their targets.
    """
    if isinstance(pretrain_or_model, PreTrainedModel):
        return ModelFacts(type(pretrain_or_model), pretrain_or_model.config, pretrain_or_model.dtype)
    config = load_config(pretrain_or_model, trust_remote_code)
    model_class = causal_lm_class(config)
    check_looks_back(config, config.model_type if model_class is None else model_class.__name__)
    return ModelFacts(model_class, trained_part(config, model_class), PARAM_DTYPES[param_dtype])


def load_config(path: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of the model in folder `path` or of that hub name. UserError where none is or can be."""
    if Path(path).is_dir() and (Path(path) / ADAPTER_FILE).is_file():
        raise UserError(f"{path} {is_adapter(Path(path))}")
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise UserError(f"The folder {path} holds no model: it has no config.json. Give the folder of a saved model.")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        text_config = config.get_text_config()
    except Exception as error:  # values of wrong types fail in any way
        raise UserError(_no_model(path, error)) from error
    check_sizes(text_config, path)
    return config


def saved_dtype(config: PretrainedConfig, otherwise: str) -> str:
    """The name of the dtype that the weights are saved in."""
    dtype = config.get_text_config().dtype
    return next((name for name, known in PARAM_DTYPES.items() if known == dtype), otherwise)


def load_causal_lm(
    path: str,
    *,
    config: PretrainedConfig | None = None,
    param_dtype: str = "bf16",
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Loads the weights.

    Args:
        path: a folder or a hub name.
        config: from `load_config`, where the caller has it already.
        param_dtype: "bf16", "fp16" or "fp32".
        attn_implementation: a name that transformers knows (ours are registered there); None: its own choice.
        load_in_4bit: quantized by bitsandbytes, for LoRA.

    Raises:
        UserError: there is no causal language model at `path`, or bitsandbytes is missing.
    """
    config = config or load_config(path, trust_remote_code)
    if not trust_remote_code and causal_lm_class(config) is None:
        raise UserError(f"{path} is a {config.model_type} model, which is no causal language model of transformers.")
    model, info = load_weights(
        AutoModelForCausalLM,
        path,
        config=config,
        dtype=PARAM_DTYPES[param_dtype],
        attn_implementation=attn_implementation,
        quantization_config=four_bit_config(PARAM_DTYPES[param_dtype]) if load_in_4bit else None,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    check_weights(model, without_other_parts(info, model, config, path), path)
    return model


def load_weights(auto_class: Any, path: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model by `auto_class.from_pretrained(path, **settings)`, and what transformers says of the loading.

    Raises UserError where it fails.
    """
    check_weight_files(path)
    try:
        return auto_class.from_pretrained(
            path,
            ignore_mismatched_sizes=True,  # they are told by `check_weights`, by name
            output_loading_info=True,
            **settings,
        )
    except Exception as error:  # damaged weights, and values in config.json of wrong types, fail in any way
        # In ZeRO-3, ranks share what they load: the watchdog tells who is gone. Neither is a fault of the model's.
        if is_out_of_memory(error) or is_lost_rank(error):
            raise
        raise UserError(_no_model(path, error), *_hint_of_parts()) from error


def check_weights(model: PreTrainedModel, info: dict[str, Any], path: str, hints: Sequence[str] = ()) -> None:
    """Raises UserError where weights are missing or wrong.

    Args: info: as of `load_weights`; hints: said beside what is wrong.
    """
    try:
        check_loaded(model, info, path)
    except UserError as error:
        raise UserError(*error.problems, *hints, *_hint_of_parts()) from None


def weights_of(
    path: str, model_class: type[PreTrainedModel], dtype: torch.dtype, say: Callable[[str], None] | None
) -> dict[str, Any]:
    """The weights of a saved model, by name, to be put into another one.

    Args: say: told of those that are missing or of another shape, which are then left out; None: UserError.
    """
    model, info = load_weights(model_class, path, dtype=dtype)
    if say is None:
        check_weights(model, info, path)
    left_out = {*info["missing_keys"], *(one[0] for one in info["mismatched_keys"])}
    if left_out and say:
        say(f"note: {path} has no {', '.join(sorted(left_out))} for this model, which keeps its own.")
    return {name: weight for name, weight in model.state_dict().items() if name not in left_out}


def causal_lm_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that transformers itself uses for this configuration; None for a model that brings its own code."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found


@contextmanager
def loading_in_parts(ds_config: dict | None) -> Iterator[None]:
    """Under ZeRO-3, transformers makes each rank's part of every weight of a model that is made within.

    transformers remembers the announcement for as long as its object lives. It is taken back here, because the ranks'
    garbage collectors work at different times: a model made later would be in parts on some ranks, and hang them all.
    """
    if not ds_config or ds_config.get("zero_optimization", {}).get("stage", 0) != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    announcement = HfDeepSpeedConfig(ds_config)  # held weakly by transformers
    try:
        with compared_whole():
            yield
    finally:
        unset_hf_deepspeed_config()
        del announcement


def keeps_weights_on_host(ds_config: dict | None) -> bool:
    """Whether DeepSpeed's configuration moves a model's weights into the host's memory."""
    of_weights = (ds_config or {}).get("zero_optimization", {}).get("offload_param") or {}
    return of_weights.get("device", "none") != "none"


def _hint_of_parts() -> list[str]:
    """Where weights are loaded in parts, some models of transformers fail that load otherwise."""
    if not is_deepspeed_zero3_enabled():
        return []
    return ["ZeRO-3 loads a model in parts, which not every model bears: --ds.zero_stage 0, 1 or 2 loads it whole."]


def four_bit_config(compute_dtype: torch.dtype, skipped: list[str] | None = None) -> Any:
    """Quantization by bitsandbytes, but of the modules `skipped`. Raises UserError where it is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--ds.load_in_4bit needs the package bitsandbytes: pip install bitsandbytes")
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a library of CUDA that is missing, in any way
        raise UserError(f"--ds.load_in_4bit: bitsandbytes cannot be used here: {first_line_of(error)}") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def _no_model(path: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {first_line_of(error)}".rstrip(". ")
    return f"No model could be loaded from {path!r}: {said}. Give the folder of a saved model, or a hub name."
