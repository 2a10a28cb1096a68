"""Fine-tuning: the whole network learns the labels, its early layers more slowly.

He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, table 9; Bao et al., "BEiT",
2021. AdamW on a linear head and the network, whose layer l of L (0: the patch embedding) has the
rate lr * decay^(L + 1 - l); warm-up and cosine by step; random crops, flips, RandAugment, erasing,
mixup or cutmix of each batch, label smoothing, stochastic depth.

The recipe "small" (ours) is for thousands of images: no mixing, mild crops, few epochs. "paper" is
MAE's for ViT-B: 100 epochs of batches of 1024.

The network of the last epoch is judged, once: test never chooses anything.

Differs from the original: the embedding is the encoder's own, or the mean of its patches after its
last norm, where MAE puts a new norm behind the mean.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from nolabel.backbones.base import Backbone
from nolabel.backbones.depth import layer_numbers, skips_weight_decay
from nolabel.data.progress import progress_bar
from nolabel.data.source import Source, require_labels
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, chunks
from nolabel.encoders.file import (
    ENCODER_FILE,
    FORMAT,
    read_tensors,
    save_encoder,
    versions,
    write_tensors,
)
from nolabel.errors import BadImage, DataError, UsageError, unknown
from nolabel.nn.random_state import preserve_rng
from nolabel.nn.schedules import warmup_cosine
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._scores import TOP, accuracy_rows, class_names, match_labels
from nolabel.protocols.report import Report

RECIPES: dict[str, dict[str, Any]] = {
    "small": {"epochs": 20, "lr": 1e-3, "batch": 64, "layer_decay": 0.75, "drop_path": 0.0,
              "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "randaugment": 0, "erase": 0.0,
              "scale": (0.5, 1.0), "warmup_epochs": 2.0},
    "paper": {"epochs": 100, "lr": 2e-3, "batch": 1024, "layer_decay": 0.65, "drop_path": 0.1,
              "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "randaugment": 9, "erase": 0.25,
              "scale": (0.08, 1.0), "warmup_epochs": 5.0},
}  # fmt: skip
POOLS = ("auto", "mean")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of fine-tuning; None is the recipe's."""

    recipe: str = "small"  # or paper: MAE's for ViT-B
    epochs: int | None = None  # passes over train
    lr: float | None = None  # peak rate of the head; layers have lr * layer_decay^depth
    batch: int | None = None  # images of a step
    layer_decay: float | None = None  # factor from layer to layer, towards the front
    weight_decay: float = 0.05  # of matrices
    warmup_epochs: float | None = None  # of the rate, linear from zero
    drop_path: float | None = None  # stochastic depth
    mixup: float | None = None  # alpha of mixing two images; 0 does not
    cutmix: float | None = None  # alpha of pasting a piece of another image; 0 does not
    smoothing: float | None = None  # share of the target spread over all classes
    randaugment: int | None = None  # magnitude of two random operations; 0 none
    erase: float | None = None  # probability of a rectangle of noise
    scale: tuple[float, float] | None = None  # area of the random crop
    flip: bool = True  # mirror half of the images
    pool: str = "auto"  # the encoder's embedding, or mean of its patches
    seed: int = 0  # of the head, order and augmentation
    save: str = ""  # folder for the fine-tuned encoder and the classifier

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise unknown("recipe", self.recipe, RECIPES)
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        for name, value in RECIPES[self.recipe].items():
            if vars(self)[name] is None:
                object.__setattr__(self, name, value)
        at_least(self, epochs=1, batch=1)
        if not self.lr or self.lr <= 0 or not 0 < (self.layer_decay or 0) <= 1:
            raise UsageError("lr must be above 0 and layer_decay between 0 and 1.")


class Classifier(nn.Module):
    """A backbone and a linear head [D -> K]."""

    def __init__(self, backbone: Backbone, classes: int, pool: str):
        super().__init__()
        self.backbone, self.pool = backbone, pool
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        auto = self.pool == "auto"
        return self.head(self.backbone(x) if auto else self.backbone.tokens(x).patches.mean(1))


