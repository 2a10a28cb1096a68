"""The entries of `nolabel list`: methods, backbones, weights, data sets, protocols, pictures.

Each table is a dictionary of frozen `Entry` objects by name, made by `by_name`; a table's own class
adds what its package needs. Nothing heavy is imported, so that lists are quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

E = TypeVar("E", bound="Entry")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a list.

    Attributes:
        name: what users write.
        description: what it is, in a few words.
        paper: authors, title or year, and where to find it; empty without a paper.
        family: the heading under which it is listed.
        needs: inputs that it needs beside the usual ones of its table.
        when: when to use it.
    """

    name: str
    description: str
    paper: str = ""
    family: str = ""
    needs: str = ""
    when: str = ""

    def row(self) -> dict[str, object]:
        """The line as `nolabel list X --json` writes it."""
        return {
            "name": self.name, "description": self.description, "paper": self.paper,
            "family": self.family, "needs": self.needs, "when": self.when,
        }  # fmt: skip


def by_name(*entries: E) -> dict[str, E]:
    """A table of entries.

    Raises:
        ValueError: two entries have the same name.
    """
    table = {entry.name: entry for entry in entries}
    if len(table) != len(entries):
        raise ValueError("Two entries of a table have the same name.")
    return table


def render(table: Mapping[str, Entry] | Iterable[Entry]) -> str:
    """A table as lines to read: families as headings, names in a column."""
    entries = list(table.values() if isinstance(table, Mapping) else table)
    width = max((len(entry.name) for entry in entries), default=0)
    lines: list[str] = []
    family = ""
    for entry in entries:
        if entry.family != family:
            family = entry.family
            lines.append(f"{family}:")
        paper = f"  ({entry.paper})" if entry.paper else ""
        lines.append(f"  {entry.name:<{width}} {entry.description}{paper}")
        needs = f"needs {entry.needs}" if entry.needs else ""
        more = "; ".join(part for part in (needs, entry.when) if part)
        if more:
            lines.append(f"  {'':<{width}} {more}")
    return "\n".join(lines)
