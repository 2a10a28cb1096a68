"""The checks and figures of tools/ find what they are for, in packages made for it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


def package(folder: Path, **files: str) -> Path:
    """A package `p` with some modules, as ROOT/src/p."""
    (folder / "src" / "p").mkdir(parents=True)
    for name, text in {"__init__": "", **files}.items():
        (folder / "src" / "p" / f"{name}.py").write_text(text)
    return folder


def circles(tool, root: Path) -> list[list[str]]:
    graph = tool("import_graph")
    return graph.circles(graph.graph(graph.module_files(root / "src")))


def test_a_circle_through_a_function_is_found_and_refused(tmp_path, tool):
    root = package(
        tmp_path, a="from p import b", b="import p.c", c="def f():\n    from .a import x"
    )
    assert circles(tool, root) == [["p.a", "p.b", "p.c"]]
    assert any("src/p/c.py:2: an import circle" in x for x in tool("check_source").check(root))


def test_imports_for_type_checkers_alone_make_no_circle(tmp_path, tool):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x"
    root = package(tmp_path, a="from p.b import y", b=text)
    assert circles(tool, root) == []
    assert tool("check_source").check(root) == []


def test_what_is_loaded_is_what_python_loads(tool):
    """The page of DINO: the same modules as in `sys.modules` of a new process."""
    import subprocess
    import sys

    graph = tool("import_graph")
    edges = graph.graph(graph.module_files(ROOT / "src"), at_start_only=True)
    code = (
        "import sys, nolabel.methods.dino\n"
        "print(*(m for m in sys.modules if m.split('.')[0] == 'nolabel'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == graph.loaded_with("nolabel.methods.dino", edges)


def test_no_automatic_recipe_is_on_a_page_and_nothing_is_imported_in_a_circle(tool):
    figures = tool("figures").figures(tool("import_graph").module_files(ROOT / "src"))
    assert figures["lines of automatic recipes in methods/"] == "0"
    assert figures["import circles, imports in functions too"] == "0"


@pytest.mark.parametrize(
    ("docstring", "words"),
    [
        ("Adds." + 2 * " " + "Both are numbers.", "two spaces"),
        ("Adds.\n\n    Args:\n        a: A number.\n    ", "lower case"),
    ],
)
def test_docstrings_of_another_dialect_are_refused(tmp_path, tool, docstring, words):
    root = package(tmp_path, a=f'def f(a):\n    """{docstring}"""\n')
    assert any(words in breach for breach in tool("check_source").check(root))


def test_the_dialect_of_the_house_is_kept(tmp_path, tool):
    text = 'def f(a):\n    """Adds. Both are numbers.\n\n    Args:\n        a: a number.\n    """\n'
    root = package(tmp_path, a=text)
    assert tool("check_source").check(root) == []


def test_a_long_function_is_refused(tmp_path, tool):
    body = "".join(f"    x{i} = {i}\n" for i in range(200))
    root = package(tmp_path, a=f"def f():\n{body}")
    assert any("f has 201 lines" in breach for breach in tool("check_source").check(root))
