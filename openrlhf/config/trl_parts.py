"""The parts of TRL's settings that mean something together, each a function that says what becomes of its names."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf.config.disk import local_path
from openrlhf.config.settings import Scheduler
from openrlhf.config.trl_data import batch, data, length_of_run, rows, targets, word_of
from openrlhf.config.trl_names import RECIPE_NAMES

if TYPE_CHECKING:
    from openrlhf.config.trl_translation import Translator

CHECKPOINTS = "checkpoints"  # folder of training checkpoints in output_dir
_SCHEDULES_WITH_LOWEST = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
_OF_ACCELERATE = "ACCELERATE_DEEPSPEED_"
_COUNTS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_NO_LIMIT = 10**6  # checkpoints that are kept where save_total_limit is none, or not above 0
_NEVER = 10**9  # steps: a save comes at the end alone where save_steps is not above 0


def _as_dict(t: Translator, *names: str) -> dict[str, Any]:
    """A group that is given as such, or as JSON text."""
    value = t.either(*names)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            t.refuse(names[0], "it must be a group of names with values, or JSON text")
            return {}
    return vars(value) if dataclasses.is_dataclass(value) else value or {}


def _accelerator(t: Translator) -> None:
    changing = ("split_batches", "gradient_accumulation_kwargs")  # all else of it changes no number
    if given := [name for name in changing if _as_dict(t, "accelerator_config").get(name)]:
        remedy = "per_device_train_batch_size is that of each rank, and gradient_accumulation_steps multiplies it"
        t.refuse("accelerator_config", f"leave {', '.join(given)} out: {remedy}")


def _optimizer(t: Translator) -> None:
    t.becomes({"adam.betas": [t["adam_beta1"], t["adam_beta2"]]}, "adam_beta1", "adam_beta2")
    name = str(t["optim"]).rpartition(".")[2].lower()
    is_paged, name = name.startswith("paged_"), name.removeprefix("paged_")
    if name.startswith("adamw") and "8bit" not in name and "4bit" not in name and name != "adamw_anyprecision":
        t.becomes({"optim": "adam"}, "optim", note="AdamW, not paged" if is_paged else "AdamW")
    elif name == "muon":
        note = "matrices by muon.lr, 0.02 unless a recipe says otherwise; the rest by AdamW and learning_rate"
        t.becomes({"optim": "muon"}, "optim", note=note)
    else:
        t.refuse("optim", "adamw_torch and muon are here")


def _schedule(t: Translator) -> None:
    name = str(getattr(t["lr_scheduler_type"], "value", t["lr_scheduler_type"]))
    if name not in (here := typing.get_args(Scheduler)):
        t.refuse("lr_scheduler_type", f"{', '.join(here)} are here")
        return
    known = _as_dict(t, "lr_scheduler_kwargs")
    settings: dict[str, Any] = {"lr_scheduler": name}
    if name in _SCHEDULES_WITH_LOWEST:
        settings["min_lr_ratio"] = _lowest_share(t, known)
        known = {key: value for key, value in known.items() if key not in ("min_lr_rate", "min_lr")}
    if known:
        t.refuse("lr_scheduler_kwargs", f"{', '.join(known)} keeps transformers' default: leave it out")
    t.becomes(settings, "lr_scheduler_type", "lr_scheduler_kwargs")
    _warmup(t)


def _lowest_share(t: Translator, known: Mapping[str, Any]) -> float:
    """YAML reads 1e-6 as text: a number needs a point there."""
    try:
        lowest = known.get("min_lr_rate")
        if lowest is None and known.get("min_lr") is not None:
            lowest = float(known["min_lr"]) / t["learning_rate"]
        return 0.0 if lowest is None else float(lowest)
    except (TypeError, ValueError):
        t.refuse("lr_scheduler_kwargs", "min_lr and min_lr_rate must be numbers")
        return 0.0


def _warmup(t: Translator) -> None:
    names = ("warmup_steps", "warmup_ratio")
    steps, ratio = t["warmup_steps"] or 0, t["warmup_ratio"] or 0.0
    if 0 < steps < 1:
        t.becomes({"lr_warmup_ratio": float(steps)}, *names)
    elif steps:
        share = t.warmup_share(int(steps))
        if share is None:
            t.refuse("warmup_steps", "give warmup_ratio, or max_steps too: the number of steps is not known yet")
        else:
            note = "the run ends before the learning rate has risen, as there" if share >= 1 else ""
            t.becomes({"lr_warmup_ratio": share}, *names, note=note)
    else:
        t.becomes({"lr_warmup_ratio": float(ratio)}, *names)


def _precision(t: Translator) -> None:
    dtype = str(t.either("dtype", "torch_dtype") or "float32").removeprefix("torch.")
    is_bf16 = not t["fp16"] if t["bf16"] is None else t["bf16"]
    if is_bf16 and t["fp16"]:
        t.refuse("fp16", "bf16 and fp16 exclude each other")
    of_weights = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")
    param_dtype = "bf16" if is_bf16 else "fp16" if t["fp16"] else of_weights
    note = "weights too; the optimizer keeps them in fp32"
    if param_dtype == "fp32":
        note = "" if dtype in ("float32", "fp32") else f"dtype {dtype} is not here"
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


def router_coefficient(model_config: Any) -> float:
    """Of the balancing loss that TRL adds for a model of this configuration; 0 where it has no experts."""
    text = model_config.get_text_config()
    counts = [getattr(text, name) for name in _COUNTS_OF_EXPERTS if hasattr(text, name)]
    if not hasattr(text, "output_router_logits") or (counts and not any(counts)):
        return 0.0
    return getattr(text, "router_aux_loss_coef", 0.0)


def _experts(t: Translator) -> None:
    """None is the model's own coefficient, as there."""
    coefficient = t["router_aux_loss_coef"]
    if coefficient is None and t["model_name_or_path"]:
        from transformers import AutoConfig  # here alone: it takes seconds to load

        try:
            name = os.path.expanduser(t["model_name_or_path"])
            config = AutoConfig.from_pretrained(name, trust_remote_code=t["trust_remote_code"])
        except Exception:  # values of wrong types fail in any way; the run says what is wrong with the model
            return
        coefficient = router_coefficient(config)
    if coefficient or t.gives("router_aux_loss_coef"):
        t.becomes({"model.aux_loss_coef": coefficient or 0.0}, "router_aux_loss_coef")


