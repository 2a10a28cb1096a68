"""Writes results of the benchmarks into the documentation."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def write_between_marks(name: str, body: str, page: str = "methods.md") -> None:
    """Replaces the text of a page between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    file = DOCS / page
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = file.read_text(encoding="utf-8").partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise SystemExit(f"{file} lacks the marks {first} and {last}.")
    file.write_text(f"{before}{first}\n\n{body.strip()}\n\n{last}{after}", encoding="utf-8")
