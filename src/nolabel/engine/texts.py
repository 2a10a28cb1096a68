"""The text tokenizer of a run that learns from captions; learnt before its method is built."""

from __future__ import annotations

from pathlib import Path

from nolabel import methods
from nolabel.config import Run
from nolabel.data.order import evenly_spaced
from nolabel.data.source import Source
from nolabel.data.text.captions import require_texts, texts_of
from nolabel.data.text.tokenizer import TOKENIZER_FILE, Tokenizer
from nolabel.methods.capabilities import LearnsFromText

MAX_TEXTS = 100_000  # captions that a tokenizer is learnt from, evenly spread over the data


def learn_tokenizer(run: Run, source: Source) -> Tokenizer | None:
    """The tokenizer of a new run; None for a method without text.

    Raises:
        DataError: the data have no texts.
        UsageError: as the method's `make_tokenizer`.
    """
    method_class = methods.load(run.method)
    if not issubclass(method_class, LearnsFromText):
        return None
    require_texts(source)
    texts = texts_of(source, evenly_spaced(len(source), MAX_TEXTS))
    return method_class.make_tokenizer(run.options, (t for t in texts if t))


def saved_tokenizer(run: Run, folder: Path | None = None) -> Tokenizer | None:
    """The tokenizer in the folder of a run; None for a method without text."""
    if "text" not in methods.load(run.method).inputs:
        return None
    return Tokenizer.load((folder or run.folder) / TOKENIZER_FILE)
