"""The parts of TRL's settings that speak of the data: rows, how many a step and a run have, targets, sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from openrlhf.config.disk import local_path
from openrlhf.config.trl_names import BESIDE_A_RECIPE

if TYPE_CHECKING:
    from openrlhf.config.trl_translation import Translator

_OF_MIXTURE = {"datasets", "test_split_size", "seed"}  # the seed is that of rows set aside, which are refused
_OF_SOURCE = {"id", "path", "config", "name", "split", "columns", "weight"}
_LONGEST = 2**40  # tokens of a sample where max_length is none


def word_of(strategy: Any) -> str:
    """A strategy as text, whether it is given as such or as a member of transformers' enumerations."""
    return str(getattr(strategy, "value", strategy)).lower()


def batch(t: Translator) -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "batch_size", "micro_batch_size")
    for name in names:
        if t[name] is not None and t[name] < 1:
            t.refuse(name, "give a whole number above 0")
    micro_batch_size = max(1, int(t.either("micro_batch_size", "per_device_train_batch_size")))
    accumulation, ranks = max(1, int(t["gradient_accumulation_steps"])), t.num_data_ranks
    batch_size = t["batch_size"] or micro_batch_size * accumulation * ranks
    note = "" if t["batch_size"] else f"{micro_batch_size} × {accumulation} × {ranks} ranks"
    t.becomes({"train.batch_size": batch_size, "train.micro_batch_size": micro_batch_size}, *names, note=note)


def length_of_run(t: Translator) -> None:
    max_steps, epochs = int(t["max_steps"]), float(t["num_train_epochs"])
    if max_steps > 0:
        t.becomes({"train.max_steps": max_steps, "train.max_epochs": max_steps}, "max_steps")
        return
    settings: dict[str, Any] = {"train.max_epochs": max(1, math.ceil(epochs))}
    steps_per_epoch = t.num_steps_per_epoch()
    if epochs <= 0:
        t.refuse("num_train_epochs", "give a number above 0, or max_steps")
    elif epochs != int(epochs) and steps_per_epoch is None:
        t.refuse("num_train_epochs", "epochs are whole here; give max_steps")
    elif epochs != int(epochs) and steps_per_epoch is not None:
        settings["train.max_steps"] = max(1, math.ceil(epochs * steps_per_epoch))
    t.becomes(settings, "num_train_epochs")


def rows(t: Translator) -> None:
    names = ("max_seq_len", "max_seq_length", "max_length")
    given = [name for name in names if t.gives(name)]
    longest = t[given[0]] if given else t.either(*names)
    note = "longer samples are cut, as there"
    settings = {"data.max_len": _LONGEST if longest is None else int(longest), "data.overlong": "truncate"}
    t.becomes(settings, *names, note="" if longest is None else note)
    if t["packing"] or t["padding_free"]:
        note = "a step has so many samples; there: so many packs of max_length"
        t.becomes({"ds.packing_samples": True}, "packing", "padding_free", note=note if t["packing"] else "")
    field = t["dataset_text_field"]
    t.becomes({"data.format": "trl"} | ({"data.input_key": field} if field != "text" else {}), "dataset_text_field")
    if t["chat_template_path"]:
        t.becomes({"data.tokenizer_chat_template": _template_file(t)}, "chat_template_path")
    if t["loss_type"] not in ("nll", "chunked_nll", "dft"):
        t.refuse("loss_type", f"nll and dft are here; without it {BESIDE_A_RECIPE} --train.loss module:Name, your own")
    else:
        t.becomes({"train.loss": str(t["loss_type"]).removeprefix("chunked_")}, "loss_type")
    t.becomes({"data.control_tokens": "keep"})


def _template_file(t: Translator) -> str:
    """Of the template alone: another tokenizer's tokens need rows of the model, which no setting gives it."""
    path = local_path(t["chat_template_path"])
    if not path.is_file():
        t.refuse(
            "chat_template_path",
            "there, a tokenizer gives its tokens and its end token too. Give the file of a template, such as "
            f"{path / 'chat_template.jinja'}, to take that alone; for all of it call clone_chat_template(model, "
            f"tokenizer, {str(path)!r}) of openrlhf.compat.trl, and give SFTTrainer what it gives back",
        )
    return str(path)


def targets(t: Translator) -> None:
    of_completions = {True: "completion", False: "everything", None: "completion_or_everything"}
    targets = "all_turns" if t["assistant_only_loss"] else of_completions[t["completion_only_loss"]]
    note = "of a completion's messages what the assistant says, each up to its closing token; there: all of its text"
    if t["assistant_only_loss"]:
        note = "of rows with a completion: in a script those of the completion, in a recipe those of the prompt too"
    is_open = t["completion_only_loss"] is not False
    t.becomes({"data.targets": targets}, "assistant_only_loss", "completion_only_loss", note=note if is_open else "")


def data(t: Translator) -> None:
    names = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_mixture", "datasets", "dataset_split")
    mixture = t["dataset_mixture"] or ({"datasets": t["datasets"]} if t["datasets"] else None)
    split, config = t.either("dataset_split", "dataset_train_split"), t["dataset_config"]
    settings: dict[str, Any] = {}
    if mixture:
        settings = _mixture(t, mixture)
    elif t["dataset_name"]:
        settings = {"data.dataset": _source(t["dataset_name"], config), "data.dataset_split": split}
    t.becomes(settings, *names)
    evaluates = word_of(t.either("evaluation_strategy", "eval_strategy")) != "no"
    if evaluates and settings and not mixture:
        settings = {"eval.dataset": settings["data.dataset"], "eval.split": t["dataset_test_split"]}
        t.becomes(settings, "dataset_test_split")
    else:
        t.tell("changes nothing: no evaluation on a split of dataset_name", "dataset_test_split")


def _source(name: str, config: Any) -> str:
    return f"{name}@{config}" if config else name


def _mixture(t: Translator, mixture: Mapping[str, Any]) -> dict[str, Any]:
    """Several sources; each has all its rows, of the columns that tell its format."""
    parts = [part if isinstance(part, Mapping) else {} for part in mixture.get("datasets") or []]
    where = "dataset_mixture" if t["dataset_mixture"] else "datasets"
    if not parts or any(not (part.get("id") or part.get("path")) for part in parts):
        t.refuse(where, "it needs a list datasets, each with an id")
        return {}
    unread = {*mixture} - _OF_MIXTURE | {name for part in parts for name in part if name not in _OF_SOURCE}
    if unread:
        remedy = "name a file by its path, as id, and give shares by data.dataset_probs"
        t.refuse(where, f"its {', '.join(sorted(unread))} cannot be read: {remedy}")
    if any(part.get("weight") not in (None, 1, 1.0) for part in parts):
        t.refuse(where, "weight takes a share of a source's rows; data.dataset_probs gives each its share of the mix")
    if mixture.get("test_split_size"):
        t.refuse(where, "test_split_size sets rows aside; put them into a file of their own, and name it eval.dataset")
    splits = {part.get("split") or "train" for part in parts}
    if len(splits) > 1:
        t.refuse(where, f"its sources have several splits ({', '.join(sorted(splits))}); name files by their paths")
    names = [_source(part.get("id") or part["path"], part.get("config") or part.get("name")) for part in parts]
    return {"data.dataset": ",".join(names), "data.dataset_split": splits.pop()}
