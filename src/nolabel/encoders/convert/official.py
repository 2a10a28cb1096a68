"""`nolabel import`: official checkpoints, in their own layouts, become encoder files.

A layout (`families`) says which tensors of a file are the encoder's, which are left out (heads,
queues, decoders), and how the network expects its images. Any other tensor is an error that names
it. Only tensors and plain values are unpickled.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nolabel._files import check_folder
from nolabel.backbones import at_size, build
from nolabel.encoders.convert import layouts
from nolabel.encoders.convert._checkpoint import read_checkpoint
from nolabel.encoders.convert.families import LAYOUTS, LayoutInfo
from nolabel.encoders.convert.layouts import Architecture, State
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.state_dict import describe_mismatches, first_names
from nolabel.errors import DataError, UsageError, unknown
from nolabel.nn.random_state import preserve_rng

# Parts of names that wrappers add, wherever they stand: DataParallel, torch.compile, FSDP,
# checkpointed activations, DeepSpeed.
_WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
_CLASSIFIER = r"(head|fc)\.(weight|bias)"
_SWIN_BUFFERS = r".*(attn_mask|relative_position_index)"
POOLS = {"class": "token", "mean": "avg"}


@dataclass(frozen=True)
class Imported:
    """An encoder from an official checkpoint.

    Attributes:
        encoder: the encoder.
        branch: key of the checkpoint that was read, such as "teacher"; "" without branches.
        text: arguments and weights of CLIP's text tower (`SharedSpace`), or None.
        left_out: names of tensors that are not part of the encoder, such as heads.
        others: other branches that hold the same network, such as averaged weights.
    """

    encoder: Encoder
    branch: str
    text: tuple[dict[str, Any], State] | None
    left_out: tuple[str, ...]
    others: tuple[str, ...] = ()


def import_file(path: str | os.PathLike[str], family: str, **options: Any) -> Imported:
    """Reads a checkpoint in the official layout of a family.

    Args:
        path: the file: a pickle of tensors and plain values only, or safetensors.
        family: a name in `LAYOUTS`.
        **options: keyword arguments of `import_state`.

    Raises:
        UsageError: no such file or family, or sizes that do not fit.
        FileDamaged: the file is truncated or no checkpoint, or holds objects that could run code.
        DataError: tensors are missing, left over, or not in this layout.
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
    """As `import_file`, for the content of a checkpoint.

    Args:
        value: the content: tensors by name, possibly in nested dictionaries.
        family: a name in `LAYOUTS`.
        name: shown in messages and tables.
        branch: of a training checkpoint: "teacher" or "student"; "" takes the layout's first.
        heads: number of attention heads; None takes the published number for the width.
        text_heads: the same for CLIP's text tower.
        image_size: side in pixels at which it will be used; None is its own.
        positions: "dino", "mae" or "timm": how position embeddings are interpolated; "" is the
            family's.
        pool: the embedding, "class" token or "mean" of the patches; "" is the class token, and for
            BEiT, whose class token is not trained, the mean.
        quick_gelu: CLIP's activation: OpenAI's weights need it, most of OpenCLIP's do not.
        mean: mean of each channel of the training images; None is the family's.
        std: standard deviation of each channel; None is the family's.

    Raises:
        UsageError, DataError: as `import_file`.
    """
    path = name
    if pool and pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    layout = LAYOUTS[family]
    state, branch_read = _select_branch(value, layout, branch, path)
    state, left_out = _encoder_tensors(state, layout, path)
    architecture = _read_architecture(
        state, family, layout, heads, text_heads, image_size, quick_gelu
    )
    kwargs = dict(architecture.kwargs)
    if pool:
        kwargs["global_pool"] = POOLS[pool]
        kwargs["use_fc_norm" if "use_abs_pos_emb" in kwargs else "fc_norm"] = False
    if "register_tokens" in state and layout.positions == "dino":
        # DINOv2 with registers interpolates to the exact size, without DINO's offset of 0.1.
        layout = dataclasses.replace(layout, positions="timm")
    try:
        with preserve_rng():  # the random weights are replaced below
            backbone = build(
                architecture.name, kwargs=kwargs, positions=positions or layout.positions
            )
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"No network of the sizes in {str(path)!r} can be built: {error}") from None
    _load_weights(backbone.net, architecture.tensors, path, family)
    if image_size and "any_size" not in backbone.can:
        backbone = at_size(backbone, image_size)
    encoder = Encoder(
        backbone.eval(), name=name, mean=mean or layout.mean, std=std or layout.std,
        image_size=image_size or architecture.image_size,
        meta={"source": str(path), "family": family},
    )  # fmt: skip
    others = _other_branches(value, branch_read) if branch_read else ()
    return Imported(encoder, branch_read, architecture.text, tuple(left_out), others)