def run_finetune(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Fine-tunes a copy of an encoder and judges it; the encoder itself stays as it is.

    Args:
        encoder: the encoder.
        train: labelled images, to learn from.
        test: labelled images of the same classes, judged once, at the end.
        features: not used.
        **options: fields of `Options`.

    Raises:
        DataError: no labels, classes in test that train lacks, or images that cannot be read.
        UsageError: images of other channels than three, or a folder that is in use.
    """
    o = build_options(Options, options)
    labels, truth = require_labels(train), match_labels(train, test)
    names = class_names(train)
    if encoder.channels != 3:
        raise UsageError("Fine-tuning augments images of three channels alone.")
    folder = Path(o.save) if o.save else None
    if folder is not None and (folder / ENCODER_FILE).exists():
        raise UsageError(f"{o.save!r} holds an encoder already. Choose another --save.")
    model = fit_classifier(encoder, train, labels, len(names), o)
    guesses, kept = _guess(model, encoder, test)
    own = torch.from_numpy(truth)[kept]
    rows = accuracy_rows(f"epoch {o.epochs}", guesses, own, len(names))
    used = {k: vars(o)[k] for k in RECIPES["small"]}
    note = f"recipe {o.recipe}: " + ", ".join(f"{k} {_shown(v)}" for k, v in used.items())
    if folder is not None:
        save(model, encoder, names, folder)
        note += f"; saved in {o.save}"
    return Report(
        protocol="finetune", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0], notes=(note,),
    )  # fmt: skip


def _shown(value: float | tuple[float, float]) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g} to {value[1]:g}"
    return f"{value:g}"


def fit_classifier(
    encoder: Encoder, train: Source, labels: np.ndarray, classes: int, o: Options
) -> Classifier:
    """Fine-tunes a copy of the encoder's backbone; on its device."""
    r: Any = o  # its fields are filled from the recipe
    device = encoder.device
    with preserve_rng():
        torch.manual_seed(o.seed)
        backbone = copy.deepcopy(encoder.backbone).requires_grad_(True)
        if r.drop_path:
            backbone.set_drop_path(r.drop_path)
        model = Classifier(backbone, classes, o.pool).to(device)
        optimiser = torch.optim.AdamW(groups(model, r.lr, r.layer_decay, o.weight_decay))
        augment, mix = augmentation(encoder, r), mixing(r, classes)
        n, batch = len(train), min(r.batch, len(train))
        per_epoch = max(n // batch, 1)
        total = per_epoch * r.epochs
        warmup = min(round(r.warmup_epochs * per_epoch), total - 1)
        rng = np.random.default_rng(o.seed)
        order = rng.permutation(n)
        with progress_bar(f"fine-tuning {encoder.name}", total, True) as advance:
            for step in range(total):
                if step and step % per_epoch == 0:
                    order = rng.permutation(n)
                some = order[step % per_epoch * batch :][:batch]
                x, y = _batch(train, labels, some, augment)
                x, y = mix(x.to(device), y.to(device))
                factor = rate(step, total, warmup)
                for g in optimiser.param_groups:
                    g["lr"] = g["peak"] * factor
                model.train()
                loss = F.cross_entropy(
                    model(x), y, label_smoothing=0.0 if y.ndim > 1 else r.smoothing
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                advance(1)
        backbone.set_drop_path(0.0)
        return model.eval()


def rate(step: int, total: int, warmup: int) -> float:
    """Factor of the rate: linear up to 1, then half a cosine down to 0."""
    return warmup_cosine(1 / max(warmup, 1), 1.0, 0.0, step, warmup, total)


def groups(model: Classifier, lr: float, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters by layer and by whether they decay; `peak` is a group's rate."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    layers, last = layer_numbers(n for n, _ in named)
    out: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, p in named:
        peak, plain = lr * decay ** (last - layers[name]), skips_weight_decay(name, p)
        new: dict[str, Any] = {"params": [], "peak": peak, "lr": peak,
                               "weight_decay": 0.0 if plain else weight_decay}  # fmt: skip
        out.setdefault((peak, plain), new)["params"].append(p)
    return list(out.values())


def augmentation(encoder: Encoder, r: Any) -> v2.Compose:
    """From uint8 [3, H, W] to a normalised float [3, S, S]."""
    steps: list[Any] = [
        v2.RandomResizedCrop(
            encoder.size, scale=r.scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        )
    ]
    if r.flip:
        steps.append(v2.RandomHorizontalFlip())
    if r.randaugment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=r.randaugment))
    steps.append(v2.ToDtype(torch.float32, scale=True))
    steps.append(v2.Normalize(list(encoder.mean), list(encoder.std)))
    if r.erase:
        steps.append(v2.RandomErasing(p=r.erase, value="random"))  # type: ignore[arg-type]
    return v2.Compose(steps)


def mixing(r: Any, classes: int) -> Any:
    """(images, labels) -> the same, mixed, with targets [B, K] where anything is mixed."""
    kinds: list[Any] = []
    if r.mixup:
        kinds.append(v2.MixUp(alpha=r.mixup, num_classes=classes))
    if r.cutmix:
        kinds.append(v2.CutMix(alpha=r.cutmix, num_classes=classes))

    def mix(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not kinds or len(x) < 2:
            return x, y
        chosen = kinds[int(torch.randint(len(kinds), ()))]
        x, y = chosen(x, y)
        return x, y * (1 - r.smoothing) + r.smoothing / classes

    return mix


def _batch(
    train: Source, labels: np.ndarray, some: np.ndarray, augment: Any
) -> tuple[Tensor, Tensor]:
    """Augmented images and their labels; one that cannot be read is left out."""
    images, own = [], []
    for i in some:
        try:
            image = train.read(int(i)).image
        except BadImage:
            continue
        images.append(augment(torch.from_numpy(image).permute(2, 0, 1)))
        own.append(int(labels[i]))
    if not images:
        raise DataError(f"None of {len(some)} images of {train.name!r} can be read.")
    return torch.stack(images), torch.tensor(own)


def _guess(model: Classifier, encoder: Encoder, test: Source) -> tuple[Tensor, Tensor]:
    """Best classes int64 [N, G] of the images that can be read, and their numbers."""
    guesses, kept = [], []
    with progress_bar(f"judging on {test.name}", len(test), True) as advance:
        for chunk in chunks(test, 256):
            if len(chunk.keys):
                with torch.inference_mode():
                    logits = model(encoder.prepare_pixels(chunk.images))
                guesses.append(logits.topk(min(TOP, logits.shape[1]), dim=1).indices.cpu())
                kept.append(torch.from_numpy(np.asarray(chunk.keys)))
            advance(len(chunk.keys) + len(chunk.skipped))
    if not guesses:
        raise DataError(f"{test.name!r} has no image that can be read.")
    return torch.cat(guesses), torch.cat(kept)


def save(model: Classifier, encoder: Encoder, names: tuple[str, ...], folder: Path) -> None:
    """Writes the fine-tuned encoder, and the head as classifier.safetensors with its classes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(
        folder / ENCODER_FILE, model.backbone, branch="encoder", method="finetune",
        mean=encoder.mean, std=encoder.std, image_size=encoder.image_size, run=None,
    )  # fmt: skip
    header = {"format": FORMAT, "kind": "classifier", "classes": list(names), "pool": model.pool,
              "encoder": os.fspath(encoder.name), **versions()}  # fmt: skip
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}
    write_tensors(folder / "classifier.safetensors", header, tensors, "the classifier")


def load_classifier(folder: str | os.PathLike[str]) -> tuple[Classifier, Encoder, tuple[str, ...]]:
    """A classifier that `save` wrote, its encoder, and the names of its classes.

    Raises:
        UsageError, FileDamaged: as `load_encoder_file`.
    """
    from nolabel.encoders import load

    fields = {"classes": list, "pool": str, "checksum": str}
    header, tensors = read_tensors(
        Path(folder) / "classifier.safetensors", fields=fields, tensors=True
    )
    encoder = load(folder)
    names = tuple(header["classes"])
    with preserve_rng():
        model = Classifier(encoder.backbone, len(names), header["pool"])
    model.head.load_state_dict(tensors)
    return model.eval(), encoder, names
