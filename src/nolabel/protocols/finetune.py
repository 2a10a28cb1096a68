"""Fine-tuning: the network is trained on the labels, with lower learning rates in early layers.

He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, table 9; Bao et al., "BEiT",
2021. AdamW on a linear head and the network, whose layer l of L (0: the patch embedding) has the
learning rate lr * decay^(L + 1 - l); warm-up and cosine by step; random crops, flips, RandAugment,
random erasing, mixup or CutMix of each batch, label smoothing, stochastic depth. Images go through
the training loader: with `--workers` they are read, decoded and augmented by other processes.

The recipe "small" (ours) is for thousands of images: no mixing, mild crops, few epochs. "paper" is
MAE's for ViT-B: 100 epochs with batches of 1024.

The network of the last epoch is evaluated once: nothing is chosen by the test set.

Differs from the original: the embedding is the encoder's own, or the mean of its patches after the
final norm, where MAE adds a new norm after the mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from nolabel._files import check_folder
from nolabel.backbones.depth import layer_numbers, skips_weight_decay_in_finetuning
from nolabel.data.loader import make_loader
from nolabel.data.progress import progress_bar
from nolabel.data.readable import describe_skipped, leave_out_unreadable
from nolabel.data.source import Source, require_labels
from nolabel.device import autocast, cpu_cores
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.features import Features, chunks, encoder_input
from nolabel.encoders.file import ENCODER_FILE
from nolabel.errors import DataError, UsageError, unknown
from nolabel.nn.random_state import preserve_rng
from nolabel.nn.schedules import warmup_cosine
from nolabel.protocols._finetune_views import NAME, FinetuneViews
from nolabel.protocols._options import at_least, build_options
from nolabel.protocols._randaugment import HIGHEST
from nolabel.protocols._scores import TOP, accuracy_rows, class_names, match_labels
from nolabel.protocols.classifier import POOLS, Classifier, save_classifier
from nolabel.protocols.report import Report

MAX_WORKERS = 16
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Values of the options that a recipe sets; `Options` describes them."""

    epochs: int
    lr: float
    batch: int
    layer_decay: float
    drop_path: float
    mixup: float
    cutmix: float
    smoothing: float
    randaugment: int
    erase: float
    scale: tuple[float, float]
    warmup_epochs: float


