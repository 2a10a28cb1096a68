"""How the method of a run was chosen by trial, from its tournament.json, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

_LONGEST = 200  # characters of a text from the file
_LARGEST = 1e9  # of a number


def trial(about: Mapping[str, Any]) -> str:
    """The rounds as a table, and what was chosen.

    Args:
        about: content of the file; parts of another form are left out.
    """
    names = {str(c.get("name")): str(c.get("why", "")) for c in _mappings(about.get("candidates"))}
    rows = [
        (str(number), str(r.get("name")), r)
        for number, one in enumerate(_mappings(about.get("rounds")), 1)
        for r in _mappings(one.get("results"))
        if all(_is_real(r.get(k)) for k in ("steps", "seconds", "score"))
    ]
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td>{number}</td><td>{_e(name)}</td><td>{_e(names.get(name, ''))}</td>"
        f'<td class="n">{r["steps"]:,.0f}</td><td class="n">{r["seconds"]:,.0f} s</td>'
        f'<td class="n">{_score(r["score"])}</td></tr>'
        for number, name, r in rows
    )
    heads = ("round", "candidate", "why it takes part", "steps", "training", "score")
    head = "".join(f"<th>{name}</th>" for name in heads)
    end = "" if about.get("state") == "finished" else " It was cut short."
    return (
        f"<p>{_e(str(about.get('choice')))} was chosen, judged by "
        f"{_e(str(about.get('judged_by')))}; it went on with its weights.{end}</p>"
        f"<table><tr>{head}</tr>{cells}</table>"
    )


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list; none if it is no list."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def _is_real(value: object) -> bool:
    """Whether it is a number that can be printed."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _score(value: float) -> str:
    return f"{value:.1%}" if value >= 0 else "not finite"


def _e(text: str) -> str:
    return html.escape(text[:_LONGEST], quote=True)
