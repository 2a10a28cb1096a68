"""The fast executor agrees with the reference, and the reference with torchvision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from nolabel.errors import UsageError
from nolabel.views import (
    FastViews,
    ReferenceViews,
    View,
    ViewPlan,
    blur,
    colour,
    evaluation_plan,
    fast,
)
from nolabel.views.draw import draw

LEVEL = 1 / 255
OFF = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PATHS = [  # size of the view, height and width of the image; which path it takes on the CPU
    pytest.param(32, 32, 32, True, id="matrix-same"),
    pytest.param(16, 40, 32, True, id="matrix-down"),
    pytest.param(48, 28, 28, True, id="matrix-up"),
    pytest.param(64, 200, 150, False, id="crop-down"),
    pytest.param(200, 180, 190, False, id="crop-up"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(count: int, h: int, w: int, low: int = 50, high: int = 200, seed: int = 0):
    """Smooth coloured pictures, uint8 [B, h, w, 3], away from black and white."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 3, 6, 6), dtype=np.float32))
    x = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=True)
    return (low + (high - low) * x).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def plan(size: int, **options) -> ViewPlan:
    return ViewPlan(views=(View(**{"name": "v", "size": size, "count": 2, **options}),), **OFF)


def both(images, p: ViewPlan, epoch: int = 0, seed: int = 3):
    keys = np.arange(len(images)) + 7
    a = ReferenceViews(p, seed)(images, keys, epoch)
    b = FastViews(p, seed)(images, keys, epoch)
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert all(v.dtype == torch.float32 and v.is_contiguous() for v in b.values())
    return a["v"], b["v"]


def levels(a, b) -> tuple[float, float, float]:
    """Largest, mean absolute and mean difference in levels of 255."""
    d = (b - a) / LEVEL
    return d.abs().max().item(), d.abs().mean().item(), d.mean().item()


# -- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "h", "w", "matrix"), PATHS)
def test_crop_resize_and_flip_equal_the_reference_within_rounding(
    size, h, w, matrix, interpolation
):
    p = plan(size, interpolation=interpolation)
    took = FastViews(p)._matrices_are_cheaper(np.array([h]), np.array([w]), size)
    assert bool(took[0]) is matrix  # the cases cover both paths
    a, b = both(pictures(12, h, w), p)
    most, mean, bias = levels(a, b)
    # torchvision rounds after each axis; the crop path is the same resize.
    assert most <= (1.5 if matrix else 1e-3) and mean < 0.35 and abs(bias) < 0.06


@pytest.mark.parametrize("path", ["matrix", "crop"])
def test_both_paths_of_the_fast_executor_agree(path, monkeypatch):
    monkeypatch.setattr(fast, "MATRIX_COST", 1e9 if path == "matrix" else -1e9)
    for size, h, w in ((24, 32, 32), (96, 130, 100)):
        options = {"jitter": (0.3, 0.3, 0.3, 0.0), "blur": (0.5,), "solarise": (0.3,)}
        a, b = both(pictures(6, h, w, 90, 120), plan(size, **options))
        assert levels(a, b)[0] < 4.5  # four truncations and the rounding of the resize


def test_strong_detail_may_differ_only_where_the_reference_clamps_between_the_axes():
    noise = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    a, b = both(noise, plan(32))
    d = (a - b).abs() / LEVEL
    assert d.mean() < 0.5 and d.flatten().quantile(0.98) < 2.5
    a, b = both(noise, plan(32, interpolation="bilinear"))
    assert levels(a, b)[0] <= 1.5


