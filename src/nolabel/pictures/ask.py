"""Text-to-image retrieval: images ranked by a sentence, and maps of where its words are.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv
2103.00020: the cosine of the embeddings of image and text. Two kinds of maps. Occlusion: a square
of the image is replaced by the mean colour, and the drop of the cosine is assigned to it (Zeiler
and Fergus, "Visualizing and Understanding Convolutional Networks", 2014, arXiv 1311.2901); works
for every network. Patches: each patch is embedded as if it were an image
(`Backbone.dense_embeddings`; Zhou et al., "Extract Free Dense Labels from CLIP", 2022, arXiv
2112.01071); faster, and good for large CLIP ViTs.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated

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
from nolabel.pictures._options import Help
from nolabel.pictures._shown import shown_sample
from nolabel.pictures._tiles import Pictures, enlarge, heat, sheet
from nolabel.pictures.picture import Picture
from nolabel.types import Sample

# Words without a map of their own.
STOP_WORDS = {
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "at",
    "and",
    "or",
    "with",
    "to",
    "is",
    "are",
    "from",
}
METHODS = ("hiding", "patches")
MAX_WORD_MAPS = 4  # beside that of the whole sentence


def ask(
    encoder: Encoder,
    images: object = None,
    *,
    gallery: Source,
    words: Annotated[str, Help("the sentence")] = "",
    top: Annotated[int, Help("images shown")] = 6,
    by: Annotated[str, Help("how the words are located: hiding (occlusion) or patches")] = "hiding",
) -> Pictures:
    """The images most similar to a sentence, each with heat maps of the sentence and its words.

    Args:
        encoder: one with a text tower: a run of clip or siglip, or openclip:NAME/TAG.
        images: not used.
        gallery: the images that are ranked.

    Raises:
        UsageError: no sentence, no image to show, `by` is unknown, or an encoder without a text
            tower.
    """
    if by not in METHODS:
        raise unknown("value of --by", by, METHODS)
    if not words.strip() or top < 1:
        raise UsageError(
            f"Give a sentence, such as --words 'a red snail', and at least one image to show; got "
            f"{words!r} and {top}."
        )
    text = text_of(encoder)
    features = extract(encoder, gallery)
    z = text.project(features.values)
    cosines = (z @ text.embed(words)[0]).numpy()
    order = np.argsort(-cosines, kind="stable")
    keys = features.keys.numpy()
    samples = [shown_sample(gallery, int(keys[i]), encoder.image_size) for i in order[:top]]
    texts = [words, *content_words(words)]
    x = encoder.prepare([s.image for s in samples])
    maps = (occlusion_maps if by == "hiding" else patch_maps)(encoder, text, x, texts)
    pixels = to_pixels(x.cpu().numpy(), encoder.mean, encoder.std)
    rows = [
        [image, *(enlarge(heat(m)) for m in of_image)]
        for image, of_image in zip(pixels, maps, strict=True)
    ]
    caption = (
        f"The images of {gallery.name} ({len(keys):,}) most similar to {words!r} by "
        f"{encoder.name}, and where the words are (bright); cosine {cosines[order[0]]:.2f} to "
        f"{cosines[order[len(samples) - 1]]:.2f} (mean of all images {cosines.mean():.2f})"
    )
    numbers = {"cosine_best": float(cosines[order[0]]), "cosine_mean": float(cosines.mean())}
    named = _named_class(words, gallery)
    if named is not None and features.labels is not None:
        right = features.labels.numpy() == named
        numbers |= {"precision": float(right[order[:top]].mean()), "chance": float(right.mean())}
        caption += (
            f". {numbers['precision']:.0%} of those shown are of the class "
            f"{gallery.classes[named]!r} (higher is better; chance {numbers['chance']:.0%})"
        )
    scores = _map_scores(encoder, samples, maps[:, 0], pixels.shape[1])
    numbers |= scores
    if scores:
        caption += (
            f". Area under the ROC curve of the sentence's map for the pixels of the true mask (1 "
            f"is perfect) {scores['auroc']:.2f} (saliency without words "
            f"{scores['auroc_saliency']:.2f}, distance from the centre "
            f"{scores['auroc_middle']:.2f}, chance 0.50)"
        )
    data = {"keys": keys[order], "cosines": cosines[order], "maps": maps}
    return Pictures([Picture(name="ask", image=sheet(rows, ("image", *texts)),
                             caption=caption + ".", data=data, numbers=numbers)])  # fmt: skip


def content_words(words: str) -> list[str]:
    """The words of a sentence without stop words, in order, without repeats; none if only one."""
    content = [w for w in re.findall(r"[\w'-]+", words.lower()) if w not in STOP_WORDS]
    content = list(dict.fromkeys(content))
    return content[:MAX_WORD_MAPS] if len(content) > 1 else []


def occlusion_maps(encoder: Encoder, text: TextEncoder, x: Tensor, words: list[str]) -> np.ndarray:
    """Occlusion maps: the mean drop of the cosine when a square that covers the pixel is hidden.

    Args:
        encoder: the image encoder.
        text: its text tower.
        x: prepared images, float [N, C, S, S].
        words: T texts.

    Returns:
        float32 [N, T, S, S].
    """
    side = x.shape[-1]
    square, step = max(side // 4, 1), max(side // 8, 1)
    with encoder.evaluating():
        base = encoder.backbone(x).float()
    embedded, mean_colour = text.embed(words).T, x.mean((2, 3), keepdim=True)
    unhidden = text.project(base) @ embedded  # [N, T]
    drop = torch.zeros(len(x), len(words), side, side)
    times = torch.zeros(side, side)
    starts = range(0, side - square + 1, step)
    with progress_bar("occlusion", len(starts) ** 2) as advance:
        for top, left in itertools.product(starts, starts):
            at = (..., slice(top, top + square), slice(left, left + square))
            hidden = x.clone()
            hidden[at] = mean_colour
            with encoder.evaluating():
                h = encoder.backbone(hidden).float()
            drop[at] += (unhidden - text.project(h) @ embedded)[..., None, None]
            times[at] += 1
            advance(1)
    return (drop / times.clamp_min(1)).numpy()


def patch_maps(encoder: Encoder, text: TextEncoder, x: Tensor, words: list[str]) -> np.ndarray:
    """Cosine of every patch with each text.

    Args:
        encoder: the image encoder.
        text: its text tower.
        x: prepared images, float [N, C, S, S].
        words: T texts.

    Returns:
        float32 [N, T, h, w].
    """
    with encoder.evaluating():
        t = encoder.backbone.dense_embeddings(x)
    patches = t.patches.float().clone()
    z = text.project(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    cosines = torch.einsum("npe,ke->nkp", z, text.embed(words))
    return cosines.unflatten(-1, t.grid).numpy()


def _named_class(words: str, gallery: Source) -> int | None:
    """Index of the class whose name the sentence contains; None unless there is exactly one."""
    sentence = f" {' '.join(re.findall(r'[a-z0-9]+', words.lower()))} "
    names = [" ".join(re.findall(r"[a-z0-9]+", c.lower())) for c in gallery.classes or ()]
    matches = [i for i, name in enumerate(names) if name and f" {name} " in sentence]
    return matches[0] if len(matches) == 1 else None


def _map_scores(
    encoder: Encoder, samples: list[Sample], maps: np.ndarray, side: int
) -> dict[str, float]:
    """Area under the ROC curve of the sentence's map for the true mask, and of two baselines.

    Args:
        encoder: for the saliency, the first baseline; the second is nearness to the centre.
        samples: N images.
        maps: of the sentence, float [N, h, w].
        side: S of the encoder's input in pixels.

    Returns:
        Empty unless all images have a mask of this size.
    """
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
    axis = np.linspace(-1, 1, side)
    nearness = -np.hypot(axis[:, None], axis[None])
    out = {name: float(np.mean([auroc(m, mask) for m, mask in zip(of_images, masks, strict=True)]))
           for name, of_images in scores.items()}  # fmt: skip
    out["auroc_middle"] = float(np.mean([auroc(nearness, mask) for mask in masks]))
    return out


def auroc(values: np.ndarray, mask: np.ndarray) -> float:
    """Area under the ROC curve of a map float [h, w], resized, for the pixels of a mask [H, W]."""
    resized = F.interpolate(
        torch.from_numpy(values)[None, None].double(), size=mask.shape, mode="bilinear"
    )
    return float(roc_auc_score(mask.ravel() > 0, resized[0, 0].numpy().ravel()))
