"""An encoder ready for use: a backbone, and how images are prepared for it.

`load` (in `loading`) makes one from a name; every protocol and picture takes one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nolabel.backbones.base import Backbone, layer_number, require
from nolabel.backbones.vit import ViT
from nolabel.errors import BadImage, DataError, UsageError
from nolabel.types import Tokens
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD, FastViews, evaluation_plan
from nolabel.views.images import as_sharable

# What an encoder takes: one image or many. Float tensors count as prepared.
ImageLike = str | os.PathLike[str] | np.ndarray | Image.Image
Images = ImageLike | Tensor | Sequence[ImageLike]

_BRIGHT = (
    32  # values of 0 to more than this are pixels, not a normalised image, which has negatives
)
_SMALL_IMAGE = 96  # pixels; smaller images are not cropped, the border holds too much of them
_RESIZE_RATIO = 256 / 224  # usual ratio of the resized shorter side to the centre crop


class Encoder:
    """A backbone together with the preprocessing of its images.

    Args:
        backbone: the network. Its training mode is left as it is; every method here switches to
            evaluation and back.
        name: shown in tables and messages; "" takes the backbone's.
        mean: mean of each of the C channels, for pixels in 0..1.
        std: standard deviation of each channel, for pixels in 0..1.
        image_size: side S of the prepared image in pixels; None is the backbone's own.
        resize: shorter side in pixels before the centre crop. None takes image_size * 256 / 224 for
            images of 96 px or more (the papers' 256 before 224), else image_size.
        meta: metadata, such as the header of its file.

    Raises:
        UsageError: the backbone cannot take images of this size, or the statistics have another
            number of channels.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str = "",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        image_size: int | None = None,
        resize: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ):
        self.backbone = backbone
        self.name = name or backbone.name
        self.mean = tuple(float(v) for v in mean)
        self.std = tuple(float(v) for v in std)
        if not len(self.mean) == len(self.std) == backbone.channels:
            raise UsageError(
                f"{backbone.name!r} takes images of {backbone.channels} channels, but mean and std "
                f"have {len(self.mean)} and {len(self.std)} numbers."
            )
        self.image_size = image_size or backbone.image_size
        if resize is None:
            cropped = self.image_size >= _SMALL_IMAGE
            resize = round(self.image_size * _RESIZE_RATIO) if cropped else self.image_size
        self.resize = resize
        self.meta = dict(meta or {})
        self.precision = "fp32"  # or "bf16": autocast to bfloat16; features are returned as float32
        self._device = torch.device("cpu")
        self._views: FastViews | None = None
        self._check_size()

    def _check_size(self) -> None:
        s, p, name = self.image_size, self.backbone.patch_size, self.backbone.name
        if s != self.backbone.image_size:
            require(self.backbone, ["any_size"], f"An image size of {s} px")
        if "mask" in self.backbone.can and (
            s < p or s % p
        ):  # ViTs split the image into patches; CNNs accept any remainder
            allowed = [n for n in (s // p * p, s // p * p + p) if n]
            raise UsageError(
                f"Image size {s} does not divide into the patches of {name!r}, {p} pixels. Use "
                f"--image-size {' or '.join(map(str, allowed))}."
            )

    @property
    def device(self) -> torch.device:
        """Device of the backbone's parameters."""
        first = next(self.backbone.parameters(), None)
        return self._device if first is None else first.device

    @property
    def dim(self) -> int:
        """Width D of the embedding."""
        return self.backbone.dim

    @property
    def size(self) -> int:
        """Side S of the prepared images in pixels."""
        return self.image_size

    @property
    def channels(self) -> int:
        """Number of channels C of its images."""
        return self.backbone.channels

    def to(self, device: torch.device | str) -> Encoder:
        """Moves the backbone; returns the encoder itself."""
        self._device = torch.device(device)
        self.backbone.to(self._device)
        return self

    def prepare(self, images: Images) -> Tensor:
        """Decodes images, resizes the shorter side, crops the centre and normalises.

        Args:
            images: one image or many: paths, Pillow images, uint8 arrays [H, W, C] or grey [H, W],
                a list of these, or an array uint8 [N, H, W, C]. A float tensor [N, C, H, W] or
                [C, H, W] counts as prepared and is only moved to the device.

        Returns:
            float32 [N, C, S, S] on the encoder's device.

        Raises:
            UsageError: a float tensor of another shape.
            DataError: an image cannot be read; the message names it.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            x = images if images.ndim == 4 else images[None]
            if x.ndim != 4 or x.shape[1] != self.channels:
                raise UsageError(
                    f"Prepared images are float [N, {self.channels}, H, W], got "
                    f"{list(images.shape)}."
                )
            if x.numel() and float(x.min()) >= 0 and float(x.max()) > _BRIGHT:
                raise UsageError(
                    f"A float tensor counts as normalised, but has values of 0 to {x.max():g}. "
                    "Give whole images as uint8 [N, H, W, C], which are normalised here."
                )
            return x.to(self.device, torch.float32)
        pixels = [read_pixels(image, self.channels) for image in list_images(images, self.channels)]
        return self.prepare_pixels(pixels)

    def prepare_pixels(self, pixels: np.ndarray | Sequence[np.ndarray]) -> Tensor:
        """As `prepare`, for decoded images.

        Args:
            pixels: uint8 [N, H, W, C], or N arrays uint8 or uint16 [H, W, C].

        Returns:
            float32 [N, C, S, S] on the encoder's device.
        """
        if not len(pixels):
            side = self.image_size
            return torch.empty(0, self.channels, side, side, device=self.device)
        if self._prepared_already(pixels):
            return self.normalise(np.ascontiguousarray(pixels))
        if self._views is None or self._views.device != self.device:
            plan = evaluation_plan(self.image_size, self.resize, mean=self.mean, std=self.std)
            self._views = FastViews(plan, device=self.device)
        return self._views(pixels, np.arange(len(pixels)), 0)["image"][0]

    def _prepared_already(self, pixels: np.ndarray | Sequence[np.ndarray]) -> bool:
        """Whether all images are uint8 [S, S, C], so that only normalisation is left."""
        shape = (self.image_size, self.image_size, self.channels)
        return self.resize == self.image_size and all(
            p.shape == shape and p.dtype == np.uint8 for p in pixels
        )

    def normalise(self, pixels: np.ndarray) -> Tensor:
        """Normalises images without resizing or cropping.

        Args:
            pixels: uint8 [N, H, W, C].

        Returns:
            float32 [N, C, H, W] on the encoder's device.
        """
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1)
                     for v in (self.mean, self.std))  # fmt: skip
        x = torch.from_numpy(as_sharable(pixels)).to(self.device).permute(0, 3, 1, 2)
        return x.contiguous().float().mul_(1 / (255 * std)).sub_(mean / std)

    def embed(self, images: Images, *, normalize: bool = False, batch_size: int = 64) -> Tensor:
        """Embeds images.

        Args:
            images: as for `prepare`.
            normalize: whether embeddings are scaled to unit L2 norm.
            batch_size: images in a forward pass.

        Returns:
            float32 [N, D] on the CPU.

        Raises:
            UsageError, DataError: as for `prepare`.
        """
        parts = [self.forward(x) for x in self._batches(images, batch_size)]
        z = torch.cat(parts) if parts else torch.empty(0, self.dim)
        return torch.nn.functional.normalize(z, dim=-1) if normalize else z

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings float32 [N, D] on the CPU of prepared images float32 [N, C, S, S]."""
        with self.evaluating():
            return self.backbone(x).float().cpu()

    def tokens(self, images: Images, layer: int = -1, *, batch_size: int = 64) -> Tokens:
        """Tokens of one layer, after the final norm.

        Args:
            images: as for `prepare`; one or more.
            layer: 0 is the first of `backbone.depth`, -1 the last.
            batch_size: images in a forward pass.

        Returns:
            Tokens of float32 on the CPU: pooled [N, D], patches [N, P, D], prefix [N, R, D] or
            None.

        Raises:
            UsageError: no such layer, or no images.
        """
        index = layer_number(self.backbone, layer)
        parts = []
        for x in self._batches(images, batch_size):
            with self.evaluating():
                if index == self.backbone.depth - 1:
                    t = self.backbone.tokens(x)
                else:
                    t = self.backbone.layers(x, self.backbone.depth - index)[0]
            parts.append(t)
        if not parts:
            raise UsageError("No images were given.")

        def concatenate(tensors: Iterable[Tensor]) -> Tensor:
            return torch.cat([t.float().cpu() for t in tensors])

        pooled, patches = (
            concatenate(t.pooled for t in parts),
            concatenate(t.patches for t in parts),
        )
        prefixes = [t.prefix for t in parts if t.prefix is not None]
        return Tokens(pooled, patches, parts[0].grid, concatenate(prefixes) if prefixes else None)

    def attention(
        self, images: Images, layer: int = -1, *, patch: int | None = None, batch_size: int = 64
    ) -> Tensor:
        """Attention weights of the class token, or of one patch, over the patches.

        Not renormalised: the weights of the class token and of registers are left out, so a row
        sums to at most 1.

        Args:
            images: as for `prepare`; one or more.
            layer: 0 is the first of `backbone.depth`, -1 the last.
            patch: index of the patch that is the query, from 0, row by row; None takes the class
                token as the query.
            batch_size: images in a forward pass.

        Returns:
            float32 [N, heads, P] on the CPU, patches row by row.

        Raises:
            UsageError: the backbone has no class token, or no such layer or patch.
        """
        require(self.backbone, ["attention"], "Attention")
        b = self.backbone
        if patch is None and isinstance(b, ViT) and b.net.cls_token is None:
            raise UsageError(f"{self.backbone.name!r} has no class token whose attention to show.")
        index = layer_number(self.backbone, layer)
        parts = []
        for x in self._batches(images, batch_size):
            p = self.backbone.patch_size
            patches = (x.shape[-2] // p) * (x.shape[-1] // p)
            rows = slice(0, 1)
            if patch is not None:
                if not 0 <= patch < patches:
                    raise UsageError(f"Patch {patch} does not exist: there are 0 to {patches - 1}.")
                rows = slice(
                    patch - patches, patch - patches + 1 or None
                )  # class token and registers come first
            with self.evaluating():
                a = self.backbone.attention(x, index, rows)[:, :, 0]  # [N, heads, R + P]
            parts.append(a[:, :, a.shape[-1] - patches :].float().cpu())
        if not parts:
            raise UsageError("No images were given.")
        return torch.cat(parts)

    @contextlib.contextmanager
    def evaluating(self, *, gradients: bool = False) -> Iterator[None]:
        """Context of evaluation mode, inference mode and autocast at the encoder's precision.

        The training mode of every module is restored afterwards.

        Args:
            gradients: whether to allow gradients (for the images), so no inference mode.
        """
        modes = [(m, m.training) for m in self.backbone.modules()]
        self.backbone.eval()
        try:
            with (
                torch.enable_grad() if gradients else torch.inference_mode(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
            ):
                yield
        finally:
            for module, training in modes:
                module.training = training

    def _batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        if batch_size < 1:
            raise UsageError(f"The batch size must be at least 1, got {batch_size}.")
        items: Tensor | list[ImageLike]
        if isinstance(images, Tensor) and images.is_floating_point():
            items = images[None] if images.ndim == 3 else images
        else:
            items = list_images(images, self.channels)
        for start in range(0, len(items), batch_size):
            yield self.prepare(items[start : start + batch_size])

    def __repr__(self) -> str:
        return (
            f"Encoder({self.name!r}, {self.backbone.name}, dim={self.dim}, "
            f"image_size={self.image_size}, device={str(self.device)!r})"
        )


def list_images(images: Images, channels: int) -> list[ImageLike]:
    """Makes a list of one image or many.

    Args:
        images: as for `Encoder.prepare`; not a float tensor.
        channels: number C of channels, by which an array [H, W, C] counts as one image.
    """
    if isinstance(images, Tensor):
        images = images.cpu().numpy()
    if isinstance(images, np.ndarray):
        _check_layout(images.shape, channels)
        single = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] == channels)
        return [images] if single else list(images)
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]


def _check_layout(shape: tuple[int, ...], channels: int) -> None:
    """Refuses an array with channels first, which would be read as many grey images.

    Raises:
        UsageError: [C, H, W] or [N, C, H, W], as torchvision gives it.
    """
    first = shape[:1] if len(shape) == 3 else shape[1:2]
    is_image = len(shape) in (3, 4) and channels > 1 and shape[-1] != channels
    if is_image and first == (channels,):
        order = "1, 2, 0" if len(shape) == 3 else "0, 2, 3, 1"
        raise UsageError(
            f"An array {list(shape)} of whole numbers has its channels first, as torchvision reads "
            f"images, or is {shape[0]} grey images. Images are [H, W, {channels}] or [N, H, W, "
            f"{channels}]: use images.permute({order}). Give grey images as a list."
        )


def read_pixels(image: ImageLike, channels: int) -> np.ndarray:
    """Decodes a path, Pillow image or array to uint8 or uint16 [H, W, C].

    Raises:
        DataError: the image cannot be read.
    """
    from nolabel.data.sources.items import Items

    try:
        return Items([image], "images", channels).read(0).image
    except BadImage as error:
        raise DataError(f"Cannot embed {error.path!r}: {error.reason}.") from None
