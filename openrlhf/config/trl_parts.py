"""The parts of TRL's settings that mean something together, each a function that says what becomes of its names."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf.config.disk import local_path
from openrlhf.config.trl_names import BESIDE_A_RECIPE, RECIPE_NAMES

if TYPE_CHECKING:
    from openrlhf.config.trl_translation import Translator

_SAVES_AT_EPOCHS = "openrlhf.trainer.callbacks.epochs:SaveAtEpochs"
CHECKPOINTS = "checkpoints"  # folder of training checkpoints in output_dir
_SCHEDULES_WITH_LOWEST = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
_NO_LIMIT = 10**6  # checkpoints that are kept where save_total_limit is none
_LONGEST = 2**40  # tokens of a sample where max_length is none


def _as_dict(t: Translator, *names: str) -> dict[str, Any]:
    """A group that is given as such, or as JSON text."""
    value = t.either(*names)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            t.refuse(names[0], "it must be a group of names with values, or JSON text")
            return {}
    return value or {}


def _batch(t: Translator) -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "batch_size", "micro_batch_size")
    micro_batch_size = int(t.either("micro_batch_size", "per_device_train_batch_size"))
    accumulation, ranks = int(t["gradient_accumulation_steps"]), t.num_data_ranks
    batch_size = t["batch_size"] or micro_batch_size * accumulation * ranks
    note = "" if t["batch_size"] else f"{micro_batch_size} × {accumulation} × {ranks} ranks"
    t.becomes({"train.batch_size": batch_size, "train.micro_batch_size": micro_batch_size}, *names, note=note)


def _length_of_run(t: Translator) -> None:
    max_steps, epochs = int(t["max_steps"]), float(t["num_train_epochs"])
    if max_steps > 0:
        t.becomes({"train.max_steps": max_steps, "train.max_epochs": max_steps}, "max_steps")
        return
    settings: dict[str, Any] = {"train.max_epochs": max(1, math.ceil(epochs))}
    steps_per_epoch = t.num_steps_per_epoch()
    if epochs != int(epochs) and steps_per_epoch is None:
        t.refuse("num_train_epochs", "epochs are whole here; give max_steps")
    elif epochs != int(epochs) and steps_per_epoch is not None:
        settings["train.max_steps"] = max(1, math.ceil(epochs * steps_per_epoch))
    t.becomes(settings, "num_train_epochs")


def _optimizer(t: Translator) -> None:
    t.becomes({"adam.betas": [t["adam_beta1"], t["adam_beta2"]]}, "adam_beta1", "adam_beta2")
    name = str(t["optim"]).rpartition(".")[2].lower()
    if name.startswith("adamw") and "8bit" not in name and "4bit" not in name and name != "adamw_anyprecision":
        t.becomes({"optim": "adam"}, "optim", note="AdamW")
    elif name == "muon":
        note = "matrices by muon.lr, 0.02 unless a recipe says otherwise; the rest by AdamW and learning_rate"
        t.becomes({"optim": "muon"}, "optim", note=note)
    else:
        t.refuse("optim", "adamw_torch and muon are here")


def _schedule(t: Translator) -> None:
    name = str(getattr(t["lr_scheduler_type"], "value", t["lr_scheduler_type"]))
    known = _as_dict(t, "lr_scheduler_kwargs")
    settings: dict[str, Any] = {"lr_scheduler": name}
    if name in _SCHEDULES_WITH_LOWEST:
        lowest = known.get("min_lr_rate")
        if lowest is None and known.get("min_lr") is not None:
            lowest = known["min_lr"] / t["learning_rate"]
        settings["min_lr_ratio"] = 0.0 if lowest is None else lowest
        known = {key: value for key, value in known.items() if key not in ("min_lr_rate", "min_lr")}
    if known:
        t.refuse("lr_scheduler_kwargs", f"{', '.join(known)} keeps transformers' default: leave it out")
    t.becomes(settings, "lr_scheduler_type", "lr_scheduler_kwargs")
    _warmup(t)


def _warmup(t: Translator) -> None:
    names = ("warmup_steps", "warmup_ratio")
    if 0 < t["warmup_steps"] < 1:
        t.becomes({"lr_warmup_ratio": float(t["warmup_steps"])}, *names)
    elif t["warmup_steps"]:
        share = t.warmup_share(int(t["warmup_steps"]))
        if share is None:
            t.refuse("warmup_steps", "give warmup_ratio, or max_steps too: the number of steps is not known yet")
        else:
            t.becomes({"lr_warmup_ratio": share}, *names)
    else:
        t.becomes({"lr_warmup_ratio": float(t["warmup_ratio"])}, *names)


def _precision(t: Translator) -> None:
    dtype = str(t.either("dtype", "torch_dtype") or "float32").removeprefix("torch.")
    is_bf16 = not t["fp16"] if t["bf16"] is None else t["bf16"]
    if is_bf16 and t["fp16"]:
        t.refuse("fp16", "bf16 and fp16 exclude each other")
    of_weights = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")
    param_dtype = "bf16" if is_bf16 else "fp16" if t["fp16"] else of_weights
    note = "" if param_dtype == "fp32" else "weights too; the optimizer keeps them in fp32"
    t.becomes({"ds.param_dtype": param_dtype}, "bf16", "fp16", "dtype", "torch_dtype", note=note)


def _checkpointing(t: Translator) -> None:
    names = ("gradient_checkpointing", "activation_checkpointing")
    of_names = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
    known, is_on = _as_dict(t, *of_names), bool(t.either(*names))
    settings: dict[str, Any] = {"model.gradient_checkpointing_enable": is_on}
    if "use_reentrant" in known:
        settings["model.gradient_checkpointing_reentrant"] = bool(known["use_reentrant"])
    if more := [key for key in known if key != "use_reentrant"]:
        t.refuse(of_names[0], f"leave {', '.join(more)} out")
    t.becomes(settings, *names, *of_names)


def _deepspeed(t: Translator) -> None:
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")  # of `accelerate launch`
    given = t["deepspeed"]
    if given is None:
        if stage is not None:
            t.becomes({"ds.zero_stage": int(stage)})
        return
    try:
        config = json.loads(local_path(given).read_text("utf-8")) if isinstance(given, str) else given
        zero = config.get("zero_optimization", {})
    except (OSError, ValueError, AttributeError) as error:
        t.refuse("deepspeed", f"its file cannot be read: {error}")
        return
    if _device(zero, "offload_param") != "none":
        t.refuse("deepspeed", "offload_param is not here; offload_optimizer is")
    settings = {"ds.zero_stage": zero.get("stage", 0), "ds.adam_offload": _device(zero, "offload_optimizer") == "cpu"}
    if zero.get("overlap_comm") not in ("auto", None, False):
        settings["ds.overlap_comm"] = True
    t.becomes(settings, "deepspeed", note="nothing else of it is read")


def _device(zero: Mapping[str, Any], part: str) -> str:
    return str((zero.get(part) or {}).get("device") or "none")


def _tracking(t: Translator) -> None:
    trackers = t["report_to"]
    trackers = [trackers] if isinstance(trackers, str) else list(trackers or [])
    extras = {"mlflow": "mlflow", "trackio": "trackio", "comet_ml": "comet"}
    unknown = sorted({*trackers} - {"wandb", "tensorboard", "none", "all", *extras})
    if unknown:
        t.tell(f"{', '.join(unknown)} is not here; metrics.jsonl has all numbers", "report_to")
    settings: dict[str, Any] = {}
    if "wandb" in trackers:
        settings["logger.wandb.enable"] = True
    if "tensorboard" in trackers:
        settings["logger.tensorboard_dir"] = t["logging_dir"] or str(Path(t["output_dir"] or ".") / "runs")
    if more := tuple(extras[name] for name in trackers if name in extras):
        settings["logger.trackers"] = more
    if settings:
        t.becomes(settings, "report_to", "logging_dir")
    if t.gives("project") and not t["wandb_project"]:
        t.becomes({"logger.wandb.project": t["project"]}, "project", note="of every tracker")
    elif t.gives("project"):
        t.tell("changes nothing: wandb_project is every tracker's", "project")
    every = t.steps("logging_steps", t["logging_steps"]) if t["logging_strategy"] == "steps" else 1
    t.becomes({"logger.logging_steps": every}, "logging_steps", "logging_strategy")


def _evaluation(t: Translator) -> None:
    strategy = _word(t.either("evaluation_strategy", "eval_strategy"))
    names = ("eval_strategy", "evaluation_strategy", "eval_steps")
    if strategy == "steps":
        t.becomes({"eval.steps": t.steps("eval_steps", t["eval_steps"] or t["logging_steps"])}, *names)
    elif strategy == "epoch":
        t.becomes({"eval.every_epoch": True}, *names)
    elif t.gives(*names):
        t.tell("no evaluation", *names)


def _saving(t: Translator) -> None:
    names, strategy = ("save_strategy", "save_steps"), _word(t["save_strategy"])
    if strategy == "steps":
        t.becomes({"ckpt.save_steps": t.steps("save_steps", t["save_steps"])}, *names)
    elif strategy == "epoch":
        t.becomes({"train.callbacks": _SAVES_AT_EPOCHS}, *names)
    elif strategy == "no":
        t.tell("no checkpoint", *names)
    else:
        t.refuse("save_strategy", "no, steps and epoch are here; the best checkpoint is kept in any case")
    most = t["save_total_limit"]
    t.becomes({"ckpt.max_num": max(1, int(most)) if most else _NO_LIMIT}, "save_total_limit", note="and the best")
    if t["save_only_model"] and strategy != "no":
        note = "a run without training checkpoints cannot go on"
        t.becomes({"ckpt.disable_ds": True, "ckpt.save_hf": True}, "save_only_model", note=note)


def _best(t: Translator) -> None:
    if t["load_best_model_at_end"] and t["metric_for_best_model"] not in (None, "loss", "eval_loss"):
        t.refuse("metric_for_best_model", "the best checkpoint is that of the lowest eval_loss: leave it out")


def _word(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy)).lower()


def _folders(t: Translator) -> None:
    if t["output_dir"]:
        folder = str(t["output_dir"])
        t.becomes({"ckpt.output_dir": folder, "ckpt.path": str(Path(folder) / CHECKPOINTS)}, "output_dir")
    goes_on = t["resume_from_checkpoint"]
    if goes_on not in (None, False, "false", "False"):
        note = "from the newest whole checkpoint" if goes_on not in (True, "true", "True") else ""
        t.becomes({"ckpt.load_enable": True}, "resume_from_checkpoint", note=note)
    if t["ddp_timeout"] != RECIPE_NAMES["ddp_timeout"].default:
        t.becomes({"train.comm_timeout_minutes": t["ddp_timeout"] / 60}, "ddp_timeout")


def _hub(t: Translator) -> None:
    names = ("push_to_hub", "hub_model_id")
    if t["push_to_hub"]:
        model_id = t["hub_model_id"] or Path(t["output_dir"] or "model").name
        note = "" if t["hub_private_repo"] is not None else "private, unless hub_private_repo is false"
        t.becomes({"hub.push": True, "hub.model_id": model_id}, *names, note=note)
    elif t["hub_model_id"]:
        t.becomes({"hub.model_id": t["hub_model_id"]}, *names)


def _rows(t: Translator) -> None:
    names = ("max_seq_len", "max_seq_length", "max_length")
    given = [name for name in names if t.gives(name)]
    longest = t[given[0]] if given else t.either(*names)
    note = "longer samples are cut, as there"
    settings = {"data.max_len": _LONGEST if longest is None else int(longest), "data.overlong": "truncate"}
    t.becomes(settings, *names, note="" if longest is None else note)
    if t["packing"] or t["padding_free"]:
        note = "a step has so many samples; there: so many packs of max_length"
        t.becomes({"ds.packing_samples": True}, "packing", "padding_free", note=note if t["packing"] else "")
    if t["dataset_text_field"] != "text":
        t.becomes({"data.input_key": t["dataset_text_field"], "data.format": "text"}, "dataset_text_field")
    if t["chat_template_path"]:
        t.becomes({"data.tokenizer_chat_template": _template_file(t)}, "chat_template_path")
    if t["loss_type"] not in ("nll", "chunked_nll", "dft"):
        t.refuse("loss_type", f"nll and dft are here; without it {BESIDE_A_RECIPE} --train.loss module:Name, your own")
    else:
        t.becomes({"train.loss": str(t["loss_type"]).removeprefix("chunked_")}, "loss_type")
    t.becomes({"data.control_tokens": "keep"})


def _template_file(t: Translator) -> str:
    path = local_path(t["chat_template_path"])
    inside = path / "chat_template.jinja"
    if path.is_dir() and not inside.is_file():
        t.refuse("chat_template_path", f"{path} has no chat_template.jinja; give a file")
    return str(inside if path.is_dir() else path)


def _targets(t: Translator) -> None:
    of_completions = {True: "completion", False: "everything", None: "completion_or_everything"}
    targets = "all_turns" if t["assistant_only_loss"] else of_completions[t["completion_only_loss"]]
    is_open = t["assistant_only_loss"] and t["completion_only_loss"] is not False
    note = "of rows with a completion: in a script those of the completion, in a recipe those of the prompt too"
    t.becomes({"data.targets": targets}, "assistant_only_loss", "completion_only_loss", note=note if is_open else "")


_LORA = {  # setting of ds.lora → its names there
    "rank": ("lora_rank", "lora_r"),
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "target_modules": ("lora_target_modules",),
    "use_rslora": ("use_rslora", "lora_use_rslora"),
    "use_dora": ("use_dora",),
    "modules_to_save": ("lora_modules_to_save",),
    "target_parameters": ("lora_target_parameters",),
}


def _adapters(t: Translator) -> None:
    names = ("use_peft", "use_lora", *(name for theirs in _LORA.values() for name in theirs))
    if not t.either("use_lora", "use_peft"):
        t.tell("no adapters", *names)
        return
    values = {f"ds.lora.{ours}": t.either(*theirs) for ours, theirs in _LORA.items()}
    asked = {name: value for name, value in values.items() if value is not None and value is not False and value != []}
    note = "" if t["lora_target_modules"] else "beside all linear layers; there: those that PEFT has chosen"
    t.becomes({name: [value] if isinstance(value, str) else value for name, value in asked.items()}, *names, note=note)


def _data(t: Translator) -> None:
    names = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_mixture", "datasets", "dataset_split")
    mixture = t["dataset_mixture"] or ({"datasets": t["datasets"]} if t["datasets"] else None)
    split, config = t.either("dataset_split", "dataset_train_split"), t["dataset_config"]
    settings: dict[str, Any] = {}
    if mixture:
        settings = _mixture(t, mixture)
    elif t["dataset_name"]:
        settings = {"data.dataset": _source(t["dataset_name"], config), "data.dataset_split": split}
    t.becomes(settings, *names)
    evaluates = _word(t.either("evaluation_strategy", "eval_strategy")) != "no"
    if evaluates and settings and not mixture:
        settings = {"eval.dataset": settings["data.dataset"], "eval.split": t["dataset_test_split"]}
        t.becomes(settings, "dataset_test_split")


def _source(name: str, config: Any) -> str:
    return f"{name}@{config}" if config else name


def _mixture(t: Translator, mixture: Mapping[str, Any]) -> dict[str, Any]:
    """Several sources; each has all its rows, of the columns that tell its format."""
    parts = [part if isinstance(part, Mapping) else {} for part in mixture.get("datasets") or []]
    where = "dataset_mixture" if t["dataset_mixture"] else "datasets"
    if not parts or any(not (part.get("id") or part.get("path")) for part in parts):
        t.refuse(where, "it needs a list datasets, each with an id")
        return {}
    if any(part.get("weight") not in (None, 1, 1.0) for part in parts):
        t.refuse(where, "weight takes a share of a source's rows; data.dataset_probs gives each its share of the mix")
    if mixture.get("test_split_size"):
        t.refuse(where, "test_split_size sets rows aside; put them into a file of their own, and name it eval.dataset")
    splits = {part.get("split") or "train" for part in parts}
    if len(splits) > 1:
        t.refuse(where, f"its sources have several splits ({', '.join(sorted(splits))}); name files by their paths")
    names = [_source(part.get("id") or part["path"], part.get("config") or part.get("name")) for part in parts]
    return {"data.dataset": ",".join(names), "data.dataset_split": splits.pop()}


PARTS: tuple[Callable[[Translator], None], ...] = (
    _batch,
    _length_of_run,
    _optimizer,
    _schedule,
    _precision,
    _checkpointing,
    _deepspeed,
    _tracking,
    _evaluation,
    _saving,
    _best,
    _folders,
    _hub,
    _rows,
    _targets,
    _adapters,
    _data,
)
