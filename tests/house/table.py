"""The measures as a table, and the table's place in `docs/architecture.md`."""

from __future__ import annotations

from tests.house import insides, measures
from tests.house.source import PROJECT_ROOT

DOCUMENT = PROJECT_ROOT / "docs/architecture.md"
BEGIN, END = "<!-- begin: python -m tests.house --write -->", "<!-- end -->"

# The same counts at commit 063792e, before the house was redrawn. (There `engine/` was `utils/deepspeed/`.)
BEFORE = ("8 / 1,591", "13 / 1,160", "10,950", "71", "68 / 1", "2", "27 in 14 files", "453", "about 20 edits")
PLAN = ("8 / 1,200", "", "9,500", "35", "60 / 0", "0", "0", "", "1 file and 1 line")


def table() -> str:
    """The block of the document, markers included."""
    rows = zip(_counted(), BEFORE, PLAN, strict=True)
    lines = [f"| {name} | {before} | {now} | {plan} |" for (name, now), before, plan in rows]
    head = ["| measure | before (063792e) | now | plan |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([BEGIN, *head, *lines, END])


def _counted() -> list[tuple[str, str]]:
    """(measure, its figure)."""
    longest, num_long = measures.longest_function(), len(measures.long_functions())
    return [
        ("files / lines to follow one optimizer step from `train_sft`", _pair(measures.way_of_a_step())),
        ("files / lines that the step runs through besides, as leaves", _pair(measures.leaves_of_a_step())),
        ("code lines: no comments, docstrings, blanks", f"{measures.code_lines():,}"),
        ("modules with exactly one importer", f"{len(measures.modules_with_one_importer())}"),
        (f"longest function / functions over {measures.LONGEST_FUNCTION} lines", f"{longest} / {num_long}"),
        (f"files of code over {measures.LONGEST_FILE} lines", f"{len(measures.long_files())}"),
        ("places outside `engine/` that patch or read the insides of another library", _places()),
        ("uses of `Any`", f"{measures.num_any()}"),
        ("a new objective (`examples/own_objective.py`)", "1 file and 1 line"),
    ]


def _pair(files_and_lines: tuple[int, int]) -> str:
    num_files, num_lines = files_and_lines
    return f"{num_files} / {num_lines:,}"


def _places() -> str:
    places = insides.places_outside_engine()
    num_files = len({place.partition(":")[0] for place in places})
    return f"{len(places)} in {num_files} files" if places else "0"


def table_of_document() -> str:
    """The block that stands in the document; empty where it has none."""
    _, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    block, end, _ = rest.partition(END)
    return begin + block + end


def write_table() -> None:
    """Puts a fresh table in place of the document's; at its end where it has none."""
    text, old = DOCUMENT.read_text(encoding="utf-8"), table_of_document()
    new = text.replace(old, table()) if old else f"{text.rstrip()}\n\n## Measures of the house\n\n{table()}\n"
    DOCUMENT.write_text(new, encoding="utf-8")
