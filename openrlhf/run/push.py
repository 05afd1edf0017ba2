"""A model's folder on its way to the hub, at HF_ENDPOINT."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from openrlhf.checkpoint.export import is_exported
from openrlhf.checkpoint.manifest import listed_names
from openrlhf.config import TrainingConfig
from openrlhf.config.disk import split_names
from openrlhf.errors import UserError, first_line_of
from openrlhf.run.merge import merge_exported
from openrlhf.run.model_card import CARD_FILE, write_card
from openrlhf.run.report import CURVES_FILE
from openrlhf.tracking.metrics_file import METRICS_FILE


def describe_and_push(
    config: TrainingConfig, model: Any, report: Any, exported_step: int, say: Callable[[str], None]
) -> None:
    """What follows an export: the merged model, the card, the upload that `config.hub` asks for; what fails is told.

    Args:
        report: of the training data.
        exported_step: the optimizer step whose weights the model has.
    """
    hub, folder = config.hub, Path(config.ckpt.output_dir)
    try:
        if config.ckpt.merge_lora:
            merge_exported(config)
            say(f"the base with the adapter in it is in {config.ckpt.merged_dir}.")
    except (UserError, OSError) as error:
        say(f"warning: {error}")
    try:
        write_card(
            folder,
            config,
            report,
            exported_step,
            model_name=hub.model_id,
            dataset_names=split_names(config.data.dataset),
            tags=hub.tags or (),
            is_adapter=hasattr(model, "peft_config"),
            **hub.card_fields(),
        )
        if hub.push:
            address = push_folder(folder, hub.model_id or "", private=hub.private, revision=hub.revision)
            say(f"the model is at {address}.")
    except (UserError, OSError) as error:
        say(f"warning: {error}")


def push_folder(
    folder: Path | str,
    model_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload of a model by openrlhf",
    token: str | None = None,
    more: Sequence[str] = (),
) -> str:
    """Uploads an exported model, its card and its metrics, and nothing else; makes the repository if need be.

    Args:
        model_id: owner/name; a name alone is of the token's owner.
        private: of a repository that is made; one that is there stays as it is.
        revision: branch; it is made if need be.
        more: patterns of further files, in the folder itself.

    Returns: the address of the commit.
    Raises UserError where the folder holds no whole model, or the hub refuses or cannot be reached; what is in the
        folder is untouched.
    """
    folder = Path(folder)
    if not is_exported(folder):
        raise UserError(
            f"{folder} holds no whole exported model (config.json or adapter_config.json): nothing is pushed."
        )
    api = HfApi(token=token)
    try:
        repository = api.create_repo(model_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=[*map(glob.escape, _names_to_push(folder, more))],
        )
    except Exception as error:  # of the network or the hub, in any way
        again = f"python -m openrlhf.cli.push --ckpt.output_dir {folder} --hub.model_id {model_id}"
        again += f" --hub.revision {revision}" if revision else ""
        again += "" if private else " --hub.private false"
        raise UserError(
            f"{folder} could not be pushed to {model_id} at {api.endpoint}: {_reasons(error)} Nothing is lost; "
            f"again: {again}"
        ) from error
    return str(commit.commit_url)


def _names_to_push(folder: Path, more: Sequence[str]) -> list[str]:
    """Of the model what its manifest lists; without a manifest, what lies in the folder itself."""
    names = listed_names(folder) or [path.name for path in folder.iterdir() if path.name[0] != "." and path.is_file()]
    further = [path.name for pattern in more for path in folder.glob(pattern)]
    return [*names, CARD_FILE, METRICS_FILE, CURVES_FILE, *further]


def _reasons(error: BaseException) -> str:
    """The error, and what lies behind it: the hub's library often says no more than which file it was."""
    behind = f" ({first_line_of(error.__cause__)})" if error.__cause__ is not None else ""
    return first_line_of(error) + behind