def _select_branch(
    value: dict[str, Any], layout: LayoutInfo, branch: str, path: str | os.PathLike[str]
) -> tuple[State, str]:
    """Tensors of one branch by name, without wrapper prefixes, and the branch's key."""
    branches = [k for k in layout.branches if k in value]
    if branch:
        if branch not in value or not isinstance(value[branch], Mapping):
            found = list(
                dict.fromkeys(k for b in branches for k in (b, *_other_branches(value, b)))
            )
            raise UsageError(
                f"{str(path)!r} has no branch {branch!r}. It has: "
                f"{', '.join(found) or 'one network only, so leave --branch out'}."
            )
        branches = [branch]
    branch_read = next((k for k in branches if isinstance(value[k], Mapping)), "")
    inner = dict(value[branch_read]) if branch_read else value
    if branch_read and isinstance(inner.get("module"), Mapping):
        inner = dict(inner["module"])
    state = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    if not state:
        raise DataError(
            f"{str(path)!r} has no tensors where this layout keeps them. Its top level holds: "
            f"{', '.join(map(str, list(value)[:8])) or 'nothing'}. Is --as right?"
        )
    plain: State = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise DataError(
                f"{str(path)!r} holds the tensor {short!r} twice, once as {name!r}. Save one "
                "network alone."
            )
        plain[short] = tensor.float() if tensor.is_floating_point() else tensor
    return plain, branch_read


def _other_branches(value: Mapping[str, Any], read: str) -> tuple[str, ...]:
    """Other parts of a checkpoint that hold the same tensors, such as averages of the weights."""

    def names(part: object) -> set[str]:
        if not isinstance(part, Mapping):
            return set()
        inner = part.get("module") if isinstance(part.get("module"), Mapping) else part
        tensors = (str(k) for k, v in dict(inner or {}).items() if isinstance(v, Tensor))
        return {".".join(p for p in k.split(".") if p not in _WRAPPERS) for k in tensors}

    own = names(value.get(read))
    return tuple(
        str(k) for k, v in value.items() if k != read and 2 * len(own & names(v)) > len(own)
    )


def _encoder_tensors(
    state: State, layout: LayoutInfo, path: str | os.PathLike[str]
) -> tuple[State, list[str]]:
    """The encoder's tensors without their prefix, and the names of tensors left out."""
    prefix = next((p for p in layout.prefixes if any(k.startswith(p) for k in state)), "")
    # DINOv2 may nest its blocks in chunks: blocks.CHUNK.BLOCK.
    chunked = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
    tensors: State = {}
    left_out, unknown_names = [], []
    for name, value in state.items():
        in_encoder = name.startswith(prefix)
        short = chunked.sub("blocks.", name.removeprefix(prefix)) if in_encoder else name
        patterns = (*layout.drop, _CLASSIFIER, _SWIN_BUFFERS)
        if any(re.fullmatch(p, short) for p in patterns):
            left_out.append(name)
        elif in_encoder:
            tensors[short] = value
        else:
            unknown_names.append(name)
    if unknown_names:
        raise DataError(
            f"{str(path)!r} has tensors that belong to no known part of this layout: "
            f"{first_names(unknown_names, 6)}. Is --as right?"
        )
    return tensors, left_out


