"""Figures about the source: what there is to read and how well it is separated.

    python tools/figures.py [ROOT]

Lines are all lines of a file, blank ones and comments too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from import_graph import Graph, circles, graph, loaded_with, module_files

DINO = "nolabel.methods.dino"
# A reader of DINO's page takes the network, error classes and bounds of options for granted.
GRANTED = ("nolabel.backbones", "nolabel.errors", "nolabel.limits")
# What a reader of a training step opens beside the loop.
LOOP = ("loop", "trainer", "step", "gradients", "parallel", "optimiser")


def main() -> int:
    """Prints all figures."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    files = module_files(root / "src")
    if not files:
        print(f"{root}/src holds no Python files.")
        return 1
    for name, value in figures(files).items():
        print(f"{name:<62} {value}")
    return 0


def figures(files: Mapping[str, Path]) -> dict[str, str]:
    """Name of each figure -> its value."""
    trees = {m: ast.parse(path.read_text(encoding="utf-8")) for m, path in files.items()}
    found = {
        "modules": f"{len(files)}, {lines(files, files):,} lines",
        "loose modules on the top floor": str(len(top_floor(files))),
        "longest function": "{0[1]} lines, {0[0]}".format(longest_function(trees)),
        "functions of more than 80 lines": str(sum(1 for f in functions(trees) if f[1] > 80)),
        "lines of automatic recipes in methods/": str(automatic_lines(trees)),
        "lines with ': Any'": str(count(r": Any\b", files)),
        "lines with '-> Any'": str(count(r"-> Any\b", files)),
        "lines with type: ignore": str(count(r"#\s*type:\s*ignore", files)),
        "calls of hasattr and getattr": str(calls(trees, ("hasattr", "getattr"))),
    }
    every, at_start = graph(files), graph(files, at_start_only=True)
    groups = circles(every)
    between = [g for g in groups if len({package(m) for m in g}) > 1]
    found["import circles, imports in functions too"] = str(len(groups))
    found["import circles between packages"] = str(len(between))
    found["import circles at import time"] = str(len(circles(at_start)))
    for group in groups:
        found[f"  {group[0]}"] = ", ".join(group[1:])
    for what, group in reading(files, at_start).items():
        found[f"DINO, {what}"] = f"{len(group)} files, {lines(group, files):,} lines"
    return found


def reading(files: Mapping[str, Path], edges: Graph) -> dict[str, set[str]]:
    """The modules that a reader of DINO has to read.

    The reading list has the page and the modules that it imports itself, without those GRANTED;
    with the loop, the files that make a training step of it. What Python loads is all that is
    executed by importing the page, with the packages' own files.
    """
    page = {DINO, *(m for m in edges[DINO] if not m.startswith(GRANTED))}
    loop = {f"nolabel.engine.{m}" for m in LOOP} & files.keys()
    loaded = loaded_with(DINO, edges)
    without = {m for m in loaded if not m.startswith(GRANTED)}
    with_loop = loaded | loaded_with("nolabel.engine.train", edges)
    return {
        "the page and what it imports itself": page,
        "the same with the loop": page | loop,
        "all that is loaded, without the network": without,
        "all that is loaded": loaded,
        "all that is loaded with engine.train": with_loop,
    }


def lines(modules: Iterable[str], files: Mapping[str, Path]) -> int:
    """Lines of some modules."""
    return sum(len(files[m].read_text(encoding="utf-8").splitlines()) for m in modules)


def top_floor(files: Mapping[str, Path]) -> list[str]:
    """Modules directly in the package that are no packages; its own file does not count."""
    return [m for m, path in files.items() if m.count(".") == 1 and path.name != "__init__.py"]


def package(module: str) -> str:
    """The module's part of the package: nolabel.data for nolabel.data.sources.folder."""
    return ".".join(module.split(".")[:2])


def functions(trees: Mapping[str, ast.Module]) -> Iterator[tuple[str, int]]:
    """Name and length of every function, from its `def` to its last line."""
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def longest_function(trees: Mapping[str, ast.Module]) -> tuple[str, int]:
    """Name and length of the longest function."""
    return max(functions(trees), key=lambda f: f[1])


def automatic_lines(trees: Mapping[str, ast.Module]) -> int:
    """Lines of `automatic_recipe` on the methods' pages.

    The older `recipe(cls, name, facts)` held the paper's and the automatic one; it counts as well.
    """
    return sum(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in trees.items()
        if module.startswith("nolabel.methods.") and module != "nolabel.methods.base"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in ("recipe", "automatic_recipe")
    )


def count(pattern: str, files: Mapping[str, Path]) -> int:
    """Lines of all files in which a pattern occurs."""
    return sum(
        bool(re.search(pattern, line))
        for path in files.values()
        for line in path.read_text(encoding="utf-8").splitlines()
    )


def calls(trees: Mapping[str, ast.Module], names: tuple[str, ...]) -> int:
    """Calls of functions by one of these names."""
    return sum(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
        for tree in trees.values()
        for node in ast.walk(tree)
    )


if __name__ == "__main__":
    sys.exit(main())