def _deepspeed(t: Translator) -> None:
    given = t["deepspeed"] or os.environ.get(f"{_OF_ACCELERATE}CONFIG_FILE")
    zero = _zero_of_accelerate() if given is None else _zero_of_file(t, given)
    if zero is None:
        return
    if _device(zero, "offload_param") != "none":
        t.refuse("deepspeed", "offload_param is not here; offload_optimizer is")
    if (device := _device(zero, "offload_optimizer")) not in ("none", "cpu"):
        t.refuse("deepspeed", f"offload_optimizer to {device} is not here; to cpu it is")
    settings = {"ds.zero_stage": zero.get("stage", 0), "ds.adam_offload": device == "cpu"}
    if zero.get("overlap_comm") not in ("auto", None, False):
        settings["ds.overlap_comm"] = True
    if t["deepspeed"]:
        t.becomes(settings, "deepspeed", note="nothing else of it is read")
    else:
        t.becomes_by("(accelerate launch)", settings)


def _zero_of_file(t: Translator, given: Any) -> Any:
    """The group zero_optimization of a file, or of a group that is given as such; None, told, where there is none."""
    try:
        config = json.loads(local_path(given).read_text("utf-8")) if isinstance(given, str) else given
        return config.get("zero_optimization", {})
    except (OSError, ValueError, AttributeError) as error:
        t.refuse("deepspeed", f"its file {given} cannot be read: {error}")
        return None


def _zero_of_accelerate() -> dict[str, Any] | None:
    """What `accelerate launch` says in the environment, as such a group; None where it says nothing."""
    stage = os.environ.get(f"{_OF_ACCELERATE}ZERO_STAGE")
    if stage is None:
        return None
    parts = ("offload_optimizer", "offload_param")
    devices = {part: {"device": os.environ.get(f"{_OF_ACCELERATE}{part.upper()}_DEVICE")} for part in parts}
    return {"stage": int(stage), **devices}


def _device(zero: Mapping[str, Any], part: str) -> str:
    return str((zero.get(part) or {}).get("device") or "none")


