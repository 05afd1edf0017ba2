"""Methods of a subclass that TRL or transformers would call, and nothing here does: they must not pass for obeyed."""

from __future__ import annotations

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


def check_overrides(kind: type, face: type) -> None:
    """Raises UserError for what a subclass `kind` of our `face` overrides in vain."""
    from transformers import Trainer

    names = {name for one in kind.__mro__[: kind.__mro__.index(face)] for name in vars(one)}
    own = {name for name in names if callable(getattr(Trainer, name, None))}
    problems = []
    never_called = (own - {*dir(face)}) | (names & _OF_TRL)
    if never_called:
        problems.append(
            f"{kind.__name__} overrides {', '.join(sorted(never_called))}, which is never called here. What stands "
            "beside the loop is a TrainerCallback, what is done to rows is done before they are given, or by "
            f"formatting_func; {BESIDE_A_RECIPE} --train.loss module:Name, a loss of your own."
        )
    problems += [
        f"{kind.__name__} overrides {name}, which is not called along the way here: a TrainerCallback is, {event}. "
        "Give what your script itself calls another name."
        for name, event in _ALONG_THE_WAY.items()
        if name in own
    ]
    if problems:
        raise UserError(*problems)
