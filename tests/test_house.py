"""The rules of the house, held against its source: imports one way, short functions and files, true figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house import insides, measures, rooms, source, table
from tests.house.trace import files_of_one_step
from tests.house.way import ENTRIES, LEAVES, ON_SOME_PROCESSORS, WAY

FIGURE = r"\b\d[\d,]*\b"


def one_a_line(problems) -> str:
    return "\n".join(problems)


def test_imports_run_one_way():
    assert not (wrong := list(rooms.imports_up_the_house())), one_a_line(wrong)


def test_every_file_belongs_to_a_room():
    found = {rooms.room_of(name) for name in source.modules()}
    assert found <= {*rooms.ROOMS, rooms.FACE, rooms.PACKAGE_ITSELF}


def test_no_function_is_long():
    assert not (wrong := measures.long_functions()), one_a_line(wrong)


def test_no_file_is_long():
    assert not (wrong := measures.long_files()), one_a_line(wrong)


def test_no_two_classes_have_one_name():
    assert not (wrong := measures.classes_of_one_name()), one_a_line(wrong)


def test_the_figures_of_the_document_are_true():
    """To a hundredth: a change of one line is no reason to fail."""
    in_document, counted = table.table_of_document(), table.table()
    assert _words(in_document) == _words(counted), "run: python -m tests.house --write"
    assert _figures(in_document) == pytest.approx(_figures(counted), rel=0.01), "run: python -m tests.house --write"


def _words(text: str) -> str:
    return re.sub(FIGURE, "", text)


def _figures(text: str) -> list[int]:
    return [int(figure.replace(",", "")) for figure in re.findall(FIGURE, text)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory, one_rank):
    """The files that a real optimizer step ran through."""
    return one_rank.run(files_of_one_step, tmp_path_factory.mktemp("house"))[0]


def test_a_step_runs_through_no_file_that_the_way_does_not_name(traced):
    assert not (unnamed := sorted(traced - WAY.keys() - LEAVES.keys())), (
        f"add each to WAY or, with a reason, to LEAVES in tests/house/way.py: {', '.join(unnamed)}"
    )


def test_the_way_names_no_file_that_a_step_passes_by(traced):
    idle = sorted((WAY.keys() | LEAVES.keys()) - traced - ON_SOME_PROCESSORS)
    assert not idle, f"not on the way: {', '.join(idle)}"


def test_way_and_leaves_are_apart():
    assert not WAY.keys() & LEAVES.keys()
    assert ENTRIES.keys() <= WAY.keys()
    assert LEAVES.keys() >= ON_SOME_PROCESSORS


# --- the counts themselves, on source made for the purpose -------------------------------------------------------


def house_of(monkeypatch, **texts: str) -> None:
    """A package of these modules, `__` in a name for a dot, in place of the real one."""
    made = {}
    for name, text in texts.items():
        name = f"openrlhf.{name.replace('__', '.')}"
        made[name] = source.Module(name, f"{name.removeprefix('openrlhf.').replace('.', '/')}.py", text)
    for module in (source, measures, insides):
        monkeypatch.setattr(module, "modules", lambda: made)
    for module in (measures, rooms):
        monkeypatch.setattr(module, "imports", source.imports.__wrapped__)
    insides._own_names.cache_clear()


@pytest.fixture(autouse=True)
def _own_names_of_the_real_package():
    yield
    insides._own_names.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "from openrlhf.trainer.loop import Loop",
        "from openrlhf.trainer import loop",
        "import openrlhf.trainer.loop",
        "from ..trainer import loop",
        "def build():\n    from openrlhf.trainer.loop import Loop",
        "if TYPE_CHECKING:\n    from openrlhf.trainer.loop import Loop",
    ],
)
def test_an_import_up_the_house_is_found_wherever_it_stands(monkeypatch, text):
    house_of(monkeypatch, trainer__loop="", datasets__rows=text)
    (problem,) = rooms.imports_up_the_house()
    assert problem.startswith(f"openrlhf/datasets/rows.py:{text.count(chr(10)) + 1} imports openrlhf.trainer.loop")
    assert problem.endswith("room datasets may not import room trainer")


@pytest.mark.parametrize(
    ("room", "imported", "allowed"),
    [("cli", "config", True), ("config", "config", True), ("config", "cli", False), ("utils", "cli", True),
     ("cli", "utils", False), ("cli", "openrlhf", True), ("attic", "config", False)],
)  # fmt: skip
def test_which_room_may_import_which(room, imported, allowed):
    assert rooms.may_import(room, imported) == allowed


def test_code_lines_are_no_comments_docstrings_and_blanks(monkeypatch):
    text = '''"""Doc
string."""

# why
x = 1  # here

def f():
    """Doc."""
    return """a
b"""
'''
    house_of(monkeypatch, a=text)
    assert measures.code_lines() == 4


def test_importers_are_counted_by_module(monkeypatch):
    house_of(
        monkeypatch,
        a="from openrlhf.b import x\nfrom openrlhf.c import y",
        b="from openrlhf.c import y",
        c="",
        d="import openrlhf.b",
    )
    assert measures.modules_with_one_importer() == []
    house_of(monkeypatch, a="from openrlhf.b import x\nfrom openrlhf.b import z", b="")
    assert measures.modules_with_one_importer() == ["openrlhf.b"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import deepspeed\ndeepspeed.zero.x = 1", "sets deepspeed.zero.x"),
        ("import deepspeed\nsetattr(deepspeed.zero, name, 1)", "sets an attribute of deepspeed.zero"),
        ("from torch._C import x", "imports _C"),
        ("from torch import _dynamo", "imports _dynamo"),
        ("config._attn_implementation", "reads _attn_implementation"),
        ('getattr(model, "_modules", None)', "reads _modules"),
        ("p.ds_numel", "reads ds_numel"),
    ],
)
def test_the_insides_of_another_library_are_found(monkeypatch, text, what):
    house_of(monkeypatch, models__a=text, engine__b=text)
    assert insides.places_outside_engine() == [f"openrlhf/models/a.py:{len(text.splitlines())} {what}"]


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    def __init__(self):\n        self._x = 1\n\ndef f(a):\n    return a._x",
        "import os\nos._exit(1)",
        "from __future__ import annotations",
        "import deepspeed\nengine = deepspeed.initialize()\nengine.x = 1",
    ],
)
def test_what_is_our_own_or_public_is_no_inside(monkeypatch, text):
    house_of(monkeypatch, models__a=text)
    assert insides.places_outside_engine() == []


def test_this_file_counts_the_whole_package():
    assert len(source.modules()) == len(list(Path(source.PACKAGE).rglob("*.py")))
