"""What a column of labels means: classes, or why it is none.

A column is a set of classes only if every image has exactly one name. Missing values, several
labels an image, and measured quantities are recognised and named, never turned into classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Missing values as pandas, R, spreadsheets and databases write them. A class that is really called
# so must be renamed: to guess would make a class of the images nobody has labelled.
MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NULL",
     "Null", "null", "None", "NaT", "#VALUE!", "1.#QNAN", "-1.#IND")
)  # fmt: skip
_SEPARATORS = ("|", ";", ",", " / ")
_MOST_VALUES = 30  # distinct measured numbers that may still be classes
_NUMBER = re.compile(r"[-+]?(\d{1,20}\.?\d{0,40}|\.\d{1,40})([eE][-+]?\d{1,3})?", re.ASCII)
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))


class Labels(NamedTuple):
    """A column of labels.

    Attributes:
        classes: the distinct names.
        labels: int64 [N], indices into `classes`; None if the column is no set of classes.
        why: why it is none.
        notes: remarks, such as on names that differ in case only.
    """

    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    why: str = ""
    notes: tuple[str, ...] = ()


def clean_name(name: str) -> str:
    """A name as it looks: composed letters (NFC), single spaces, nothing invisible.

    A Mac writes `café` with a separate accent, and so do archives made there; both spellings are
    one class.
    """
    return " ".join(unicodedata.normalize("NFC", name).translate(_INVISIBLE).split())


def encode_names(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Encodes names as integers.

    Args:
        names: N names; those that look the same are one (`clean_name`).

    Returns:
        The distinct names, in numeric order if all of them are integers, else in alphabetic order;
        and int64 [N], the index of each name among them.
    """
    cleaned = {name: clean_name(name) for name in set(names)}
    distinct = set(cleaned.values())
    numeric = all(_is_integer(name) for name in distinct)
    classes = sorted(distinct, key=lambda n: (int(n), n)) if numeric else sorted(distinct)
    index = {name: i for i, name in enumerate(classes)}
    return tuple(classes), np.fromiter((index[cleaned[n]] for n in names), np.int64, len(names))


def fill_groups(names: Sequence[str]) -> list[str]:
    """Groups, of which those without a name become groups of one image each."""
    return [name or f"image {i} (no group)" for i, name in enumerate(names)]


def read_labels(values: Sequence[str], place: Callable[[int], str]) -> Labels:
    """Interprets a column of labels.

    Args:
        values: N texts; numbers and missing values as they are written.
        place: where value i stands, for messages, such as "row 5".
    """
    counts = Counter(values)
    cleaned = {value: clean_name(value) for value in counts}
    missing = {value for value, name in cleaned.items() if name in MISSING}
    if missing:
        first = next(i for i, value in enumerate(values) if value in missing)
        total = sum(counts[value] for value in missing)
        return Labels(
            why=f"{total:,} of {len(values):,} labels are missing, first in {place(first)} "
            f"({values[first]!r}). Fill them in or leave these images out; a class of that name "
            "needs another one."
        )
    several = _several(set(cleaned.values()))
    if several:
        first = next(i for i, value in enumerate(values) if cleaned[value] == several)
        return Labels(
            why=f"{place(first)} holds several labels ({several[:60]!r}), and an image has one "
            "class here. Choose one, or give each label a row of its own (evaluate zeroshot)."
        )
    measured = _numbers(cleaned, len(values))
    if measured is None:
        distinct = len(set(cleaned.values()))
        return Labels(
            why=f"the labels look like measurements: {distinct:,} different numbers for "
            f"{len(values):,} images, such as {values[0]}. Sort them into classes first."
        )
    classes, labels = encode_names([measured.get(value, value) for value in values])
    return Labels(classes, labels, "", alike(classes))


def alike(classes: Sequence[str]) -> tuple[str, ...]:
    """A note on classes whose names differ in case, width or dashes only."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(_fold(name), name)
        if other != name:
            return (f"the classes {other!r} and {name!r} differ in spelling only; are they one?",)
    return ()


def nearest_spelling(name: str, names: Sequence[str]) -> str | None:
    """The name that differs in case, width or dashes only."""
    return next((other for other in names if _fold(other) == _fold(name)), None)


def _fold(name: str) -> str:
    folded = unicodedata.normalize("NFKC", clean_name(name)).casefold()
    return folded.replace("_", " ").replace("-", " ").strip()


def _is_integer(name: str) -> bool:
    digits = name[1:] if name[:1] == "-" else name
    return digits.isascii() and digits.isdecimal() and len(digits) < 300


def _several(names: set[str]) -> str:
    """A name that holds several labels; "" if none does.

    `a|b` does if `a` and `b` are labels too, or if another name shares a part with it; a comma or
    a slash alone proves nothing ("New York, NY").
    """
    for name in sorted(names):
        if len(name) > 1 and name[0] + name[-1] in ("[]", "{}", "()"):
            return name
    for separator in _SEPARATORS:
        joined = sorted(name for name in names if separator in name.strip(separator))
        parts = {name: {p.strip() for p in name.split(separator)} - {""} for name in joined}
        uses = Counter(part for found in parts.values() for part in found)
        for name, found in parts.items():
            alone = found & names
            if found <= names or (separator in "|;" and (alone or any(uses[p] > 1 for p in found))):
                return name
    return ""


def _numbers(cleaned: Mapping[str, str], images: int) -> dict[str, str] | None:
    """Value -> its name where integers were written as 1.0; None if the values are measurements."""
    names = set(cleaned.values())
    if all(_is_integer(name) for name in names) or not all(map(_NUMBER.fullmatch, names)):
        return {}
    numbers = {value: float(name) for value, name in cleaned.items()}
    if all(number.is_integer() and abs(number) < 2**53 for number in numbers.values()):
        return {value: str(int(number)) for value, number in numbers.items()}
    distinct = len(set(numbers.values()))
    return None if distinct > _MOST_VALUES or 2 * distinct > images else {}