@pytest.mark.parametrize(
    ("size", "h", "w"), [(24, 40, 50), (24, 50, 40), (32, 20, 28), (64, 200, 150)]
)
@pytest.mark.parametrize("resize", [None, 70])
def test_the_evaluation_view_equals_torchvisions_resize_and_centre_crop(size, h, w, resize):
    images = pictures(3, h, w)
    p = evaluation_plan(size, resize)
    a = ReferenceViews(p)(images, [0, 1, 2], 0)["image"][0]
    b = FastViews(p)(images, [0, 1, 2], 5)["image"][0]
    theirs = v2.Compose(
        [
            v2.Resize(resize or size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(p.mean, p.std),
        ]
    )(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.allclose(a, theirs, atol=1e-6)
    assert (b - theirs).abs().max() < 1.5 * LEVEL / min(p.std)


def test_flip_mirrors_the_view():
    images = pictures(4, 32, 32)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for executor in (ReferenceViews, FastViews):
        straight = executor(plan(32, flip=0.0, **whole))(images, range(4), 0)["v"]
        flipped = executor(plan(32, flip=1.0, **whole))(images, range(4), 0)["v"]
        assert torch.allclose(flipped, straight.flip(-1), atol=1e-5)
        assert torch.allclose(
            straight[0], torch.from_numpy(images).permute(0, 3, 1, 2) / 255, atol=1e-5
        )


@pytest.mark.parametrize("side", [32, 200], ids=["matrices", "crops"])
def test_flips_and_turns_move_the_pixels_of_the_same_crop(side):
    images = pictures(40, side, side)
    plain = plan(32, flip=0.0)
    straight = FastViews(plain, 3)(images, range(40), 0)["v"]
    p = plan(32, vertical_flip=0.5, quarter_turns=0.75)
    made = FastViews(p, 3)(images, range(40), 0)["v"]
    seen = set()
    for copy in range(2):
        drawn = draw(p, [side] * 40, [side] * 40, range(40), 3, 0)["v", copy]
        for i in range(40):
            want = straight[copy, i].flip(2) if drawn.flip[i] else straight[copy, i]
            want = want.flip(1) if drawn.vertical_flip[i] else want
            want = want.rot90(int(drawn.turns[i]), (1, 2))
            assert torch.allclose(made[copy, i], want, atol=1e-5)
            seen.add((bool(drawn.flip[i]), bool(drawn.vertical_flip[i]), int(drawn.turns[i])))
    assert len(seen) == 16  # every combination


@pytest.mark.parametrize(("size", "h", "w", "matrix"), PATHS)
def test_turned_views_equal_the_reference_within_rounding(size, h, w, matrix):
    options = {"vertical_flip": 0.5, "quarter_turns": 0.75, "blur": (0.5,)}
    options |= {"interpolation": "bilinear", "jitter": (0.0, 0.4, 0.0, 0.0)}
    a, b = both(pictures(12, h, w, 90, 140), plan(size, **options))
    assert levels(a, b)[0] < 3.5


def test_ragged_lists_mix_both_paths():
    sizes = [(32, 32), (300, 200), (20, 40), (28, 28), (250, 260), (33, 31)]
    images = [pictures(1, h, w, seed=h)[0] for h, w in sizes]
    a, b = both(images, plan(32, blur=(0.5,)))
    assert levels(a, b)[0] < 1.5
    for i, image in enumerate(images):  # each as in a batch of one
        alone = FastViews(plan(32, blur=(0.5,)), 3)([image], [i + 7], 0)["v"]
        assert torch.allclose(alone[:, 0], b[:, i], atol=1e-5)


# -- blur and colour ----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [(0.1, 2.0), (0.3, 0.3), (5.0, 9.0)])
@pytest.mark.parametrize(("size", "h", "w", "matrix"), PATHS)
def test_blur_equals_the_reference_within_rounding(size, h, w, matrix, sigma):
    rng = np.random.default_rng(1)
    images = pictures(6, h, w)
    images = images + rng.integers(0, 30, images.shape, dtype=np.uint8)
    a, b = both(images, plan(size, blur=(1.0,), blur_sigma=sigma, interpolation="bilinear"))
    assert levels(a, b)[0] < 1.6


@pytest.mark.parametrize("size", [5, 33, 97, 131, 160])  # full matrices; band matrices
def test_the_blur_is_torchvisions(size):
    radius, sigmas = min(size - 1, 9), np.array([0.1, 0.4, 1.3, 0.0, 3.0])
    x = torch.rand(len(sigmas), 3, size, size)
    ours = x.clone()
    some = {i: sigma for i, sigma in enumerate(sigmas) if sigma}
    taps = torch.from_numpy(blur.gaussian(np.where(sigmas, sigmas, 1), radius))
    blur.blur(ours, some, taps)
    for before, after, sigma in zip(x, ours, sigmas, strict=True):
        if sigma:
            kernel = [2 * radius + 1] * 2
            before = v2.functional.gaussian_blur(before, kernel, [sigma] * 2)
        assert torch.allclose(after, before, atol=1e-5)


def test_the_taps_of_the_blur_hold_no_subnormal_numbers():
    taps = blur.gaussian(np.linspace(0.1, 2, 500), 6)
    assert not ((taps > 0) & (taps < np.finfo(np.float32).tiny)).any()


def test_buffers_are_reused_only_when_no_result_refers_to_them():
    make = FastViews(ViewPlan(views=(View(name="v", size=64, count=2),)))
    photos = pictures(2, 200, 150)
    first = make(photos, [0, 1], 0)["v"]
    kept, part = first.clone(), first[1, 0]
    del first  # a view of it still exists
    second = make(photos, [0, 1], 1)["v"]
    assert torch.equal(part, kept[1, 0])
    place = part.untyped_storage().data_ptr()
    assert second.untyped_storage().data_ptr() != place
    del part
    assert make(photos, [0, 1], 2)["v"].untyped_storage().data_ptr() == place


@pytest.mark.parametrize(
    ("options", "most", "truncations"),
    [
        pytest.param({"jitter": (0.2, 0, 0, 0), "jitter_p": 1.0}, 2.5, 1, id="brightness"),
        pytest.param({"jitter": (0, 0.4, 0, 0), "jitter_p": 1.0}, 2.7, 1, id="contrast"),
        pytest.param({"jitter": (0, 0, 0.4, 0), "jitter_p": 1.0}, 2.7, 1, id="saturation"),
        pytest.param({"jitter": (0.2, 0.2, 0.2, 0), "jitter_p": 1.0}, 5.0, 3, id="all-but-hue"),
        pytest.param({"grey": 1.0}, 2.5, 1, id="grey"),
    ],
)
@pytest.mark.parametrize(("size", "h", "w", "matrix"), [PATHS[0], PATHS[3]])
def test_colour_equals_the_reference_but_for_its_truncation(
    size, h, w, matrix, options, most, truncations
):
    a, b = both(pictures(24, h, w, 80, 160), plan(size, **options))
    largest, mean, bias = levels(a, b)
    assert largest < most
    assert mean < 0.6 * truncations + 0.1
    assert (
        0.3 * truncations < bias < 0.6 * truncations
    )  # half a level each, always darker in the reference


@pytest.mark.parametrize(("size", "h", "w", "matrix"), [PATHS[0], PATHS[3]])
def test_contrast_uses_the_mean_before_the_blur(size, h, w, matrix):
    """A bright border weighs more after a reflected blur; the order of the paper must be kept."""
    images = np.full((8, h, w, 3), 90, dtype=np.uint8)
    images[:, :, : w // 3] = 150
    options = {"jitter": (0, 0.9, 0, 0), "jitter_p": 1.0, "blur": (1.0,), "blur_sigma": (4.0, 4.0)}
    a, b = both(images, plan(size, interpolation="bilinear", **options))
    assert levels(a, b)[0] < 2.5


@pytest.mark.parametrize(("size", "h", "w", "matrix"), [PATHS[0], PATHS[3]])
def test_solarise_equals_the_reference_away_from_its_threshold(size, h, w, matrix):
    images = pictures(12, h, w, 0, 255)
    a, b = both(images, plan(size, solarise=(1.0, 0.0), interpolation="bilinear"))
    plain, _ = both(images, plan(size, interpolation="bilinear"))
    far = (plain - 127.5 / 255).abs() > 1.5 * LEVEL
    assert ((a - b).abs() * far).max() < 1.5 * LEVEL
    assert a[0].max() <= 0.5 and a[1].max() > 0.6  # inverted in the first copy only


def test_hue_turns_the_same_way_by_a_similar_amount():
    images = pictures(64, 32, 32, 60, 180)
    p = plan(32, jitter=(0, 0, 0, 0.1), jitter_p=1.0, count=1)
    a, b = both(images, p)
    plain, _ = both(images, plan(32, count=1))
    # The maps differ, so the pixels do. But the mean colour has no bias, and the rotation of the
    # mean chroma, in the plane orthogonal to the grey axis, follows the reference.
    assert (a - b).abs().mean() < 8 * LEVEL and (a - b).mean(dim=(0, 1, 3, 4)).abs().max() < LEVEL

    def chroma(x):
        basis = torch.tensor([[1, -0.5, -0.5], [0, 3**0.5 / 2, -(3**0.5) / 2]])
        return torch.view_as_complex(torch.einsum("kc,vbcij->vbijk", basis, x).contiguous())

    strong = chroma(plain).abs() > 40 * LEVEL
    turn = [torch.angle(chroma(x) / chroma(plain))[strong] for x in (a, b)]
    assert torch.corrcoef(torch.stack(turn))[0, 1] > 0.9


def test_a_third_of_a_turn_of_hue_permutes_the_channels():
    third = colour._hue_matrices(np.array([1 / 3]))[0]
    assert np.allclose(third, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_grey_sources_stay_grey():
    grey = np.repeat(pictures(16, 32, 32)[..., :1], 3, axis=3)
    p = plan(32, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=(0.5,), solarise=(0.0, 0.2))
    _, b = both(grey, p)
    assert (b - b.mean(2, keepdim=True)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"jitter": (0.4, 0, 0, 0)}, id="brightness"),
        pytest.param({"jitter": (0, 0.4, 0, 0)}, id="contrast"),
        pytest.param({"jitter": (0, 0, 0.4, 0)}, id="saturation"),
        pytest.param({"jitter": (0, 0, 0, 0.2)}, id="hue"),
        pytest.param({"grey": 0.5}, id="grey"),
        pytest.param({"blur": (0.5,)}, id="blur"),
        pytest.param({"solarise": (0.5,)}, id="solarise"),
        pytest.param({"channel_jitter": 0.4}, id="channels"),
        pytest.param({"noise": 0.5}, id="noise"),
        pytest.param(
            {"jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2, "blur": (1, 0.1), "solarise": (0, 0.2)},
            id="dino",
        ),
    ],
)
def test_many_draws_have_the_mean_and_the_spread_of_the_reference(options):
    images = pictures(300, 32, 32, 10, 245)
    a, b = both(images, plan(16, **options))
    channels = (0, 1, 3, 4)
    assert ((a.mean(channels) - b.mean(channels)).abs() < 3 * LEVEL).all()
    assert ((a.std(channels) / b.std(channels) - 1).abs() < 0.03).all()


# -- keys, fields, refusals ---------------------------------------------------------------------

DINO = ViewPlan(
    views=(
        View(
            name="global", count=2, size=32, scale=(0.4, 1), jitter=(0.4, 0.4, 0.2, 0.1),
            grey=0.2, blur=(1.0, 0.1), solarise=(0.0, 0.2),
        ),
        View(
            name="local", count=3, size=16, scale=(0.05, 0.4), jitter=(0.4, 0.4, 0.2, 0.1),
            blur=(0.5,), channel_jitter=0.2, noise=0.5,
        ),
    )
)  # fmt: skip


@pytest.mark.parametrize("executor", [FastViews, ReferenceViews])
def test_a_sample_gets_the_same_views_in_any_batch_and_order(executor):
    images = pictures(40, 32, 32)
    make = executor(DINO, 5)
    whole = make(images, range(40), 2)
    order = np.random.default_rng(0).permutation(40)
    shuffled = make(images[order], order, 2)
    part = make(list(images[10:13]), torch.arange(10, 13), 2)
    for name, views in whole.items():
        assert torch.equal(
            views, make(images, range(40), 2)[name]
        )  # the same batch gives the same bits
        assert torch.allclose(views[:, order], shuffled[name], atol=2e-5)
        assert torch.allclose(views[:, 10:13], part[name], atol=2e-5)


def test_chunking_the_batch_changes_nothing(monkeypatch):
    images = pictures(30, 32, 32)
    whole = FastViews(DINO)(images, range(30), 0)
    monkeypatch.setattr(fast, "_CPU_FLOATS", 1)
    single = FastViews(DINO)(images, range(30), 0)
    assert all(torch.allclose(v, single[k], atol=2e-5) for k, v in whole.items())


def test_another_seed_epoch_key_or_copy_gives_other_views():
    images = np.repeat(pictures(1, 32, 32), 8, axis=0)
    base = FastViews(DINO, 0)(images, range(8), 0)["global"]
    others = [
        FastViews(DINO, 1)(images, range(8), 0)["global"],
        FastViews(DINO, 0)(images, range(8), 1)["global"],
        FastViews(DINO, 0)(images, range(8, 16), 0)["global"],
        base.flip(0),
        base.roll(1, 1),
    ]
    for other in others:
        assert ((base - other).abs().mean(dim=(2, 3, 4)) > 0.01).all()


@pytest.mark.parametrize("executor", [FastViews, ReferenceViews])
@pytest.mark.parametrize("side", [32, 200])
def test_every_field_of_a_view_changes_the_output(executor, side):
    images = pictures(16, side, side, 20, 235)
    base = View(
        name="a",
        size=24,
        count=2,
        jitter=(0.2,) * 4,
        grey=0.2,
        blur=(0.5,),
        solarise=(0.3,),
        noise=0.5,
    )
    changes = {
        "size": 16, "count": 3, "scale": (0.5, 0.6), "ratio": (1.0, 1.0),
        "interpolation": "bilinear", "flip": 0.0, "jitter_p": 0.1, "grey": 0.9,
        "blur": (0.0, 1.0), "blur_sigma": (2.0, 3.0), "solarise": (0.9, 0.1),
        "vertical_flip": 0.5, "quarter_turns": 0.5, "channel_jitter": 0.5, "noise": 0.9,
        "noise_sigma": (0.2, 0.3),
    }  # fmt: skip
    made = [f.name for f in dataclasses.fields(View)]
    assert set(made) == {*changes, "name", "jitter", "resize"}

    def make(view: View, **normal) -> torch.Tensor:
        return executor(ViewPlan(views=(view,), **normal))(images, range(16), 0)[view.name]

    def differ(x, y) -> bool:
        return x.shape != y.shape or (x - y).abs().max() > 0.01

    before = make(base)
    for field, value in changes.items():
        assert differ(before, make(dataclasses.replace(base, **{field: value}))), field
    for k in range(4):
        strengths = tuple(0.5 if j == k else 0.2 for j in range(4))
        assert differ(before, make(dataclasses.replace(base, jitter=strengths))), f"jitter {k}"
    assert differ(
        before, make(dataclasses.replace(base, name="b"))
    )  # the name keys the random numbers
    centre = dataclasses.replace(base, scale=None)
    assert differ(before, make(centre))
    assert differ(make(centre), make(dataclasses.replace(centre, resize=40)))
    assert differ(before, make(base, mean=(0.5, 0.5, 0.5)))
    assert differ(before, make(base, std=(0.5, 0.5, 0.5)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("side", [32, 200])
def test_a_device_makes_the_same_views_as_the_cpu(side):
    images = [*pictures(6, side, side), pictures(1, side - 9, side + 7)[0]]
    here = FastViews(DINO, 5)(images, range(7), 1)
    there = FastViews(DINO, 5, device="cuda")(images, range(7), 1)
    for name, views in here.items():
        assert there[name].is_cuda
        # Large images: torch's 8-bit resize on the CPU, matrices on the device.
        apart = (views - there[name].cpu()).abs()
        assert apart.mean() < (1e-4 if side == 32 else LEVEL * 2)


@pytest.mark.parametrize("executor", [FastViews, ReferenceViews])
def test_output_is_normalised_between_black_and_white(executor):
    images = pictures(32, 32, 32, 0, 255)
    for views in executor(DINO)(images, range(32), 0).values():
        for c in range(3):
            low, high = -DINO.mean[c] / DINO.std[c], (1 - DINO.mean[c]) / DINO.std[c]
            assert views[:, :, c].min() >= low - 1e-5 and views[:, :, c].max() <= high + 1e-5


@pytest.mark.parametrize("executor", [FastViews, ReferenceViews])
def test_wrong_images_and_keys_are_refused(executor):
    make = executor(DINO)
    for wrong in (
        np.zeros((2, 8, 8, 3), dtype=np.float32),
        np.zeros((2, 8, 8, 1), dtype=np.uint8),
        [np.zeros((8, 8), dtype=np.uint8)] * 2,
    ):
        with pytest.raises(UsageError, match=r"uint8 \[H, W, 3\]"):
            make(wrong, [0, 1], 0)
    with pytest.raises(UsageError, match="need one each"):
        make(pictures(2, 8, 8), [0], 0)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_tensors_and_views_with_strides_are_accepted():
    images = pictures(4, 32, 32)
    locked = images.copy()
    locked.flags.writeable = False
    mirrored = images[:, ::-1].copy()[:, ::-1]  # negative strides
    want = FastViews(DINO)(images, range(4), 0)["global"]
    for same in (locked, list(locked), torch.from_numpy(images), list(mirrored), mirrored):
        assert torch.equal(want, FastViews(DINO)(same, range(4), 0)["global"])


# -- other channels, other depths ---------------------------------------------------------------

FLAT = {"jitter": (0.4, 0.4, 0.0, 0.0), "blur": (0.5,), "solarise": (0.2,), "noise": 0.5}


def bands(channels: int, h: int, w: int, deep: bool) -> np.ndarray:
    """Smooth pictures [8, h, w, C] of 8 or 16 bits, away from black and white."""
    parts = [pictures(8, h, w, seed=c)[..., 0] for c in range(channels)]
    images = np.stack(parts, 3)
    return images.astype(np.uint16) * 257 if deep else images


@pytest.mark.parametrize("deep", [False, True], ids=["8-bit", "16-bit"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize(("size", "h", "w", "matrix"), PATHS)
def test_any_number_of_channels_agrees_with_the_reference(channels, size, h, w, matrix, deep):
    images = bands(channels, h, w, deep)
    view = View(name="v", size=size, count=2, **FLAT)
    p = ViewPlan(views=(view,), mean=(0.0,) * channels, std=(1.0,) * channels)
    a, b = (e(p, 3)(list(images), np.arange(8), 1)["v"] for e in (ReferenceViews, FastViews))
    assert a.shape == (2, 8, channels, size, size)
    _, mean, _ = levels(a, b)
    assert mean < (0.6 if deep else 1.6)  # torchvision truncates 8 bits after every operation


@pytest.mark.parametrize("size", [32, 96])
def test_sixteen_bits_keep_what_eight_bits_lose(size):
    steps = np.linspace(30_000, 30_200, 200 * 200).reshape(1, 200, 200, 1).astype(np.uint16)
    p = ViewPlan(views=(View(name="v", size=size, scale=None, flip=0.0),), mean=(0.0,), std=(1.0,))
    made = FastViews(p)(list(steps), [0], 0)["v"]
    assert len(made.unique()) > 100  # as 8 bits they are one value


def test_contrast_without_colour_blends_with_the_mean_of_all_channels():
    images = bands(2, 40, 40, deep=False)
    view = View(name="v", size=40, scale=None, flip=0.0, jitter=(0, 0.9, 0, 0), jitter_p=1.0)
    plain_view = View(name="v", size=40, scale=None, flip=0.0)
    off = {"mean": (0.0, 0.0), "std": (1.0, 1.0)}
    x = FastViews(ViewPlan(views=(plain_view,), **off))(images, range(8), 0)["v"][0]
    y = FastViews(ViewPlan(views=(view,), **off))(images, range(8), 0)["v"][0]
    centre = x.mean((1, 2, 3), keepdim=True)
    inside = ((y > 0.01) & (y < 0.99)).all(1, keepdim=True).expand_as(y)
    factor = ((y - centre) / (x - centre))[inside & ((x - centre).abs() > 0.05)]
    assert factor.min() > 0 and factor.max() < 2
    for i in range(8):  # one factor an image, for both channels
        mask = (inside & ((x - centre).abs() > 0.05))[i]
        each = ((y[i] - centre[i]) / (x[i] - centre[i]))[mask]
        assert each.std() < 0.02


def test_colour_operations_are_refused_without_colour_and_left_out_by_with_statistics():
    with pytest.raises(UsageError, match="with_statistics"):
        dataclasses.replace(DINO, mean=(0.5,), std=(0.2,))
    p = DINO.with_statistics((0.5,), (0.2,))
    assert p.channels == 1 and p.views[0].jitter[:2] == DINO.views[0].jitter[:2]
    assert all(v.grey == 0 and v.jitter[2:] == (0, 0) for v in p.views)
    assert DINO.with_statistics((0.1, 0.2, 0.3), (1, 1, 1)).views == DINO.views
    assert FastViews(p)(bands(1, 40, 40, False), range(8), 0)["global"].shape[2] == 1
