"""A script's model, arguments and rows, as the parts of a run take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel

from openrlhf.compat.trl.adapters import adapter_settings
from openrlhf.compat.trl.arguments import TrlSFTConfig
from openrlhf.config import DataConfig, SFTConfig, from_namespace
from openrlhf.config.checks import LAYOUT_CHECKS
from openrlhf.config.outputs import output_folders
from openrlhf.config.trl_names import RECIPE_NAMES, SftNames, fields_of
from openrlhf.config.trl_parts import router_coefficient
from openrlhf.config.trl_translation import Translation, translate
from openrlhf.datasets.formats import plain, trl
from openrlhf.datasets.formats.chat import is_message_list
from openrlhf.datasets.formats.tokenized import NOT_A_TARGET
from openrlhf.datasets.sft_dataset import SFTDataset
from openrlhf.datasets.tokenizer import get_tokenizer, prepare_special_tokens, set_end_token, set_pad_token
from openrlhf.errors import UserError
from openrlhf.models.limits import check_positions, check_vocabulary
from openrlhf.models.loading import facts_of

_NAMES = fields_of(SftNames)
_PAIR = {plain.PROMPT, plain.COMPLETION}
_OF_LOADING = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code", "revision"}
_IDLE_IN_LOADING = {"use_cache", "device_map", "low_cpu_mem_usage"}
# The loop asks a callback, which follows the arguments, what is due.
_BY_CALLBACK = {
    "ckpt.save_steps": -1,
    "ckpt.every_epoch": False,
    "eval.steps": -1,
    "eval.every_epoch": False,
    "eval.at_end": False,
    "train.callbacks": None,
}
_INSTEAD_OF_FLAGS = (
    "A script has no flags --data.*: remove rows by dataset.filter(…), rename columns by dataset.rename_column(…), or "
    "name the column of a text by SFTConfig(dataset_text_field=…)."
)
_IN_PYTHON = {"ckpt.background_save": False, "ckpt.save_hf": True}  # a save is in place when on_save is told of it


def translation_of(
    args: TrlSFTConfig, model: Any, quantization_config: Any, num_ranks: int, num_rows: int | None
) -> Translation:
    """The arguments in our settings. `num_rows` of the training data: None before they are prepared."""
    values = {name: getattr(args, name) for name in _NAMES}
    given = {name for name, value in values.items() if value != _NAMES[name].default and value != []}
    of_loading: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]  # __post_init__ has read it
    quantization = of_loading.pop("quantization_config", None)
    if quantization is not None and quantization_config is not None:
        raise UserError("SFTTrainer(quantization_config=) and model_init_kwargs both have one: leave one of them out.")
    quantization = quantization or quantization_config
    if unknown := sorted(of_loading.keys() - _OF_LOADING - _IDLE_IN_LOADING):
        raise UserError(f"model_init_kwargs has {', '.join(unknown)}, which is not here: load the model yourself.")
    values |= {
        {"revision": "model_revision"}.get(name, name): of_loading[name] for name in of_loading.keys() & _OF_LOADING
    }
    if isinstance(model, PreTrainedModel):
        values["dtype"] = str(model.dtype)
        quantization = getattr(model.config, "quantization_config", None)
    asked = _bits(quantization)
    if args.router_aux_loss_coef is None and (coefficient := router_coefficient(facts_of(model, "fp32").config)):
        asked["router_aux_loss_coef"] = coefficient
    values |= asked
    values["resume_from_checkpoint"] = None  # train() is told of it
    values["model_init_kwargs"] = None  # what it holds is among the values
    return translate(values, given | asked.keys() | of_loading.keys() & RECIPE_NAMES.keys(), num_ranks, num_rows)


def _bits(quantization: Any) -> dict[str, Any]:
    """By the names of a ModelConfig: what bitsandbytes' configuration asks for."""
    if quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    if not isinstance(quantization, BitsAndBytesConfig):
        raise UserError(f"quantization_config is a {type(quantization).__name__}: 4 bits of bitsandbytes are here.")
    eight = {"load_in_8bit": True} if quantization.load_in_8bit else {}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": quantization.bnb_4bit_quant_type}
    return eight or four


def config_of(translation: Translation, model: Any, peft_config: Any, num_ranks: int) -> SFTConfig:
    """Our configuration, checked. Raises UserError with every problem."""
    is_path = isinstance(model, str)
    settings = translation.settings | _BY_CALLBACK | _IN_PYTHON
    settings["model.model_name_or_path"] = model if is_path else model.config.name_or_path
    model_type = facts_of(model, "fp32").config.model_type
    settings |= adapter_settings(peft_config, model_type)
    if translation.problems:
        raise UserError(*translation.problems)
    config = from_namespace(SFTConfig, _namespace(settings))
    if problems := [one for check in (*LAYOUT_CHECKS, output_folders) for one in check(config, num_ranks)]:
        raise UserError(*problems)
    return config


