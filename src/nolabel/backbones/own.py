"""A user's own network behind the backbone contract.

Any `nn.Module` will do that maps images [B, C, H, W] to features: [B, D], a feature map
[B, D, h, w], or `Tokens`. Its abilities are found by forward passes at three image sizes; masks,
dropped patches and attention need a subclass of `Backbone`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nolabel import _usercode
from nolabel.backbones.base import Backbone, map_tokens, refuse_hiding, resolve_facets
from nolabel.errors import UsageError
from nolabel.nn.random_state import preserve_rng
from nolabel.types import Tokens

EXPECTED = "network class or function (a torch.nn.Module, or what returns one)"
OBJECT_PREFIX = "object:"  # of the name of a network that was passed in from Python
_SIZES = ("image_size",)
_CHANNELS = ("channels", "in_chans", "in_channels")

Factory = Callable[..., object]
_REGISTERED: dict[str, Factory] = {}  # by name; passed in from Python in this process


class OwnBackbone(Backbone):
    """A network that only maps images to features.

    Args:
        net: the network.
        name: the name by which `build` makes another one.
        image_size: side in pixels of the images that it is probed with first.
        channels: C of the images.

    Raises:
        UsageError: it does not map images of this size to features.
    """

    def __init__(self, net: nn.Module, name: str, image_size: int, channels: int = 3):
        super().__init__()
        self.net = net
        self.name = name
        self.kwargs = {"image_size": image_size, "in_chans": channels}
        self.image_size, self.depth = image_size, 1
        out = self._probe(image_size, channels)
        h, w = out.grid
        mapped = out.patches.shape[1] == h * w and h == w and image_size % h == 0
        self.patch_size = image_size // h if mapped else image_size
        self.dim = out.pooled.shape[1]
        can = set()
        if mapped and self._gives_map:
            can.add("patches")
        if self._takes_any_size(image_size, channels):
            can.add("any_size")
        self.can = frozenset(can)

    @torch.no_grad()
    def _probe(self, size: int, channels: int) -> Tokens:
        """Features of noise [2, C, S, S]; train/eval modes and the random state are restored."""
        first = next(self.net.parameters(), torch.empty(0))
        modes = [(m, m.training) for m in self.net.modules()]
        with preserve_rng():
            x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
            self.net.eval()
            try:
                out = self.net(x.to(first.device, first.dtype))
            except Exception as error:  # whatever a user's network raises
                raise UsageError(
                    f"{self.name!r} does not take images [2, {channels}, {size}, {size}]: "
                    f"{type(error).__name__}: {error}"
                ) from error
            finally:
                for module, training in modes:
                    module.training = training
        return self._as_tokens(out)

    def _takes_any_size(self, size: int, channels: int) -> bool:
        for other in (max(size // 2, 1), size + size // 2):
            try:
                if self._probe(other, channels).pooled.shape[1] != self.dim:
                    return False
            except UsageError:
                return False
        return True

    _gives_map = False

    def _as_tokens(self, out: object) -> Tokens:
        if isinstance(out, Tokens):
            self._gives_map = out.grid != (1, 1)
            return out
        if isinstance(out, Tensor) and out.ndim == 4:
            self._gives_map = True
            return map_tokens(out)
        if isinstance(out, Tensor) and out.ndim == 2:
            return Tokens(out, out[:, None], (1, 1))
        got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise UsageError(
            f"{self.name!r} gives {got}. A network has to give features [B, D], a map "
            "[B, D, h, w], or nolabel.types.Tokens."
        )

    @property
    def compile_units(self) -> list[nn.Module]:
        return [self.net]

    def tokens(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tokens:
        refuse_hiding(self, mask, keep)
        return self._as_tokens(self.net(x))

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        return [self.tokens(x)]

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        why = "A network of your own shows its output alone."
        tokens = self.tokens(x)
        return [tokens for _ in resolve_facets(self, wanted, ("token",), why)]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        if rate:
            raise UsageError(
                f"{self.name!r} is a network of your own, whose paths cannot be dropped from "
                "outside. Use --drop-path 0."
            )


def name_by_hash(name: str | None) -> str | None:
    """The name with which a run's files refer to a backbone, or to an encoder `random:BACKBONE`:
    path/to/file.py:Class becomes file.py:Class@hash. Executes a user's file.

    Args:
        name: of a backbone or an encoder; others than a user's own, and None, are returned as they
            are.

    Raises:
        UsageError: no such file or class.
    """
    if name is None:
        return None
    prefix, bare = ("random:", name[7:]) if name.startswith("random:") else ("", name)
    if _usercode.is_reference(bare):
        return prefix + _usercode.load_path(bare, _is_network_factory, EXPECTED).name
    return name


def register(network: object, name: str | None = None) -> str:
    """Registers a network, or a class or function that makes one, and returns a name for `build`.

    Every `build` copies a network with its weights, and calls a class or function.

    Args:
        network: a torch.nn.Module, or what returns one.
        name: such as that in a run's configuration; by default a new one.

    Raises:
        UsageError: it is neither a network nor callable.
    """
    if isinstance(network, nn.Module):
        title, factory = type(network).__name__, _Copies(network)
    elif callable(network):
        title, factory = str(getattr(network, "__name__", "network")), network
    else:
        raise UsageError(
            f"backbone is a {type(network).__name__}. Give a name, a torch.nn.Module, or a class "
            "of networks."
        )
    if name is None:
        same = [n for n in _REGISTERED if n.startswith(f"{OBJECT_PREFIX}{title}")]
        name = f"{OBJECT_PREFIX}{title}" + (f"-{len(same) + 1}" if same else "")
    _REGISTERED[name] = factory
    return name


def register_again(network: nn.Module | type[nn.Module], name: str, who: str) -> None:
    """Registers the network of a saved run or encoder whose network was passed in from Python.

    Args:
        network: the network, or its class.
        name: the backbone's name in the run or the encoder file.
        who: the run or the encoder, for the message.

    Raises:
        UsageError: its backbone is one that can be built from its name.
    """
    if not name.startswith(OBJECT_PREFIX):
        raise UsageError(
            f"{who} has the backbone {name!r}, which is built from its name. Leave backbone out."
        )
    register(network, name)


class _Copies:
    """A factory that copies one network, with its weights."""

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.net)


def build_own(name: str, image_size: int, channels: int, kwargs: dict[str, Any]) -> Backbone:
    """A user's own network.

    Args:
        name: file.py:Class, with or without hash, or from `register`.
        image_size: side of the images in pixels.
        channels: C of the images.
        kwargs: options that a method sets on a new network; a user's own network has none.

    Raises:
        UsageError: there is no such network, or it does not map images to features.
    """
    unsupported = [k for k, v in kwargs.items() if v and k not in ("image_size", "in_chans")]
    if unsupported:
        raise UsageError(
            f"{name!r} is a network of your own, which takes no {', '.join(unsupported)}: that is "
            "for ViTs. Use a ViT, for example --backbone vit_tiny, or set the options to 0."
        )
    factory = _factory_of(name)
    return as_backbone(
        factory(**_arguments(factory, name, image_size, channels)), name, image_size, channels
    )


def as_backbone(net: object, name: str, image_size: int, channels: int) -> Backbone:
    """A network as a `Backbone`; one that is a subclass of it is returned itself.

    Args:
        net: what the user's class or function returned.
        name: the name by which `build` makes another one.
        image_size: side of the images in pixels.
        channels: C of the images.

    Raises:
        UsageError: it is not a network, or does not map images to features.
    """
    if not isinstance(net, nn.Module):
        raise UsageError(f"{name!r} made a {type(net).__name__}, not a torch.nn.Module.")
    if isinstance(net, Backbone):
        net.name, net.kwargs = name, {"image_size": image_size, "in_chans": channels}
        return net
    return OwnBackbone(net, name, image_size, channels)


def own_stride(name: str) -> int:
    """The number of pixels that must divide the sides of images; 1 for networks without patches."""
    factory = _factory_of(name)
    if not (isinstance(factory, type) and issubclass(factory, Backbone)):
        return 1
    with torch.device("meta"):
        net = factory(**_arguments(factory, name, 224, 3))
    return net.patch_size if "mask" in net.can else 1


def _factory_of(name: str) -> Factory:
    if name.startswith(OBJECT_PREFIX):
        if name not in _REGISTERED:
            raise UsageError(
                f"The network {name.removeprefix(OBJECT_PREFIX)!r} was passed in from Python, and "
                "no file holds its code. In Python, pass it again: nolabel.load(folder, "
                "backbone=network) or nolabel.resume(folder, backbone=network). To do without, "
                "put its class into a file and train with --backbone path/to/file.py:Class."
            )
        return _REGISTERED[name]
    factory = _usercode.find(name, _is_network_factory, EXPECTED)
    assert callable(factory)  # noqa: S101 - checked by `_is_network_factory`
    return factory


def _is_network_factory(value: object) -> bool:
    """Whether it is a class of networks, or a function, which may return one."""
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return inspect.isfunction(value)


def _arguments(factory: Factory, name: str, image_size: int, channels: int) -> dict[str, int]:
    """The arguments among image size and channels that the constructor has.

    Raises:
        UsageError: it needs other arguments.
    """
    values = {**dict.fromkeys(_SIZES, image_size), **dict.fromkeys(_CHANNELS, channels)}
    parameters = inspect.signature(factory).parameters.values()
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in values
    ]
    if needed:
        raise UsageError(
            f"{name!r} needs the arguments {', '.join(needed)}. Give them defaults; only "
            f"{', '.join(values)} are passed."
        )
    return {p.name: values[p.name] for p in parameters if p.name in values}
