"""What OpenRLHF's flags mean there and here: the differences, and the settings that take its meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from openrlhf.config.schema import Root, settings

INPUT_TEMPLATE = "User: {}\nAssistant: "

# Flags of OpenRLHF's that need nothing here, by their last word; why.
WITHOUT_EFFECT = {
    "compute_fp32_loss": "losses are computed in float32 in any case",
    "compute_fp32_loss_enable": "losses are computed in float32 in any case",
    "dataloader_num_workers": "batches are made in a thread beside the training",
    "disable_fast_tokenizer": "rows are read by the fast tokenizer, as the model's folder has it",
    "use_ms": "a name is looked up on the Hugging Face hub; give folders that `modelscope download` has filled",
}

# The same of one command alone, by its name.
_WITHOUT_EFFECT_IN = {
    "serve_rm": {"batch_size": "texts are computed together by --reward.max_tokens_per_batch"},
    "lora_combiner": {"is_rm": "an adapter says of itself that it is a reward model's"},
}

# Flags of others that ask for what is not here, by command and last word; why.
_NOT_HERE = {
    "train_dpo": {
        "f_divergence_type": (
            "the tie to the reference is the reverse KL divergence (docs/preferences.md); leave it out"
        ),
        "rpo_alpha": "the loss of the chosen answers is added by --model.nll_loss_coef",
    },
    "rejection_sampling": {
        "early_stop_patience": "--eval.dataset is answered after a training, and nothing is evaluated along its way; "
        "leave it out"
    },
}

Values = Mapping[str, Any]


def why_without_effect(root: type[Root], name: str) -> str | None:
    """Why a flag of OpenRLHF's needs nothing here; None for any other name."""
    last, command = name.rpartition(".")[2], root.command.usage.rpartition(".")[2]
    return WITHOUT_EFFECT.get(last) or _WITHOUT_EFFECT_IN.get(command, {}).get(last)


def why_not_here(root: type[Root], name: str) -> str | None:
    """Why there is no such flag; None for a name of which nothing is known."""
    return _NOT_HERE.get(root.command.usage.rpartition(".")[2], {}).get(name.rpartition(".")[2])


@dataclass(frozen=True)
class Difference:
    """A flag that means another thing there.

    Attributes:
        name: the setting.
        applies: whether it matters to a run with these settings, all of them, of which some names were given.
        takes: settings that give it its meaning there.
        always: they are taken from any command line that is recognisably OpenRLHF's, since ours would be refused.
    """

    name: str
    there: str
    here: str
    applies: Callable[[Values, Iterable[str]], Any]
    takes: Mapping[str, Any]
    always: bool = False


DIFFERENCES = (
    Difference(
        "data.input_template",
        f"{INPUT_TEMPLATE!r} where it is left out",
        "none",
        lambda all_, given: (
            "data.input_template" not in given
            and not all_["data.apply_chat_template"]
            and not all_["model.pretrain_mode_enable"]
        ),
        {"data.input_template": INPUT_TEMPLATE},
    ),
    Difference(
        "data.max_len",
        "longer rows are cut",
        "longer rows are left out (--data.overlong)",
        lambda all_, given: "data.overlong" not in given,
        {"data.overlong": "truncate"},
    ),
    Difference(
        "data.dataset_probs",
        "rows repeat until every data set is used up",
        "no row repeats (--data.stopping_strategy)",
        lambda all_, given: all_["data.dataset_probs"] and "data.stopping_strategy" not in given,
        {"data.stopping_strategy": "all_exhausted"},
    ),
    Difference(
        "model.pretrain_mode_enable",
        "a text gets no end token",
        "it ends with one (--data.pretrain_end_token)",
        lambda all_, given: all_["model.pretrain_mode_enable"] and "data.pretrain_end_token" not in given,
        {"data.pretrain_end_token": False},
    ),
    Difference(
        "eval.steps",
        "-1 evaluates after every epoch",
        "-1 evaluates at the end alone (--eval.every_epoch)",
        lambda all_, given: all_["eval.dataset"] and all_["eval.steps"] == -1 and "eval.every_epoch" not in given,
        {"eval.every_epoch": True},
    ),
    Difference(
        "adam.weight_decay",
        "embeddings decay too",
        "they do not (--adam.decay_embeddings)",
        lambda all_, given: all_["adam.weight_decay"] and "adam.decay_embeddings" not in given,
        {"adam.decay_embeddings": True},
    ),
    Difference(
        "logger.wandb.key",
        "a key turns W&B on",
        "--logger.wandb.enable does",
        lambda all_, given: all_["logger.wandb.key"] and "logger.wandb.enable" not in given,
        {"logger.wandb.enable": True},
    ),
    Difference(
        "logger.tensorboard_dir",
        "charts are named train/gpt_loss, train/loss_mean, eval/eval gpt_loss",
        "train/loss, eval/loss (--logger.openrlhf_names)",
        lambda all_, given: (
            (all_["logger.tensorboard_dir"] or all_["logger.wandb.enable"] or all_["logger.wandb.key"])
            and "logger.openrlhf_names" not in given
        ),
        {"logger.openrlhf_names": True},
    ),
    Difference(
        "ckpt.save_hf",
        "without --ckpt.save_steps it does nothing",
        "so it is refused; taken as there",
        lambda all_, given: (
            all_["ckpt.save_hf"]
            and all_["ckpt.save_steps"] < 1
            and not (all_["ckpt.every_epoch"] or all_["ckpt.save_minutes"])
        ),
        {"ckpt.save_hf": False},
        always=True,
    ),
)


def is_theirs(names: Iterable[str]) -> bool:
    """Whether these names, as they were given, are of a command line for OpenRLHF up to 0.9: it has --pretrain."""
    return "pretrain" in names


def take(root: type[Root], given: dict[str, Any], theirs: bool) -> list[str]:
    """Gives settings their meaning in OpenRLHF, where `compat` is among them; the table of differences, as lines.

    Args:
        given: settings by dotted name, which are changed.
        theirs: the command line is recognisably OpenRLHF's.
    """
    compat = given.get("compat")
    if not (compat or theirs):
        return []
    values = {name: row.default for name, row in settings(root).items()} | given
    found = [one for one in DIFFERENCES if _is_known(one, values) and one.applies(values, given)]
    taken = [one for one in found if compat or one.always]
    for one in taken:
        given.update(one.takes)
    if not found:
        return []
    other = "OpenRLHF means another thing by these flags (see --compat)"
    head = f"--compat {compat}: taken as there" if compat else other
    return [head + ":", *(f"  --{one.name}: there {one.there}; here {one.here}" for one in found)]


def meaning_in_script(args: Any, name: str) -> Any:
    """What a call means by a setting that it leaves out: under `args.compat` the script's own value, else OpenRLHF's.

    None without `compat`. `args` is any object or dict, nested or flat.
    """
    if not _value(args, "compat"):
        return None
    group, _, leaf = name.rpartition(".")
    theirs = (one.takes[name] for one in DIFFERENCES if name in one.takes)
    return _value(_value(args, group), leaf) or _value(args, leaf) or next(theirs, None)


def _value(args: Any, name: str) -> Any:
    return args.get(name) if isinstance(args, Mapping) else getattr(args, name, None)


def _is_known(difference: Difference, values: Values) -> bool:
    """Whether the root has the settings that it speaks of: other commands have other groups."""
    try:
        difference.applies(values, ())
    except KeyError:
        return False
    return difference.takes.keys() <= values.keys()
