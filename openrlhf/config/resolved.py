"""The whole resolved configuration as a file that `@` reads back. YAML, since TOML has no word for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from openrlhf.atomic_file import replace_file
from openrlhf.config.schema import settings, values_of
from openrlhf.config.settings import SFTConfig

FILE_NAME = "run_config.yaml"
_HEADER = f"# Every setting of this run. Again: deepspeed --module openrlhf.cli.train_sft @ {FILE_NAME}\n"


def write_resolved(config: SFTConfig, path: str | Path) -> None:
    """Writes every setting but the secrets, in one atomic move; makes the folder if need be.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, _HEADER + yaml.safe_dump(_nested(config), sort_keys=False, width=110))


def _nested(config: SFTConfig) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    values = values_of(config)
    for row in settings().values():
        if row.secret:
            continue
        *groups, leaf = row.name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        value = values[row.name]
        branch[leaf] = list(value) if isinstance(value, tuple) else value
    return tree
