"""The images that each prototype likes best: what a clustering head has sorted them into.

Measured by the agreement of the prototypes with classes that nobody gave to the training (adjusted
mutual information: 0 is chance, whatever the number of prototypes), beside that of as many k-means
clusters of raw pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from nolabel.data.source import Source
from nolabel.encoders import Encoder, load
from nolabel.encoders.features import extract
from nolabel.errors import UsageError
from nolabel.nn.heads import PrototypeHead
from nolabel.pictures._tiles import Pictures, sheet
from nolabel.types import Picture


def prototypes(
    method: Any,
    encoder: Encoder,
    *,
    gallery: Source,
    shown: int = 8,
    top: int = 6,
    seed: int = 0,
) -> Pictures:
    """One row a prototype, those that are the first choice of most images first.

    Args:
        method: a method with a head of prototypes, trained.
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
    found = extract(encoder, gallery)
    with torch.inference_mode():
        logits = scores(method, found.values.to(encoder.device)).float().cpu()
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
        f"Images of {gallery.name} that prototypes of {encoder.name} like best, the "
        f"{len(chosen)} most frequent of {len(names)} that are anybody's first choice (of "
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


def scores(method: Any, h: Tensor) -> Tensor:
    """Logits [N, K] of the encoder's embeddings [N, D] against the prototypes.

    Raises:
        UsageError: a method without prototypes.
    """
    network = getattr(getattr(method, "teacher", None), "module", None)
    head = getattr(network, "head", None)
    if isinstance(head, PrototypeHead):  # DINO, iBOT, DINOv2: the teacher's, centred as in training
        centre = method.centres[0] if hasattr(method, "centres") else method.centre
        return head(h) - centre.value
    own = getattr(method, "prototypes", None)
    projector = getattr(method, "head", None) or getattr(method, "projector", None)
    if own is None or projector is None:
        raise UsageError(
            f"{type(method).__name__} has no prototypes. Use a run of dino, ibot, dinov2, swav or "
            "deepclusterv2."
        )
    weight = own if isinstance(own, Tensor) else own.weight
    weight = weight[0] if weight.ndim == 3 else weight  # DeepCluster v2 has several sets
    return F.linear(F.normalize(projector(h), dim=-1), weight)
