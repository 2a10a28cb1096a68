"""What a run that learns from captions needs before its method is built: a tokenizer."""

from __future__ import annotations

from pathlib import Path

from nolabel import methods
from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.data.text.captions import evenly_spaced, require_texts, texts_of
from nolabel.data.text.tokenizer import TOKENIZER_FILE, Tokenizer
from nolabel.methods.capabilities import LearnsFromText

MOST = 100_000  # captions that a tokenizer is learnt from, spread over the data


def learn_tokenizer(run: Run, source: Source) -> Tokenizer | None:
    """The tokenizer of a new run, None for a method that wants no text.

    Raises:
        DataError: the data have no texts.
        UsageError: as the method's `make_tokenizer`.
    """
    kind = methods.load(run.method)
    if not issubclass(kind, LearnsFromText):
        return None
    require_texts(source)
    texts = texts_of(source, evenly_spaced(len(source), MOST))
    return kind.make_tokenizer(run.options, (t for t in texts if t))


def saved_tokenizer(run: Run, folder: Path | None = None) -> Tokenizer | None:
    """The tokenizer in the folder of a run, None for a method that wants no text."""
    if "text" not in methods.load(run.method).inputs:
        return None
    return Tokenizer.load((folder or run.folder) / TOKENIZER_FILE)
