"""Places outside `engine/` that patch another library, or read what it keeps to itself. A rule of thumb, like grep.

Counted are: an attribute of an imported module or class that is set; a private name of another library that is imported
or read (`config._attn_implementation`); and DeepSpeed's marks on a parameter (`ds_numel`). A private name counts as the
package's own where any of its files defines it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

from tests.house.source import Module, modules

ROOM_THAT_MAY = "engine/"
NAMED_ACCESS = ("getattr", "setattr", "hasattr", "delattr")
PUBLIC_ALL_THE_SAME = {"_exit", "_replace", "_asdict", "_fields"}  # documented, the underscore has other reasons


def places_outside_engine() -> list[str]:
    """`openrlhf/file:line what`, once for each line and name."""
    found = (
        f"openrlhf/{module.file}:{line} {what}"
        for module in modules().values()
        if not module.file.startswith(ROOM_THAT_MAY)
        for line, what in _places_of(module)
    )
    return list(dict.fromkeys(found))


def _places_of(module: Module) -> Iterator[tuple[int, str]]:
    foreign = _foreign_names(module)
    for node in module.nodes:
        if isinstance(node, ast.Assign | ast.AugAssign):
            yield from ((node.lineno, f"sets {ast.unparse(t)}") for t in _targets(node) if _root(t) in foreign)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("openrlhf", "__")):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, f"imports {name}") for name in names if _is_private(name))
        elif isinstance(node, ast.Attribute) and _is_inside(node.attr):
            yield node.lineno, f"reads {node.attr}"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in NAMED_ACCESS:
            yield from _places_of_named_access(node, foreign)


def _places_of_named_access(call: ast.Call, foreign: set[str]) -> Iterator[tuple[int, str]]:
    name = call.args[1].value if isinstance(call.args[1], ast.Constant) else None
    if isinstance(name, str) and _is_inside(name):
        yield call.lineno, f"reads {name}"
    elif getattr(call.func, "id", "") == "setattr" and _root(call.args[0]) in foreign:
        yield call.lineno, f"sets an attribute of {ast.unparse(call.args[0])}"


def _targets(node: ast.Assign | ast.AugAssign) -> list[ast.expr]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target for target in targets if isinstance(target, ast.Attribute)]


def _root(node: ast.expr) -> str | None:
    """`deepspeed` of deepspeed.runtime.engine; None where the expression is more than names and dots."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _foreign_names(module: Module) -> set[str]:
    """Names that imports from other libraries have bound."""
    names = set()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("openrlhf"):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _is_inside(name: str) -> bool:
    return (_is_private(name) or name.startswith("ds_")) and name not in _own_names()


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_ALL_THE_SAME


@functools.cache
def _own_names() -> frozenset[str]:
    """All names that the package defines: attributes of self and cls, functions, classes, fields, constants."""
    names = set()
    for module in modules().values():
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _root(node) in ("self", "cls"):
                names.add(node.attr)
    return frozenset(names)
