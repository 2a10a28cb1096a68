"""Images ranked by a sentence, and where in each the words are.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021: the
cosine of an image's and a text's embedding. Where the words are is asked by hiding: a square of
the image is painted in its mean colour, and what the cosine loses was there (Zeiler and Fergus,
"Visualizing and Understanding Convolutional Networks", 2014, arXiv 1311.2901), which works for
every network; or by the patches, embedded as if each were an image (`Backbone.local`; Zhou et al.,
"Extract Free Dense Labels from CLIP", 2022, arXiv 2112.01071), which is quicker and suits large
ViTs of CLIP.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from nolabel.data.progress import progress_bar
from nolabel.data.source import Source
from nolabel.encoders import Encoder
from nolabel.encoders.features import extract
from nolabel.encoders.text import TextEncoder, text_of
from nolabel.errors import UsageError, unknown
from nolabel.nn.pixels import to_pixels
from nolabel.pictures._dense import dense
from nolabel.pictures._tiles import Pictures, enlarge, heat, sheet
from nolabel.pictures.picture import Picture
from nolabel.types import Sample

# Words that get no map of their own.
LITTLE = {"a", "an", "the", "of", "on", "in", "at", "and", "or", "with", "to", "is", "are", "from"}
WAYS = ("hiding", "patches")
WORDS = 4  # maps of words at most, beside the sentence's


def ask(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    words: str = "",
    top: int = 6,
    by: str = "hiding",
) -> Pictures:
    """The images that suit a sentence best, each with a map of the sentence and of its words.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: the images that are ranked.
        words: the sentence.
        top: images shown.
        by: how words are found: hiding or patches.

    Raises:
        UsageError: no sentence, an unknown way, or an encoder without a text tower.
    """
    if by not in WAYS:
        raise unknown("way", by, WAYS)
    if not words.strip() or top < 1:
        raise UsageError("Ask something: --words 'a red snail'; and show at least one image.")
    text = text_of(encoder)
    found = extract(encoder, gallery)
    z = text.project(found.values)
    cosines = (z @ text.embed(words)[0]).numpy()
    order = np.argsort(-cosines, kind="stable")
    keys = found.keys.numpy()
    samples = [gallery.read(int(keys[i])) for i in order[:top]]
    said = [words, *spoken(words)]
    x = encoder.prepare([s.image for s in samples])
    maps = (hidden_maps if by == "hiding" else patch_maps)(encoder, text, x, said)
    shown = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    rows = [
        [image, *(enlarge(heat(m)) for m in own)] for image, own in zip(shown, maps, strict=True)
    ]
    caption = (
        f"Images of {gallery.name} ({len(keys):,}) that suit {words!r} best by {encoder.name}, "
        f"cosine {cosines[order[0]]:.2f} to {cosines[order[len(samples) - 1]]:.2f} (all images "
        f"{cosines.mean():.2f})"
    )
    numbers = {"cosine_best": float(cosines[order[0]]), "cosine_mean": float(cosines.mean())}
    meant = _meant(words, gallery)
    if meant is not None and found.labels is not None:
        right = found.labels.numpy() == meant
        numbers |= {"precision": float(right[order[:top]].mean()), "chance": float(right.mean())}
        caption += (
            f". Of those shown {numbers['precision']:.0%} are of the class "
            f"{gallery.classes[meant]!r} (by chance {numbers['chance']:.0%})"
        )
    scored = _scored(encoder, samples, maps[:, 0], shown.shape[1])
    numbers |= scored
    if scored:
        caption += (
            f". The sentence's map tells figure from ground by an area under the ROC of "
            f"{scored['auroc']:.2f} (saliency without words {scored['auroc_saliency']:.2f}, the "
            f"middle {scored['auroc_middle']:.2f}, chance 0.50)"
        )
    data = {"keys": keys[order], "cosines": cosines[order], "maps": maps}
    return Pictures([Picture(name="ask", image=sheet(rows, ("image", *said)),
                             caption=caption + ".", data=data, numbers=numbers)])  # fmt: skip


def spoken(words: str) -> list[str]:
    """The words of a sentence that mean something by themselves, in order, without repeats."""
    found = [w for w in re.findall(r"[\w'-]+", words.lower()) if w not in LITTLE]
    found = list(dict.fromkeys(found))
    return found[:WORDS] if len(found) > 1 else []


def hidden_maps(encoder: Encoder, text: TextEncoder, x: Tensor, words: list[str]) -> np.ndarray:
    """What the cosine of prepared images [N, C, S, S] with each text loses, at each place, when a
    square about it is painted in the image's mean colour: [N, texts, S, S]."""
    side = x.shape[-1]
    square, step = max(side // 4, 1), max(side // 8, 1)
    with encoder.evaluating():
        base = encoder.backbone(x).float()
    wanted, grey = text.embed(words).T, x.mean((2, 3), keepdim=True)
    whole = text.project(base) @ wanted  # [N, texts]
    lost = torch.zeros(len(x), len(words), side, side)
    times = torch.zeros(side, side)
    starts = range(0, side - square + 1, step)
    with progress_bar("hiding parts", len(starts) ** 2) as advance:
        for top, left in itertools.product(starts, starts):
            at = (..., slice(top, top + square), slice(left, left + square))
            hidden = x.clone()
            hidden[at] = grey
            with encoder.evaluating():
                h = encoder.backbone(hidden).float()
            lost[at] += (whole - text.project(h) @ wanted)[..., None, None]
            times[at] += 1
            advance(1)
    return (lost / times.clamp_min(1)).numpy()


def patch_maps(encoder: Encoder, text: TextEncoder, x: Tensor, words: list[str]) -> np.ndarray:
    """Cosine of every patch of prepared images [N, C, S, S] with each text: [N, texts, h, w]."""
    with encoder.evaluating():
        t = encoder.backbone.dense_embeddings(x)
    patches = t.patches.float().clone()
    z = text.project(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    cosines = torch.einsum("npe,ke->nkp", z, text.embed(words))
    return cosines.unflatten(-1, t.grid).numpy()


def _meant(words: str, gallery: Source) -> int | None:
    """The only class whose name the sentence contains."""
    said = f" {' '.join(re.findall(r'[a-z0-9]+', words.lower()))} "
    names = [" ".join(re.findall(r"[a-z0-9]+", c.lower())) for c in gallery.classes or ()]
    there = [i for i, name in enumerate(names) if name and f" {name} " in said]
    return there[0] if len(there) == 1 else None


def _scored(
    encoder: Encoder, samples: list[Sample], maps: np.ndarray, side: int
) -> dict[str, float]:
    """Area under the ROC of the sentence's map for the figure's pixels, and of two maps that know
    no words; nothing where masks are unknown."""
    masks = [s.mask for s in samples if s.mask is not None]
    usable = [m.shape == (side, side) and 0 < m.mean() < 1 for m in masks]
    if len(masks) < len(samples) or not all(usable):
        return {}
    d = dense(encoder, [s.image for s in samples])
    scores = {"auroc": maps}
    if d.saliency is not None:
        scores["auroc_saliency"] = d.map(d.saliency.numpy())
    else:
        scores["auroc_saliency"] = d.map(d.values.norm(dim=-1).numpy())
    at = np.linspace(-1, 1, side)
    middle = -np.hypot(at[:, None], at[None])
    out = {name: float(np.mean([auroc(m, mask) for m, mask in zip(some, masks, strict=True)]))
           for name, some in scores.items()}  # fmt: skip
    out["auroc_middle"] = float(np.mean([auroc(middle, mask) for mask in masks]))
    return out


def auroc(values: np.ndarray, mask: np.ndarray) -> float:
    """Area under the ROC of a map [h, w], enlarged, for the pixels of a mask [H, W]."""
    big = F.interpolate(
        torch.from_numpy(values)[None, None].double(), size=mask.shape, mode="bilinear"
    )
    return float(roc_auc_score(mask.ravel() > 0, big[0, 0].numpy().ravel()))
