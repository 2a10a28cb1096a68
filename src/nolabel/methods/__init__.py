"""Methods by name: one literal table, and a user's own file by path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nolabel import _usercode
from nolabel.catalogue import Entry, by_name
from nolabel.errors import unknown

if TYPE_CHECKING:
    from nolabel.methods.base import Method


# Why a loss that rises is no bad sign, of methods whose teacher's targets change.
_RISES = (
    "it may rise while the run learns: it cannot fall below the entropy of the teacher's targets, "
    "which grows as they spread over the prototypes. Look at the probe or target_information"
)


@dataclass(frozen=True, kw_only=True)
class MethodInfo(Entry):
    """One line of `METHODS`; `where` is the module and the class of its page,
    `loss` why its loss may rise; "" if it may not."""

    where: str
    loss: str = ""


METHODS: dict[str, MethodInfo] = by_name(
    MethodInfo(
        name="autoencoder",
        where="nolabel.methods.autoencoder:Autoencoder",
        family="generative",
        paper="Hinton & Salakhutdinov 2006, Science 313",
        description=(
            "reconstruct the image from a code of few numbers; --skip shows why it must be few"
        ),
        when="to learn from, or for a small code of simple pictures; others give better features",
        needs="any backbone",
    ),
    MethodInfo(
        name="mae",
        where="nolabel.methods.mae:MAE",
        family="generative",
        paper="He et al. 2021, arXiv 2111.06377",
        description=(
            "masked autoencoder: predict the pixels of the 75 % of patches that are removed"
        ),
        when="for fine-tuning later; the cheapest step of all, and no augmentation to choose",
        needs="a ViT",
    ),
    MethodInfo(
        name="simmim",
        where="nolabel.methods.simmim:SimMIM",
        family="generative",
        paper="Xie et al. 2021, arXiv 2111.09886",
        description=(
            "mask tokens for three fifths of the image, its pixels predicted by one linear layer"
        ),
        when="for fine-tuning later, if the encoder is a Swin",
        needs="a ViT or Swin",
    ),
    MethodInfo(
        name="vqvae",
        where="nolabel.methods.vqvae:VQVAE",
        family="generative",
        paper="van den Oord et al. 2017, arXiv 1711.00937",
        description="reconstruct the image from one code of a learned codebook for each patch",
        when="as the tokenizer of beit, and to compress; its features alone are weak",
        needs="any backbone that gives a map of features",
    ),
    MethodInfo(
        name="dvae",
        where="nolabel.methods.dvae:DVAE",
        family="generative",
        paper="Ramesh et al. 2021, arXiv 2102.12092",
        description=(
            "discrete VAE: one token for each patch, learned through the Gumbel-softmax relaxation"
        ),
        when="as the tokenizer of beit (as the paper's was); its features alone are weak",
        needs="any backbone that gives a map of features",
    ),
    MethodInfo(
        name="beit",
        where="nolabel.methods.beit:BEiT",
        family="generative",
        paper="Bao et al. 2021, arXiv 2106.08254",
        description="predict the visual tokens of masked patches, which a trained tokenizer gives",
        when="for fine-tuning later; needs a tokenizer first (a run of vqvae or dvae)",
        needs="a ViT and --teacher RUN",
    ),
    MethodInfo(
        name="eva",
        where="nolabel.methods.eva:EVA",
        family="generative",
        paper="Fang et al. 2022, arXiv 2211.07636",
        description="predict a frozen encoder's features of masked patches",
        when="when a strong encoder exists and a ViT of another size is to learn from it",
        needs="a ViT and --teacher ENC",
    ),
    MethodInfo(
        name="triplet",
        where="nolabel.methods.triplet:Triplet",
        family="contrastive",
        paper="Schroff et al. 2015, arXiv 1503.03832; Hermans et al. 2017, arXiv 1703.07737",
        description=(
            "two views of an image are closer than views of other images, by a margin; with "
            "negative mining"
        ),
        when="to study mining and margins; the contrastive methods below learn more",
        needs="any backbone",
    ),
    MethodInfo(
        name="simclr",
        where="nolabel.methods.simclr:SimCLR",
        family="contrastive",
        paper="Chen et al. 2020, arXiv 2002.05709",
        description="two views of one image agree, all other images of the batch are negatives",
        when="first choice for small data and minutes on a CPU; needs large batches on large data",
        needs="any backbone",
    ),
    MethodInfo(
        name="mocov2",
        where="nolabel.methods.mocov2:MoCoV2",
        family="contrastive",
        paper="Chen et al. 2020, arXiv 2003.04297",
        description="momentum contrast: keys of an EMA encoder, many negatives from a queue",
        when="for small batches, as the negatives come from the queue; ResNets",
        needs="any backbone",
    ),
    MethodInfo(
        name="mocov3",
        where="nolabel.methods.mocov3:MoCoV3",
        family="contrastive",
        paper="Chen, Xie, He 2021, arXiv 2104.02057",
        description="momentum contrast within the batch, made stable for vision transformers",
        when="for ViTs with large batches",
        needs="any backbone",
    ),
    MethodInfo(
        name="clip",
        where="nolabel.methods.clip:CLIP",
        family="contrastive",
        paper="Radford et al. 2021, arXiv 2103.00020",
        description="classify which caption of the batch belongs to each image, and vice versa",
        when="for images with captions: zero-shot classification and search by text",
        needs="captions (column text, members .txt, creatures, emoji, stamps, clipart)",
    ),
    MethodInfo(
        name="siglip",
        where="nolabel.methods.siglip:SigLIP",
        family="contrastive",
        paper="Zhai et al. 2023, arXiv 2303.15343",
        description="a binary classification of every pair of an image and a caption",
        when="as clip, for batches that are small or spread over many devices",
        needs="captions (column text, members .txt, creatures, emoji, stamps, clipart)",
    ),
    MethodInfo(
        name="swav",
        where="nolabel.methods.swav:SwAV",
        family="clustering",
        paper="Caron et al. 2020, arXiv 2006.09882",
        description=(
            "predict the prototypes that other crops of an image are assigned to, in equal shares"
        ),
        when="for ResNets with multi-crop and batches of any size (a queue helps small ones)",
        needs="any backbone",
    ),
    MethodInfo(
        name="deepclusterv2",
        where="nolabel.methods.deepclusterv2:DeepClusterV2",
        family="clustering",
        paper="Caron et al. 2018, arXiv 1807.05520; v2: 2020, arXiv 2006.09882",
        description=(
            "k-means on the memory of last epoch's embeddings labels the images of this one"
        ),
        when="if you want the clusters themselves; learns from the second epoch on",
        needs="any backbone",
    ),
    MethodInfo(
        name="obow",
        where="nolabel.methods.obow:OBoW",
        family="clustering",
        paper="Gidaris et al. 2020, arXiv 2012.11552",
        description=(
            "predict from a crop which visual words a momentum teacher sees in the whole image"
        ),
        when="for features that keep local detail; detection and few labels",
        needs="any backbone that gives a map of features",
    ),
    MethodInfo(
        name="barlow",
        where="nolabel.methods.barlow:BarlowTwins",
        family="clustering",
        paper="Zbontar et al. 2021, arXiv 2103.03230",
        description=(
            "Barlow Twins: the cross-correlation of two views' embeddings becomes the identity"
        ),
        when="no negatives, no teacher, few settings; needs a wide projector",
        needs="any backbone",
    ),
    MethodInfo(
        name="distill",
        where="nolabel.methods.distill:Distill",
        family="distillation",
        paper="Hinton et al. 2015, arXiv 1503.02531; SEED, Fang et al. 2021, arXiv 2101.04731",
        description=(
            "a small network imitates a frozen encoder: its similarities and its embeddings"
        ),
        when="to make a good encoder smaller; the fastest way to features if a good one exists",
        needs="any backbone and --teacher ENC",
    ),
    MethodInfo(
        name="byol",
        where="nolabel.methods.byol:BYOL",
        family="distillation",
        paper="Grill et al. 2020, arXiv 2006.07733",
        description="predict the EMA network's projection of another view, without negatives",
        when="for moderate batches and ResNets; depends less on augmentation than contrastive ones",
        needs="any backbone",
    ),
    MethodInfo(
        name="dino",
        loss=_RISES,
        where="nolabel.methods.dino:DINO",
        family="distillation",
        paper="Caron et al. 2021, arXiv 2104.14294",
        description=(
            "self-distillation with no labels: a student predicts its EMA teacher across crops"
        ),
        when="for frozen features (k-NN, retrieval) and attention maps that segment",
        needs="any backbone",
    ),
    MethodInfo(
        name="ibot",
        loss=_RISES,
        where="nolabel.methods.ibot:IBOT",
        family="distillation",
        paper="Zhou et al. 2021, arXiv 2111.07832",
        description="DINO, and the student predicts the teacher's tokens of masked patches",
        when="for dense tasks (segmentation, parts) as well as k-NN; slower than DINO",
        needs="a ViT or Swin",
    ),
    MethodInfo(
        name="dinov2",
        loss=_RISES,
        where="nolabel.methods.dinov2:DINOv2",
        family="distillation",
        paper="Oquab et al. 2023, arXiv 2304.07193",
        description="iBOT with Sinkhorn targets, KoLeo, untied heads, registers, dropped samples",
        when="for much data, large networks and long training",
        needs="a ViT",
    ),
)


EXPECTED = "method class (a subclass of nolabel.methods.base.Method)"


# Method -> its subclass with the options of the paper's ablations; others have them themselves.
_WITH_ABLATIONS = {"dino": "dino-ablated"}
_VARIANTS = {"dino-ablated": "nolabel.methods.ablations.dino:DINOAblated"}
# Options and their defaults that only the subclass has today; older runs have them in the method.
_MOVED_OPTIONS = {"dino": {"teacher": "momentum", "centring": "centre", "loss": "cross-entropy",
                   "predictor": False}}  # fmt: skip


def with_ablations(name: str) -> str:
    """The method whose options include those that the paper's table of ablations changes."""
    return _WITH_ABLATIONS.get(name, name)


