"""The encoder file: safetensors with timm's parameter names and a JSON header, nothing pickled.

The header is in the file's metadata under the key "nolabel". Its `checksum` is a SHA-256 over

    1. the header itself without `checksum`, as JSON in UTF-8 with sorted keys and no spaces;
    2. for every tensor, in the order of the names: name, type and shape as JSON in the same form,
       then the bytes of the values, row by row, little-endian.

So any changed byte is detected: in a weight, in the normalisation, in the run's configuration. It
protects against accidents, not against forgery: whoever can write the file can also compute it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nolabel._files import require_file, save_tensors
from nolabel._version import __version__
from nolabel.backbones.base import Backbone
from nolabel.backbones.vit import ViT
from nolabel.encoders.header import check_layers, check_tensors, invalid_field
from nolabel.encoders.own_network import Network, build_own_network, copy_network_code
from nolabel.errors import DataError, FileDamaged, UsageError, unknown
from nolabel.nn.random_state import preserve_rng

if TYPE_CHECKING:
    from nolabel.encoders.encoder import Encoder

ENCODER_FILE, TEXT_FILE = "encoder.safetensors", "text.safetensors"  # names in a run folder
FORMAT = 1
KEY = "nolabel"
BRANCHES = ("teacher", "student", "encoder")
LICENCE = "Weights trained by the user; their licence is the user's choice."
# Keyword arguments of timm.create_model that download or open other files.
_FORBIDDEN_KWARGS = frozenset(
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
)


def save_encoder(
    path: str | os.PathLike[str],
    backbone: Backbone,
    *,
    branch: str,
    method: str,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int,
    run: Mapping[str, Any] | None,
    licence: str = LICENCE,
) -> Path:
    """Writes an encoder file, completely or not at all (a temporary file is renamed).

    Args:
        path: where to; an existing file is replaced in one step.
        backbone: the network; the parameters and buffers of `backbone.net` are saved.
        branch: which network of the method it is: "teacher", "student" or "encoder".
        method: name of the method that trained it.
        mean: mean of each channel, which was subtracted from pixels in 0..1.
        std: standard deviation of each channel, by which they were divided.
        image_size: side in pixels of the images that it was trained on.
        run: the run's configuration, of JSON's types, or None.
        licence: note on the licence of the weights.

    Returns:
        The path.

    Raises:
        UsageError: the backbone has no weights, or the header cannot be written as JSON.
        DataError: the file cannot be written (no such folder, no space, no permission).
    """
    if branch not in BRANCHES:
        raise unknown("branch", branch, BRANCHES)
    path = Path(path)
    state = backbone.net.state_dict()
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}
    if not tensors:
        raise UsageError(f"{backbone.name!r} has no weights to save.")
    code = copy_network_code(backbone.name, path)
    header: dict[str, Any] = {
        "format": FORMAT,
        "name": backbone.name,
        "kwargs": dict(backbone.kwargs),
        "positions": backbone.positions if isinstance(backbone, ViT) else None,
        "branch": branch,
        "method": method,
        "image_size": int(image_size),
        "mean": [float(v) for v in mean],
        "std": [float(v) for v in std],
        "run": None if run is None else dict(run),
        "run_sha256": None if run is None else _sha256(_json(dict(run))),
        "licence": licence,
        **({"code": code} if code else {}),
        **versions(),
    }
    return write_tensors(path, header, tensors, "the encoder")


def write_tensors(
    path: Path, header: Mapping[str, Any], tensors: dict[str, Tensor], what: str
) -> Path:
    """Writes tensors with a header and their checksum, completely or not at all (by a rename).

    Args:
        path: where to; an existing file is replaced in one step.
        header: values of JSON's types.
        tensors: contiguous tensors on the CPU, by name.
        what: description of the content, for the error message.

    Raises:
        UsageError: the header cannot be written as JSON.
        DataError: the file cannot be written (no such folder, no space, no permission).
    """
    header = {**header, "checksum": checksum(header, tensors)}
    # A single metadata key: safetensors writes several in random order, so the same weights would
    # not give the same bytes.
    metadata = {KEY: json.dumps(header, ensure_ascii=False)}
    try:
        save_tensors(tensors, path, metadata)
        _sync_folder(path.parent)
    except Exception as error:  # safetensors wraps OSError in its own exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"Cannot write {what} to {str(path)!r}: {reason}. Check that the folder exists, "
            "may be written to, and has space."
        ) from error
    return path


def load_encoder_file(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    network: Network | None = None,
) -> Encoder:
    """Reads an encoder file; needs neither the run folder nor the method that trained it.

    A user's own network is built from the copy of its code in the folder `code` beside the file.

    Args:
        path: the file.
        image_size: side in pixels at which it will be used; None is the one it was trained at.
        device: where the encoder goes.
        network: the user's own network, or its class, instead of that copy.

    Raises:
        UsageError: no such file, it was written by a newer version, or it needs a network that was
            given in Python.
        UntrustedCode: its code was never run here.
        FileDamaged: the file is truncated, altered, or not an encoder file.
    """
    from nolabel.backbones import at_size
    from nolabel.encoders.encoder import Encoder

    header, tensors = read_tensors(path)
    backbone = build_from(header, path, tensors, network)
    check_tensors(backbone.net.state_dict(), tensors, _label(path), backbone.name)
    backbone.net.load_state_dict(tensors)
    if image_size and "any_size" not in backbone.can:
        backbone = at_size(backbone, image_size)
    encoder = Encoder(
        backbone,
        name=os.fspath(path),
        mean=header["mean"],
        std=header["std"],
        image_size=image_size or header["image_size"],
        meta={**header, "path": os.fspath(path)},
    )
    return encoder.to(device)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the header of an encoder file without the weights; the checksum is not verified.

    Raises:
        UsageError, FileDamaged: as `load_encoder_file`.
    """
    return read_tensors(path, tensors=False)[0]


