"""`nolabel export`: writes an encoder for timm, transformers or ONNX, and verifies it.

The export is read back by the target library and its features are compared with the encoder's; a
difference of `TOLERANCE` or more is an error, and no file is kept. A model card describes the
encoder and how to load it.
"""

from __future__ import annotations

import contextlib
import copy
import glob
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.models.beit import Attention
from torch import Tensor, nn

from nolabel import _files
from nolabel.backbones.beit import BEiT
from nolabel.backbones.resnet import ResNet
from nolabel.backbones.swin import Swin
from nolabel.backbones.vit import ViT
from nolabel.encoders.convert.card import model_card
from nolabel.encoders.encoder import Encoder
from nolabel.errors import DataError, UsageError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMATS = ("timm", "hf", "onnx")
TOLERANCE = 1e-4  # of features: a larger difference is an error
BATCH_SIZES = (2, 1, 5)  # at which the features are compared


def export(
    encoder: Encoder, to: str, out: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, Any]:
    """Exports an encoder for another library.

    Args:
        encoder: the encoder; it is moved to the CPU.
        to: "timm", "hf" (transformers) or "onnx".
        out: a folder, created if it is missing.
        overwrite: whether an export that is in the folder may be replaced: the files that its mark
            lists are removed, others stay.

    Returns:
        "form", "folder", "files", "largest_difference" (absolute, of embeddings and tokens), and
        "loading" (code that loads the export).

    Raises:
        UsageError: an unknown format; the folder is not empty, or with `overwrite` holds no export;
            the library is missing, or has no such network.
        DataError: the export has other features than the encoder.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    folder = Path(out)
    _files.check_folder(folder)
    old = _check_folder(folder, overwrite)
    encoder = encoder.to("cpu")
    encoder.backbone.eval()
    write = {"timm": _write_timm, "hf": _write_transformers, "onnx": _write_onnx}[to]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _files.scratch_folder(folder.parent, "export") as temporary:
        exported = temporary / "export"
        exported.mkdir()
        read_back, loading = write(encoder, exported)
        difference = largest_difference(encoder, read_back)
        if not difference < TOLERANCE:
            raise DataError(
                f"The features of the export to {to} differ by {difference:.1e}, allowed is less "
                f"than {TOLERANCE:.0e}; no file was kept. Please report this network."
            )
        loading = loading.format(folder=folder)
        _files.write_text(exported / "README.md", model_card(encoder, to, difference, loading))
        files = sorted(p.name for p in exported.iterdir())
        mode = _files.usual_mode(temporary / "mode")
        folder.mkdir(exist_ok=True)
        _files.write_mark(folder, "export", files=sorted({*files, *old}))
        _files.remove_matching(folder, [glob.escape(name) for name in old])
        for name in files:
            (exported / name).chmod(mode)  # safetensors makes private files
            os.replace(exported / name, folder / name)
        _files.write_mark(folder, "export", files=files)
    return {
        "form": to, "folder": str(folder), "largest_difference": difference, "loading": loading,
        "files": files,
    }  # fmt: skip


def _check_folder(folder: Path, overwrite: bool) -> list[str]:
    """The files of an older export that may be removed.

    Raises:
        UsageError: the folder holds something else, or an export that may not be replaced.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return []
    if not overwrite:
        raise UsageError(f"{str(folder)!r} is not empty. Choose another --out, or say --overwrite.")
    mark = _files.read_mark(folder, "export")
    if mark is None:
        raise UsageError(
            f"{str(folder)!r} is not empty and holds no export that this version wrote; "
            "--overwrite replaces exports only. Choose another --out."
        )
    _files.refuse_dangerous(folder, (), "--overwrite")
    files = mark.get("files")
    names = files if isinstance(files, list) else []
    return [n for n in names if isinstance(n, str) and n == os.path.basename(n) and n]


