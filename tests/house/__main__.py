"""The measures of the house.

python -m tests.house            # the table, and whatever breaks a rule
python -m tests.house --list     # also each module with one importer, and each place that reads another's insides
python -m tests.house --trace    # also the files that one real optimizer step runs through
python -m tests.house --write    # puts the table into docs/architecture.md
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.helpers.ranks import RankPool
from tests.house import insides, measures, rooms, table
from tests.house.trace import files_of_one_step
from tests.house.way import LEAVES, WAY


def main() -> None:
    arguments = _arguments()
    if arguments.write:
        table.write_table()
    print(table.table())
    _print_list("rules broken", rules_broken())
    if arguments.list:
        _print_list("modules with exactly one importer", measures.modules_with_one_importer())
        _print_list("other libraries' insides", insides.places_outside_engine())
    if arguments.trace:
        with tempfile.TemporaryDirectory() as folder, RankPool(1) as ranks:
            (traced,) = ranks.run(files_of_one_step, Path(folder))
        _print_list("one step runs through", [f"{file}  ({_kind(file)})" for file in sorted(traced)])


def rules_broken() -> list[str]:
    """A sentence for each."""
    return [
        *rooms.imports_up_the_house(),
        *measures.long_functions(),
        *measures.long_files(),
        *measures.classes_of_one_name(),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.house", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("list", "trace", "write"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def _kind(file: str) -> str:
    return "way" if file in WAY else "leaf" if file in LEAVES else "NOT LISTED"


def _print_list(title: str, lines: list[str]) -> None:
    print(f"\n{title}: {len(lines)}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
