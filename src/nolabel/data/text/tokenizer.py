"""CLIP's byte-level BPE tokenizer, trained on captions or with the published vocabulary.

Byte-pair encoding: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units,
2016; in the byte-level form of Radford et al., Learning Transferable Visual Models From Natural
Language Supervision, 2021. A text is cleaned (HTML entities decoded, white space collapsed, lower
case) and split into words, digits and punctuation. Each piece becomes UTF-8 bytes, the last one
with an end-of-word mark, to which the merges are applied in order.

Vocabulary: 256 bytes, the same 256 bytes at the end of a word, one token per merge, the start
token, the end token; so the end token has the largest id. A text becomes start, tokens, end, and
zeros up to the context length; one that is too long is truncated but keeps its end token.
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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nolabel._files import write_text
from nolabel.errors import FileDamaged, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

PUBLISHED = 49_408  # size of CLIP's vocabulary
TOKENIZER_FILE = "tokenizer.json"  # in a run's folder
_PUBLISHED_FILE = "bpe_simple_vocab_16e6.txt.gz"  # in the package open_clip_torch
_BASE = 514  # tokens without merges: bytes, bytes at the end of a word, start and end
_END_OF_WORD = "</w>"
_SPECIAL = ("<start>", "<end>")
_PUBLISHED_SPECIAL = ("<start_of_text>", "<end_of_text>")
# Contractions, runs of letters, single digits, runs of punctuation.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# No threads in the library: it warns when a process forks (data workers) after using them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Converts texts to token ids; saved in the file format of the `tokenizers` library.

    Attributes:
        vocabulary: number of tokens.
        context: length of the id sequences.

    Args:
        core: the library's tokenizer with truncation, padding, start and end tokens set up.
    """

    def __init__(self, core: Core):
        self.core = core
        self.vocabulary: int = core.get_vocab_size()
        truncation = core.truncation
        if truncation is None:
            raise ValueError("the tokenizer has no truncation length")
        self.context: int = truncation["max_length"]
        # CLIP's vocabulary was trained on texts repaired by ftfy, so its input is repaired too.
        self._use_ftfy = core.token_to_id(_PUBLISHED_SPECIAL[0]) is not None

    @classmethod
    def learn(cls, texts: Iterable[str], size: int, context: int) -> Tokenizer:
        """Trains a tokenizer on texts.

        Args:
            texts: the captions.
            size: largest number of tokens; there are fewer when no pair is left to merge.
            context: length of the id sequences.

        Raises:
            UsageError: `size` is too small for the 514 basic tokens, or `context` is below 3.
        """
        from tokenizers import Tokenizer as Core
        from tokenizers import models, trainers

        _check(size, context)
        core = Core(models.BPE(end_of_word_suffix=_END_OF_WORD))
        core.normalizer, core.pre_tokenizer = _normaliser_and_splitter()
        trainer = trainers.BpeTrainer(
            vocab_size=size - len(_SPECIAL),
            min_frequency=2,
            initial_alphabet=_bytes(),
            # For determinism: otherwise the library numbers them in random order, and by number it
            # breaks ties between equally frequent pairs.
            special_tokens=[s + _END_OF_WORD for s in _bytes()],
            end_of_word_suffix=_END_OF_WORD,
            show_progress=False,
        )
        core.train_from_iterator((clean(t) for t in texts), trainer)
        merges = [tuple(m) for m in json.loads(core.to_str())["model"]["merges"]]
        return cls(_assemble(merges, _SPECIAL, context))

    @classmethod
    def published(cls, context: int) -> Tokenizer:
        """CLIP's published vocabulary, read from the package open_clip_torch.

        Args:
            context: length of the id sequences.

        Raises:
            UsageError: the extra `clip` is missing, or `context` is below 3.
        """
        _check(PUBLISHED, context)
        spec = importlib.util.find_spec("open_clip")
        folders = (spec.submodule_search_locations or []) if spec else []
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
        """Reads a tokenizer file.

        Raises:
            UsageError: there is no such file.
            FileDamaged: it is not a tokenizer file.
        """
        from tokenizers import Tokenizer as Core

        path = Path(path)
        if not path.is_file():
            raise UsageError(
                f"{str(path)!r} does not exist. Only runs with texts have a tokenizer."
            )
        try:
            return cls(Core.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception
            raise FileDamaged(
                f"{str(path)!r} is not a readable tokenizer file ({error}). Copy it again."
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a tokenizer file for `load` and `tokenizers.Tokenizer.from_file`."""
        write_text(path, self.text())

    def text(self) -> str:
        """The tokenizer file as a JSON string."""
        return self.core.to_str()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids of N texts: int64 [N, context], on the CPU."""
        cleaned = [clean(t, use_ftfy=self._use_ftfy) for t in texts]
        rows = [e.ids for e in self.core.encode_batch(cleaned)]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.context)

    def __deepcopy__(self, memo: dict[int, object]) -> Tokenizer:
        return self  # immutable


def make_tokenizer(vocabulary: int, context: int, texts: Iterable[str]) -> Tokenizer:
    """CLIP's published tokenizer if `vocabulary` is 49,408, else one trained on texts.

    Args:
        vocabulary: (largest) number of tokens.
        context: length of the id sequences.
        texts: captions to train on.

    Raises:
        UsageError: see `Tokenizer.learn` and `Tokenizer.published`.
    """
    if vocabulary == PUBLISHED:
        return Tokenizer.published(context)
    return Tokenizer.learn(texts, vocabulary, context)


def clean(text: str, use_ftfy: bool = False) -> str:
    """Decodes HTML entities, collapses white space and converts to lower case.

    Args:
        text: the text. Entities are decoded twice, since web captions are often encoded twice.
        use_ftfy: first repair wrongly decoded characters and straighten quotes with ftfy.
    """
    if use_ftfy:
        import ftfy

        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _check(size: int, context: int) -> None:
    if size <= _BASE:
        raise UsageError(
            f"--vocabulary is {size}; it must be above {_BASE}, the tokens without merges."
        )
    if context < 3:
        raise UsageError(f"--context is {context}; it must be 3 or more (start, a token, end).")


def _bytes() -> list[str]:
    """A printable character for each of the 256 bytes, in the order of CLIP's ids.

    Bytes that are printable in Latin-1 stand for themselves; the others become the characters from
    256 on (GPT-2's bytes_to_unicode).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _normaliser_and_splitter() -> tuple[Normalizer, PreTokenizer]:
    """The library's normaliser (white space, case) and pre-tokenizer (words, then bytes)."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    normaliser = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return normaliser, splitter


def _assemble(merges: Sequence[tuple[str, ...]], special: tuple[str, str], context: int) -> Core:
    """Builds the library's tokenizer from merges, with ids in CLIP's order.

    Args:
        merges: pairs of tokens, in order.
        special: the start and the end token.
        context: length of the id sequences.
    """
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as Core

    symbols = _bytes()
    words = itertools.chain(
        symbols, (s + _END_OF_WORD for s in symbols), ("".join(m) for m in merges)
    )
    ids = {word: i for i, word in enumerate((*words, *special))}
    pairs = [(m[0], m[1]) for m in merges]
    core = Core(
        models.BPE(ids, pairs, continuing_subword_prefix="", end_of_word_suffix=_END_OF_WORD)
    )
    core.normalizer, core.pre_tokenizer = _normaliser_and_splitter()
    core.decoder = decoders.BPEDecoder(suffix=_END_OF_WORD)
    core.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in special])
    core.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(m, ids[m]) for m in special]
    )
    core.enable_truncation(context)
    core.enable_padding(pad_id=0, pad_token=symbols[0], length=context)
    return core
