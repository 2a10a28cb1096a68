"""The text tower of an image-text run: `text.safetensors` and `tokenizer.json` beside the encoder.

The file holds the text tower, the projection of the image's embedding into the shared space, and
the scale (and bias) of the similarities, with a JSON header and checksum like the encoder's
(see `file`). The image projection is here and not in the encoder's file, so that the latter stays
that of a plain timm network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nolabel.backbones.text import SharedSpace
from nolabel.data.text.tokenizer import TOKENIZER_FILE, Tokenizer
from nolabel.device import pick_device
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.file import FORMAT, LICENCE, TEXT_FILE, read_tensors, versions, write_tensors
from nolabel.encoders.header import are_arguments, check_layers, check_tensors
from nolabel.errors import FileDamaged, UsageError
from nolabel.nn.random_state import preserve_rng


def _invalid_field(header: Mapping[str, Any]) -> str:
    """The first field of a text tower's header that is not what it must be; "" if all are."""
    if not are_arguments(header.get("kwargs")):
        return "kwargs"
    texts = ("method", "tokenizer_sha256", "checksum")
    return next((key for key in texts if not isinstance(header.get(key), str)), "")


class TextEncoder:
    """The text tower of an image-text model with its tokenizer.

    Attributes:
        shared: text tower, image projection, scale and bias.
        tokenizer: maps texts to token ids.
        name: shown in tables and messages.
        meta: header of its file; empty for published models.
    """

    def __init__(
        self, shared: SharedSpace, tokenizer: Tokenizer, *, name: str, meta: dict[str, Any]
    ):
        self.shared, self.tokenizer = shared.eval(), tokenizer
        self.name, self.meta = name, meta

    @property
    def device(self) -> torch.device:
        """Device of the text tower."""
        return self.shared.log_scale.device

    def to(self, device: torch.device | str) -> TextEncoder:
        """Moves the tower; returns the text encoder itself."""
        self.shared.to(device)
        return self

    def embed(self, texts: str | Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Embeds N texts.

        Args:
            texts: the texts; a single one counts as a list of one.
            batch_size: texts in a forward pass.

        Returns:
            Unit vectors float32 [N, E] on the CPU.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        parts = [torch.empty(0, self.shared.image.out_features)]
        with self._inference():
            for start in range(0, len(texts), batch_size):
                ids = self.tokenizer(texts[start : start + batch_size]).to(self.device)
                parts.append(self.shared.texts(ids).cpu())
        return torch.cat(parts)

    def project(self, features: Tensor, *, batch_size: int = 8192) -> Tensor:
        """Projects embeddings of the encoder into the space of the texts.

        Args:
            features: float [N, D], embeddings of the image encoder of the same run.
            batch_size: embeddings projected at once.

        Returns:
            Unit vectors float32 [N, E] on the CPU.

        Raises:
            UsageError: embeddings of another width.
        """
        width = self.shared.image.in_features
        if features.shape[-1] != width:
            raise UsageError(
                f"{self.name!r} belongs to an encoder of width {width}, these embeddings have "
                f"{features.shape[-1]}. Use the encoder of the same run."
            )
        with self._inference():
            parts = [
                self.shared.images(f.to(self.device)).cpu() for f in features.split(batch_size)
            ]
        return torch.cat(parts) if parts else torch.empty(0, self.shared.image.out_features)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield


def text_of(encoder: Encoder) -> TextEncoder:
    """The text tower that belongs to an encoder: of the same run or published model.

    Raises:
        UsageError: it has none.
        FileDamaged: as `load_text`.
    """
    text = encoder.meta.get("text")
    if isinstance(text, TextEncoder):
        return text.to(encoder.device)
    path = encoder.meta.get("path")
    if not path or not (Path(path).parent / TEXT_FILE).is_file():
        raise UsageError(
            f"{encoder.name!r} has no text tower. Use the folder of a run of clip or siglip, or "
            "openclip:NAME/TAG."
        )
    return load_text(path, device=encoder.device)


def image_projection(encoder: Encoder) -> nn.Linear | None:
    """The linear map of an encoder's embedding into the space that it shares with texts; None if it
    has no text tower.

    Raises:
        FileDamaged: as `load_text`.
    """
    path = encoder.meta.get("path")
    beside = bool(path) and (Path(str(path)).parent / TEXT_FILE).is_file()
    if not beside and not isinstance(encoder.meta.get("text"), TextEncoder):
        return None
    return text_of(encoder).shared.image


def save_text(
    path: str | os.PathLike[str], shared: SharedSpace, tokenizer: Tokenizer, *, method: str
) -> Path:
    """Writes the text tower, completely or not at all (by a rename).

    Args:
        path: the file; an existing one is replaced.
        shared: text tower, image projection, scale and bias.
        tokenizer: the tokenizer; only its hash is written, it has its own file.
        method: name of the method that trained them.

    Raises:
        DataError: the file cannot be written.
    """
    tensors = {
        name: t.detach().to("cpu", copy=True).contiguous()
        for name, t in shared.state_dict().items()
    }
    header = {
        "format": FORMAT,
        "kind": "text",
        "kwargs": dict(shared.kwargs),
        "method": method,
        "tokenizer_sha256": _sha256(tokenizer),
        "licence": LICENCE,
        **versions(),
    }
    return write_tensors(Path(path), header, tensors, "the text tower")


def load_text(
    folder: str | os.PathLike[str], *, device: torch.device | str = "auto"
) -> TextEncoder:
    """Reads the text tower of a run.

    Args:
        folder: the run folder, or a file in it.
        device: where it goes; "auto" takes a GPU if there is one.

    Raises:
        UsageError: the run has no text tower.
        FileDamaged: a file is truncated or altered, or the two do not belong together.
    """
    folder = Path(folder)
    folder = folder if folder.is_dir() or not folder.exists() else folder.parent
    path = folder / TEXT_FILE
    if not path.is_file():
        raise UsageError(
            f"{str(folder)!r} has no {TEXT_FILE}, so it is not a run that was trained with texts. "
            "Use a run of clip or siglip."
        )
    header, tensors = read_tensors(path, invalid=_invalid_field)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    if _sha256(tokenizer) != header["tokenizer_sha256"]:
        raise FileDamaged(
            f"{TEXT_FILE} and {TOKENIZER_FILE} in {str(folder)!r} do not belong together: the "
            "tower was trained with another tokenizer. Copy both from the same run."
        )
    kwargs, label = header["kwargs"], f"The file {str(path)!r}"
    check_layers(kwargs, tensors, label)
    try:
        with preserve_rng():  # the random weights are replaced below
            with torch.device("meta"):
                outline = SharedSpace(**kwargs)
            check_tensors(outline.state_dict(), tensors, label, "text tower")
            shared = SharedSpace(**kwargs)
        shared.load_state_dict(tensors)
    except (TypeError, RuntimeError, ValueError, ArithmeticError, UsageError) as error:
        raise FileDamaged(f"{str(path)!r} does not fit its own header: {error}") from None
    encoder = TextEncoder(shared, tokenizer, name=os.fspath(folder), meta=header)
    return encoder.to(pick_device(device))


def _sha256(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.text().encode()).hexdigest()
