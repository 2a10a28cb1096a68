"""`nolabel import`: official checkpoints, in their own layouts, become encoder files.

A family says which part of a file is the encoder, what is left out (heads, queues, decoders), and
how the network expects its images. Whatever is neither taken nor known to be left out is an error
that names it. Nothing is unpickled but tensors and plain values.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nolabel.backbones import at_size, build
from nolabel.encoders.convert import layouts
from nolabel.encoders.convert.families import LAYOUTS, LayoutInfo
from nolabel.encoders.convert.layouts import Architecture, State
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.state_dict import misfits, some
from nolabel.errors import DataError, FileDamaged, UsageError, unknown
from nolabel.nn.random_state import preserve_rng

_WRAPPERS = ("module.", "_orig_mod.")  # of parallel and compiled training
_CLASSIFIER = r"(head|fc)\.(weight|bias)"
_SWIN_BUFFERS = r".*(attn_mask|relative_position_index)"
POOLS = {"class": "token", "mean": "avg"}


@dataclass(frozen=True)
class Imported:
    """An encoder from an official file.

    Attributes:
        encoder: it.
        branch: which network of the file it is.
        text: arguments and weights of CLIP's text side, or None.
        left_out: names of tensors that are no part of the encoder, heads for instance.
    """

    encoder: Encoder
    branch: str
    text: tuple[dict[str, Any], State] | None
    left_out: tuple[str, ...]


def import_file(path: str | os.PathLike[str], family: str, **options: Any) -> Imported:
    """Reads a checkpoint in the official layout of a family.

    Args:
        path: the file: a pickle that holds tensors and plain values alone, or safetensors.
        family: a name in `LAYOUTS`.
        **options: as for `import_state`.

    Raises:
        UsageError: no such file or family, or sizes that do not fit.
        FileDamaged: the file is truncated or no checkpoint, or holds objects that could run code.
        DataError: tensors are missing, left over, or of a layout that is not this family's.
    """
    if family not in LAYOUTS:
        raise unknown("layout", family, LAYOUTS)
    return import_state(read_checkpoint(path), family, name=str(path), **options)


def import_state(
    value: dict[str, Any],
    family: str,
    *,
    name: str,
    branch: str = "",
    heads: int | None = None,
    text_heads: int | None = None,
    image_size: int | None = None,
    positions: str = "",
    pool: str = "",
    quick_gelu: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Imported:
    """As `import_file`, of what a file holds.

    Args:
        value: what the file holds.
        family: a name in `LAYOUTS`.
        name: for messages and tables.
        branch: of a training checkpoint: "teacher" or "student"; "" takes what is published.
        heads: attention heads; None takes the published number for that width.
        text_heads: those of CLIP's text tower.
        image_size: side in pixels at which it will be used; None is its own.
        positions: "dino", "mae" or "timm": how position embeddings are resized; "" is the family's.
        pool: "class" or "mean" (of patches): the embedding; "" is the class token, and for BEiT,
            whose class token learns nothing, the mean.
        quick_gelu: of CLIP: OpenAI's weights want it, most of OpenCLIP's do not.
        mean, std: of the images that it was trained on; None is the family's.

    Raises:
        UsageError, DataError: as `import_file`.
    """
    path = name
    if pool and pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    f = LAYOUTS[family]
    state, taken = _tensors(value, f, branch, path)
    state, left = _encoder_of(state, f, path)
    found = _architecture_of(state, family, f, heads, text_heads, image_size, quick_gelu)
    kwargs = dict(found.kwargs)
    if pool:
        kwargs["global_pool"] = POOLS[pool]
        kwargs["use_fc_norm" if "use_abs_pos_emb" in kwargs else "fc_norm"] = False
    if "register_tokens" in state and f.positions == "dino":
        f = dataclasses.replace(f, positions="timm")  # DINOv2 with registers samples exactly
    try:
        with preserve_rng():  # the weights come from the file
            backbone = build(found.name, kwargs=kwargs, positions=positions or f.positions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"No network of the sizes in {str(path)!r} can be built: {error}") from None
    _fill(backbone.net, found.tensors, path, family)
    if image_size and "any_size" not in backbone.can:
        backbone = at_size(backbone, image_size)
    encoder = Encoder(
        backbone.eval(), name=name, mean=mean or f.mean, std=std or f.std,
        image_size=image_size or found.image_size,
        meta={"source": str(path), "family": family},
    )  # fmt: skip
    return Imported(encoder, taken, found.text, tuple(left))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values, possibly nested.

    Raises:
        UsageError, FileDamaged: as `import_file`.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{str(path)!r} {what}; a checkpoint file is needed.")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise FileDamaged(f"{str(path)!r} is empty (0 bytes). Fetch it again.")
    if head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, ValueError, OSError) as error:
            raise FileDamaged(
                f"{str(path)!r} is truncated or altered ({error}). Fetch it again."
            ) from None
    if _has_code(path):
        raise FileDamaged(
            f"{str(path)!r} is a TorchScript archive, which holds code. Where you trust it, save "
            "its tensors: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
        )
    try:
        # Training checkpoints of the time keep their arguments as a Namespace, which is plain.
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading what is damaged raises almost anything
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named and type(error).__name__ == "UnpicklingError":
            raise FileDamaged(
                f"{str(path)!r} holds {named.group(1)}, an object that could run code when opened; "
                "nolabel opens tensors and plain values alone. Ask its maker for the tensors by "
                "themselves (a state dict, best as safetensors)."
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileDamaged(
            f"{str(path)!r} is truncated or no checkpoint ({reason}). Fetch it again."
        ) from None
    if not isinstance(value, Mapping):
        raise FileDamaged(
            f"{str(path)!r} holds a {type(value).__name__}, where names with tensors are needed."
        )
    return dict(value)


def _has_code(path: Path) -> bool:
    """Whether a file is a TorchScript archive, which keeps its code in a folder of that name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _tensors(
    value: dict[str, Any], f: LayoutInfo, branch: str, path: str | os.PathLike[str]
) -> tuple[State, str]:
    """The tensors of one branch by their names, without wrappers, and the branch's name."""
    branches = [k for k in f.inside if k in value]
    if branch:
        if branch not in value or not isinstance(value[branch], Mapping):
            raise UsageError(
                f"{str(path)!r} has no branch {branch!r}. It has: "
                f"{', '.join(branches) or 'one network only, so leave --branch out'}."
            )
        branches = [branch]
    taken = next((k for k in branches if isinstance(value[k], Mapping)), "")
    inner = dict(value[taken]) if taken else value
    if taken == "model" and isinstance(inner.get("module"), Mapping):
        inner = dict(inner["module"])
    state = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    if not state:
        raise DataError(
            f"{str(path)!r} has no tensors where this layout keeps them. Its top level holds: "
            f"{', '.join(map(str, list(value)[:8])) or 'nothing'}. Is --as right?"
        )
    for wrapper in _WRAPPERS:
        state = {k.removeprefix(wrapper): v for k, v in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, taken


def _encoder_of(
    state: State, f: LayoutInfo, path: str | os.PathLike[str]
) -> tuple[State, list[str]]:
    """The encoder's tensors without their prefix, and the names of what was left out."""
    root = next((r for r in f.roots if any(k.startswith(r) for k in state)), "")
    # DINOv2 may keep its blocks in chunks: blocks.CHUNK.BLOCK.
    chunked = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
    kept: State = {}
    left, strange = [], []
    for name, value in state.items():
        inside = name.startswith(root)
        short = chunked.sub("blocks.", name.removeprefix(root)) if inside else name
        patterns = (*f.drop, _CLASSIFIER, _SWIN_BUFFERS)
        if any(re.fullmatch(p, short) for p in patterns):
            left.append(name)
        elif inside:
            kept[short] = value
        else:
            strange.append(name)
    if strange:
        raise DataError(
            f"{str(path)!r} has tensors that belong to no known part of this layout: "
            f"{some(strange, 6)}. Is --as right?"
        )
    return kept, left


def _architecture_of(
    state: State, family: str, f: LayoutInfo, heads: int | None, text_heads: int | None,
    image_size: int | None, quick_gelu: bool,
) -> Architecture:  # fmt: skip
    """The layout by which the tensors are read."""
    if "clip" in f.kinds:
        return layouts.clip(state, heads, text_heads, quick_gelu=quick_gelu)
    if "conv1.weight" in state and "resnet" in f.kinds:
        return layouts.resnet(state)
    if any(k.startswith("layers.") for k in state) and "swin" in f.kinds:
        return layouts.swin(state, image_size)
    if "vit" in f.kinds:
        return layouts.transformer(state, heads, special=f.heads, mean_pool=family == "beit")
    kinds = {"vit": "a ViT", "swin": "a Swin", "resnet": "a ResNet of torchvision's names"}
    raise DataError(
        f"This is not {' or '.join(kinds[k] for k in f.kinds)}, as {family} has. The first names "
        f"are: {some(list(state), 6)}. Is --as right?"
    )


def _fill(net: torch.nn.Module, tensors: State, path: str | os.PathLike[str], family: str) -> None:
    """Puts the tensors into the network, all of them or none."""
    own = net.state_dict()
    computed = {n: own[n] for n in own if n.endswith("num_batches_tracked") and n not in tensors}
    shape = "{name} ({got} in the file, {own} expected)"
    if problems := misfits(own, {**computed, **tensors}, "left over", shape, 6):
        raise DataError(
            f"{str(path)!r} does not fit the layout of {family}; tensors {'; '.join(problems)}. "
            "Is --as right?"
        )
    net.load_state_dict({**computed, **tensors})


def save_imported(
    found: Imported,
    out: str | os.PathLike[str],
    *,
    family: str,
    tokenizer: str = "",
    overwrite: bool = False,
) -> list[Path]:
    """Writes the encoder file, and CLIP's text side beside it, into a folder.

    Args:
        found: what `import_file` returned.
        out: the folder; made where it is missing.
        family: goes into the header as the method.
        tokenizer: a tokenizer.json for CLIP's text side; "" is CLIP's own vocabulary (extra
            `clip`) where the text side has its size, and else no text side is written.
        overwrite: whether an encoder that is there may be replaced.

    Raises:
        UsageError: the folder holds an encoder already, or the tokenizer does not fit.
        DataError: the folder cannot be written.
    """
    from nolabel.backbones.text import SharedSpace
    from nolabel.data.text.tokenizer import PUBLISHED, TOKENIZER_FILE, Tokenizer
    from nolabel.encoders.file import ENCODER_FILE, TEXT_FILE, save_encoder
    from nolabel.encoders.text import save_text

    folder = Path(out)
    if (folder / ENCODER_FILE).exists() and not overwrite:
        raise UsageError(
            f"{str(folder)!r} holds an {ENCODER_FILE} already. Choose another --out, or say "
            "--overwrite."
        )
    tower = words = None
    if found.text and (tokenizer or found.text[0]["vocabulary"] == PUBLISHED):
        kwargs, weights = found.text
        words = Tokenizer.load(tokenizer) if tokenizer else Tokenizer.published(kwargs["context"])
        if words.vocabulary > kwargs["vocabulary"] or words.context != kwargs["context"]:
            raise UsageError(
                f"The tokenizer has {words.vocabulary} ids and texts of {words.context} tokens, "
                f"the text tower {kwargs['vocabulary']} and {kwargs['context']}."
            )
        with preserve_rng():
            tower = SharedSpace(**kwargs)
        _fill(tower, weights, folder, family)
    folder.mkdir(parents=True, exist_ok=True)
    e = found.encoder
    branch = found.branch if found.branch in ("teacher", "student") else "encoder"
    written = [
        save_encoder(
            folder / ENCODER_FILE, e.backbone, branch=branch, method=family, mean=e.mean,
            std=e.std, image_size=e.image_size, run=None,
            licence="Weights imported from a published file; its licence applies.",
        )
    ]  # fmt: skip
    if tower is not None and words is not None:
        words.save(folder / TOKENIZER_FILE)
        written += [folder / TOKENIZER_FILE]
        written += [save_text(folder / TEXT_FILE, tower, words, method=family)]
    return written
