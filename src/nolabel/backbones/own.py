"""A user's own network behind the backbone contract.

Any `nn.Module` serves that maps images [B, C, H, W] to features: [B, D], a map [B, D, h, w], or
`Tokens`. What it is able to do is found by trying it at three sizes; masks, dropped patches and
attention are for those who subclass `Backbone` themselves.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nolabel import _usercode
from nolabel.backbones.base import Backbone, map_tokens, require, resolve_facets
from nolabel.errors import UsageError
from nolabel.nn.random_state import preserve_rng
from nolabel.types import Tokens

WHAT = "network class or function (a torch.nn.Module, or what returns one)"
GIVEN = "object:"  # before the name of a network that was given in Python
_SIZES = ("image_size",)
_CHANNELS = ("channels", "in_chans", "in_channels")

Maker = Callable[..., object]
_GIVEN: dict[str, Maker] = {}  # networks and classes given in Python in this process


class OwnBackbone(Backbone):
    """A network that only maps images to features.

    Args:
        net: the network.
        name: under which `build` makes it again.
        image_size: side in pixels at which it is tried; other sizes where it takes them.
        channels: of the images.

    Raises:
        UsageError: it does not map images of this size to features.
    """

    def __init__(self, net: nn.Module, name: str, image_size: int, channels: int = 3):
        super().__init__()
        self.net = net
        self.name = name
        self.kwargs = {"image_size": image_size, "in_chans": channels}
        self.image_size, self.depth = image_size, 1
        out = self._try(image_size, channels)
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
    def _try(self, size: int, channels: int) -> Tokens:
        """Features of noise [2, C, S, S]; modes and the random state stay as they were."""
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
                if self._try(other, channels).pooled.shape[1] != self.dim:
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
        require(self, [n for n, v in (("mask", mask), ("drop", keep)) if v is not None], "tokens")
        return self._as_tokens(self.net(x))

    def layers(self, x: Tensor, n: int) -> list[Tokens]:
        return [self.tokens(x)]

    def facets_of(self, x: Tensor, wanted: Sequence[tuple[int, str]]) -> list[Tokens]:
        why = "A network of your own shows its output alone."
        found = self.tokens(x)
        return [found for _ in resolve_facets(self, wanted, ("token",), why)]

    def set_drop_path(self, rate: float, *, by_samples: bool = False) -> None:
        if rate:
            raise UsageError(
                f"{self.name!r} is a network of your own, whose paths cannot be dropped from "
                "outside. Use --drop-path 0."
            )


def record(name: str | None) -> str | None:
    """The name under which a run saves a backbone, or an encoder `random:BACKBONE`; executes a
    user's file. None, no network, stays.

    Raises:
        UsageError: no such file or class.
    """
    if name is None:
        return None
    prefix, bare = ("random:", name[7:]) if name.startswith("random:") else ("", name)
    if _usercode.is_reference(bare):
        return prefix + _usercode.load_path(bare, _suits, WHAT).name
    return name


def give(network: object, name: str | None = None) -> str:
    """A backbone's name for a network, a class or a function that was given in Python.

    Each time that it is built, a network is copied with its weights, and a class is called.

    Args:
        name: as which it is to be known, such as that in a run's configuration; by default a new
            one.

    Raises:
        UsageError: it is no network and makes none.
    """
    if isinstance(network, nn.Module):
        title, maker = type(network).__name__, _Copies(network)
    elif callable(network):
        title, maker = str(getattr(network, "__name__", "network")), network
    else:
        raise UsageError(
            f"backbone is a {type(network).__name__}. Give a name, a torch.nn.Module, or a class "
            "of networks."
        )
    if name is None:
        same = [n for n, known in _GIVEN.items() if n.startswith(f"{GIVEN}{title}") and known]
        name = f"{GIVEN}{title}" + (f"-{len(same) + 1}" if same else "")
    _GIVEN[name] = maker
    return name


def give_again(network: nn.Module | type[nn.Module], name: str, who: str) -> None:
    """Gives the network of a run or an encoder that got it in Python, under the name kept there.

    Args:
        name: of its backbone.
        who: whose it is, for the message.

    Raises:
        UsageError: it did not get its network in Python.
    """
    if not name.startswith(GIVEN):
        raise UsageError(
            f"{who} has the backbone {name!r}, which is built from its name. Leave backbone out."
        )
    give(network, name)


class _Copies:
    """Makes copies of one network, with its weights."""

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.net)


def build_own(name: str, image_size: int, channels: int, kwargs: dict[str, Any]) -> Backbone:
    """A user's own network.

    Args:
        name: file.py:Class, with or without hash, or from `give`.
        image_size: side of the images in pixels.
        channels: of the images.
        kwargs: what a method asks of a fresh network; there is nothing that it could ask for.

    Raises:
        UsageError: there is no such network, or it does not map images to features.
    """
    asked = [k for k, v in kwargs.items() if v and k not in ("image_size", "in_chans")]
    if asked:
        raise UsageError(
            f"{name!r} is a network of your own, which takes no {', '.join(asked)}: that is for "
            "ViTs. Use a ViT, for example --backbone vit_tiny, or set the options to 0."
        )
    maker = _maker(name)
    return wrap(maker(**_arguments(maker, name, image_size, channels)), name, image_size, channels)


def wrap(net: object, name: str, image_size: int, channels: int) -> Backbone:
    """A network behind the contract; one that is a Backbone keeps it itself.

    Raises:
        UsageError: it is no network, or does not map images to features.
    """
    if not isinstance(net, nn.Module):
        raise UsageError(f"{name!r} made a {type(net).__name__}, not a torch.nn.Module.")
    if isinstance(net, Backbone):
        net.name, net.kwargs = name, {"image_size": image_size, "in_chans": channels}
        return net
    return OwnBackbone(net, name, image_size, channels)


def own_stride(name: str) -> int:
    """Pixels of which the sides of images must be multiples; 1 for all that cut no patches."""
    maker = _maker(name)
    if not (isinstance(maker, type) and issubclass(maker, Backbone)):
        return 1
    with torch.device("meta"):
        net = maker(**_arguments(maker, name, 224, 3))
    return net.patch_size if "mask" in net.can else 1


def _maker(name: str) -> Maker:
    if name.startswith(GIVEN):
        if name not in _GIVEN:
            raise UsageError(
                f"The network {name.removeprefix(GIVEN)!r} was given in Python, and no file holds "
                "its code. In Python, give it again: nolabel.load(folder, backbone=network) or "
                "nolabel.resume(folder, backbone=network). To do without, put its class into a "
                "file and train with --backbone path/to/file.py:Class."
            )
        return _GIVEN[name]
    found = _usercode.find(name, _suits, WHAT)
    assert callable(found)  # noqa: S101 - `_suits` says so
    return found


def _suits(value: object) -> bool:
    """A class of networks, or a function that may return one."""
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return inspect.isfunction(value)


def _arguments(maker: Maker, name: str, image_size: int, channels: int) -> dict[str, int]:
    """Image size and channels, as far as the constructor names them.

    Raises:
        UsageError: it needs other arguments.
    """
    values = {**dict.fromkeys(_SIZES, image_size), **dict.fromkeys(_CHANNELS, channels)}
    parameters = inspect.signature(maker).parameters.values()
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
