"""Texts to token ids: byte-pair encoding in CLIP's form, learnt from captions or published.

Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016; on bytes and in
the form of Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
2021. A text is cleaned (HTML entities undone, white space collapsed, lower case), cut into words,
numbers and signs, and each piece, as UTF-8 bytes whose last one is marked as an end of word, is put
together by the merges in their order.

Ids: 256 bytes, the same 256 ending a word, one for each merge, the start, the end. So the end has
the largest id. A text becomes start, pieces, end, and zeros up to the context's length; one that
is too long is cut so that the end is still there.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nolabel.errors import FileDamaged, UsageError

PUBLISHED = 49_408  # size of CLIP's vocabulary
TOKENIZER_FILE = "tokenizer.json"  # its name in a run's folder
_PUBLISHED_FILE = "bpe_simple_vocab_16e6.txt.gz"  # in the package open_clip_torch
_BASE = 514  # bytes, bytes ending a word, start and end
_END_OF_WORD = "</w>"  # marks the end of a word
_SPECIAL = ("<start>", "<end>")
_PUBLISHED_SPECIAL = ("<start_of_text>", "<end_of_text>")
# Contractions, runs of letters, single digits, runs of other signs.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Forked data workers use no tokenizer, and the library warns about forks when it has run threads.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Texts to ids int64 [N, context]; saved in the `tokenizers` library's own form.

    Args:
        core: the library's tokenizer with cutting, padding, start and end set.
    """

    def __init__(self, core: Any):
        self.core = core
        self.vocabulary: int = core.get_vocab_size()
        self.context: int = core.truncation["max_length"]
        # CLIP's published vocabulary was made from texts mended by ftfy; others have to be too.
        self._mended = core.token_to_id(_PUBLISHED_SPECIAL[0]) is not None

    @classmethod
    def learn(cls, texts: Iterable[str], size: int, context: int) -> Tokenizer:
        """Learns merges from texts: at most `size` ids, fewer where nothing is left to merge.

        Raises:
            UsageError: a size below the number of ids that every vocabulary has.
        """
        from tokenizers import Tokenizer as Core
        from tokenizers import models, trainers

        _check(size, context)
        core = Core(models.BPE(end_of_word_suffix=_END_OF_WORD))
        core.normalizer, core.pre_tokenizer = _normaliser_and_splitter()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=size - len(_SPECIAL),
            min_frequency=2,
            initial_alphabet=_bytes(),
            # Listed here: else the library numbers them in a random order, and with the numbers the
            # choice among pairs that are equally frequent.
            special_tokens=[s + _END_OF_WORD for s in _bytes()],
            end_of_word_suffix=_END_OF_WORD,
            show_progress=False,
        )
        core.train_from_iterator((clean(t) for t in texts), trainer)
        merges = [tuple(m) for m in json.loads(core.to_str())["model"]["merges"]]
        return cls(_assemble(merges, _SPECIAL, context))

    @classmethod
    def published(cls, context: int) -> Tokenizer:
        """CLIP's own vocabulary, from the file that the package open_clip_torch brings.

        Raises:
            UsageError: the extra `clip` is missing.
        """
        _check(PUBLISHED, context)
        found = importlib.util.find_spec("open_clip")
        folders = (found.submodule_search_locations or []) if found else []
        file = next((p for p in (Path(f) / _PUBLISHED_FILE for f in folders) if p.is_file()), None)
        if file is None or importlib.util.find_spec("ftfy") is None:
            raise UsageError(
                f"CLIP's vocabulary of {PUBLISHED:,} tokens needs the packages open_clip_torch and "
                "ftfy: pip install 'nolabel[clip]'. Or use a --vocabulary of another size, which "
                "is learnt from the captions."
            )
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 1 + PUBLISHED - _BASE]]
        return cls(_assemble(merges, _PUBLISHED_SPECIAL, context))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads what `save` wrote. Raises UsageError or FileDamaged."""
        from tokenizers import Tokenizer as Core

        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{str(path)!r} does not exist; a run with texts has one.")
        try:
            return cls(Core.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises Exception itself
            raise FileDamaged(
                f"{str(path)!r} is no tokenizer that can be read ({error}). Copy it again."
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` and `tokenizers.Tokenizer.from_file` read."""
        Path(path).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The content of the file."""
        return self.core.to_str()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids int64 [N, context] on the CPU."""
        cleaned = [clean(t, mend=self._mended) for t in texts]
        rows = [e.ids for e in self.core.encode_batch(cleaned)]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.context)

    def __deepcopy__(self, memo: dict[int, object]) -> Tokenizer:
        return self  # nothing in it changes


def make_tokenizer(vocabulary: int, context: int, texts: Iterable[str]) -> Tokenizer:
    """CLIP's tokenizer if `vocabulary` is its size, else one learnt from texts."""
    if vocabulary == PUBLISHED:
        return Tokenizer.published(context)
    return Tokenizer.learn(texts, vocabulary, context)


def clean(text: str, mend: bool = False) -> str:
    """Undoes HTML entities (twice, as they come), collapses white space, makes lower case.

    Args:
        mend: repair wrongly decoded letters and straighten quotes first (ftfy).
    """
    if mend:
        import ftfy

        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _check(size: int, context: int) -> None:
    if size <= _BASE:
        raise UsageError(f"--vocabulary is {size}; it must be above {_BASE} (bytes and marks).")
    if context < 3:
        raise UsageError(f"--context is {context}; it must be 3 or more (start, a token, end).")


def _bytes() -> list[str]:
    """A visible character for each of the 256 bytes, in the order of CLIP's ids: bytes that are
    visible in Latin-1 stand for themselves, the others for the characters from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def _normaliser_and_splitter() -> tuple[Any, Any]:
    """Normaliser and cutter: white space and case again, then words, as bytes."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    normal = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return normal, cut


def _assemble(merges: Sequence[tuple[str, ...]], marks: tuple[str, str], context: int) -> Any:
    """The library's tokenizer of these merges, with ids in CLIP's order."""
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as Core

    symbols = _bytes()
    words = itertools.chain(
        symbols, (s + _END_OF_WORD for s in symbols), ("".join(m) for m in merges)
    )
    ids = {word: i for i, word in enumerate((*words, *marks))}
    pairs: Any = [(m[0], m[1]) for m in merges]
    core: Any = Core(
        models.BPE(ids, pairs, continuing_subword_prefix="", end_of_word_suffix=_END_OF_WORD)
    )
    core.normalizer, core.pre_tokenizer = _normaliser_and_splitter()
    core.decoder = decoders.BPEDecoder(suffix=_END_OF_WORD)
    core.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in marks])
    core.post_processor = processors.TemplateProcessing(
        single=f"{marks[0]} $A {marks[1]}", special_tokens=[(m, ids[m]) for m in marks]
    )
    core.enable_truncation(context)
    core.enable_padding(pad_id=0, pad_token=symbols[0], length=context)
    return core
