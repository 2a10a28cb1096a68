"""The images with the highest score for each prototype of a clustering head.

Measured by the agreement of the prototypes with classes that nobody gave to the training (adjusted
mutual information: 0 is chance, whatever the number of prototypes), beside that of as many k-means
clusters of raw pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score

from nolabel.data.source import Source
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import extract
from nolabel.errors import UsageError
from nolabel.methods.base import HasPrototypes, Method
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture


def prototypes(
    method: Method | HasPrototypes,
    encoder: Encoder,
    *,
    gallery: Source,
    shown: int = 8,
    top: int = 6,
    seed: int = 0,
) -> Pictures:
    """One row a prototype, those that are the first choice of most images first.

    Args:
        method: one that `HasPrototypes`, trained.
        encoder: its encoder.
        gallery: the images.
        shown: prototypes.
        top: images of each.
        seed: of the k-means that it is compared with.

    Raises:
        UsageError: a method without prototypes, or nothing to show.
    """
    if shown < 1 or top < 1:
        raise UsageError(f"Show at least one prototype and image, got {shown} and {top}.")
    if not isinstance(method, HasPrototypes):
        raise UsageError(
            f"{type(method).__name__} has no prototypes. Use a run of dino, ibot, dinov2, swav or "
            "deepclusterv2."
        )
    found = extract(encoder, gallery)
    with torch.inference_mode():
        logits = method.prototype_logits(found.values.to(encoder.device)).float().cpu()
    first = logits.argmax(1).numpy()
    names, counts = np.unique(first, return_counts=True)
    chosen = names[np.argsort(-counts, kind="stable")][:shown]
    keys = found.keys.numpy()
    likes = logits.log_softmax(1)[:, chosen]
    best = likes.topk(min(top, len(likes)), dim=0).indices.numpy()
    rows = [[gallery.read(int(keys[j])).image for j in best[:, i]] for i in range(len(chosen))]
    share = counts / counts.sum()
    numbers = {
        "prototypes": float(logits.shape[1]),
        "used": float(len(names)),
        "effective": float(np.exp(-(share * np.log(share)).sum())),
    }
    caption = (
        f"Images of {gallery.name} with the highest score for prototypes of {encoder.name}, the "
        f"{len(chosen)} most frequent of {len(names)} that are the first choice of an image (of "
        f"{logits.shape[1]:,}; as even as {numbers['effective']:.0f})"
    )
    if found.labels is not None:
        labels = found.labels.numpy()
        pixels = extract(load("pixels", image_size=encoder.image_size, channels=encoder.channels),
                         gallery).values.numpy()  # fmt: skip
        groups = MiniBatchKMeans(min(len(names), len(pixels)), n_init=3, random_state=seed)
        same = [float((labels[best[:, i]] == np.bincount(labels[best[:, i]]).argmax()).mean())
                for i in range(len(chosen))]  # fmt: skip
        numbers |= {
            "agreement": float(adjusted_mutual_info_score(labels, first)),
            "agreement_pixels": float(
                adjusted_mutual_info_score(labels, groups.fit_predict(pixels))
            ),
            "same_class": float(np.mean(same)),
        }
        caption += (
            f". Agreement with the classes {numbers['agreement']:.2f} (as many clusters of pixels "
            f"{numbers['agreement_pixels']:.2f}, chance 0, perfect 1); of a prototype's images "
            f"here {numbers['same_class']:.0%} are of one class"
        )
    titles = [f"{i + 1}." for i in range(best.shape[0])]
    data = {"prototypes": chosen, "first_choice": first, "keys": keys, "counts": counts}
    return Pictures([Picture(name="prototypes", image=sheet(rows, titles), caption=caption + ".",
                             data=data, numbers=numbers)])  # fmt: skip
