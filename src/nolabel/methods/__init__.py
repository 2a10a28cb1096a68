"""Methods by name: one literal table, and a user's own file by path."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from nolabel import _usercode
from nolabel.errors import unknown

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
    "autoencoder": Entry(
        "nolabel.methods.autoencoder:Autoencoder",
        "generative",
        "Hinton & Salakhutdinov 2006, Science 313",
        "rebuild the image from a code of few numbers; with skip, see why that must be few",
        "to learn from, or for a small code of simple pictures; others give better features",
    ),
    "mae": Entry(
        "nolabel.methods.mae:MAE",
        "generative",
        "He et al. 2021, arXiv 2111.06377",
        "masked autoencoder: rebuild the three quarters of the patches that were removed",
        "for fine-tuning later; the cheapest step of all, and no augmentation to choose",
        "a ViT",
    ),
    "simmim": Entry(
        "nolabel.methods.simmim:SimMIM",
        "generative",
        "Xie et al. 2021, arXiv 2111.09886",
        "mask tokens for three fifths of the image, its pixels predicted by one linear layer",
        "for fine-tuning later, where the encoder is a Swin",
        "a ViT or Swin",
    ),
    "vqvae": Entry(
        "nolabel.methods.vqvae:VQVAE",
        "generative",
        "van den Oord et al. 2017, arXiv 1711.00937",
        "rebuild the image from one code of a learned codebook for each patch",
        "as the tokenizer of beit, and to compress; its features alone are weak",
    ),
    "dvae": Entry(
        "nolabel.methods.dvae:DVAE",
        "generative",
        "Ramesh et al. 2021, arXiv 2102.12092",
        "discrete VAE: one token for each patch, learned through the Gumbel-softmax relaxation",
        "as the tokenizer of beit (as the paper's was); its features alone are weak",
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
    "triplet": Entry(
        "nolabel.methods.triplet:Triplet",
        "contrastive",
        "Schroff et al. 2015, arXiv 1503.03832; Hermans et al. 2017, arXiv 1703.07737",
        "two views of an image nearer than any view of another one, by a margin; mined negatives",
        "to study mining and margins; the contrastive methods below learn more",
    ),
    "simclr": Entry(
        "nolabel.methods.simclr:SimCLR",
        "contrastive",
        "Chen et al. 2020, arXiv 2002.05709",
        "two views of one image agree, all other images of the batch are negatives",
        "first choice for small data and minutes on a CPU; wants large batches on large data",
    ),
    "mocov2": Entry(
        "nolabel.methods.mocov2:MoCoV2",
        "contrastive",
        "Chen et al. 2020, arXiv 2003.04297",
        "momentum contrast: keys of a slow encoder, many negatives from a queue",
        "for small batches: the queue brings the negatives; ResNets",
    ),
    "mocov3": Entry(
        "nolabel.methods.mocov3:MoCoV3",
        "contrastive",
        "Chen, Xie, He 2021, arXiv 2104.02057",
        "momentum contrast within the batch, made stable for vision transformers",
        "for ViTs with large batches",
    ),
    "clip": Entry(
        "nolabel.methods.clip:CLIP",
        "contrastive",
        "Radford et al. 2021, arXiv 2103.00020",
        "images and their captions pick each other out of the batch",
        "for images with captions: classify and search by words, without examples",
        "captions (column text, members .txt, creatures, emoji)",
    ),
    "siglip": Entry(
        "nolabel.methods.siglip:SigLIP",
        "contrastive",
        "Zhai et al. 2023, arXiv 2303.15343",
        "a yes-or-no question for every pair of an image and a caption",
        "as clip, for batches that are small or spread over many devices",
        "captions (column text, members .txt, creatures, emoji)",
    ),
    "swav": Entry(
        "nolabel.methods.swav:SwAV",
        "clustering",
        "Caron et al. 2020, arXiv 2006.09882",
        "predict the prototype that the other crops of an image were assigned to, equal shares",
        "for ResNets with multi-crop and batches of any size (a queue helps small ones)",
    ),
    "deepclusterv2": Entry(
        "nolabel.methods.deepclusterv2:DeepClusterV2",
        "clustering",
        "Caron et al. 2018, arXiv 1807.05520; v2: 2020, arXiv 2006.09882",
        "k-means on the memory of last epoch's embeddings labels the images of this one",
        "where clusters are wanted in themselves; learns from the second epoch on",
    ),
    "obow": Entry(
        "nolabel.methods.obow:OBoW",
        "clustering",
        "Gidaris et al. 2020, arXiv 2012.11552",
        "predict from a crop which visual words a momentum teacher sees in the whole image",
        "for features that keep local detail; detection and few labels",
    ),
    "barlow": Entry(
        "nolabel.methods.barlow:BarlowTwins",
        "clustering",
        "Zbontar et al. 2021, arXiv 2103.03230",
        "Barlow Twins: the cross-correlation of two views' embeddings becomes the identity",
        "no negatives, no teacher, few settings; wants a wide projector",
    ),
    "distill": Entry(
        "nolabel.methods.distill:Distill",
        "distillation",
        "Hinton et al. 2015, arXiv 1503.02531; SEED, Fang et al. 2021, arXiv 2101.04731",
        "a small network imitates a frozen encoder: its similarities and its embeddings",
        "to make a good encoder small; the quickest way to features when a good one exists",
        "any backbone and --teacher ENC",
    ),
    "byol": Entry(
        "nolabel.methods.byol:BYOL",
        "distillation",
        "Grill et al. 2020, arXiv 2006.07733",
        "predict a moving average of yourself from another view, without negatives",
        "for moderate batches and ResNets; less touchy about augmentation than contrast",
    ),
    "dino": Entry(
        "nolabel.methods.dino:DINO",
        "distillation",
        "Caron et al. 2021, arXiv 2104.14294",
        "self-distillation with no labels: a student predicts its momentum teacher across crops",
        "for features used as they are (k-NN, retrieval) and attention that segments",
    ),
    "ibot": Entry(
        "nolabel.methods.ibot:IBOT",
        "distillation",
        "Zhou et al. 2021, arXiv 2111.07832",
        "DINO, and the student predicts the teacher's patches behind a mask",
        "for dense tasks (segmentation, parts) as well as k-NN; dearer than DINO",
        "a ViT or Swin",
    ),
    "dinov2": Entry(
        "nolabel.methods.dinov2:DINOv2",
        "distillation",
        "Oquab et al. 2023, arXiv 2304.07193",
        "iBOT with Sinkhorn targets, KoLeo, untied heads, registers, dropped samples",
        "for much data, large networks and long training",
        "a ViT",
    ),
}


OWN = "method class (a subclass of nolabel.methods.base.Method)"


def load(name: str) -> type[Method]:
    """The method class of a built-in name or of `path/to/file.py:Class`.

    A path is executed: only what the user typed may be passed with one. What was read from a file
    names code by its hash (`_usercode.admit`).

    Raises:
        UsageError: unknown name, missing file or class, or a class that is no Method.
    """
    if _usercode.is_reference(name):
        return _class(_usercode.find(name, _is_method, OWN))
    if name not in METHODS:
        raise unknown("method", name, METHODS, "Or path/to/file.py:Class for your own.")
    module, _, attribute = METHODS[name].where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def record(name: str) -> str:
    """The name under which a run saves its method; executes a user's file.

    Raises:
        UsageError: as `load`.
    """
    if _usercode.is_reference(name):
        return _usercode.load_path(name, _is_method, OWN).name
    return name


def record_uncopied(name: str) -> str:
    """As `record`, of a run's folder that holds no copy: only bytes that are trusted are executed.

    Raises:
        UntrustedCode: the file was never run here, nor allowed.
        UsageError: as `load`.
    """
    return _usercode.load_uncopied(name, _is_method, OWN).name


def _is_method(value: object) -> bool:
    from nolabel.methods.base import Method

    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _class(value: object) -> type[Method]:
    from nolabel.methods.base import Method

    assert isinstance(value, type) and issubclass(value, Method)  # noqa: S101 - `_is_method`
    return value
