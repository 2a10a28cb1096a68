"""Optimised images: the optimum is the known one, and the numbers equal those by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nolabel.backbones.pixels import Pixels
from nolabel.data.creatures.world import Creatures
from nolabel.data.sources.arrays import Arrays
from nolabel.encoders import Encoder, load
from nolabel.errors import UsageError
from nolabel.methods.base import HasPrototypes
from nolabel.pictures._optimise import (
    Fourier,
    Generator,
    colour_mixing,
    correlation,
    normalise,
    optimise,
    random_crops,
    random_warp,
    unnormalise,
)
from nolabel.pictures.cosegment import cosegment, guided, pixel_iou
from nolabel.pictures.dream import dream, head_activation, unit_activation
from nolabel.pictures.invert import invert
from nolabel.pictures.prototypes import prototypes
from nolabel.pictures.transfer import (
    by_gram,
    colour_distance,
    gram_matrix,
    match_colour_statistics,
    outline_iou,
    relative_error,
    self_similarity,
    transfer,
)
from nolabel.tools.show import show
from nolabel.types import Tokens

VIT = load("random:vit_pico")


def creatures(n, size=32):
    source = Creatures("test", size=size, count=200)
    return [source.read(i) for i in range(n)]


def test_optimise_reaches_the_minimum_and_keeps_previews():
    x = torch.nn.Parameter(torch.zeros(3))
    seen = []

    def on_preview(step, image):
        seen.append(step)

    found = optimise("", [x], lambda step: [(x - 2).square().sum()], lambda: np.zeros(0), steps=200,
                   lr=0.1, on_preview=on_preview)  # fmt: skip
    assert torch.allclose(x, torch.full((3,), 2.0), atol=1e-2)
    assert seen == [25, 50, 100, 200] == [s for s, _ in found.previews] and not found.stopped
    assert len(found.losses) == 200 and found.losses[0] == [12.0]


@pytest.mark.parametrize("how", ["each", "key"])
def test_optimise_stopped_early_keeps_the_current_images(how):
    x = torch.nn.Parameter(torch.zeros(1))

    def loss(step):
        if how == "key" and step == 30:
            raise KeyboardInterrupt
        return [(x - 1).square().sum()]

    found = optimise("", [x], loss, lambda: x.detach().numpy().copy(), steps=200, lr=0.1,
                   on_preview=(lambda step, image: True) if how == "each" else None)  # fmt: skip
    assert found.stopped and "stopped early" in found.summary
    assert len(found.losses) == (25 if how == "each" else 30)
    assert found.previews[-1][0] == len(found.losses)
    assert found.previews[-1][1] == x.detach().numpy()


def test_fourier_images_have_the_colour_correlations_of_the_data():
    rng = np.random.default_rng(0)
    mixed = np.array([[1.0, 0, 0], [0.8, 0.2, 0], [0, 0, 0.1]])
    pixels = (rng.normal(size=(4000, 3)) @ mixed.T * 30 + 128).clip(0, 255).astype(np.uint8)
    root = colour_mixing(pixels).double().numpy()
    cov = np.cov((pixels / 255.0).T) + 1e-3 * np.eye(3)
    assert np.linalg.norm(root, axis=1).max() == pytest.approx(1, abs=1e-6)
    ratio = (root @ root) / cov
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    picture = Fourier(2, 32, colour_mixing(pixels), deviation=0.5)
    y = picture()
    assert y.shape == (2, 3, 32, 32) and y.min() > 0 and y.max() < 1
    logits = torch.logit(y.double())
    spread = logits.std((0, 2, 3))
    assert spread[0] > 3 * spread[2]  # as in the data
    assert torch.equal(
        Fourier(2, 32, colour_mixing(pixels))(), Fourier(2, 32, colour_mixing(pixels))()
    )


def test_fourier_weights_are_one_over_the_frequency():
    picture = Fourier(1, 16, torch.eye(3))
    power = picture.weight[..., 0]
    assert power[0, 1] == pytest.approx(16) and power[0, 2] == pytest.approx(8)
    assert power[0, 0] == pytest.approx(16)  # the mean has the weight of the lowest frequency


def test_grouped_generators_are_independent():
    net = Generator(3, 32, inputs=4, widths=(8, 16), seed=1)
    x = torch.randn(3, 4, 32, 32, requires_grad=True)
    y = net(x)
    assert y.shape == (3, 3, 32, 32) and y.min() >= 0 and y.max() <= 1
    (grad,) = torch.autograd.grad(y[1].sum(), x)
    assert grad[1].abs().max() > 0 and grad[0].abs().max() == 0 == grad[2].abs().max()
    assert net(x[:1]).shape == y.shape  # one input for all
    small = Generator(1, 16, inputs=3)
    assert small.depth == 2 and small(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    state = torch.get_rng_state()
    Generator(1, 16, inputs=3)
    assert torch.equal(state, torch.get_rng_state())  # the global random state is unchanged


def test_random_warps_differ_by_image_and_full_crops_are_the_identity():
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = random_warp(x, torch.Generator(), turn=0, scale=(1, 1), shift=0)
    assert torch.allclose(still, x, atol=1e-5)
    moved = random_warp(x[:1].expand(4, -1, -1, -1), torch.Generator().manual_seed(0))
    assert all(not torch.allclose(moved[0], moved[i], atol=1e-2) for i in (1, 2, 3))
    mirrored = random_warp(
        x, torch.Generator().manual_seed(3), turn=0, scale=(1, 1), shift=0, flip=True
    )
    same = [torch.allclose(m, y, atol=1e-5) for m, y in zip(mirrored, x, strict=True)]
    turned = [torch.allclose(m, y.flip(-1), atol=1e-5) for m, y in zip(mirrored, x, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and any(turned)
    assert torch.allclose(
        random_crops(x, torch.Generator(), 2, (1, 1)), x.repeat(2, 1, 1, 1), atol=1e-5
    )
    part = random_crops(x, torch.Generator().manual_seed(0), 3, (0.5, 0.5))
    assert part.shape == (12, 3, 16, 16) and not torch.allclose(part[:4], x, atol=1e-2)
    both = random_crops(x, torch.Generator().manual_seed(0), 8, (1, 1), flip=True)
    mirrored = [torch.allclose(y, x[i % 4].flip(-1), atol=1e-4) for i, y in enumerate(both)]
    straight = [torch.allclose(y, x[i % 4], atol=1e-4) for i, y in enumerate(both)]
    assert 8 < sum(mirrored) < 24 and all(a != b for a, b in zip(mirrored, straight, strict=True))


class OneFilter(Pixels):
    """A network whose only unit is the product with one image."""

    def __init__(self, kernel):
        super().__init__(kernel.shape[-1])
        self.kernel = kernel

    def facets_of(self, x, wanted):
        y = (x * self.kernel).sum((1, 2, 3))[:, None, None]
        return [Tokens(y[:, 0], y, (1, 1)) for _ in wanted]


def test_dream_of_a_known_filter_is_that_filter():
    at = torch.linspace(-1, 1, 32)
    r = torch.hypot(at[:, None], at[None])
    disc = (r < 0.5).float() - (r >= 0.5).float() * (r < 0.9)
    kernel = torch.stack([disc, -disc, disc])
    encoder = Encoder(OneFilter(kernel), name="filter", mean=(0.5,) * 3, std=(0.25,) * 3)
    rng = np.random.default_rng(0)
    gallery = Arrays("noise", rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    (p,) = dream(encoder, gallery=gallery, steps=120, top=3)
    made = p.data["made"][0].transpose(2, 0, 1) / 255.0 - 0.5
    inside = kernel.numpy() != 0
    assert correlation(made[inside], kernel.numpy()[inside]) > 0.9
    assert p.numbers["beats_best"] == 1.0
    assert p.numbers["made_0"] > 3 * abs(p.numbers["best_0"])
    assert p.numbers["best_0"] >= p.numbers["mean_0"]
    best = gallery.pixels[p.data["keys"][p.data["activations"][:, 0].argmax()]]
    products = [(encoder.prepare(i)[0] * kernel).sum() for i in gallery.pixels]
    assert np.array_equal(best, gallery.pixels[int(np.argmax(products))])


class Threshold(OneFilter):
    """The same after a ReLU that is zero for a grey image."""

    def facets_of(self, x, wanted):
        y = super().facets_of(x, wanted)[0].patches
        y = torch.relu(y - 5)
        return [Tokens(y[:, 0], y, (1, 1)) for _ in wanted]


def test_dream_behind_a_relu_starts_with_a_gradient():
    at = torch.linspace(-1, 1, 32)
    wave = torch.sin(3 * at)[None].expand(32, 32)
    kernel = torch.stack([wave, -wave, wave])
    encoder = Encoder(Threshold(kernel), name="relu", mean=(0.5,) * 3, std=(0.25,) * 3)
    rng = np.random.default_rng(0)
    gallery = Arrays("noise", rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    (p,) = dream(encoder, gallery=gallery, units=(0,), steps=60)
    assert p.numbers["start_0"] > 0 and p.numbers["made_0"] > 10 * p.numbers["start_0"]


def test_head_activation_equals_a_loop_over_tokens():
    x = VIT.prepare([s.image for s in creatures(2)])
    with VIT.evaluating():
        found = head_activation(VIT, x, 1)
        a = VIT.backbone.attention(x, 1)
        v = VIT.backbone.facets(x, 1, "value")
        units = unit_activation(VIT, x, 2)
    values = torch.cat([v.prefix, v.patches], 1)
    heads = a.shape[1]
    width = values.shape[-1] // heads
    for n in range(2):
        for h in range(heads):
            out = sum(a[n, h, 0, t] * values[n, t, h * width : (h + 1) * width]
                      for t in range(a.shape[-1]))  # fmt: skip
            assert found[n, h] == pytest.approx(float(out.norm()), rel=1e-4)
    with VIT.evaluating():
        tokens = VIT.backbone.facets(x, 2, "token").patches
    assert torch.allclose(units, tokens.mean(1))


def test_dream_of_heads_and_errors():
    gallery = Creatures("test", size=32, count=40)
    (p,) = dream(VIT, gallery=gallery, heads=(0, 3), layer=1, steps=3, top=2)
    assert {"made_0", "made_3", "beats_best"} <= p.numbers.keys()
    with pytest.raises(UsageError, match="not both"):
        dream(VIT, gallery=gallery, heads=(0,), units=(1,))
    with pytest.raises(UsageError, match="0 to 63"):
        dream(VIT, gallery=gallery, units=(64,), steps=1)
    with pytest.raises(UsageError, match="attention"):
        dream(load("random:resnet_nano"), gallery=gallery, heads=(0,))


def test_invert_of_raw_pixels_is_the_image():
    samples = creatures(3, 16)
    gallery = Creatures("test", size=16, count=100)
    encoder = load("pixels", image_size=16)
    p, curves = invert(encoder, samples, gallery=gallery, seeds=2, steps=150)
    assert p.numbers["cosine_0"] > 0.9 and p.numbers["pixels_0"] > 0.9
    assert p.numbers["seeds_0"] > 0.9 and p.numbers["retrieval_0"] == 1.0
    assert p.numbers["retrieval_chance"] == pytest.approx(1 / 3)
    assert 0 <= p.numbers["knn_0"] <= 1 and "knn_images" in p.numbers
    errors = curves.data["layer_0"]
    assert len(errors) == 150 and errors[-10:].mean() < errors[:10].mean() / 3
    assert p.data["layer_0"].shape == (2, 3, 16, 16, 3)


def test_invert_draws_every_layer_and_can_be_stopped():
    p, curves = invert(VIT, creatures(2), layers=(0, -1), seeds=1, steps=3)
    assert {"cosine_0", "cosine_3", "retrieval_3"} <= p.numbers.keys()
    assert "seeds_0" not in p.numbers and curves.data.keys() == {"layer_0", "layer_3"}
    p, _ = invert(VIT, creatures(2), layers=(0, -1), steps=8, on_preview=lambda step, image: True)
    assert "cosine_3" not in p.numbers and "stopped early" in p.caption
    with pytest.raises(UsageError, match="Layer 9 does not exist"):
        invert(VIT, creatures(1), layers=(9,))
    with pytest.raises(UsageError, match="at least one seed"):
        invert(VIT, creatures(1), seeds=0)


def test_self_similarity_is_invariant_to_rotation_and_scale_and_has_gradients():
    keys = torch.randn(2, 5, 4, dtype=torch.float64)
    s = self_similarity(keys)
    assert torch.allclose(s.diagonal(dim1=1, dim2=2), torch.ones(2, 5, dtype=torch.float64))
    assert torch.allclose(s, s.transpose(1, 2))
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert torch.allclose(self_similarity(3 * keys @ turn), s)
    assert relative_error(s, s) == 0
    assert relative_error(torch.zeros_like(s), s) == pytest.approx(2)  # one for each image
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: relative_error(self_similarity(v), s), (x,))


def test_transfer_is_measured_by_outline_and_colours_with_baselines():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    red = np.zeros((8, 8, 3), np.uint8)
    red[mask] = (200, 10, 10)
    assert outline_iou(red, mask) == 1.0
    assert outline_iou(np.roll(red, 4, 0), mask) < 0.2
    assert colour_distance(red[mask], red[mask]) == 0
    assert colour_distance(np.zeros((5, 3)), np.full((9, 3), 255)) == 1
    same = match_colour_statistics(red, red)
    assert np.abs(same.astype(int) - red).max() <= 1
    samples = creatures(4)
    p, curves = transfer(VIT, samples, steps=4)
    for key in ("outline", "colour_distance"):
        assert {key, f"{key}_first", f"{key}_second", f"{key}_colours"} <= p.numbers.keys()
    assert p.numbers["outline_first"] > p.numbers["outline_second"]
    assert p.data["images"].shape == (2, 32, 32, 3) and curves.data["losses"].shape == (4, 3)
    plain, _ = transfer(VIT, [s.image for s in samples[:2]], steps=1)
    assert "outline" not in plain.numbers and "colour_distance" in plain.numbers
    with pytest.raises(UsageError, match="pairs of images"):
        transfer(VIT, samples[:3])
    with pytest.raises(UsageError, match="attention"):
        transfer(load("random:resnet_nano"), samples[:2])


def test_transfer_with_gram_adds_style_transfer_for_comparison():
    samples = creatures(2)
    p, _ = transfer(VIT, samples, steps=30, gram=True)
    assert p.data["gram"].shape == p.data["images"].shape
    assert {"outline_gram", "colour_distance_gram"} <= set(p.numbers)
    assert "Gram matrices" in p.caption
    assert not np.array_equal(p.data["gram"], p.data["images"])
    plain, _ = transfer(VIT, samples, steps=1)
    assert "gram" not in plain.data
    assert "outline_gram" not in plain.numbers


def test_gram_matrix_equals_a_loop_and_ignores_the_order_of_patches():
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    slow = torch.zeros(2, 4, 4)
    for n in range(2):
        for p in range(9):
            slow[n] += torch.outer(x[n, p], x[n, p]) / 9
    assert torch.allclose(gram_matrix(x), slow, atol=1e-6)
    assert torch.allclose(gram_matrix(x[:, torch.randperm(9)]), slow, atol=1e-6)


def test_by_gram_moves_towards_the_style():
    with VIT.evaluating():
        a, b = (unnormalise(VIT.prepare([s.image]), VIT) for s in creatures(2))
    near = by_gram(VIT, a, b, 1.0, 0.0, 60, 5e-3, 0)
    start = by_gram(VIT, a, b, 1.0, 0.0, 1, 1e-9, 0)

    def apart(made):
        with VIT.evaluating():
            x, y = (
                VIT.backbone.facets_of(normalise(i, VIT), [(0, "token")])[0].patches
                for i in (torch.from_numpy(made).permute(0, 3, 1, 2) / 255, b)
            )
        return float((gram_matrix(x) - gram_matrix(y)).square().sum())

    assert apart(near) < 0.5 * apart(start)


def test_transfer_without_structure_lowers_the_appearance_loss():
    samples = creatures(2)
    p, curves = transfer(VIT, samples, structure=0, identity=0, steps=60, lr=5e-3)
    losses = curves.data["losses"]
    assert losses[-5:, 0].mean() < 0.7 * losses[:5, 0].mean()
    assert (losses[:, 1:] == 0).all()


def test_guided_filter_equals_a_loop_over_windows():
    rng = np.random.default_rng(0)
    image, mask, r, eps = rng.random((7, 6, 3)), (rng.random((7, 6)) > 0.5) * 1.0, 1, 0.01
    found = guided(mask, image, r, eps)
    pad = ((r, r), (r, r))
    wide, m = np.pad(image, (*pad, (0, 0)), "edge"), np.pad(mask, pad, "edge")
    a, b = np.zeros((7, 6, 3)), np.zeros((7, 6))
    for y in range(7):
        for x in range(6):
            i = wide[y : y + 3, x : x + 3].reshape(-1, 3)
            p = m[y : y + 3, x : x + 3].ravel()
            cov = np.cov(i.T, bias=True) + eps * np.eye(3)
            a[y, x] = np.linalg.solve(cov, (i * p[:, None]).mean(0) - i.mean(0) * p.mean())
            b[y, x] = p.mean() - a[y, x] @ i.mean(0)
    a, b = np.pad(a, (*pad, (0, 0)), "edge"), np.pad(b, pad, "edge")
    for y in range(7):
        for x in range(6):
            mean = a[y : y + 3, x : x + 3].mean((0, 1))
            expected = mean @ image[y, x] + b[y : y + 3, x : x + 3].mean()
            assert found[y, x] == pytest.approx(expected, abs=1e-9)


def test_guided_filter_follows_the_edge_of_the_image():
    image = np.zeros((16, 16, 3))
    image[:, 7:] = 1  # the true edge is one pixel off the mask's
    mask = np.zeros((16, 16))
    mask[:, 8:] = 1
    truth = image[None, ..., 0] > 0.5
    before = pixel_iou(mask[None] > 0.5, truth)
    after = pixel_iou(guided(mask, image, 4, 1e-4)[None] > 0.5, truth)
    assert after == 1.0 > before
    empty = np.zeros((1, 4, 4), bool)
    assert pixel_iou(empty, empty) == 1.0 and pixel_iou(empty, ~empty) == 0.0


def test_cosegment_with_and_without_refinement():
    samples = creatures(4)
    (fine,) = cosegment(VIT, samples)
    (coarse,) = cosegment(VIT, samples, refine=False)
    assert fine.numbers["iou"] == fine.numbers["iou_refined"]
    assert coarse.numbers["iou"] == coarse.numbers["iou_patches"]
    assert coarse.numbers["iou_patches"] == fine.numbers["iou_patches"]
    assert fine.data["masks"].shape == (4, 32, 32) and fine.data["masks"].dtype == bool
    blocks = coarse.data["masks"].reshape(4, 8, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(4, 64, 16)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()  # whole patches
    assert not cosegment(VIT, [s.image for s in samples])[0].numbers
    with pytest.raises(UsageError, match="two or more"):
        cosegment(VIT, samples[:1])
    with pytest.raises(UsageError, match="above 0"):
        cosegment(VIT, samples, smooth=0)
    with pytest.raises(UsageError, match="no class token"):
        cosegment(load("random:resnet_nano"), samples)


class Scored(HasPrototypes):
    """A method that has nothing but the logits of its prototypes."""

    def __init__(self, logits):
        self.prototype_logits = logits


def test_prototypes_agree_with_the_classes_only_if_they_are_the_classes():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.integers(0, 60, (60, 8, 8, 3), dtype=np.uint8)
    x[np.arange(60), :, :, y] += 150
    gallery = Arrays("colours", x, y, ("red", "green", "blue"))
    encoder = load("pixels", image_size=8)
    means = torch.stack([encoder.embed(x[y == c]).mean(0) for c in range(3)])
    exact = Scored(lambda h: F.normalize(h, dim=1) @ F.normalize(means, dim=1).T)
    (p,) = prototypes(exact, encoder, gallery=gallery, top=5)
    assert p.numbers["agreement"] == pytest.approx(1) and p.numbers["same_class"] == 1
    assert p.numbers["used"] == 3 and p.numbers["effective"] == pytest.approx(3)
    torch.manual_seed(0)
    at_random = Scored(lambda h: F.normalize(torch.randn(len(h), 4), dim=1) @ torch.randn(4, 9))
    (p,) = prototypes(at_random, encoder, gallery=gallery)
    assert abs(p.numbers["agreement"]) < 0.1
    with pytest.raises(UsageError, match="no prototypes"):
        prototypes(SimpleNamespace(), encoder, gallery=gallery)


@pytest.mark.parametrize("method", ["dino", "ibot", "dinov2", "swav", "deepclusterv2"])
def test_show_prototypes_works_for_every_clustering_method(method, tiny_run, photos):
    # Six steps are an epoch; DeepCluster v2 has prototypes from the second one on.
    run = tiny_run(method, steps=7 if method == "deepclusterv2" else 4)
    made = show("prototypes", run.folder, photos, shown=2, top=2)
    assert made[0].numbers["used"] >= 1 and len(made[0].data["first_choice"]) == len(
        made[0].data["keys"]
    )
