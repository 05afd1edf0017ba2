"""Counts of the package's source."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.house.source import PACKAGE, Module, code_files, imports, length_of, modules
from tests.house.way import LEAVES, WAY

LONGEST_FUNCTION, LONGEST_FILE = 60, 350  # lines


def code_lines() -> int:
    """Lines of all Python files that are no blank, no comment and no docstring."""
    return sum(_code_lines_of(module) for module in modules().values())


def _code_lines_of(module: Module) -> int:
    docstrings = {line for node in module.nodes for line in _docstring_lines(node)}
    lines = enumerate(module.text.splitlines(), 1)
    return sum(
        1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in docstrings
    )


def _docstring_lines(node: ast.AST) -> range:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        first = node.body[0]
        assert first.end_lineno is not None
        return range(first.lineno, first.end_lineno + 1)
    return range(0)


def lines_of(files: dict[str, str]) -> int:
    """All lines of some files of the package, comments and blanks included."""
    return sum(len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in files)


def way_of_a_step() -> tuple[int, int]:
    """(files, lines) that a reader opens to follow one optimizer step from `train_sft`."""
    return len(WAY), lines_of(WAY)


def leaves_of_a_step() -> tuple[int, int]:
    """(files, lines) that a step runs through besides."""
    return len(LEAVES), lines_of(LEAVES)


def modules_with_one_importer() -> list[str]:
    """Modules that exactly one other module of the package imports, a package's `__init__.py` counted like any."""
    importers = defaultdict(set)
    for one in imports():
        if one.importer.name != one.imported:
            importers[one.imported].add(one.importer.name)
    return [name for name in modules() if len(importers[name]) == 1]


def longest_function() -> int:
    """Its lines."""
    return max(length_of(function) for module in modules().values() for function in module.functions)


def long_functions() -> list[str]:
    """A sentence for each function over the limit."""
    return [
        f"openrlhf/{module.file}:{function.lineno} {function.name} has {length_of(function)} lines, "
        f"more than {LONGEST_FUNCTION}"
        for module in modules().values()
        for function in module.functions
        if length_of(function) > LONGEST_FUNCTION
    ]


def long_files() -> list[str]:
    """A sentence for each file of code over the limit, Python or not."""
    return [
        f"openrlhf/{file} has {num_lines} lines, more than {LONGEST_FILE}"
        for file, num_lines in code_files().items()
        if num_lines > LONGEST_FILE
    ]


def classes_of_one_name() -> list[str]:
    """A sentence for each name that two classes have."""
    places = defaultdict(list)
    for module in modules().values():
        for one in module.classes:
            places[one.name].append(f"openrlhf/{module.file}:{one.lineno}")
    return [f"class {name} stands in {' and '.join(where)}" for name, where in places.items() if len(where) > 1]


def num_any() -> int:
    """Uses of `Any`, its imports not counted."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in _all_nodes())


def _all_nodes() -> Iterator[ast.AST]:
    for module in modules().values():
        yield from module.nodes