def _read_architecture(
    state: State, family: str, layout: LayoutInfo, heads: int | None, text_heads: int | None,
    image_size: int | None, quick_gelu: bool,
) -> Architecture:  # fmt: skip
    """Architecture and timm's tensors, by the first reader of the layout that applies."""
    if "clip" in layout.architectures:
        return layouts.clip(state, heads, text_heads, quick_gelu=quick_gelu)
    if "conv1.weight" in state and "resnet" in layout.architectures:
        return layouts.resnet(state)
    if any(k.startswith("layers.") for k in state) and "swin" in layout.architectures:
        return layouts.swin(state, image_size)
    if "vit" in layout.architectures:
        return layouts.transformer(state, heads, special=layout.heads, mean_pool=family == "beit")
    described = {"vit": "a ViT", "swin": "a Swin", "resnet": "a ResNet with torchvision's names"}
    raise DataError(
        f"This is not {' or '.join(described[k] for k in layout.architectures)}, as {family} has. "
        f"The first names are: {first_names(list(state), 6)}. Is --as right?"
    )


def _load_weights(
    net: torch.nn.Module, tensors: State, path: str | os.PathLike[str], family: str
) -> None:
    """Loads the tensors into the network if all of them fit."""
    expected = net.state_dict()
    counters = {
        n: expected[n] for n in expected if n.endswith("num_batches_tracked") and n not in tensors
    }
    shape = "{name} ({got} in the file, {expected} expected)"
    if problems := describe_mismatches(expected, {**counters, **tensors}, "left over", shape, 6):
        raise DataError(
            f"{str(path)!r} does not fit the layout of {family}; tensors {'; '.join(problems)}. "
            "Is --as right?"
        )
    net.load_state_dict({**counters, **tensors})


def save_imported(
    imported: Imported,
    out: str | os.PathLike[str],
    *,
    family: str,
    tokenizer: str = "",
    overwrite: bool = False,
) -> list[Path]:
    """Writes the encoder file, and CLIP's text tower beside it, into a folder.

    Args:
        imported: what `import_file` returned.
        out: the folder; created if it is missing.
        family: written to the header as the method.
        tokenizer: a tokenizer.json for CLIP's text tower; "" is CLIP's own vocabulary (extra
            `clip`) if the text tower has its size; otherwise no text tower is written.
        overwrite: whether an existing encoder may be replaced.

    Returns:
        Paths of the files written.

    Raises:
        UsageError: the folder holds an encoder already, or the tokenizer does not fit.
        DataError: the folder cannot be written.
    """
    from nolabel.backbones.text import SharedSpace
    from nolabel.data.text.tokenizer import PUBLISHED, TOKENIZER_FILE, Tokenizer
    from nolabel.encoders.file import ENCODER_FILE, TEXT_FILE, save_encoder
    from nolabel.encoders.text import save_text

    folder = Path(out)
    check_folder(folder)
    if (folder / ENCODER_FILE).exists() and not overwrite:
        raise UsageError(
            f"{str(folder)!r} holds an {ENCODER_FILE} already. Choose another --out, or say "
            "--overwrite."
        )
    tower = text_tokenizer = None
    if imported.text and (tokenizer or imported.text[0]["vocabulary"] == PUBLISHED):
        kwargs, weights = imported.text
        text_tokenizer = (
            Tokenizer.load(tokenizer) if tokenizer else Tokenizer.published(kwargs["context"])
        )
        if (
            text_tokenizer.vocabulary > kwargs["vocabulary"]
            or text_tokenizer.context != kwargs["context"]
        ):
            raise UsageError(
                f"The tokenizer has {text_tokenizer.vocabulary} ids and texts of "
                f"{text_tokenizer.context} tokens, the text tower {kwargs['vocabulary']} and "
                f"{kwargs['context']}. Give the tokenizer that the model was trained with."
            )
        with preserve_rng():
            tower = SharedSpace(**kwargs)
        _load_weights(tower, weights, folder, family)
    folder.mkdir(parents=True, exist_ok=True)
    e = imported.encoder
    branch = imported.branch if imported.branch in ("teacher", "student") else "encoder"
    written = [
        save_encoder(
            folder / ENCODER_FILE, e.backbone, branch=branch, method=family, mean=e.mean,
            std=e.std, image_size=e.image_size, run=None,
            licence="Weights imported from a published file; its licence applies.",
        )
    ]  # fmt: skip
    if tower is not None and text_tokenizer is not None:
        text_tokenizer.save(folder / TOKENIZER_FILE)
        written += [folder / TOKENIZER_FILE]
        written += [save_text(folder / TEXT_FILE, tower, text_tokenizer, method=family)]
    return written
