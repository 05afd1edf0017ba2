"""The package's source, read once: modules, the imports between them, functions, classes."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT_ROOT / "openrlhf"
CODE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".js", ".css", ".html", ".jinja")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A Python file of the package."""

    name: str  # openrlhf.trainer.loop; a package's own file has the package's name
    file: str  # trainer/loop.py
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]

    @property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in self.nodes if isinstance(node, ast.ClassDef)]


@dataclass(frozen=True)
class Import:
    """One name that a module takes from the package, also inside a function or under TYPE_CHECKING."""

    importer: Module
    line: int
    imported: str  # the module's name


@functools.cache
def modules() -> dict[str, Module]:
    """All modules by name."""
    made = (_module(path) for path in sorted(PACKAGE.rglob("*.py")))
    return {module.name: module for module in made}


def _module(path: Path) -> Module:
    file = path.relative_to(PACKAGE)
    parts = ("openrlhf", *file.with_suffix("").parts)
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, file.as_posix(), path.read_text(encoding="utf-8"))


@functools.cache
def imports() -> tuple[Import, ...]:
    """All imports of the package from itself; `from openrlhf.a import b` names a, and a.b where that is a module."""
    return tuple(
        Import(module, line, name)
        for module in modules().values()
        for line, name in _names_taken(module)
        if name in modules()
    )


def _names_taken(module: Module) -> Iterator[tuple[int, str]]:
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, module)
            yield node.lineno, origin
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def _origin(node: ast.ImportFrom, module: Module) -> str:
    """The absolute name of `x` in `from x import …`, where dots may stand before it."""
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    package = package if module.file.endswith("__init__.py") else package[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def code_files() -> dict[str, int]:
    """Lines of every file of code, Python or not, by the file's name."""
    paths = (path for path in sorted(PACKAGE.rglob("*")) if path.suffix in CODE_SUFFIXES)
    return {path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def length_of(function: Function) -> int:
    """Lines from `def` to the end, docstring and blanks included."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1
