"""`load` makes an encoder from a name (ENC on the command line)."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nolabel import limits
from nolabel._usercode import trusted_code
from nolabel.device import pick_device
from nolabel.encoders import ENCODERS
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.file import ENCODER_FILE, build_from, load_encoder_file, read_tensors
from nolabel.encoders.names import PREFIXES
from nolabel.errors import FileDamaged, NolabelError, UsageError, did_you_mean
from nolabel.nn.random_state import preserve_rng
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD


def load(
    spec: str | os.PathLike[str] | Encoder,
    *,
    image_size: int | None = None,
    device: torch.device | str = "auto",
    channels: int = 3,
    trust_code: bool = False,
    backbone: nn.Module | type[nn.Module] | None = None,
) -> Encoder:
    """Loads an encoder by name, in evaluation mode.

    Args:
        spec: a run folder, an encoder file, `timm:NAME[.TAG]` (published weights, downloaded by
            timm), `openclip:NAME/TAG` (by open_clip), `random:NAME` or `random:RUN` (that
            architecture with random weights from a fixed seed, initialised by timm or by the run's
            method), or `pixels` (32 px by default). An encoder is returned as it is.
        image_size: side in pixels at which it will be used; None is its own.
        device: where the encoder goes; "auto" takes a GPU if there is one.
        channels: channels of the images, for `pixels` and `random:NAME`; others have their own.
        trust_code: whether to execute user code from a run folder or beside an encoder file even if
            it was never run here.
        backbone: the network or its class: required for a run whose network was passed in Python,
            and otherwise replaces the code in the run folder.

    Raises:
        UntrustedCode: the encoder needs code that was never run here.
        UsageError: unknown spec or name, or a size that does not fit.
        FileDamaged: the encoder file is truncated, altered, or not one.
        NolabelError: published weights could not be downloaded.
    """
    limits.positive("--image-size", image_size)
    if isinstance(spec, Encoder):
        if image_size not in (None, spec.image_size):
            raise UsageError(
                f"This encoder is loaded already, for images of {spec.image_size} px. To use it at "
                f"{image_size} px, load it by name with that image_size."
            )
        return spec if device == "auto" else spec.to(device)
    with trusted_code(trust_code):
        return _load(os.fspath(spec), image_size, pick_device(device), channels, backbone)


def load_at(spec: str | os.PathLike[str] | Encoder, image_size: int | None) -> Encoder:
    """As `load`; an encoder that is loaded already is used at another image size too.

    Args:
        spec: as for `load`.
        image_size: side in pixels; None is the encoder's own.
    """
    if not isinstance(spec, Encoder):
        return load(spec, image_size=image_size)
    if image_size in (None, spec.image_size):
        return spec
    other = Encoder(spec.backbone, name=spec.name, mean=spec.mean, std=spec.std,
                    image_size=image_size, meta=spec.meta)  # fmt: skip
    other.precision = spec.precision
    return other


def _load(
    text: str,
    image_size: int | None,
    device: torch.device,
    channels: int,
    network: nn.Module | type[nn.Module] | None,
) -> Encoder:
    kind, colon, rest = text.partition(":")
    if network is not None and (text == "pixels" or (colon and kind in PREFIXES)):
        raise UsageError(f"{text!r} is built from its name. Leave backbone out.")
    if text == "pixels":
        from nolabel.backbones import build

        backbone = build("pixels", image_size=image_size, channels=channels)
        encoder = Encoder(backbone, name=text, **_default_statistics(channels))
    elif colon and kind == "timm":
        encoder = _load_timm(rest, image_size)
    elif colon and kind == "openclip":
        from nolabel.encoders.convert.openclip import load_openclip

        encoder = load_openclip(rest, image_size)
    elif colon and kind == "random":
        encoder = _random_weights(rest, image_size, channels)
    else:
        encoder = load_encoder_file(
            _find_encoder_file(text), image_size=image_size, network=network
        )
        encoder.name = text
        _check_numbers(encoder)
    encoder.backbone.eval()
    return encoder.to(device)


def _check_numbers(encoder: Encoder) -> None:
    """Refuses an encoder that would turn every image into NaN.

    Raises:
        FileDamaged: a weight is not finite, or mean or deviation cannot be used.
    """
    bad = [
        name for name, value in encoder.backbone.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    ]  # fmt: skip
    if bad:
        raise FileDamaged(
            f"{encoder.name!r} has weights that are not finite numbers (in {len(bad)} tensors, "
            f"the first {bad[0]}): its training diverged. Use an earlier checkpoint."
        )
    if not all(map(math.isfinite, (*encoder.mean, *encoder.std))) or min(encoder.std) <= 0:
        raise FileDamaged(
            f"{encoder.name!r} normalises with mean {encoder.mean} and deviation {encoder.std}; "
            "they must be finite, and the deviation above 0."
        )


def _load_timm(name: str, image_size: int | None) -> Encoder:
    from nolabel.backbones import PRESETS, build

    preset = PRESETS.get(name)
    if preset is not None and preset.kwargs:
        raise UsageError(
            f"{name!r} is an architecture of nolabel's own, without published weights. "
            f"Use random:{name}, or a timm name such as timm:vit_small_patch16_224.dino."
        )
    try:
        with preserve_rng():
            backbone = build(name, pretrained=True)
    except UsageError:
        raise
    except Exception as error:  # timm, the hub and the network raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "tag" in reason or "No pretrained" in reason:
            import timm

            raise UsageError(
                f"timm has no published weights {name!r}: {reason}"
                f"{did_you_mean(name, timm.list_pretrained())} All of them: "
                "python -c 'import timm; print(timm.list_pretrained())'."
            ) from error
        raise NolabelError(
            f"The published weights of {name!r} could not be downloaded ({reason}). Check "
            "the network connection and try again; downloaded weights are cached and work offline."
        ) from error
    pretrained_cfg: Any = getattr(backbone.net, "pretrained_cfg", None) or {}
    mean, std = (
        pretrained_cfg.get("mean") or IMAGENET_MEAN,
        pretrained_cfg.get("std") or IMAGENET_STD,
    )
    meta = {"source": "timm", "licence": pretrained_cfg.get("license")}
    return Encoder(
        backbone,
        name=f"timm:{name}",
        mean=mean,
        std=std,
        image_size=image_size,
        meta=meta,
    )


def _random_weights(name: str, image_size: int | None, channels: int) -> Encoder:
    """The architecture of a name or run with random weights from seed 0."""
    from nolabel import methods
    from nolabel.backbones import PRESETS, build

    if name == "pixels":
        raise UsageError("random:pixels does not exist: raw pixels have no weights. Use pixels.")
    is_run = name not in PRESETS and os.path.exists(name)
    with preserve_rng():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs as well
        if not is_run:
            backbone = build(name, image_size=image_size, channels=channels)
            statistics = _default_statistics(channels)
            return Encoder(backbone, name=f"random:{name}", image_size=image_size, **statistics)
        path = _find_encoder_file(name)
        header, tensors = read_tensors(path)
        backbone = build_from(header, path, tensors)
        if methods.is_built_in(str(header.get("method"))):  # do not execute a user's method file
            methods.load(header["method"]).init(backbone)
    encoder = Encoder(
        backbone,
        name=f"random:{name}",
        mean=header["mean"],
        std=header["std"],
        image_size=image_size or header["image_size"],
    )
    _check_numbers(encoder)
    return encoder


def _default_statistics(channels: int) -> dict[str, Any]:
    """Mean and standard deviation without data: ImageNet's, or 0.5 and 0.25 of the range."""
    if channels == 3:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {"mean": (0.5,) * channels, "std": (0.25,) * channels}


def _find_encoder_file(text: str) -> Path:
    """The encoder file of a path: the file itself, or the one in a run folder."""
    path = Path(text)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / ENCODER_FILE).is_file():
            raise UsageError(
                f"The folder {text!r} holds no {ENCODER_FILE}: it is not a run folder, or the run "
                "has not saved an encoder yet. Give a run folder or an encoder file."
            )
        return path / ENCODER_FILE
    allowed = f"Allowed: {', '.join(ENCODERS)}."
    kind, colon, _ = text.partition(":")
    if colon and os.sep not in kind:
        kinds = ("timm", "openclip", "random", "pixels")
        raise UsageError(f"Unknown kind of encoder {kind!r}.{did_you_mean(kind, kinds)} {allowed}")
    from nolabel.backbones import PRESETS

    if text in PRESETS:
        raise UsageError(
            f"No encoder {text!r}: an architecture alone has no weights. Say random:{text} for "
            f"random ones or timm:NAME for published ones. {allowed}"
        )
    close = did_you_mean(text, ["pixels"])
    with contextlib.suppress(OSError):
        close = close or did_you_mean(str(path), [str(p) for p in path.parent.iterdir()])
    raise UsageError(f"No encoder {text!r}: no such folder or file.{close} {allowed}")
