"""Methods by name: one literal table, and a user's own file by path."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from nolabel.errors import UsageError, unknown

if TYPE_CHECKING:
    from nolabel.methods.base import Method


class Entry(NamedTuple):
    """Where a method's page is, and what `nolabel list methods` says of it."""

    where: str
    family: str
    paper: str
    description: str
    when: str  # to use it
    needs: str = "any backbone"


METHODS: dict[str, Entry] = {
    "mae": Entry(
        "nolabel.methods.mae:MAE",
        "generative",
        "He et al. 2021, arXiv 2111.06377",
        "masked autoencoder: rebuild the three quarters of the patches that were removed",
        "for fine-tuning later; the cheapest step of all, and no augmentation to choose",
        "a ViT",
    ),
    "beit": Entry(
        "nolabel.methods.beit:BEiT",
        "generative",
        "Bao et al. 2021, arXiv 2106.08254",
        "name the visual tokens of hidden patches, as a trained tokenizer gives them",
        "for fine-tuning later; needs a tokenizer first (a run of vqvae or dvae)",
        "a ViT and --teacher RUN",
    ),
    "eva": Entry(
        "nolabel.methods.eva:EVA",
        "generative",
        "Fang et al. 2022, arXiv 2211.07636",
        "predict a frozen encoder's features of hidden patches",
        "when a strong encoder exists and a ViT of another size is to learn from it",
        "a ViT and --teacher ENC",
    ),
    "simclr": Entry(
        "nolabel.methods.simclr:SimCLR",
        "contrastive",
        "Chen et al. 2020, arXiv 2002.05709",
        "two views of one image agree, all other images of the batch are negatives",
        "first choice for small data and minutes on a CPU; wants large batches on large data",
    ),
    "distill": Entry(
        "nolabel.methods.distill:Distill",
        "distillation",
        "Hinton et al. 2015, arXiv 1503.02531; SEED, Fang et al. 2021, arXiv 2101.04731",
        "a small network imitates a frozen encoder: its similarities and its embeddings",
        "to make a good encoder small; the quickest way to features when a good one exists",
        "any backbone and --teacher ENC",
    ),
    "dino": Entry(
        "nolabel.methods.dino:DINO",
        "distillation",
        "Caron et al. 2021, arXiv 2104.14294",
        "self-distillation with no labels: a student predicts its momentum teacher across crops",
        "for features used as they are (k-NN, retrieval) and attention that segments",
    ),
}


def load(name: str) -> type[Method]:
    """The method class of a built-in name or of `path/to/file.py:Class`.

    Raises:
        UsageError: unknown name, missing file or class, or a class that is no Method.
    """
    if ".py" in name:
        return _own(name)
    if name not in METHODS:
        raise unknown("method", name, METHODS, "Or path/to/file.py:Class for your own.")
    module, _, attribute = METHODS[name].where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _own(name: str) -> type[Method]:
    from nolabel.methods.base import Method

    file, _, attribute = name.partition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"No such file: {file}. Give path/to/file.py:Class.")
    # The same text is loaded once, so that its class is one class wherever it is asked for.
    key = f"nolabel_own_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    module = sys.modules.get(key) or _execute(path, key)
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Method) and value is not Method
    ]
    if not attribute and len(own) == 1:
        attribute = own[0]
    if attribute not in own:
        raise UsageError(
            f"{file} has no method class {attribute!r}. Method classes found: "
            f"{', '.join(own) or 'none (subclass nolabel.methods.base.Method)'}."
        )
    return getattr(module, attribute)


def _execute(path: Path, key: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported. Give a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module
