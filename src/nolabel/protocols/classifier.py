"""An image classifier: a fine-tuned backbone with a linear head, and its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nolabel.backbones.base import Backbone
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.file import (
    ENCODER_FILE,
    FORMAT,
    read_tensors,
    save_encoder,
    versions,
    write_tensors,
)
from nolabel.encoders.header import check_tensors
from nolabel.nn.random_state import preserve_rng

POOLS = ("auto", "mean")
CLASSIFIER_FILE = "classifier.safetensors"


class Classifier(nn.Module):
    """A backbone with a linear head: images float [B, C, S, S] to logits [B, K].

    Args:
        backbone: the network.
        classes: number K of classes.
        pool: one of `POOLS`.
    """

    def __init__(self, backbone: Backbone, classes: int, pool: str):
        super().__init__()
        self.backbone, self.pool = backbone, pool
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool == "auto":
            return self.head(self.backbone(x))
        return self.head(self.backbone.tokens(x).patches.mean(1))


def save_classifier(
    model: Classifier, encoder: Encoder, names: tuple[str, ...], folder: Path
) -> None:
    """Writes the fine-tuned encoder, and the head as `CLASSIFIER_FILE`.

    Args:
        model: the classifier.
        encoder: the encoder that was fine-tuned, for its normalisation and image size.
        names: names of the classes, written to the header.
        folder: where to; created if it is missing.

    Raises:
        DataError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(
        folder / ENCODER_FILE, model.backbone, branch="encoder", method="finetune",
        mean=encoder.mean, std=encoder.std, image_size=encoder.image_size, run=None,
    )  # fmt: skip
    header = {"format": FORMAT, "kind": "classifier", "classes": list(names), "pool": model.pool,
              "encoder": os.path.basename(encoder.name.rstrip("/")), **versions()}  # fmt: skip
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}
    write_tensors(folder / CLASSIFIER_FILE, header, tensors, "the classifier")


def load_classifier(folder: str | os.PathLike[str]) -> tuple[Classifier, Encoder, tuple[str, ...]]:
    """Loads a classifier that `save_classifier` wrote.

    Returns:
        The classifier in evaluation mode, its encoder, and the names of its classes.

    Raises:
        UsageError, FileDamaged: as `load_encoder_file`.
    """
    from nolabel.encoders import load

    path = Path(folder) / CLASSIFIER_FILE
    header, tensors = read_tensors(path, invalid=_invalid_field)
    encoder = load(folder)
    names = tuple(header["classes"])
    with preserve_rng():
        model = Classifier(encoder.backbone, len(names), header["pool"])
    check_tensors(model.head.state_dict(), tensors, f"The file {str(path)!r}", "classifier")
    model.head.load_state_dict(tensors)
    return model.eval(), encoder, names


def _invalid_field(header: Mapping[str, Any]) -> str:
    """The first field of a classifier's header that is not what it must be; "" if all are."""
    classes = header.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "classes"
    return next((key for key in ("pool", "checksum") if not isinstance(header.get(key), str)), "")
