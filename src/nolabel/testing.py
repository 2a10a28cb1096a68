"""The contract tests of methods and backbones, for built-in and own ones.

from nolabel.testing import check_backbone, check_method

def test_mine():
    check_method("path/to/mine.py:Mine")
    check_backbone("path/to/net.py:Net")
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from nolabel import methods, recipes
from nolabel.backbones._contract import check_backbone as check_backbone
from nolabel.backbones.base import Backbone
from nolabel.config import field_values
from nolabel.engine.checkpoint import capture, restore
from nolabel.engine.optimiser import build_optimiser
from nolabel.engine.step import apply_update
from nolabel.engine.synthetic import SIDE, Colours, build_on, captions, noise_batch
from nolabel.methods.base import INPUTS, Contrastive, HasPrototypes, Method, RecipeContext
from nolabel.methods.capabilities import Inpaints, LearnsFromText, Reconstructs, Tokenizes
from nolabel.nn.random_state import rng_state, set_rng_state
from nolabel.types import Batch, Clock, Optim, Tokens
from nolabel.views.plan import ViewPlan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Colours", "build_on", "build_small", "captions", "check_method", "noise_batch",
           "random_batch"]  # fmt: skip

IMAGES = 6

_TEXT = {"vocabulary": 530, "context": 10, "projection": 8, "text_dim": 16, "text_depth": 1,
         "text_heads": 2}  # fmt: skip
_DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
_CROPS = {"local_crops": 1, "local_size": 16}
_HEAD = {"hidden": 16, "projection": 8}
_PROTOTYPES = {"prototypes": 32, "hidden": 16, "bottleneck": 8, "drop_path": 0.0, **_CROPS}
# Options with which each method takes a step in milliseconds on images of 32 px.
TINY: Mapping[str, Mapping[str, object]] = {
    "autoencoder": {"code": 8, "width": 16},
    "vqvae": {"codes": 32, "code_dim": 8, **_DECODER},
    "dvae": {"codes": 32, **_DECODER},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "simmim": {"unit": 8},
    "beit": {"smallest_block": 4, "drop_path": 0.0},
    "eva": {"smallest_block": 4, "drop_path": 0.0},
    "distill": {"anchors": 16, "hidden": 16},
    "triplet": _HEAD,
    "simclr": _HEAD,
    "mocov2": {"queue": 12, **_HEAD},
    "mocov3": _HEAD,
    "byol": _HEAD,
    "barlow": _HEAD,
    "swav": {"prototypes": 12, "queue": 8, "queue_from_epoch": 0, "freeze_prototypes": 1, **_HEAD,
             **_CROPS},
    "deepclusterv2": {"clusters": 3, "heads": 2, **_HEAD, **_CROPS},
    "obow": {"words": 12, "global_size": 32, **_CROPS},
    "dino": _PROTOTYPES,
    "ibot": _PROTOTYPES,
    "dinov2": {"patch_prototypes": 16, "patch_bottleneck": 8, "layer_scale": 0.1, **_PROTOTYPES},
    "clip": _TEXT,
    "siglip": _TEXT,
}  # fmt: skip


def check_method(
    method: str | type[Method],
    *,
    options: Mapping[str, Any] | None = None,
    backbone: str = "vit_pico",
    alternatives: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
) -> None:
    """Checks the contract of a method; raises AssertionError with a sentence.

    Args:
        method: class, built-in name or path/to/file.py:Class.
        options: small settings to test with; the others come from the recipe "auto".
        backbone: name of the backbone.
        alternatives: option -> another valid value, where the automatic change is not valid.
        without: options without effect on this backbone.

    Checks: it can be built from the recipe; the loss is finite; every trainable parameter gets a
    gradient, and a frozen one (a teacher) gets none; `step` changes no weight; it works without a
    process group and with bf16; after saving and reloading, the next step is identical; every
    option changes the views, the loss or the weights; each capability that the class inherits
    (`nolabel.methods.base`) works. A method gets small stand-ins for its `inputs`.
    """
    method_class = methods.load(method) if isinstance(method, str) else method
    recipe = recipes.automatic(method_class, RecipeContext(image_size=SIDE, images=1000))
    chosen = dataclasses.replace(recipe.options, **dict(options or {}))
    _inputs(method_class, chosen)

    run = _steps(method_class, chosen, backbone, 2)
    assert all(torch.isfinite(torch.tensor(x)) for x in run.losses), f"loss {run.losses}"
    _gradients(method_class, chosen, backbone)
    _bf16(method_class, chosen, backbone)
    _reload(method_class, chosen, backbone)
    _encoder(run.method)
    _capabilities(build_small(method_class, chosen, backbone), method_class.views(chosen, SIDE))
    _options(method_class, chosen, backbone, dict(alternatives or {}), without)


@dataclasses.dataclass
class _Run:
    method: Method
    optimiser: torch.optim.Optimizer
    losses: list[float]


def random_batch(plan: ViewPlan, seed: int) -> Batch:
    """A small batch of noise in the views of a plan, with captions; a pure function of the seed."""
    return noise_batch(plan, IMAGES, seed)


def build_small(method_class: type[Method], options: object, backbone: str) -> Method:
    """The method on a small backbone, with seed 0 and a stand-in for what it is built with."""
    return build_on(method_class, options, backbone, SIDE)


def _advance(run: _Run, plan: ViewPlan, start: int, steps: int) -> None:
    for step in range(start, start + steps):
        clock = Clock(step, 8, 1)
        loss = run.method.step(random_batch(plan, step), clock).loss
        loss.backward()
        apply_update(run.method, run.optimiser, Optim(), clock)
        run.losses.append(loss.item())


def _steps(method_class: type[Method], options: object, backbone: str, steps: int) -> _Run:
    method = build_small(method_class, options, backbone)
    optimiser = build_optimiser(method, Optim(lr=1e-3))
    run = _Run(method, optimiser, [])
    _advance(run, method_class.views(options, SIDE), 0, steps)
    return run


def _gradients(method_class: type[Method], options: object, backbone: str) -> None:
    method = build_small(method_class, options, backbone)
    before = copy.deepcopy(method.state_dict())
    # An epoch late enough that nothing is frozen any more.
    out = method.step(random_batch(method_class.views(options, SIDE), 0), Clock(6, 8, 1))
    assert out.loss.ndim == 0, f"the loss must be a scalar, got shape {tuple(out.loss.shape)}"
    out.loss.backward()
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    without = [n for n in trainable if method.get_parameter(n).grad is None]
    assert not without, f"trainable parameters that the loss does not reach: {without}"
    stray = [n for n, p in method.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not stray, f"frozen parameters with a gradient: {stray}"
    for name, value in method.named_parameters():
        assert torch.equal(before[name], value), f"step changed the weight {name}"


def _bf16(method_class: type[Method], options: object, backbone: str) -> None:
    method = build_small(method_class, options, backbone)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(random_batch(method_class.views(options, SIDE), 0), Clock(0, 8, 1)).loss
    loss.backward()
    assert torch.isfinite(loss), f"loss {loss} under bf16"
    full = build_small(method_class, options, backbone)
    exact = full.step(random_batch(method_class.views(options, SIDE), 0), Clock(0, 8, 1)).loss
    gap = abs(loss.item() - exact.item()) / max(abs(exact.item()), 1e-6)
    assert gap < 0.1, f"bf16 loss {loss.item()} against {exact.item()}"


def _reload(method_class: type[Method], options: object, backbone: str) -> None:
    plan = method_class.views(options, SIDE)
    first = _steps(method_class, options, backbone, 2)
    saved, rng = copy.deepcopy(capture(first.method, first.optimiser)), rng_state()
    _advance(first, plan, 2, 2)

    fresh = build_small(method_class, options, backbone)
    for p in fresh.parameters():
        p.data.add_(1.0)  # so that a tensor that is not restored is wrong
    second = _Run(fresh, build_optimiser(fresh, Optim(lr=1e-3)), [])
    restore(fresh, second.optimiser, saved)
    set_rng_state(rng)
    _advance(second, plan, 2, 2)
    assert first.losses[2:] == second.losses, f"{first.losses[2:]} became {second.losses}"
    for name, value in first.method.state_dict().items():
        assert torch.equal(value, second.method.state_dict()[name]), f"{name} differs on reload"


def _encoder(method: Method) -> None:
    encoder = method.encoder
    assert isinstance(encoder, Backbone), f"encoder is a {type(encoder).__name__}, no Backbone"
    encoder.eval()
    with torch.no_grad():
        out = encoder.tokens(torch.zeros(2, 3, SIDE, SIDE))
    assert isinstance(out, Tokens)
    assert out.pooled.shape == (2, encoder.dim), f"pooled {tuple(out.pooled.shape)}"
    assert out.patches.shape[1] == out.grid[0] * out.grid[1], "patches do not fill the grid"


def _inputs(method_class: type[Method], options: DataclassInstance) -> None:
    """Checks the inputs that a class declares."""
    assert method_class.inputs <= INPUTS, (
        f"inputs are {sorted(method_class.inputs)}, allowed {sorted(INPUTS)}"
    )
    assert len(method_class.inputs) <= 1, (
        f"inputs are {sorted(method_class.inputs)}, one is allowed"
    )
    named = "teacher" in {field.name for field in dataclasses.fields(options)}
    if method_class.inputs & {"teacher", "tokenizer"}:
        assert named, "it takes a frozen network, and no option `teacher` names it"
    text = issubclass(method_class, LearnsFromText)
    assert text == ("text" in method_class.inputs), "a class LearnsFromText has the input 'text'"


@torch.no_grad()
def _capabilities(method: Method, plan: ViewPlan) -> None:
    """Checks the capabilities that the class inherits, for each image independently."""
    method.eval()
    batch = random_batch(plan, 0)
    x = torch.randn(IMAGES, plan.channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if isinstance(method, Contrastive):
        _contrastive(method, batch)
    if isinstance(method, LearnsFromText):
        h = torch.randn(IMAGES, method.encoder.dim)
        image = method.shared.images(h)
        text = method.shared.texts(method.tokenizer(batch.text or ()))
        assert image.shape == text.shape, f"{tuple(image.shape)} against {tuple(text.shape)}"
    if isinstance(method, Tokenizes):
        ids, patches = method.tokens(x), (SIDE // method.patch) ** 2
        assert ids.shape == (IMAGES, patches), f"{tuple(ids.shape)} tokens, not one a patch"
        assert ids.dtype == torch.int64, f"ids are {ids.dtype}"
        assert ids.min() >= 0 and ids.max() < method.vocabulary, "ids beyond the vocabulary"
    if isinstance(method, Reconstructs):
        other = method.swapped(x)
        for image in (method.reconstruct(x), *([] if other is None else [other])):
            assert image.shape == x.shape, f"rebuilt as {tuple(image.shape)}"
    if isinstance(method, Inpaints):
        first, again = (method.inpaint(x, 0.5, torch.Generator().manual_seed(1)) for _ in range(2))
        assert first[0].shape == x.shape, f"predicted {tuple(first[0].shape)}"
        assert first[1].dtype == torch.bool and first[1].any() and not first[1].all()
        assert torch.equal(first[1], again[1]), "the generator does not choose what is hidden"
    if isinstance(method, HasPrototypes):
        logits = method.prototype_logits(torch.randn(IMAGES, method.encoder.dim))
        assert logits.ndim == 2 and len(logits) == IMAGES, f"logits {tuple(logits.shape)}"


def _contrastive(method: Contrastive, batch: Batch) -> None:
    """Features do not depend on other images, and `step` is not overridden."""
    assert type(method).step is Contrastive.step, (
        "a Contrastive method has no `step` of its own: under accumulation it would not be used"
    )
    features = method.features(batch)
    for f in features:
        assert f.ndim >= 2 and f.shape[1] == IMAGES, f"features {tuple(f.shape)}, not [V, B, ...]"
    half = IMAGES // 2
    parts = [method.features(_part(batch, s)) for s in (slice(0, half), slice(half, None))]
    for f, some in zip(features, zip(*parts, strict=True), strict=True):
        gap = (f - torch.cat(some, 1)).abs().max()
        assert gap < 1e-4, "the features of an image depend on the rest of its batch"


def _part(batch: Batch, which: slice) -> Batch:
    """Some images of a batch."""
    return Batch(
        views={name: v[:, which] for name, v in batch.views.items()},
        keys=None if batch.keys is None else batch.keys[which],
        text=None if batch.text is None else batch.text[which],
    )


def _options(
    method_class: type[Method],
    chosen: DataclassInstance,
    backbone: str,
    alternatives: dict[str, Any],
    without: Collection[str],
) -> None:
    """Changes one option at a time; something must change with it."""
    plan = method_class.views(chosen, SIDE)
    base, values = _steps(method_class, chosen, backbone, 4), field_values(chosen)
    for field in dataclasses.fields(chosen):
        if field.name in without:
            continue
        if method_class.inputs & {"teacher", "tokenizer"} and field.name == "teacher":
            continue  # a name, which the engine follows
        value = values[field.name]
        own = field.name in alternatives
        other = alternatives[field.name] if own else _another(value)
        changed = dataclasses.replace(chosen, **{field.name: other})
        if method_class.views(changed, SIDE) != plan:
            continue
        run = _steps(method_class, changed, backbone, 4)
        same_loss = run.losses == base.losses
        a, b = run.method.state_dict(), base.method.state_dict()
        same = a.keys() == b.keys() and all(
            a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
        )
        assert not (same_loss and same), f"the option {field.name} ({value} to {other}) is dead"


def _another(value: object) -> object:
    """Another plausible value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 if value else 2
    if isinstance(value, float):
        return value * 0.5 if value else 0.25
    if isinstance(value, tuple):
        return tuple(_another(v) for v in value)
    raise AssertionError(f"give `alternatives` a value for an option like {value!r}")