def _tracking(t: Translator) -> None:
    trackers = t["report_to"]
    trackers = [trackers] if isinstance(trackers, str) else list(trackers or [])
    extras = {"mlflow": "mlflow", "trackio": "trackio", "comet_ml": "comet"}
    unknown = sorted({*trackers} - {"wandb", "tensorboard", "none", "all", *extras})
    if unknown:
        t.tell(f"{', '.join(unknown)} is not here; metrics.jsonl has all numbers", "report_to")
    if "all" in trackers or "none" in trackers:
        t.tell("no tracker is found out: name each, as in [wandb]; metrics.jsonl has all numbers", "report_to")
    settings: dict[str, Any] = {}
    if "wandb" in trackers:
        settings["logger.wandb.enable"] = True
    if "tensorboard" in trackers:
        settings["logger.tensorboard_dir"] = t["logging_dir"] or str(Path(t["output_dir"] or ".") / "runs")
    else:
        t.tell("changes nothing: report_to has no tensorboard", "logging_dir")
    if more := tuple(extras[name] for name in trackers if name in extras):
        settings["logger.trackers"] = more
    if settings:
        t.becomes(settings, "report_to", *(["logging_dir"] if "tensorboard" in trackers else []))
    if t.gives("project") and not t["wandb_project"]:
        t.becomes({"logger.wandb.project": t["project"]}, "project", note="of every tracker")
    elif t.gives("project"):
        t.tell("changes nothing: wandb_project is every tracker's", "project")
    every = t.steps("logging_steps", t["logging_steps"]) if t["logging_strategy"] == "steps" else 1
    t.becomes({"logger.logging_steps": every}, "logging_steps", "logging_strategy")


def _evaluation(t: Translator) -> None:
    strategy = word_of(t.either("evaluation_strategy", "eval_strategy"))
    names = ("eval_strategy", "evaluation_strategy", "eval_steps")
    if strategy == "steps":
        name = "eval_steps" if t["eval_steps"] else "logging_steps"
        t.becomes({"eval.steps": t.steps(name, t[name])}, *names)
    elif strategy == "epoch":
        t.becomes({"eval.every_epoch": True}, *names)
    elif t.gives(*names):
        t.tell("no evaluation", *names)


def _saving(t: Translator) -> None:
    names, strategy = ("save_strategy", "save_steps"), word_of(t["save_strategy"])
    if strategy == "steps" and t["save_steps"] <= 0:
        t.becomes({"ckpt.save_steps": _NEVER}, *names, note="a checkpoint at the end alone, as there")
    elif strategy == "steps":
        t.becomes({"ckpt.save_steps": t.steps("save_steps", t["save_steps"])}, *names)
    elif strategy == "epoch":
        t.becomes({"ckpt.every_epoch": True}, *names)
    elif strategy == "no":
        t.tell("no checkpoint", *names)
    else:
        t.refuse("save_strategy", "no, steps and epoch are here; the best checkpoint is kept in any case")
    most = int(t["save_total_limit"] or 0)
    t.becomes({"ckpt.max_num": most if most > 0 else _NO_LIMIT}, "save_total_limit", note="and the best")
    if t["save_only_model"] and strategy != "no":
        note = "a run without training checkpoints cannot go on"
        t.becomes({"ckpt.disable_ds": True, "ckpt.save_hf": True}, "save_only_model", note=note)


def _best(t: Translator) -> None:
    names = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
    remedy = "the best checkpoint is that of the lowest eval_loss: leave it out"
    if not t["load_best_model_at_end"]:
        t.tell("for callbacks of a script alone; the best checkpoint is that of the lowest eval_loss", *names)
    elif t["metric_for_best_model"] not in (None, "loss", "eval_loss"):
        t.refuse("metric_for_best_model", remedy)
    elif t["greater_is_better"]:
        t.refuse("greater_is_better", remedy)
    else:
        t.becomes({"ckpt.export_best": True}, *names)


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
        note = "" if t["hub_private_repo"] is not None else ", private, unless hub_private_repo is false"
        t.becomes({"hub.push": True, "hub.model_id": model_id}, *names, note=f"no checkpoint{note}")
    elif t["hub_model_id"]:
        t.becomes({"hub.model_id": t["hub_model_id"]}, *names)


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


PARTS: tuple[Callable[[Translator], None], ...] = (
    _accelerator,
    batch,
    length_of_run,
    _optimizer,
    _schedule,
    _precision,
    _checkpointing,
    _experts,
    _deepspeed,
    _tracking,
    _evaluation,
    _saving,
    _best,
    _folders,
    _hub,
    rows,
    targets,
    _adapters,
    data,
)
