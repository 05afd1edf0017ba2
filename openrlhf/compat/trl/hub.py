"""Card and push, as a script's trainer asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf.compat.trl.run import TrlRun
from openrlhf.config.hub_settings import card_problems
from openrlhf.errors import UserError
from openrlhf.run.model_card import CARD_FILE, write_card
from openrlhf.run.push import push_folder

_TOLD_OTHERWISE = {"finetuned_from", "tasks", "dataset", "dataset_args", "dataset_tags"}  # the run knows them


def write_model_card(
    run: TrlRun, model_name: str | None, dataset_name: str | Sequence[str] | None, tags: list[str], **metadata: Any
) -> None:
    """The card in the run's output folder; a card of the user's own stays, and is told."""
    folder = Path(run.config.ckpt.output_dir)
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name or ())
    known = {name: value for name, value in metadata.items() if name not in _TOLD_OTHERWISE and value is not None}
    if problems := [*card_problems(known)]:
        raise UserError(*problems)
    is_written = write_card(
        folder,
        run.config,
        run.train_data.report,
        run.trainer.exported_step,
        model_name=model_name,
        dataset_names=names,
        tags=tags,
        is_adapter=hasattr(run.trainer.model.model, "peft_config"),
        **known,
    )
    if not is_written:
        run.strategy.print(f"{folder / CARD_FILE} is a card of your own: it stays as it is.")


def model_id_of(args: Any) -> str:
    """The repository that a push goes to: the arguments' own, or the name of the output folder."""
    return args.hub_model_id or Path(args.output_dir).resolve().name


def push(args: Any, message: str, token: str | None, revision: str | None) -> str | None:
    """Uploads the output folder; where it cannot be, a sentence says so, and how to do it again."""
    folder = Path(args.output_dir)
    try:
        return push_folder(
            folder,
            model_id_of(args),
            private=args.hub_private_repo is not False,
            revision=revision or args.hub_revision,
            message=message,
            token=token or args.hub_token,
            more=("*_results.json", "trainer_state.json"),
        )
    except UserError as error:
        print(f"warning: {error}", flush=True)
        return None
