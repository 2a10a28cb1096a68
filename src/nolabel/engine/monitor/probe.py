"""The online k-NN probe: the encoder's accuracy on labelled data during training."""

from __future__ import annotations

from nolabel.backbones.base import Backbone
from nolabel.config import Run
from nolabel.data.open import open_source
from nolabel.data.order import evenly_spaced
from nolabel.data.source import Source, Subset, require_labels
from nolabel.data.split import independent_units, split
from nolabel.encoders.encoder import Encoder
from nolabel.errors import DataError
from nolabel.protocols import labelfree
from nolabel.protocols.knn import run_knn
from nolabel.views.plan import ViewPlan

RETRIEVED = 300  # images of self-retrieval
MOST = 4000  # training images of the k-NN; a quarter as many are test images


class Probe:
    """k-NN (k = 20) of an encoder, on some labelled images.

    Args:
        source: with labels; a fifth of it is test images.
        most: training images; a quarter as many are test images.

    Raises:
        DataError: the source has no labels.
    """

    def __init__(self, source: Source, most: int = MOST):
        require_labels(source)
        self.name = source.name
        rest, part = split(source, 0.2, seed=0, units=independent_units(source)[0])
        self.train, self.test = _at_most(rest, most), _at_most(part, most // 4)

    @classmethod
    def of(cls, run: Run, most: int = MOST) -> Probe | None:
        """The probe of a run; None if it has none. Raises DataError, UsageError."""
        s = run.settings
        if not s.probe:
            return None
        return cls(
            open_source(s.probe, image_size=s.image_size, download=s.download, channels=s.channels),
            most,
        )

    def __call__(self, backbone: Backbone, plan: ViewPlan) -> float:
        """Top-1 accuracy as a fraction. Train/eval modes and the random state stay as they are."""
        return self.accuracy(Encoder(backbone, mean=plan.mean, std=plan.std))

    def accuracy(self, encoder: Encoder) -> float:
        """Top-1 accuracy as a fraction."""
        report = run_knn(encoder, self.train, self.test, k=(20,))
        return float(report.rows[0]["value"])


def self_retrieval(encoder: Encoder, source: Source) -> float:
    """The measure that needs no labels: `evaluate labelfree`, self-retrieval of some images.

    Returns:
        A fraction; 0 where the images are too few.
    """
    o = labelfree.Options(images=RETRIEVED, views=2)
    try:
        z = labelfree.embed_views(encoder, labelfree.draw(source, o)[0], o)
    except DataError:
        return 0.0
    return labelfree.self_retrieval(z) / len(z)


def _at_most(source: Subset, most: int) -> Subset:
    return source if len(source) <= most else Subset(source, evenly_spaced(len(source), most))
