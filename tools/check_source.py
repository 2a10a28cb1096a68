"""House rules that no off-the-shelf linter knows; run by `make lint`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_PAGE = 400, 200
BANNED = {
    r"weights_only\s*=\s*False": "nothing is unpickled from a file we did not write",
    r"^\s*(import pickle|from pickle)": "nothing is unpickled",
    r"torch\.jit\.load": "no archives that run code",
    r"allow_pickle\s*=\s*True": "nothing is unpickled",
}


def main() -> int:
    """Prints every breach; returns their number."""
    breaches = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        page = path.parent.name == "methods" and path.stem not in ("__init__", "base")
        most = MOST_PAGE if page else MOST_LINES
        # A page is counted without blank lines: it is read beside its paper.
        counted = sum(1 for line in text.splitlines() if line.strip()) if page else lines
        if counted > most:
            breaches.append(f"{name}: {counted} lines, at most {most}")
        distributed = name.endswith("nolabel/distributed.py") or "/engine/" in name
        if "torch.distributed" in text and not distributed:
            breaches.append(f"{name}: torch.distributed outside distributed.py and engine/")
        for pattern, why in BANNED.items():
            if re.search(pattern, text, re.MULTILINE):
                breaches.append(f"{name}: {pattern!r} is banned: {why}")
    print("\n".join(breaches) or "house rules: kept")
    return len(breaches)


if __name__ == "__main__":
    sys.exit(bool(main()))
