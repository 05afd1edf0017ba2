"""Methods and attributes that TRL or transformers would read, and nothing here does: they must not pass for obeyed."""

from __future__ import annotations

from openrlhf.compat.trl.given import NOT_HERE
from openrlhf.config.trl_names import BESIDE_A_RECIPE
from openrlhf.errors import UserError

_OF_TRL = {  # its trainers' own methods, of 0.9 to 1.16, beside those of transformers' Trainer
    "_create_model_from_path",
    "_enable_gradient_checkpointing",
    "_prepare_dataset",
    "_prepare_model_for_kbit_training",
    "_prepare_non_packed_dataloader",
    "_prepare_packed_dataloader",
    "_prepare_peft_model",
    "tokenize_row",
}
_ALONG_THE_WAY = {"evaluate": "on_evaluate", "save_model": "on_save"}  # here a script alone calls these methods
_READ_AT_ONCE = {  # attribute → what to do instead of setting it on a trainer that is built
    **dict.fromkeys(("args", "train_dataset"), "give it to SFTTrainer(…)"),
    "eval_dataset": "give it to SFTTrainer(…), or to evaluate(…)",
    "model": "give it to SFTTrainer(…); one that you have changed after training is saved by its save_pretrained",
    **dict.fromkeys(("optimizer", "lr_scheduler"), NOT_HERE["optimizers"]),
    **NOT_HERE,
}


def check_overrides(kind: type, face: type) -> None:
    """Raises UserError for what a subclass `kind` of our `face` overrides in vain."""
    names = {name for one in kind.__mro__[: kind.__mro__.index(face)] for name in vars(one)}
    _check_methods(f"{kind.__name__} overrides", names, face)


def check_set(name: str, face: type) -> None:
    """Raises UserError for what a script sets in vain on a trainer that is built."""
    if name in _READ_AT_ONCE:
        raise UserError(
            f"trainer.{name} is set, which nothing here reads once the trainer is built: {_READ_AT_ONCE[name]}."
        )
    _check_methods("The script sets on its trainer", {name}, face)


def _check_methods(who: str, names: set[str], face: type) -> None:
    from transformers import Trainer

    own = {name for name in names if callable(getattr(Trainer, name, None))}
    problems = []
    never_called = (own - {*dir(face)}) | (names & _OF_TRL)
    if never_called:
        problems.append(
            f"{who} {', '.join(sorted(never_called))}, which is never called here. What stands "
            "beside the loop is a TrainerCallback, what is done to rows is done before they are given, or by "
            f"formatting_func; {BESIDE_A_RECIPE} --train.loss module:Name, a loss of your own."
        )
    problems += [
        f"{who} {name}, which is not called along the way here: a TrainerCallback is, {event}. "
        "Give what your script itself calls another name."
        for name, event in _ALONG_THE_WAY.items()
        if name in own
    ]
    if problems:
        raise UserError(*problems)


def no_such_name(kind: str, name: str) -> str:
    """What is said of a name that a trainer lacks."""
    from transformers import Trainer

    if not callable(getattr(Trainer, name, None)):
        return f"{kind!r} object has no attribute {name!r}"
    return (
        f"{name} of transformers' Trainer is not here: what stands beside the loop is a TrainerCallback, and "
        "evaluate(…) gives the numbers of any rows."
    )
