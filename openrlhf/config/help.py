"""The table of all settings, as `--help` prints it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf.config.kinds import choices
from openrlhf.config.schema import Setting, groups, settings

_INTRODUCTION = """\
Supervised fine-tuning.

  deepspeed --module openrlhf.cli.train_sft FLAGS
  deepspeed --module openrlhf.cli.train_sft @ run.toml FLAGS

A file (TOML or YAML, also --config FILE) gives the same names, nested or dotted; flags win over it.
A switch without a value is true; `none` takes back an optional value. The flat names of OpenRLHF up to 0.9
(--pretrain, --train_batch_size, ...) are taken too.
"""


def print_help(console: Console | None = None) -> None:
    """Prints every setting with its default, group by group."""
    console = console or Console()
    console.print(Text(_INTRODUCTION))
    for prefix, about in groups().items():
        console.print(Text.assemble((prefix, "bold cyan"), "  " if prefix else "", (about, "bold")))
        console.print(_group_table(prefix))
        console.print()


def _group_table(prefix: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="green", overflow="fold", max_width=24)
    table.add_column()
    for row in settings().values():
        if row.name.rpartition(".")[0] == prefix:
            table.add_row(Text("--" + row.name), Text(_show(row.default)), Text(_help_of(row)))
    return table


def _help_of(row: Setting) -> str:
    options = choices(row.kind)
    return f"{row.help} [{' | '.join(str(option) for option in options)}]" if options else row.help


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(_show(value) for value in default)
    if isinstance(default, (bool, type(None))):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)