def _namespace(settings: dict[str, Any]) -> SimpleNamespace:
    root = SimpleNamespace()
    for name, value in settings.items():
        *groups, leaf = name.split(".")
        branch = root
        for group in groups:
            if not hasattr(branch, group):
                setattr(branch, group, SimpleNamespace())
            branch = getattr(branch, group)
        setattr(branch, leaf, value)
    return root


def tokenizer_of(config: SFTConfig, given: Any, pad_token: str | None) -> Any:
    """The script's tokenizer, or the model's, with the tokens of end and padding that are asked for."""
    tokenizer = given or get_tokenizer(
        config.model.model_name_or_path, trust_remote_code=config.model.trust_remote_code
    )
    if config.data.eos_token is not None:
        set_end_token(tokenizer, config.data.eos_token)
    if pad_token is not None:
        set_pad_token(tokenizer, pad_token)
    prepare_special_tokens(tokenizer)
    return tokenizer


def completion_only_loss_of(given: bool | None, row: Any, formatting_func: Callable[[Any], Any] | None) -> bool:
    """As TRL decides it once, for the rows of evaluations too: as it is given, or by the first trained row."""
    if given is not None:
        return given
    row = row if formatting_func is None else formatting_func(row)
    return isinstance(row, dict) and row.keys() >= _PAIR


def _as_there(name: str, data: DataConfig, completion_only_loss: bool | None, dataset: Any) -> tuple[DataConfig, Any]:
    """What the columns of the first row mean to TRL. Raises UserError where the loss that is asked for fits no row."""
    row = dataset[0]
    is_pair = row.keys() >= _PAIR
    if "input_ids" in row:
        is_labelled = "labels" in row or "loss_mask" in row
        reads_both = is_pair if completion_only_loss is None else completion_only_loss
        masks = ["assistant_masks", "completion_mask"] if reads_both else ["assistant_masks"]
        return data, dataset if is_labelled else _labelled(dataset, masks)
    is_chat = trl.find(row, data) == "messages" or (is_pair and is_message_list(row["prompt"]))
    if data.targets == "all_turns" and not is_chat:
        raise UserError(f"assistant_only_loss is true, and {name} holds no conversations: leave it out.")
    if data.targets == "all_turns" and is_pair and completion_only_loss is not False:
        data = replace(data, targets="completion")  # the assistant's messages, of the completion alone
    if data.targets == "completion_or_everything" and is_pair and completion_only_loss is False:
        data = replace(data, targets="everything")  # of evaluations, as the run's rows have no completion
    if data.targets == "completion" and not is_pair:
        raise UserError(f"completion_only_loss is true, and {name} has no columns prompt and completion: leave it out.")
    return data, dataset


def _labelled(dataset: Any, masks: list[str]) -> Any:
    """Rows of token ids, with `labels` in place of their masks: tokens that none of these leaves out."""

    def with_labels(row: Any) -> dict[str, Any]:
        given = [row[name] for name in masks if row.get(name) is not None]
        # a mask of another length leaves short labels, which are refused by the row's name
        tokens = zip(row["input_ids"], *given, strict=False)
        labels = [int(token) if all(bits) else NOT_A_TARGET for token, *bits in tokens]
        return {name: value for name, value in row.items() if name not in masks} | {"labels": labels}

    if not hasattr(dataset, "map"):
        return [with_labels(row) for row in dataset]
    return dataset.map(with_labels, remove_columns=[name for name in masks if name in dataset.column_names])


def rows_of(
    name: str,
    dataset: Any,
    config: SFTConfig,
    completion_only_loss: bool | None,
    model_config: Any,
    tokenizer: Any,
    formatting_func: Callable[[Any], Any] | None,
) -> SFTDataset:
    """Prepared samples of a `datasets.Dataset`, or of any sequence of dicts.

    Args:
        completion_only_loss: as the script gives it, which `data.targets` does not tell with assistant_only_loss; of
            evaluations as the trained rows decide it.

    Raises UserError where the rows are a stream, or cannot be used, or a sample does not fit the model.
    """
    if not hasattr(dataset, "__len__") or isinstance(dataset, dict):
        raise UserError(f"{name} is a {type(dataset).__name__}: give a datasets.Dataset (Dataset.from_list makes one).")
    if formatting_func is not None:
        formatted = [formatting_func(row) for row in dataset]
        dataset = [row if isinstance(row, dict) else {config.data.input_key or plain.TEXT: row} for row in formatted]
    data = config.data
    if len(dataset) and isinstance(dataset[0], dict):
        data, dataset = _as_there(name, data, completion_only_loss, dataset)
    args = SimpleNamespace(args=replace(config, data=data))
    try:
        rows = SFTDataset(dataset, tokenizer, data.max_len, args, num_processors=data.num_processors)
    except UserError as error:
        remedy = [_INSTEAD_OF_FLAGS] if "--data." in str(error) else []
        raise UserError(*error.problems, *remedy) from error
    longest = int(rows.num_tokens.argmax())
    check_positions(model_config, int(rows.num_tokens[longest]), rows.sample_name(longest))
    check_vocabulary(model_config, 0, rows.report.largest_id, rows.report.sources[0].name)
    return rows