RECIPES = {
    "small": Recipe(
        epochs=20, lr=1e-3, batch=64, layer_decay=0.75, drop_path=0.0, mixup=0.0, cutmix=0.0,
        smoothing=0.0, randaugment=0, erase=0.0, scale=(0.5, 1.0), warmup_epochs=2.0,
    ),
    "paper": Recipe(
        epochs=100, lr=2e-3, batch=1024, layer_decay=0.65, drop_path=0.1, mixup=0.8, cutmix=1.0,
        smoothing=0.1, randaugment=9, erase=0.25, scale=(0.08, 1.0), warmup_epochs=5.0,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of fine-tuning; None takes the recipe's value."""

    recipe: str = "small"  # or paper: MAE's for ViT-B
    epochs: int | None = None  # passes over train
    lr: float | None = None  # peak learning rate of the head; layers have lr * layer_decay^depth
    batch: int | None = None  # images in a step
    layer_decay: float | None = None  # factor of the learning rate from a layer to the one before
    weight_decay: float = 0.05  # of weight matrices, not of biases, norms, tokens and positions
    warmup_epochs: float | None = None  # of the learning rate, linear from zero
    drop_path: float | None = None  # largest rate of stochastic depth
    mixup: float | None = None  # alpha of mixup; 0 is off
    cutmix: float | None = None  # alpha of CutMix; 0 is off
    smoothing: float | None = None  # label smoothing
    randaugment: int | None = None  # mean level, of 10, of RandAugment's operations; 0 is off
    erase: float | None = None  # probability of random erasing
    scale: tuple[float, float] | None = None  # range of the random crop's share of the area
    flip: bool = True  # horizontal flip of half of the images
    pool: str = "auto"  # the encoder's embedding, or mean: the mean of its patches
    workers: int | None = None  # processes that read images; default one a core with a GPU, else 0
    precision: str = "auto"  # of training: fp32 or bf16; auto is bf16 on a GPU
    seed: int = 0  # of the head, order and augmentation
    save: str = ""  # folder for the fine-tuned encoder and the classifier

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise unknown("recipe", self.recipe, RECIPES)
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        at_least(self, workers=0)
        r = self.resolved
        at_least(r, epochs=1, batch=1)
        if not r.lr > 0 or not 0 < r.layer_decay <= 1:
            raise UsageError(
                f"lr must be above 0 and layer_decay above 0 and at most 1, got {r.lr} and "
                f"{r.layer_decay}."
            )
        if not 0 <= r.randaugment <= HIGHEST:
            raise UsageError(f"randaugment is a level from 0 to 10, got {r.randaugment}.")

    @property
    def resolved(self) -> Recipe:
        """The recipe with the user's values in place of its own."""
        given = {f.name: vars(self)[f.name] for f in fields(Recipe)}
        return replace(RECIPES[self.recipe], **{k: v for k, v in given.items() if v is not None})


def run_finetune(
    encoder: Encoder,
    train: Source,
    test: Source,
    *,
    features: tuple[Features, Features] | None = None,
    **options: object,
) -> Report:
    """Fine-tunes a copy of an encoder and evaluates it; the encoder itself is not changed.

    Args:
        encoder: the encoder.
        train: labelled images to train on.
        test: labelled images of the same classes, used once, at the end.
        features: not used.
        **options: fields of `Options`.

    Raises:
        DataError: no labels, classes in test that train lacks, or images that cannot be read.
        UsageError: images with other than three channels, or a folder that holds an encoder.
    """
    o = build_options(Options, options)
    require_labels(train)
    truth = match_labels(train, test)
    names = class_names(train)
    if encoder.channels != 3:
        raise UsageError(
            f"Fine-tuning augments images with three channels, {encoder.name!r} takes "
            f"{encoder.channels}. Use the linear protocol."
        )
    folder = Path(o.save) if o.save else None
    if folder is not None:
        check_folder(folder, "--save")
    if folder is not None and (folder / ENCODER_FILE).exists():
        raise UsageError(f"{o.save!r} holds an encoder already. Choose another --save.")
    readable, skipped = leave_out_unreadable(train)
    model, _ = fit_classifier(encoder, readable, len(names), o)
    guesses, keys, skipped_test = _predict(model, encoder, test)
    rows = accuracy_rows(
        f"epoch {o.resolved.epochs}", guesses, torch.from_numpy(truth)[keys], len(names)
    )
    settings = vars(o.resolved)
    note = f"recipe {o.recipe}: " + ", ".join(f"{k} {_format(v)}" for k, v in settings.items())
    if folder is not None:
        save_classifier(model, encoder, names, folder)
        note += f"; saved in {o.save}"
    return Report(
        protocol="finetune", encoder=encoder.name, train=train.name, test=test.name,
        rows=tuple(rows), best=rows[0],
        notes=(
            *describe_skipped(train.name, skipped),
            *describe_skipped(test.name, tuple(skipped_test)),
            note,
        ),
    )  # fmt: skip


def _format(value: float | tuple[float, float]) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g} to {value[1]:g}"
    return f"{value:g}"


def fit_classifier(
    encoder: Encoder, train: Source, classes: int, o: Options
) -> tuple[Classifier, dict[str, str]]:
    """Fine-tunes a copy of the encoder's backbone on its device.

    Args:
        encoder: the encoder; it is not changed.
        train: the labelled images.
        classes: number of classes.
        o: the protocol's options.

    Returns:
        The classifier in evaluation mode, and path -> reason of the images that could not be
        read, each of which was replaced by another one.

    Raises:
        DataError: too many images in a row cannot be read.
    """
    r = o.resolved
    device = encoder.device
    with preserve_rng():
        torch.manual_seed(o.seed)
        backbone = copy.deepcopy(encoder.backbone).requires_grad_(True)
        if r.drop_path:
            backbone.set_drop_path(r.drop_path)
        model = Classifier(backbone, classes, o.pool).to(device)
        optimiser = torch.optim.AdamW(parameter_groups(model, r.lr, r.layer_decay, o.weight_decay))
        mix, batch = make_mixing(o, classes), min(r.batch, len(train))
        steps_per_epoch = max(len(train) // batch, 1)
        total = steps_per_epoch * r.epochs
        warmup = min(round(r.warmup_epochs * steps_per_epoch), total - 1)
        workers = o.workers
        if workers is None:
            workers = min(cpu_cores(), MAX_WORKERS) if device.type == "cuda" else 0
        loader = make_loader(
            train, make_views(encoder, o), seed=o.seed, batch_size=batch, start_step=0,
            total_steps=total, workers=workers, pin=device.type == "cuda", with_labels=True,
        )  # fmt: skip
        precision = "bf16" if o.precision == "auto" and device.type == "cuda" else o.precision
        unreadable: dict[str, str] = {}
        with progress_bar(f"fine-tuning {encoder.name}", total, True) as advance:
            for step, loaded in enumerate(loader):
                assert loaded.labels is not None  # noqa: S101
                unreadable |= dict(loaded.skipped)
                x = loaded.views[NAME][0].to(device, non_blocking=True)
                x, y = mix(x, loaded.labels.to(device, non_blocking=True))
                factor = lr_factor(step, total, warmup)
                for g in optimiser.param_groups:
                    g["lr"] = g["peak"] * factor
                model.train()
                with autocast(precision, device):
                    logits = model(x)
                loss = F.cross_entropy(
                    logits.float(), y, label_smoothing=0.0 if y.ndim > 1 else r.smoothing
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                advance(1)
        backbone.set_drop_path(0.0)
        return model.eval(), unreadable


def lr_factor(step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up to 1, then half a cosine to 0."""
    return warmup_cosine(1 / max(warmup, 1), 1.0, 0.0, step, warmup, total)


def parameter_groups(
    model: Classifier, lr: float, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of the optimiser: by layer, and by whether they have weight decay.

    Args:
        model: the classifier.
        lr: peak learning rate of the head.
        decay: factor of the learning rate from a layer to the one before.
        weight_decay: weight decay of matrices.

    Returns:
        Groups with "params", "lr", "weight_decay", and "peak", the peak learning rate.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    layers, last = layer_numbers(n for n, _ in named)
    out: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, p in named:
        peak = lr * decay ** (last - layers[name])
        undecayed = skips_weight_decay_in_finetuning(name, p)
        group = {"params": [], "peak": peak, "lr": peak,
                 "weight_decay": 0.0 if undecayed else weight_decay}  # fmt: skip
        out.setdefault((peak, undecayed), group)["params"].append(p)
    return list(out.values())


def make_views(encoder: Encoder, o: Options) -> FinetuneViews:
    """The augmented view of each image, for the loader."""
    r = o.resolved
    return FinetuneViews(
        encoder.size, scale=r.scale, flip=0.5 if o.flip else 0.0, magnitude=r.randaugment,
        erase=r.erase, mean=encoder.mean, std=encoder.std, seed=o.seed,
    )  # fmt: skip


def make_mixing(o: Options, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Makes the function that applies mixup or CutMix, chosen at random, to a batch.

    Args:
        o: the protocol's options.
        classes: number K of classes.

    Returns:
        Function of images float [B, C, S, S] and labels int64 [B], that returns mixed images and
        smoothed targets float [B, K], or both unchanged without mixup and CutMix.
    """
    r = o.resolved
    transforms: list[nn.Module] = []
    if r.mixup:
        transforms.append(v2.MixUp(alpha=r.mixup, num_classes=classes))
    if r.cutmix:
        transforms.append(v2.CutMix(alpha=r.cutmix, num_classes=classes))

    def mix(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not transforms or len(x) < 2:
            return x, y
        x, y = transforms[int(torch.randint(len(transforms), ()))](x, y)
        return x, y * (1 - r.smoothing) + r.smoothing / classes

    return mix


def _predict(
    model: Classifier, encoder: Encoder, test: Source
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Best classes int64 [N, G] of the images that can be read, their indices int64 [N], and path
    and reason of each other image."""
    guesses, keys, skipped = [], [], []
    with progress_bar(f"evaluating on {test.name}", len(test), True) as advance:
        for chunk in chunks(test, 256, encoder_input(encoder)):
            if chunk.x is not None:
                with torch.inference_mode():
                    logits = model(chunk.x)
                guesses.append(logits.topk(min(TOP, logits.shape[1]), dim=1).indices.cpu())
                keys.append(torch.from_numpy(np.asarray(chunk.keys)))
            skipped += chunk.skipped
            advance(len(chunk.keys) + len(chunk.skipped))
    if not guesses:
        raise DataError(f"{test.name!r} has no image that can be read.")
    return torch.cat(guesses), torch.cat(keys), skipped
