"""The whole resolved configuration as a file that `@` reads back. YAML, since TOML has no word for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from openrlhf.atomic_file import replace_file
from openrlhf.config.schema import Root, shown_values

FILE_NAME = "run_config.yaml"


def write_resolved(config: Root, path: str | Path) -> None:
    """Writes every setting but the secrets, in one atomic move; makes the folder if need be.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"# Every setting of this run. Again: {config.command.usage} @ {FILE_NAME}\n"
    replace_file(path, header + yaml.safe_dump(_nested(config), sort_keys=False, width=110))


def _nested(config: Root) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in shown_values(config).items():
        *groups, leaf = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = list(value) if isinstance(value, tuple) else value
    return tree
