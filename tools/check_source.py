"""House rules that no off-the-shelf linter knows; run by `make lint`.

    python tools/check_source.py [ROOT]

Imports and calls are read from the syntax tree: a comment or a docstring may name what is banned.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from import_graph import circles, graph, imports_of, module_files

MOST_LINES, MOST_PAGE, MOST_FUNCTION = 400, 200, 80
UNPICKLING = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
# A path that exists on one machine only. Where the system's package puts its data is no such path.
MACHINE_PATH = re.compile(
    r"(?<![\w.~<>-])/(?:home|root|tmp|work|opt|usr|var|mnt|media|srv|scratch|Users)/[\w.-]+[\w./-]*"
)
TWO_SPACES = re.compile(r"(?<=[\w)`'\"\]%}])[.?!]  (?=[A-Z`\"'({0-9])")
SECTION = re.compile(r"\s*(Args|Raises|Returns|Yields|Attributes):\s*$")
ENTRY = re.compile(r"\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*: (A(?= )|[A-Z][a-z]\w*)")
PROPER_NAMES = frozenset({"None", "True", "False", "Pillow", "Python", "Gaussian", "Tensor"})
PATHS_ALLOWED = (
    "/usr/share/datasets",
    "/usr/share/tuxpaint",
    "/usr/share/openclipart",
    "/usr/bin/env",
)
TEXTS = ("*.md", "Makefile", "pyproject.toml", ".ci/*", "docs/**/*.md", "benchmarks/**/*.py",
         "benchmarks/results/*.json", "src/**/*.py", "tests/**/*.py", "tools/**/*.py")  # fmt: skip


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything imported, wherever in the file; relative names resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*up, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it is written, or an empty string for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def under(name: str, package: str) -> bool:
    """Whether `name` is the package or something in it."""
    return name == package or name.startswith(package + ".")


def breaches_of_code(tree: ast.AST, module: tuple[str, ...], package: tuple[str, ...]
                     ) -> Iterator[tuple[int, str]]:  # fmt: skip
    """What the syntax tree of one file of the package breaks."""
    names = list(imported(tree, package))
    # `torch.distributed` used through `import torch` counts as well.
    used = names + [(n.lineno, dotted(n)) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    page = module[:2] == ("nolabel", "methods") and module[2:] not in ((), ("base",))
    allowed = ["nolabel.methods.base", "nolabel.methods.capabilities"]
    if module[2:3] == ("ablations",):  # the variant of a page subclasses it
        allowed.append(".".join(("nolabel", "methods", *module[3:])))
    if module[:2] not in (("nolabel", "distributed"), ("nolabel", "engine")):
        for line, name in used:
            if under(name, "torch.distributed"):
                yield line, "torch.distributed outside distributed.py and engine/"
    for line, name in used:
        if name == "torch.jit.load":
            yield line, "torch.jit.load: no archives that run code"
    for line, name in names:
        if name.split(".")[0] in UNPICKLING:
            yield line, f"{name}: nothing is unpickled"
        if page and under(name, "nolabel.methods") and not any(under(name, a) for a in allowed):
            yield line, f"{name}: methods never import methods (except base and capabilities)"
    for node in ast.walk(tree):
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in (("weights_only", False), ("allow_pickle", True)):
                yield keyword.value.lineno, f"{keyword.arg}={value}: nothing is unpickled"


def breaches_of_length(text: str, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """A page of a method is read beside its paper: its blank lines are not counted."""
    lines = text.splitlines()
    if len(lines) > MOST_LINES:
        yield 1, f"{len(lines)} lines, at most {MOST_LINES}"
    if module[:2] == ("nolabel", "methods") and module[2:] not in ((), ("base",)):
        filled = sum(1 for line in lines if line.strip())
        if filled > MOST_PAGE:
            yield 1, f"{filled} lines that are not blank, a method's page has at most {MOST_PAGE}"


def documented(tree: ast.AST) -> Iterator[ast.Constant]:
    """The docstrings of a module, of its classes and of its functions."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if not isinstance(node, owners) or not node.body:
            continue
        first = node.body[0]
        text = first.value if isinstance(first, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield text


def breaches_of_docstrings(tree: ast.AST, lines: list[str]) -> Iterator[tuple[int, str]]:
    """One dialect: one space after a full stop, entries of sections in lower case."""
    for text in documented(tree):
        section: int | None = None  # indentation of the section that a line stands in
        for number in range(text.lineno, (text.end_lineno or text.lineno) + 1):
            line = lines[number - 1]
            indent = len(line) - len(line.lstrip())
            if TWO_SPACES.search(line):
                yield number, "two spaces after a full stop in a docstring; use one"
            if SECTION.match(line):
                section = indent
            elif section is not None and line.strip():
                if indent <= section:
                    section = None
                    continue
                entry = ENTRY.match(line.strip()) if indent == section + 4 else None
                if entry and entry[1] not in PROPER_NAMES:
                    yield number, f"{entry[1]!r} begins an entry of a docstring; use lower case"


def breaches_of_functions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """A function that can be read at a glance."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines, at most {MOST_FUNCTION}"


def breaches_of_paths(text: str) -> Iterator[tuple[int, str]]:
    """Paths of one machine, in any text."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in MACHINE_PATH.finditer(line):
            if not match[0].startswith(PATHS_ALLOWED):
                yield number, f"{match[0]}: a path of one machine"


def breaches_of_direction(src: Path) -> Iterator[tuple[str, int, str]]:
    """Import circles, imports in functions too: (file, line, what) of each import in one."""
    files = module_files(src)
    for group in circles(graph(files)):
        for module in group:
            for found in imports_of(module, files[module], files):
                if found.name in group:
                    name = files[module].relative_to(src.parent).as_posix()
                    yield name, found.line, f"an import circle: {found.name} leads back here"


def check(root: Path) -> list[str]:
    """Every breach under `root`, as `file:line: what`."""
    found: set[tuple[str, int, str]] = set(breaches_of_direction(root / "src"))
    for path in (root / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(root / "src").with_suffix("").parts
        module = parts[:-1] if parts[-1] == "__init__" else parts
        tree = ast.parse(text, str(path))
        name = path.relative_to(root).as_posix()
        found |= {(name, *b) for b in breaches_of_code(tree, module, parts[:-1])}
        found |= {(name, *b) for b in breaches_of_length(text, module)}
        found |= {(name, *b) for b in breaches_of_docstrings(tree, text.splitlines())}
        found |= {(name, *b) for b in breaches_of_functions(tree)}
    for path in {p for pattern in TEXTS for p in root.glob(pattern) if p.is_file()}:
        name = path.relative_to(root).as_posix()
        found |= {(name, *b) for b in breaches_of_paths(path.read_text(encoding="utf-8"))}
    return [f"{name}:{line}: {what}" for name, line, what in sorted(found)]


def main() -> int:
    """Prints every breach; returns 1 if there is one."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    if not list((root / "src").rglob("*.py")):
        print(f"{root}/src holds no Python files; nothing was checked")
        return 1
    breaches = check(root)
    print("\n".join(breaches) or "house rules: kept")
    return bool(breaches)


if __name__ == "__main__":
    sys.exit(main())
