"""The table of all settings, as `--help` prints it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf.config.kinds import choices
from openrlhf.config.schema import AUTO, Root, Setting, groups, settings, synonyms

_FILES_AND_VALUES = """\
A file (TOML or YAML, also --config FILE) gives the same names, nested or dotted; flags win over it.
A switch without a value is true; `none` takes back an optional value.
"""
_LAYOUT = """\
A layout that is auto is chosen by the run, and changes no result (docs/layouts.md). With --train.micro_batch_size=N
nothing is auto but what is given so.
"""


def print_help(root: type[Root], console: Console | None = None) -> None:
    """Prints every setting that can be given, with its default, group by group."""
    console = console or Console()
    console.print(Text(_introduction(root)))
    shown = [row for name, row in settings(root).items() if name not in root.command.set_by_itself]
    for prefix, about in groups(root).items():
        table = _group_table([row for row in shown if row.name.rpartition(".")[0] == prefix])
        if table.row_count:
            console.print(Text.assemble((prefix, "bold cyan"), "  " if prefix else "", (about, "bold")))
            console.print(table)
            console.print()


def _introduction(root: type[Root]) -> str:
    title, usage = root.command.title, root.command.usage
    text = f"{title}\n\n  {usage} FLAGS\n  {usage} @ run.toml FLAGS\n\n{_FILES_AND_VALUES}"
    old_names = [f"--{old}" for old, name in synonyms(root).items() if isinstance(name, str) and "." not in old]
    text += _LAYOUT if any(row.takes_auto for row in settings(root).values()) else ""
    return text + (f"The flat names of OpenRLHF up to 0.9 are taken too ({old_names[0]}, ...).\n" if old_names else "")


def _group_table(rows: list[Setting]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="green", overflow="fold", max_width=24)
    table.add_column()
    for row in rows:
        table.add_row(Text("--" + row.name), Text(AUTO if row.takes_auto else _show(row.default)), Text(_help_of(row)))
    return table


def _help_of(row: Setting) -> str:
    options = (*choices(row.kind), AUTO) if choices(row.kind) and row.takes_auto else choices(row.kind)
    return f"{row.help} [{' | '.join(str(option) for option in options)}]" if options else row.help


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(_show(value) for value in default)
    if isinstance(default, (bool, type(None))):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)
