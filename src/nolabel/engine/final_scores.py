"""The scores of a finished run: its encoder beside its random start and raw pixels.

By k-NN where there are labels, of `--probe` or the names of the data's folders. They measure, and
train nothing. Without labels, by self-retrieval (`evaluate labelfree`).
"""

from __future__ import annotations

from nolabel.config import Run
from nolabel.data.decoded import decoded_once
from nolabel.data.order import evenly_spaced
from nolabel.data.progress import phase
from nolabel.data.source import Source, Subset
from nolabel.encoders import load
from nolabel.engine.machine import cache_memory
from nolabel.engine.monitor.doctor import examine
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.monitor.probe import Probe, self_retrieval

MIN_STEPS = 60  # a shorter run is a try
MIN_LABELLED, MOST_LABELLED = 50, 5000  # images; fewer say nothing, more take long
GAIN = 0.02  # smaller differences are taken as none


def final_scores(run: Run, source: Source, probe: Probe | None = None) -> list[str]:
    """Lines with the three figures, and what they mean.

    Args:
        run: finished, in its folder.
        source: its training data.
        probe: of the run; None: the labels of the data, if its folders are classes.
    """
    s = run.settings
    with phase("comparing with raw pixels and the random start"):
        names = ("pixels", f"random:{run.folder}", str(run.folder))
        sizes = (None, s.image_size, s.image_size)
        encoders = [
            load(name, image_size=size, channels=s.channels)
            for name, size in zip(names, sizes, strict=True)
        ]
        source = _decoded_once(source, s.image_size)
        if probe is None and (labelled := _labelled(source)) is not None:
            probe = Probe(labelled)
        if probe is not None:
            what = f"k-NN on the labels of {probe.name}"
            pixels, start, trained = (probe.accuracy(encoder) for encoder in encoders)
        else:
            what = "self-retrieval, which needs no labels"
            pixels, start, trained = (self_retrieval(encoder, source) for encoder in encoders)
    line = f"{what}: {trained:.1%}; random start {start:.1%}, raw pixels {pixels:.1%}"
    flat = examine(read_metrics(run.folder / "metrics.jsonl"), s.steps).state == "stopped improving"
    return [line, explain(run, pixels, start, trained, labelled=probe is not None, flat=flat)]


def explain(
    run: Run, pixels: float, start: float, trained: float, *, labelled: bool, flat: bool = False
) -> str:
    """What the figures of the encoder and its two baselines mean, in one sentence.

    Args:
        run: finished.
        pixels, start, trained: fractions; more is better.
        labelled: whether they are accuracies.
        flat: whether it had stopped improving, so that a longer run is no advice.
    """
    if not labelled:
        better = trained > start + GAIN
        return (
            "The encoder tells its images apart better than before training."
            if better
            else "Training has not helped to tell the images apart. " + _advice(run, flat)
        ) + " A few labels say more: --probe SRC."
    if trained > max(pixels, start) + GAIN:
        return "Better than both."
    if trained > pixels + GAIN and trained >= start - GAIN:
        return "Better than raw pixels, and level with the random start. " + _advice(run, flat)
    if trained > start + GAIN:
        return "Better than the random start, and not better than raw pixels. " + _advice(run, flat)
    return "Not better than the random start. " + _advice(run, flat)


def _advice(run: Run, flat: bool) -> str:
    """What would help most."""
    minutes = run.settings.minutes
    if run.settings.steps < 5000 and not flat:
        longer = f"--minutes {3 * minutes:g}" if minutes else f"--steps {3 * run.settings.steps}"
        return f"What would help: a longer run ({longer})."
    if run.images < 2000:
        return f"What would help: more images ({run.images:,} are few)."
    return "What would help: another method, or a published encoder to start from (--init)."


def _decoded_once(source: Source, image_size: int) -> Source:
    """The source for three encoders: large images are read once, shrunk to twice their input."""
    return decoded_once(source, (2 * max(image_size, 32)) ** 2, cache_memory())


def _labelled(source: Source) -> Source | None:
    """Some of the training data, if its folders are classes."""
    classes = len(source.classes)
    many = source.labels is not None and len(source) >= max(MIN_LABELLED, 5 * classes)
    if not many or classes < 2:
        return None
    return Subset(source, evenly_spaced(len(source), MOST_LABELLED))