@torch.inference_mode()
def largest_difference(encoder: Encoder, other: Callable[[Tensor], dict[str, Tensor]]) -> float:
    """Largest absolute difference of features on random images, for several batch sizes.

    Args:
        encoder: the encoder, on the CPU.
        other: maps images float32 [N, C, S, S] to some of "embedding" [N, D], "class" [N, D] and
            "patches" [N, P, D].

    Returns:
        The difference; infinite if the shapes differ.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for n in BATCH_SIZES:
        x = torch.randn(n, encoder.channels, encoder.size, encoder.size, generator=generator)
        t = encoder.backbone.tokens(x)
        features = {"embedding": t.pooled, "patches": t.patches}
        if t.prefix is not None and t.prefix.shape[1]:
            features["class"] = t.prefix[:, 0]
        for name, value in other(x).items():
            if value.shape != features[name].shape:
                return float("inf")
            largest = max(largest, float((value - features[name]).abs().max()))
    return largest


def _write_timm(
    encoder: Encoder, folder: Path
) -> tuple[Callable[[Tensor], dict[str, Tensor]], str]:
    import timm

    b = encoder.backbone
    if not timm.is_model(b.name.split(".")[0]):  # raw pixels, a network of one's own
        raise UsageError(f"{b.name!r} is no network of timm's. Use --to onnx.")
    if isinstance(b, ResNet) and not b.maxpool:
        raise UsageError(
            f"{b.name!r} has no max pooling in its stem, which timm's config cannot express. Use "
            "--to onnx."
        )
    if b.kwargs.get("swiglu"):
        raise UsageError(
            "timm's config cannot express gated MLPs (SwiGLU). Use --to hf or --to onnx."
        )
    # None is the default: timm leaves it out of a call, but not when it reads a config.
    args = {
        k: v for k, v in b.kwargs.items() if v is not None and k not in ("image_size", "maxpool")
    }
    _files.save_tensors({k: v.contiguous() for k, v in b.net.state_dict().items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    size = [encoder.channels, encoder.size, encoder.size]
    config = {
        "architecture": b.name.split(".")[0], "num_classes": 0, "num_features": b.dim,
        "global_pool": b.net.global_pool if isinstance(b, ViT | BEiT | Swin) else "avg",
        "model_args": args,
        "pretrained_cfg": {
            "mean": list(encoder.mean), "std": list(encoder.std), "input_size": size,
            "interpolation": "bicubic", "crop_pct": encoder.size / encoder.resize,
            "num_classes": 0, "fixed_input_size": "any_size" not in b.can,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()

    def read_back(x: Tensor) -> dict[str, Tensor]:
        return {"embedding": model(x)}

    return read_back, (
        "import timm; "
        'model = timm.create_model("local-dir:{folder}", pretrained=True, num_classes=0)'
    )


def _write_transformers(
    encoder: Encoder, folder: Path
) -> tuple[Callable[[Tensor], dict[str, Tensor]], str]:
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "--to hf needs transformers to verify the export: pip install 'nolabel[transformers]'."
        ) from None
    from nolabel.encoders.convert.huggingface import convert

    config, tensors = convert(encoder.backbone)
    _files.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    plain = {k: v.contiguous() for k, v in tensors.items()}
    _files.save_tensors(plain, folder / "model.safetensors", {"format": "pt"})
    prepare = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "resample": 3,
        "size": {"shortest_edge": encoder.resize}, "do_center_crop": True,
        "crop_size": {"height": encoder.size, "width": encoder.size}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(encoder.mean),
        "image_std": list(encoder.std), "do_convert_rgb": encoder.channels == 3,
    }  # fmt: skip
    text = json.dumps(prepare, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    model, report = _load_silently(getattr(transformers, config["architectures"][0]), folder)
    unmatched = [
        k
        for which in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for k in report[which]
        # Not in the checkpoint: poolers are not used, indices are computed.
        if not any(s in str(k) for s in ("pooler", "relative_position_index", "position_ids"))
    ]
    if unmatched:
        raise DataError(
            f"transformers does not load these tensors: {unmatched[:4]}. Please report this "
            "network."
        )
    model.eval()
    prefix = 1 + int(config.get("num_register_tokens", 0))

    def read_back(x: Tensor) -> dict[str, Tensor]:
        out = model(pixel_values=x)
        if config["model_type"] == "clip_vision_model":
            return {"class": out.pooler_output}
        if config["model_type"] == "resnet":
            return {"patches": out.last_hidden_state.flatten(2).transpose(1, 2)}
        if config["model_type"] == "swin":
            return {"patches": out.last_hidden_state}
        last = out.last_hidden_state
        return {"class": last[:, 0], "patches": last[:, prefix:]}

    load = 'import transformers; model = transformers.AutoModel.from_pretrained("{folder}"); '
    return read_back, load + _embedding_code(encoder, model, prefix)


def _embedding_code(encoder: Encoder, model: PreTrainedModel, prefix: int) -> str:
    """Code for the embedding among the outputs of a transformers model: the one that is equal.

    Args:
        encoder: the encoder.
        model: what was read back.
        prefix: number of tokens before the patches.
    """
    outputs: dict[str, Callable[[Any], Tensor]] = {
        "last_hidden_state[:, 0]": lambda out: out.last_hidden_state[:, 0],
        f"last_hidden_state[:, {prefix}:].mean(1)": lambda out: out.last_hidden_state[
            :, prefix:
        ].mean(1),
        "last_hidden_state.mean(1)": lambda out: out.last_hidden_state.mean(1),
        "last_hidden_state.mean((2, 3))": lambda out: out.last_hidden_state.mean((2, 3)),
        "pooler_output": lambda out: out.pooler_output,
    }
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, encoder.channels, encoder.size, encoder.size, generator=generator)
    with torch.inference_mode():
        expected, out = encoder.backbone.tokens(x).pooled, model(pixel_values=x)
        for name, value in outputs.items():
            with contextlib.suppress(RuntimeError, IndexError, AttributeError):
                found = value(out)
                if found.shape == expected.shape and (found - expected).abs().max() < TOLERANCE:
                    return f"# embedding = model(pixel_values=images).{name}"
    return "# the embedding is none of its outputs"


def _load_silently(
    model_class: type[PreTrainedModel], folder: Path
) -> tuple[PreTrainedModel, dict[str, Sequence[str]]]:
    """Loads a model without transformers' progress bars and logs; the caller checks the report."""
    from transformers import logging as log

    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        loaded = model_class.from_pretrained(folder, output_loading_info=True)
        return cast("tuple[PreTrainedModel, dict[str, Sequence[str]]]", loaded)
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


