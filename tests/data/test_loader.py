"""The step is the loader's only state: the same batches for any workers, ranks and restarts."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from nolabel.data.batches import ATTEMPTS, BatchDataset
from nolabel.data.loader import make_loader
from nolabel.data.open import open_source
from nolabel.data.order import batch_indices, replacement
from nolabel.data.source import Source, Subset
from nolabel.data.sources.arrays import Arrays
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.types import Batch, Sample
from nolabel.views import FastViews, View, ViewPlan
from nolabel.views.executor import Executor


@dataclass
class Crops(Executor):
    """A stand-in for the executors: random crops keyed by (epoch, key), two views."""

    device: str = "cpu"
    size: int = 4

    def __call__(self, images, keys: np.ndarray, epoch: int) -> dict[str, Tensor]:
        rows = []
        for image, key in zip(images, keys, strict=True):
            rng = np.random.default_rng([epoch, int(key)])
            top, left = (int(rng.integers(0, s - self.size + 1)) for s in image.shape[:2])
            crop = image[top : top + self.size, left : left + self.size]
            rows.append(torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255)
        whole = torch.stack(rows)
        return {"global": torch.stack([whole, 1 - whole])}


def _toy(count: int = 23) -> Arrays:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 6, 7, 3), np.uint8)
    return Arrays("toy", pixels, np.arange(count, dtype=np.int64) % 3, ("a", "b", "c"))


def _batches(source=None, **changes) -> list[Batch]:
    options = {"seed": 5, "batch_size": 6, "start_step": 0, "total_steps": 8} | changes
    executor = options.pop("executor", Crops())
    return list(make_loader(source or _toy(), executor, **options))


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.views["global"], y.views["global"])
        and torch.equal(x.keys, y.keys)
        and x.skipped == y.skipped
        for x, y in zip(a, b, strict=True)
    )


def _keys(batches: list[Batch]) -> list[int]:
    return torch.cat([b.keys for b in batches]).tolist()


@pytest.fixture
def folder(tmp_path):
    """Twelve images of different sizes, three of which cannot be read."""
    rng = np.random.default_rng(1)
    for i in range(12):
        path = tmp_path / f"{i:02}.png"
        height, width = (int(s) for s in rng.integers(5, 12, 2))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        if i in (2, 3, 9):
            path.write_bytes(path.read_bytes()[:40] if i == 2 else b"<html>")
    return open_source(tmp_path)


def test_a_batch_has_views_and_keys_and_no_labels():
    batch = _batches(total_steps=1)[0]
    assert batch.views["global"].shape == (2, 6, 3, 4, 4)
    assert batch.size == 6 and batch.keys.dtype == torch.int64
    assert batch.labels is None and batch.skipped == ()


def test_batches_have_labels_only_on_request():
    source = _toy()
    for batch in _batches(source, with_labels=True):
        assert batch.labels.tolist() == [source.labels[k] for k in batch.keys]
    with pytest.raises(UsageError, match="has no labels"):
        _batches(Arrays("bare", source.pixels), with_labels=True)


def test_every_image_comes_at_most_once_an_epoch_and_epochs_differ():
    keys = _keys(_batches(total_steps=6))  # 23 images, batches of 6: three steps an epoch
    first, second = keys[:18], keys[18:]
    assert len(set(first)) == len(set(second)) == 18
    assert first != second


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers, folder):
    assert _same(_batches(), _batches(workers=workers))
    assert _same(_batches(folder), _batches(folder, workers=workers))


@pytest.mark.parametrize("block", [0, 8])
@pytest.mark.parametrize(
    ("workers", "world"), [(0, 1), (0, 2), (0, 3), (0, 8), (1, 3), (4, 1), (4, 2)]
)
def test_any_number_of_processes_and_workers_sees_the_same_images_in_the_same_order(
    workers, world, block
):
    source = _toy(97)
    source.block = block
    whole = torch.stack([b.keys for b in _batches(source, batch_size=24)])  # two epochs
    more = {"batch_size": 24, "world": world, "workers": workers}
    parts = [_batches(source, rank=r, **more) for r in range(world)]
    seen = torch.cat([torch.stack([b.keys for b in part]) for part in parts], dim=1)
    assert torch.equal(seen, whole)
    for epoch in (seen[:4], seen[4:]):
        assert len(epoch.unique()) == 96  # each once; one image is dropped
    assert not torch.equal(seen[:4], seen[4:])
    others = [b.keys for b in _batches(source, batch_size=24, seed=6)]
    assert not torch.equal(torch.stack(others), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(workers):
    assert _same(_batches()[5:], _batches(start_step=5, workers=workers))
    assert _batches(start_step=8, workers=workers) == []


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 3), (2, 3)])
def test_processes_and_accumulation_share_one_global_batch(world, accumulate):
    whole = _batches()
    parts = [_batches(rank=r, world=world, accumulate=accumulate) for r in range(world)]
    for step, batch in enumerate(whole):
        span = slice(step * accumulate, (step + 1) * accumulate)
        pieces = [piece for part in parts for piece in part[span]]
        assert torch.equal(torch.cat([p.keys for p in pieces]), batch.keys)
        views = torch.cat([p.views["global"] for p in pieces], dim=1)
        assert torch.equal(views, batch.views["global"])


def test_the_global_random_state_does_not_change():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _batches(workers=1)
    assert torch.equal(before, torch.get_rng_state())


def test_images_in_memory_are_read_as_one_batch():
    class Counted(Arrays):
        calls = 0

        def images(self, indices, /):
            self.calls += 1
            return super().images(indices)

        def read(self, i, /):
            raise AssertionError("one by one")

    toy = _toy()
    source = Counted("toy", toy.pixels)
    assert _same(_batches(source), _batches(toy))
    assert source.calls == 8


def test_keys_of_a_subset_are_indices_into_the_subset():
    source = Subset(_toy(), np.arange(10, 23))
    for batch in _batches(source, with_labels=True):
        assert batch.labels.tolist() == [source.labels[k] for k in batch.keys]


def test_bad_files_are_replaced_and_reported(folder):
    bad = {2, 3, 9}
    for step, batch in enumerate(_batches(folder, total_steps=4)):
        epoch, due = batch_indices(5, step, 6, 12)
        wanted = []
        for index in due.tolist():
            candidate, attempt = index, 0
            while candidate in bad:
                candidate = replacement(5, epoch, index, attempt, 12)
                attempt += 1
            wanted.append(candidate)
        assert batch.keys.tolist() == wanted
        assert batch.size == 6
        reported = [os.path.basename(path) for path, _ in batch.skipped]
        assert {f"{i:02}.png" for i in set(due.tolist()) & bad} <= set(reported)
    reasons = {os.path.basename(p): r for b in _batches(folder) for p, r in b.skipped}
    assert sorted(reasons) == ["02.png", "03.png", "09.png"]
    assert "web page" in reasons["03.png"] and reasons["02.png"]


def test_a_replacement_gets_views_of_its_own(folder):
    """Otherwise it would appear twice in an epoch with the same crops."""
    seen = []

    class Spy(Crops):
        def __call__(self, images, keys, epoch):
            seen.append(keys.tolist())
            return super().__call__(images, keys, epoch)

    batches = _batches(folder, executor=Spy(), total_steps=2)
    assert sorted(itertools.chain(*seen)) == list(range(12))  # keyed by the scheduled image
    assert sorted(_keys(batches)) != list(range(12))  # but `keys` has the image that was read


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_are_one_clear_error(tmp_path, workers):
    for i in range(20):
        (tmp_path / f"{i}.jpg").touch()
    with pytest.raises(DataError) as caught:
        _batches(open_source(tmp_path), workers=workers)
    text = str(caught.value)
    assert f"{ATTEMPTS + 1} images in a row could not be read" in text and "empty file" in text
    assert "Traceback" not in text and "\n" not in text


def test_a_file_name_that_is_not_utf8_is_reported():
    class Odd(Source):
        name = "odd"

        def __len__(self):
            return 2

        def path(self, i, /):
            return "caf\udce9.jpg"

        def read(self, i, /):
            if i == 0:
                raise BadImage(self.path(i), "damaged")
            return Sample(image=np.zeros((5, 5, 3), np.uint8))

    (batch,) = _batches(Odd(), batch_size=2, total_steps=1)
    assert batch.skipped[0][0].encode() == b"caf\\udce9.jpg"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_executor_on_a_device_is_run_in_this_process(workers, folder):
    class Here(Crops):
        def __call__(self, images, keys, epoch):
            calls.append(os.getpid())
            return super().__call__(images, keys, epoch)

    for source in (_toy(), folder):
        calls: list[int] = []
        # "meta" stands in for a GPU: only the device type is used.
        assert _same(_batches(source), _batches(source, executor=Here("meta"), workers=workers))
        assert calls == [os.getpid()] * 8


def test_a_worker_that_dies_is_a_clear_error():
    class Deadly(Crops):
        def __call__(self, images, keys, epoch):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(images, keys, epoch)

    with pytest.raises(DataError, match="A data worker died.*restarted 3 times at most.*--workers"):
        _batches(executor=Deadly(), workers=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dead_workers_are_restarted_and_no_batch_is_lost_or_repeated(accumulate, tmp_path):
    class Mortal(Crops):
        def __call__(self, images, keys, epoch):
            number = len(list(tmp_path.iterdir()))
            if epoch == 1 and number < 3 and get_worker_info():
                (tmp_path / str(number)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(images, keys, epoch)

    messages: list[str] = []
    whole = _batches(accumulate=accumulate)
    assert _same(whole, _batches(executor=Mortal(), workers=2, accumulate=accumulate,
                                 warn=messages.append))  # fmt: skip
    assert 1 <= len(messages) <= 3  # both workers may die at once
    assert "Restarting the workers (1 of 3 times)" in messages[0]


def test_a_programming_error_in_a_worker_keeps_its_type():
    class Wrong(Crops):
        def __call__(self, images, keys, epoch):
            raise ZeroDivisionError("mine")

    for workers in (0, 1):
        with pytest.raises(ZeroDivisionError, match="mine"):
            _batches(executor=Wrong(), workers=workers)
    assert not multiprocessing.active_children()


def test_workers_exit_when_the_loader_is_deleted():
    loader = make_loader(
        _toy(), Crops(), seed=0, batch_size=4, start_step=0, total_steps=10_000, workers=2
    )
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert not multiprocessing.active_children()


def test_workers_start_without_output():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _batches(workers=4)
    assert not caught


def test_a_batch_larger_than_the_data_names_the_largest():
    with pytest.raises(UsageError, match="'toy' has 23 images.*largest batch possible is 23"):
        make_loader(_toy(), Crops(), seed=0, batch_size=24, start_step=0, total_steps=1)
    with pytest.raises(UsageError, match="largest batch possible is 20"):
        BatchDataset(_toy(), Crops(), seed=0, batch_size=40, world=4)
    with pytest.raises(UsageError, match="Use more images"):
        BatchDataset(_toy(3), Crops(), seed=0, batch_size=4, world=4)


def test_a_batch_that_cannot_be_divided_evenly_names_the_nearest_sizes():
    with pytest.raises(UsageError, match="4 equal parts.*Use 8 or 12"):
        BatchDataset(_toy(), Crops(), seed=0, batch_size=10, world=2, accumulate=2)


def test_impossible_requests_are_refused_at_once():
    for wrong in ({"batch_size": 0}, {"workers": -1}, {"rank": 2, "world": 2}):
        options = {"seed": 0, "batch_size": 4, "start_step": 0, "total_steps": 1} | wrong
        with pytest.raises(UsageError):
            make_loader(_toy(), Crops(), **options)


def test_the_real_executor_makes_the_same_views_in_any_process():
    views = pytest.importorskip("nolabel.views")
    plan = views.ViewPlan(
        views=(
            views.View(
                name="global", count=2, size=24, scale=(0.3, 1.0), jitter_p=0.8, blur=(0.5,)
            ),
        )
    )
    rng = np.random.default_rng(2)
    items = [rng.integers(0, 256, (*rng.integers(30, 90, 2), 3), np.uint8) for _ in range(12)]
    for source in (_toy(), open_source(items)):
        ours = _batches(source, executor=views.FastViews(plan, 0))
        assert _same(ours, _batches(source, executor=views.FastViews(plan, 0), workers=2))
        assert ours[0].views["global"].shape == (2, 6, 3, 24, 24)


def test_large_jpegs_are_decoded_no_larger_than_the_views_need(tmp_path):
    Image.new("RGB", (1600, 1200)).save(tmp_path / "a.jpg")
    small = FastViews(ViewPlan(views=(View(name="v", size=32, scale=(0.2, 1.0)),)))
    whole = FastViews(ViewPlan(views=(View(name="v", size=32, scale=None),)))
    for executor, shape in ((small, (150, 200, 3)), (whole, (1200, 1600, 3))):
        for source in (open_source(tmp_path), Subset(open_source(tmp_path), [0])):
            steps = BatchDataset(source, executor, seed=0, batch_size=1)
            assert steps.decode(0, 0).images[0].shape == shape
