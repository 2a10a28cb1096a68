"""What the modules of the package import, read from their syntax trees.

Imports under `if TYPE_CHECKING:` never run and are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """One imported module."""

    name: str  # full name
    line: int
    at_start: bool  # runs when the importing module is loaded, not inside a function


Graph = Mapping[str, frozenset[str]]


def module_files(src: Path) -> dict[str, Path]:
    """Full name of each module below `src` -> its file; a package is its `__init__.py`."""
    files = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(module: str, path: Path, modules: Iterable[str]) -> Iterator[Import]:
    """The modules among `modules` that one file imports.

    `from package import name` is the module `package.name` if there is one, else `package`.
    """
    known = set(modules)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, at_start in _import_statements(tree, at_start=True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = _absolute(node, package)
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in known else base for name in full]
        for name in dict.fromkeys(names):
            if name in known and name != module:
                yield Import(name, node.lineno, at_start)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _import_statements(
    node: ast.AST, at_start: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, at_start
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield from _import_statements(ast.Module([other], []), at_start)
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _import_statements(child, at_start and not function)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def graph(files: Mapping[str, Path], *, at_start_only: bool = False) -> dict[str, frozenset[str]]:
    """Module -> the modules that it imports, in functions too unless `at_start_only`."""
    return {
        module: frozenset(
            i.name for i in imports_of(module, path, files) if i.at_start or not at_start_only
        )
        for module, path in files.items()
    }


def loaded_with(module: str, edges: Graph) -> set[str]:
    """The module, what it imports, and so on, each with the packages that hold it."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in edges and name not in found:
            found.add(name)
            waiting += [*edges[name], name.rpartition(".")[0]]
    return found


def circles(edges: Graph) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return sorted(found)