def build_from(
    header: Mapping[str, Any],
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    network: Network | None = None,
) -> Backbone:
    """Builds the architecture of a header with random weights.

    They are drawn from torch's global random state, which is restored afterwards. It is built
    without memory first: a header of a small file may describe a network that fits no machine.

    Raises:
        FileDamaged: the header describes no network that can be built, or another than the tensors.
        UsageError, UntrustedCode: as `load_encoder_file`.
    """
    from nolabel.backbones import build, is_own

    name, kwargs = header["name"], header["kwargs"]
    if network is not None or is_own(name):
        return build_own_network(header, Path(path), network)
    extra = {"positions": header["positions"]} if header.get("positions") else {}
    forbidden = sorted(_FORBIDDEN_KWARGS & kwargs.keys())
    if forbidden:
        raise FileDamaged(f"{_label(path)} sets {forbidden[0]!r}, which an encoder file may not.")
    check_layers(kwargs, tensors, _label(path))
    try:
        with preserve_rng():  # the weights come from the file
            with torch.device("meta"):
                outline = build(name, kwargs=kwargs, **extra)
            check_tensors(outline.net.state_dict(), tensors, _label(path), name)
            return build(name, kwargs=kwargs, **extra)
    except FileDamaged:
        raise
    except Exception as error:  # timm raises any type for arguments that it does not expect
        raise FileDamaged(
            f"{_label(path)} names the architecture {name!r} with {str(kwargs)[:300]}, which "
            f"cannot be built here ({' '.join(str(error).split())[:500]}). It was written with "
            f"timm {str(header.get('timm', 'of unknown version'))[:40]}."
        ) from error


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Checksum as described at the top of this file: SHA-256 as 64 hexadecimal digits."""
    digest = hashlib.sha256(_json({k: v for k, v in header.items() if k != "checksum"}))
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(_json([name, str(t.dtype).removeprefix("torch."), list(t.shape)]))
        raw = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def read_tensors(
    path: str | os.PathLike[str],
    *,
    invalid: Callable[[Mapping[str, Any]], str] = invalid_field,
    tensors: bool = True,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a file's header and tensors, and verifies them.

    Args:
        path: the file.
        invalid: the first field of a header that is not what it must be, or "".
        tensors: whether to read the tensors and verify the checksum.

    Returns:
        The header, and the tensors by name (empty without `tensors`).

    Raises:
        UsageError, FileDamaged: as `load_encoder_file`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    require_file(path, "an encoder file (.safetensors)")
    values: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if tensors and KEY in metadata:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise UsageError(f"{str(path)!r} may not be read: no permission.") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise FileDamaged(f"{_label(path)} {_describe_unreadable(path)}") from error
    if KEY not in metadata:
        raise FileDamaged(
            f"{_label(path)} holds tensors but no header of nolabel, so its architecture is not "
            "known. Give a file that nolabel wrote, or timm:NAME for published weights."
        )
    return _parse_header(metadata[KEY], values if tensors else None, path, invalid), values


def _parse_header(
    text: str,
    tensors: Mapping[str, Tensor] | None,
    path: Path,
    invalid: Callable[[Mapping[str, Any]], str],
) -> dict[str, Any]:
    """Parses the header; verifies the checksum (if there are tensors) and the fields."""
    altered = (
        f"{_label(path)} was altered after it was written: {{}}. Copy it again from where it came, "
        "or export it again from its run."
    )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileDamaged(altered.format("its header is not readable")) from error
    file_format = header.get("format") if isinstance(header, dict) else None
    if isinstance(file_format, int) and FORMAT < file_format < 1_000_000:
        raise UsageError(
            f"{str(path)!r} has format {file_format}, and this version of nolabel reads up to "
            f"{FORMAT}. Update nolabel."
        )
    if file_format != FORMAT:
        raise FileDamaged(altered.format("its header has no valid format number"))
    try:
        fits = tensors is None or checksum(header, tensors) == header.get("checksum")
    except (RuntimeError, TypeError, UnicodeEncodeError) as error:  # nested too deeply; odd types
        raise FileDamaged(altered.format("its checksum cannot be computed")) from error
    if not fits:
        raise FileDamaged(altered.format("its checksum does not match"))
    if header.get("kind") == "text" and invalid is invalid_field:
        raise UsageError(
            f"{str(path)!r} is the text tower of a run. Give the encoder.safetensors beside it."
        )
    if field := invalid(header):
        raise FileDamaged(altered.format(f"its header lacks a valid {field!r}"))
    return header


def _describe_unreadable(path: Path) -> str:
    """What a file is that safetensors cannot read, and what to do: the end of a sentence."""
    with open(path, "rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if not head:
        return "is empty (0 bytes). Copy it again from where it came."
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return (
            "is a pickled PyTorch checkpoint, which can run code when opened; nolabel never opens "
            "one. Give the encoder.safetensors of the run instead."
        )
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file: fetch it with 'git lfs pull'."
    length = int.from_bytes(head[:8], "little")
    if len(head) > 8 and head[8:9] == b"{" and length < 100_000_000:
        return (
            f"is truncated or altered: it has {size:,} bytes, which is not the size its header "
            "says. Copy it again from where it came, or export it again from its run."
        )
    return "is not a safetensors file. Give the encoder.safetensors of a run."


def _label(path: str | os.PathLike[str]) -> str:
    return f"The file {os.fspath(path)!r}"


def _json(value: object) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except TypeError as error:
        raise UsageError(f"An encoder file's header must be of JSON's types: {error}.") from error
    return text.encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that write a file, for its header."""
    timm = importlib.metadata.version("timm")
    return {"nolabel": __version__, "torch": torch.__version__, "timm": timm}


def _sync_folder(folder: Path) -> None:
    """Flushes a folder (fsync), so that a rename in it survives a power failure."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
