"""What the benchmarks write into the documentation."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def write_between_marks(name: str, body: str) -> None:
    """Replaces what docs/methods.md has between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise SystemExit(f"{PAGE} lacks the marks {first} and {last}.")
    PAGE.write_text(f"{before}{first}\n\n{body.strip()}\n\n{last}{after}", encoding="utf-8")
