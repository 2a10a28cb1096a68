"""Which operations suit a set, on sets whose answer is known."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from nolabel.views.suitability import USUAL, colour_matches, measure_operations

N, SIDE = 128, 32
MANY = 256  # to show that there is no up
RNG = np.random.default_rng(0)


def byte(x):
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)


def smooth(n, cells, channels=1, seed=0):
    """Random textures without a preferred direction, [n, SIDE, SIDE, C] in 0..1."""
    noise = np.random.default_rng(seed).normal(size=(n, SIDE, SIDE, channels))
    at = np.fft.fftfreq(SIDE)
    keep = np.exp(-((at[:, None] ** 2 + at**2) * (SIDE / cells) ** 2))[..., None]
    x = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * keep, axes=(1, 2)).real
    return 0.5 + 0.18 * x / x.std()


def with_sky(n):
    """Textures that are brighter above, in grey."""
    light = np.linspace(0.25, -0.25, SIDE)[:, None, None]
    return byte(smooth(n, 4) + light)


def textures(n, channels=3):
    return byte(np.repeat(smooth(n, 4), channels, 3))


def of_hues(n):
    """One picture in n hues."""
    value = smooth(1, 4)[0, :, :, 0].clip(0.2, 1)
    hues = RNG.random(n)
    colours = np.array([colorsys.hsv_to_rgb(h, 0.8, 1.0) for h in hues])
    return byte(value[None, ..., None] * colours[:, None, None])


def of_fine_textures(n):
    """One picture with n fine textures over it."""
    noise = RNG.normal(scale=0.1, size=(n, SIDE, SIDE, 1))
    return byte(np.repeat(smooth(1, 3) * 0.3 + 0.35 + noise, 3, 3))


def test_images_with_an_up_are_told_from_turned_ones_and_textures_are_not():
    up, none = measure_operations(with_sky(MANY)), measure_operations(textures(MANY))
    assert up.detected["vertical_flip"] > 0.95 and up.detected["quarter_turns"] > 0.9
    assert up.tolerated("flip")
    assert not up.tolerated("vertical_flip") and not up.tolerated("quarter_turns")
    assert all(none.tolerated(name) for name in none.detected), none.detected


def test_layers_without_an_up_may_be_turned_upside_down_but_not_by_a_quarter():
    rows = np.repeat(smooth(MANY, 6).mean(2, keepdims=True), SIDE, 2)
    found = measure_operations(byte(0.5 + 3 * (rows - 0.5)))
    assert found.tolerated("flip") and found.tolerated("vertical_flip")
    assert not found.tolerated("quarter_turns") and found.detected["quarter_turns"] > 0.95


def test_classes_that_face_different_ways_are_told_from_mirrored_ones():
    """No linear rule tells them, as each way is as frequent; the nearest neighbours do."""
    x = smooth(N, 5, seed=1) * 0.1
    x[::2, :8, :8] += 0.8  # one class with a corner above on the left, one below on the right
    x[1::2, -8:, -8:] += 0.8
    assert measure_operations(byte(x)).detected["flip"] > 0.9


def test_grey_images_are_grey_also_as_rgb_with_the_errors_of_jpeg():
    grey = textures(N).astype(int)
    noisy = (grey + RNG.integers(-2, 3, grey.shape)).clip(0, 255).astype(np.uint8)
    for images in (grey.astype(np.uint8), noisy, textures(N, 1), textures(N, 5)):
        found = measure_operations(images)
        assert not found.colourful and not {"hue", "saturation", "grey"} & set(found.strength)
        assert {"brightness", "contrast", "blur", "solarise", "noise"} <= set(found.strength)
    colour = measure_operations(of_hues(N))
    assert colour.colourful and colour.colour_spread > 0.5
    assert set(colour.moved) == set(colour.strength) == set(USUAL)


def test_hue_is_reduced_where_images_differ_by_hue_alone():
    found = measure_operations(of_hues(N))
    assert found.moved["hue"] > 0.75 and found.strength["hue"] < 1
    assert found.moved["grey"] > 0.9 and found.strength["grey"] == 0
    shapes = measure_operations(byte(smooth(N, 4, 3)))
    assert shapes.strength["hue"] == 1 and shapes.strength["blur"] == 1


def test_crops_find_their_image_by_colour_where_each_has_its_own_and_not_where_they_share_it():
    own = byte(smooth(N, 2, channels=3) * 1.5 - 0.25)  # a few large fields of colour
    shared = byte(smooth(N, 16, channels=3))  # all colours in each
    assert colour_matches(own) > 0.75 and colour_matches(shared) < 0.35
    # Without colour there are ties: half of the others count as nearer.
    assert colour_matches(textures(N)) < 0.05 and colour_matches(textures(N, 1)) == 0
    # The size of the images does not matter: fine patterns of colour are averaged.
    twice = own.repeat(2, 1).repeat(2, 2)
    twice[:, ::2, ::2] = 255 - twice[:, ::2, ::2] // 4
    once = twice.reshape(N, SIDE, 2, SIDE, 2, 3).mean((2, 4)).astype(np.uint8)
    assert abs(colour_matches(twice) - colour_matches(once)) < 0.05
    # Light and shadow are no colour.
    darker = (own * np.linspace(0.6, 1, N)[:, None, None, None]).astype(np.uint8)
    assert abs(colour_matches(darker) - colour_matches(own)) < 0.1


def test_blur_is_reduced_where_images_differ_by_fine_texture_alone():
    found = measure_operations(of_fine_textures(N))
    assert found.moved["blur"] > 0.9 and found.strength["blur"] < 1
    coarse = measure_operations(textures(N))
    assert coarse.moved["blur"] < 0.4 and coarse.strength["blur"] == 1


def test_brightness_is_reduced_where_images_differ_by_brightness_alone():
    levels = np.linspace(100, 150, N)[:, None, None, None]
    images = np.broadcast_to(levels, (N, 16, 16, 3)).astype(np.uint8)
    found = measure_operations(images)
    assert found.strength["brightness"] < 1


def test_solarising_white_marks_on_black_destroys_them():
    images = np.zeros((N, 16, 16, 1), np.uint8)
    for image in images:
        image[tuple(RNG.integers(0, 16, (2, 30)))] = 255
    found = measure_operations(images)
    assert found.moved["solarise"] > 0.9 and found.strength["solarise"] == 0


def test_the_parts_at_full_scale_decide_about_blur_alone():
    whole, parts = textures(N), of_fine_textures(N)
    plain, fine = measure_operations(whole), measure_operations(whole, parts)
    assert fine.strength["blur"] < plain.strength["blur"]
    assert {k: v for k, v in fine.moved.items() if k != "blur"} == {
        k: v for k, v in plain.moved.items() if k != "blur"
    }


@pytest.mark.parametrize("images", [textures(8), np.zeros((64, 8, 8, 3), np.uint8)])
def test_few_images_or_equal_ones_say_nothing(images):
    assert measure_operations(images) is None


def test_the_same_images_give_the_same_numbers():
    images = byte(smooth(64, 4, 3))
    assert measure_operations(images) == measure_operations(images.copy())
