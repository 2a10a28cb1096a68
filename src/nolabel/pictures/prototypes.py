"""The images with the highest score for each prototype of a clustering head.

Measured by the agreement of the prototypes with the classes, which the training did not use
(adjusted mutual information: 0 is chance for any number of prototypes). The baseline is the
agreement of as many k-means clusters of raw pixels.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score

from nolabel.data.source import Source
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import extract
from nolabel.errors import UsageError
from nolabel.methods.base import HasPrototypes, Method
from nolabel.pictures._options import Help
from nolabel.pictures._shown import shown_image
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.pictures.picture import Picture


def prototypes(
    method: Method | HasPrototypes,
    encoder: Encoder,
    *,
    gallery: Source,
    shown: Annotated[int, Help("prototypes shown, at most")] = 8,
    top: Annotated[int, Help("images of each prototype")] = 6,
    seed: Annotated[int, Help("seed of the k-means baseline")] = 0,
) -> Pictures:
    """One row for each prototype, those with the most assigned images first.

    Args:
        method: a trained method that `HasPrototypes`.
        encoder: its encoder.
        gallery: the images.

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
    features = extract(encoder, gallery)
    with torch.inference_mode():
        logits = method.prototype_logits(features.values.to(encoder.device)).float().cpu()
    assigned = logits.argmax(1).numpy()
    used, counts = np.unique(assigned, return_counts=True)
    drawn = used[np.argsort(-counts, kind="stable")][:shown]
    keys = features.keys.numpy()
    scores = logits.log_softmax(1)[:, drawn]
    best = scores.topk(min(top, len(scores)), dim=0).indices.numpy()
    rows = [[shown_image(gallery, int(keys[j])) for j in best[:, i]] for i in range(len(drawn))]
    share = counts / counts.sum()
    numbers = {
        "prototypes": float(logits.shape[1]),
        "used": float(len(used)),
        "effective": float(np.exp(-(share * np.log(share)).sum())),
    }
    caption = (
        f"Images of {gallery.name} with the highest score for the {len(drawn)} most frequent "
        f"prototypes of {encoder.name}; {len(used)} of {logits.shape[1]:,} prototypes are assigned "
        f"to an image, effective number (exponential of the entropy) {numbers['effective']:.0f}"
    )
    if features.labels is not None:
        labels = features.labels.numpy()
        pixels = extract(load("pixels", image_size=encoder.image_size, channels=encoder.channels),
                         gallery).values.numpy()  # fmt: skip
        groups = MiniBatchKMeans(min(len(used), len(pixels)), n_init=3, random_state=seed)
        same = [float((labels[best[:, i]] == np.bincount(labels[best[:, i]]).argmax()).mean())
                for i in range(len(drawn))]  # fmt: skip
        numbers |= {
            "agreement": float(adjusted_mutual_info_score(labels, assigned)),
            "agreement_pixels": float(
                adjusted_mutual_info_score(labels, groups.fit_predict(pixels))
            ),
            "same_class": float(np.mean(same)),
        }
        caption += (
            f". Agreement with the classes, adjusted mutual information (1 is perfect, 0 is "
            f"chance): {numbers['agreement']:.2f} (as many k-means clusters of pixels "
            f"{numbers['agreement_pixels']:.2f}); {numbers['same_class']:.0%} of the images in a "
            "row are of one class"
        )
    titles = [f"{i + 1}." for i in range(best.shape[0])]
    data = {"prototypes": drawn, "first_choice": assigned, "keys": keys, "counts": counts}
    return Pictures([Picture(name="prototypes", image=sheet(rows, titles), caption=caption + ".",
                             data=data, numbers=numbers)])  # fmt: skip