class _OnnxModel(nn.Module):
    """Maps pixels float32 [N, C, S, S] in 0..1 to embeddings [N, D] and patches [N, P, D]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.backbone = copy.deepcopy(encoder.backbone)
        if isinstance(self.backbone, BEiT):  # torch.export cannot trace fused attention with a bias
            for module in self.backbone.modules():
                if isinstance(module, Attention):
                    setattr(module, "fused_attn", False)  # noqa: B010 - timm declares it final
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        t = self.backbone.tokens((images - self.mean) / self.std)
        return t.pooled, t.patches


def _write_onnx(
    encoder: Encoder, folder: Path
) -> tuple[Callable[[Tensor], dict[str, Tensor]], str]:
    # It would write an identifier and an event log into the home folder, and call home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx.export needs it
    except ImportError:
        raise UsageError("--to onnx needs onnx packages: pip install 'nolabel[onnx]'.") from None
    import logging
    import warnings

    path = folder / "model.onnx"
    x = torch.rand(2, encoder.channels, encoder.size, encoder.size)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _OnnxModel(encoder).eval(), (x,), path, input_names=["images"],
                output_names=["embedding", "patches"], dynamic_shapes={"images": {0: batch}},
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))

    def read_back(x: Tensor) -> dict[str, Tensor]:
        pixels = (x * std + mean).numpy()  # the graph normalises
        names = ("embedding", "patches")
        outputs = session.run(list(names), {"images": pixels})
        return {n: torch.from_numpy(v) for n, v in zip(names, outputs, strict=True)}

    return read_back, (
        'import onnxruntime; session = onnxruntime.InferenceSession("{folder}/model.onnx"); '
        'embedding, patches = session.run(None, {{"images": pixels}})'
    )
