"""Shared pieces: a folder of small real pictures, and quick runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# One process a core with one thread each is faster than one process with several; several processes
# with several threads wait for each other's.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items):
    """Tests that take long come first, so that no process is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory):
    """Code that tests execute is not recorded as trusted on this machine."""
    os.environ["NOLABEL_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """48 creatures of three kinds as PNG files in a folder a kind."""
    from nolabel.data.creatures.world import Creatures

    root = tmp_path_factory.mktemp("photos")
    creatures = Creatures(size=32, count=160)
    count = {}
    for i, label in enumerate(creatures.labels):
        kind = creatures.classes[label]
        if label < 3 and count.get(kind, 0) < 16:
            count[kind] = count.get(kind, 0) + 1
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(creatures.images([i])[0]).save(root / kind / f"{i:04}.png")
    return root


@pytest.fixture
def tiny_run(photos, tmp_path):
    """Trains a few steps quietly; returns the finished run."""
    import nolabel as nl
    from nolabel.testing import TINY

    def train(method="simclr", out="run", **options):
        given = {"steps": 4, "batch_size": 8, "precision": "fp32", "workers": 0}
        given |= {"backbone": "vit_pico", "image_size": 32, "fit_views": False}
        given |= {**TINY[method], **options}
        return nl.pretrain(method, data=str(photos), out=tmp_path / out, quiet=True, **given)

    return train


_MEASURED: dict[tuple[object, ...], object] = {}


@pytest.fixture(autouse=True)
def operations_on_a_named_set_are_measured_once(request, monkeypatch):
    """The measurement of the views takes a second, and finds the same on the same named set."""
    if "views" in request.node.nodeid:
        return
    from nolabel.data.open import DATASETS
    from nolabel.engine import resolve

    measure = resolve.operations_on

    def once(source, s):
        if not source.in_memory or source.name.partition(":")[0] not in DATASETS:
            return measure(source, s)
        first = source.images(np.array([0])).tobytes()  # a set is drawn at any size
        key = (source.name, len(source), s.image_size, first)
        if key not in _MEASURED:
            _MEASURED[key] = measure(source, s)
        return _MEASURED[key]

    monkeypatch.setattr(resolve, "operations_on", once)


@pytest.fixture
def same_in_workers():
    """Compares the batches of a source made here and in two workers; returns those made here."""
    import torch

    from nolabel.data.loader import make_loader
    from nolabel.views import FastViews, View, ViewPlan

    def check(source, *, size=4, batch_size=8, steps=5, start=0):
        views = FastViews(ViewPlan(views=(View(name="v", size=size),)))

        def batches(workers):
            return list(
                make_loader(source, views, seed=1, batch_size=batch_size, start_step=start,
                            total_steps=start + steps, workers=workers)
            )  # fmt: skip

        here = batches(0)
        for a, b in zip(here, batches(2), strict=True):
            assert torch.equal(a.keys, b.keys) and a.skipped == b.skipped
            assert torch.equal(a.views["v"], b.views["v"])
        return here

    return check


@pytest.fixture
def few_creatures(monkeypatch):
    """The named sets `creatures` hold a fraction of their images: 600 and 200."""
    from nolabel.data.creatures import world

    monkeypatch.setitem(world.SPLITS, "train", 600)
    monkeypatch.setitem(world.SPLITS, "test", 200)


@pytest.fixture
def gain():
    """`knn_gain`."""
    from judging import knn_gain

    return knn_gain


@pytest.fixture
def gain_of_a_short_run(tmp_path):
    """Trains, checks that the signals see no collapse, and returns by how much k-NN gains over the
    encoder's random start."""
    import nolabel as nl
    from judging import SHORT, assert_healthy, judging_creatures, knn_gain

    def learn(method, *, data="creatures", train=None, known=4000, **settings):
        """`train`: the data of the evaluation, leave-one-out; `known` creatures by default. A
        setting of None is the recipe's."""
        given = {k: v for k, v in {**SHORT, **settings}.items() if v is not None}
        folder = nl.pretrain(method, data=data, out=tmp_path / "run", **given).folder
        assert_healthy(folder)
        judge = {"train": train} if train else judging_creatures(given["image_size"], known)
        return knn_gain(str(folder), f"random:{folder}", **judge)

    return learn


@pytest.fixture
def as_process(monkeypatch):
    """Lets losses run as one process of several: `with as_process(rank, (own, of_all), ...)`, where
    each pair holds a tensor of this process and the same of all, [W * n, ...]."""
    from nolabel import distributed

    @contextlib.contextmanager
    def pretend(rank, *pairs):
        def gather(x):
            (found,) = [every for own, every in pairs if torch.equal(own, x)]
            return found

        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda: rank)
            patch.setattr(distributed, "world_size", lambda: len(pairs[0][1]) // len(pairs[0][0]))
            patch.setattr(distributed, "gather", lambda x: gather(x).detach())
            patch.setattr(distributed, "gather_with_grad", gather)
            yield

    return pretend