def is_built_in(name: str) -> bool:
    """Whether `load` finds the name without executing a user's file."""
    return name in METHODS or name in _VARIANTS


def upgrade_config(run: Mapping[str, Any]) -> dict[str, Any]:
    """The content of an older config.yaml in today's form.

    Options that moved to a subclass are removed if they have their defaults; if not, the run
    becomes one of the subclass.

    Args:
        run: with the keys "method" and "options".
    """
    method, options = run.get("method"), dict(run.get("options") or {})
    defaults = _MOVED_OPTIONS.get(str(method), {})
    removed = {k: options.pop(k) for k in defaults if k in options}
    if any(removed[k] != defaults[k] for k in removed):
        return {**run, "method": _WITH_ABLATIONS[str(method)]}
    return {**run, "options": options} if removed else dict(run)


def check_name(name: str) -> None:
    """Refuses a name that is neither built in nor that of a class in a file; imports no torch.

    Raises:
        UsageError: unknown name, with the nearest one.
    """
    if not _usercode.is_reference(name) and not is_built_in(name):
        raise unknown("method", name, METHODS, "Or path/to/file.py:Class for your own.")


def load(name: str) -> type[Method]:
    """The method class of a built-in name or of `path/to/file.py:Class`.

    The file is executed, so a path must come from the user's own input. Names that are read from a
    file refer to code by its hash (`_usercode.admit`).

    Raises:
        UsageError: unknown name, missing file or class, or a class that is not a Method.
    """
    if _usercode.is_reference(name):
        return _class(_usercode.find(name, _is_method, EXPECTED))
    check_name(name)
    where = _VARIANTS.get(name) or METHODS[name].where
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def name_by_hash(name: str) -> str:
    """The name with which a run's files refer to its method: path/to/file.py:Class becomes
    file.py:Class@hash. Executes a user's file.

    Raises:
        UsageError: as `load`.
    """
    if _usercode.is_reference(name):
        return _usercode.load_path(name, _is_method, EXPECTED).name
    return name


def name_by_trusted_hash(name: str) -> str:
    """`name_by_hash` for a run's folder without a copy of the file: executes trusted files only.

    Raises:
        UntrustedCode: the file was neither executed here before nor allowed by the user.
        UsageError: as `load`.
    """
    return _usercode.load_uncopied(name, _is_method, EXPECTED).name


def _is_method(value: object) -> bool:
    from nolabel.methods.base import Method

    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _class(value: object) -> type[Method]:
    from nolabel.methods.base import Method

    assert isinstance(value, type) and issubclass(value, Method)  # noqa: S101 - see `_is_method`
    return value
