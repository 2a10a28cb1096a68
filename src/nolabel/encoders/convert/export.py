"""`nolabel export`: an encoder in the form of timm, transformers or ONNX, with the proof.

What was written is read back by the target library itself and compared with the encoder; a
difference of `ALLOWED` or more is an error, and nothing is left behind. A model card says what it
is and how to load it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from timm.models.beit import Attention
from torch import Tensor, nn

from nolabel.backbones.beit import BEiT
from nolabel.backbones.resnet import ResNet
from nolabel.backbones.swin import Swin
from nolabel.backbones.vit import ViT
from nolabel.encoders.encoder import Encoder
from nolabel.errors import DataError, UsageError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMS = ("timm", "hf", "onnx")
ALLOWED = 1e-4  # largest difference of a feature
BATCHES = (2, 1, 5)  # sizes at which the two are compared


def export(
    encoder: Encoder, to: str, out: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes an encoder for another library.

    Args:
        encoder: the encoder; it is moved to the CPU.
        to: "timm", "hf" (transformers) or "onnx".
        out: a folder, made where it is missing.
        overwrite: whether what is in the folder may be replaced.

    Returns:
        form, folder, files, largest_difference (of tokens and embeddings), and how to load it.

    Raises:
        UsageError: an unknown form; the folder is in use; the library is missing, or has no such
            network.
        DataError: what was written gives other features.
    """
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{str(folder)!r} is not empty. Choose another --out, or --overwrite.")
    encoder = encoder.to("cpu")
    encoder.backbone.eval()
    write = {"timm": _timm, "hf": _hugging_face, "onnx": _onnx}[to]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as place:
        made = Path(place) / "export"
        made.mkdir()
        read_back, loading = write(encoder, made)
        difference = largest_difference(encoder, read_back)
        if not difference < ALLOWED:
            raise DataError(
                f"What was written for {to} gives features that differ by {difference:.1e}, more "
                f"than {ALLOWED:.0e}; nothing was kept. Please report this network."
            )
        loading = loading.format(folder=folder)
        (made / "README.md").write_text(card(encoder, to, difference, loading), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    return {
        "form": to, "folder": str(folder), "largest_difference": difference, "loading": loading,
        "files": sorted(p.name for p in folder.iterdir()),
    }  # fmt: skip


@torch.inference_mode()
def largest_difference(encoder: Encoder, other: Callable[[Tensor], dict[str, Tensor]]) -> float:
    """Of all features, for several sizes of batches of random images [N, C, S, S]."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for n in BATCHES:
        x = torch.randn(n, encoder.channels, encoder.size, encoder.size, generator=generator)
        t = encoder.backbone.tokens(x)
        own = {"embedding": t.pooled, "patches": t.patches}
        if t.prefix is not None and t.prefix.shape[1]:
            own["class"] = t.prefix[:, 0]
        for name, value in other(x).items():
            if value.shape != own[name].shape:
                return float("inf")
            worst = max(worst, float((value - own[name]).abs().max()))
    return worst


def _timm(encoder: Encoder, folder: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], str]:
    import timm

    b = encoder.backbone
    if isinstance(b, ResNet) and not b.maxpool:
        raise UsageError(
            f"{b.name!r} has no pooling in front, which timm cannot say. Export it --to onnx."
        )
    if b.kwargs.get("swiglu"):
        raise UsageError("timm's config cannot name gated MLPs. Export it --to hf or onnx.")
    args = {k: v for k, v in b.kwargs.items() if k not in ("image_size", "maxpool")}
    save_file({k: v.contiguous() for k, v in b.net.state_dict().items()},
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

    return read_back, 'timm.create_model("local-dir:{folder}", pretrained=True, num_classes=0)'


def _hugging_face(
    encoder: Encoder, folder: Path
) -> tuple[Callable[[Tensor], dict[str, Tensor]], str]:
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "Writing for transformers needs it for the proof: pip install 'nolabel[transformers]'."
        ) from None
    from nolabel.encoders.convert.huggingface import convert

    config, tensors = convert(encoder.backbone)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    prepare = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "resample": 3,
        "size": {"shortest_edge": encoder.resize}, "do_center_crop": True,
        "crop_size": {"height": encoder.size, "width": encoder.size}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(encoder.mean),
        "image_std": list(encoder.std), "do_convert_rgb": encoder.channels == 3,
    }  # fmt: skip
    text = json.dumps(prepare, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    model, report = _quietly(getattr(transformers, config["architectures"][0]), folder)
    strange = [
        k
        for which in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for k in report[which]
        # Poolers and indices are made anew: the first is not used, the others are computed.
        if not any(s in str(k) for s in ("pooler", "relative_position_index", "position_ids"))
    ]
    if strange:
        raise DataError(f"transformers does not take these tensors as they are: {strange[:4]}.")
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

    return read_back, 'transformers.AutoModel.from_pretrained("{folder}")'


def _quietly(
    kind: type[PreTrainedModel], folder: Path
) -> tuple[PreTrainedModel, dict[str, Sequence[str]]]:
    """Loads without the library's bars and tables; what they say is checked by the caller."""
    from transformers import logging as log

    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        loaded = kind.from_pretrained(folder, output_loading_info=True)
        return cast("tuple[PreTrainedModel, dict[str, Sequence[str]]]", loaded)
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


class _Graph(nn.Module):
    """From pixels in 0..1 to the embedding and the patches."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.backbone = copy.deepcopy(encoder.backbone)
        if isinstance(self.backbone, BEiT):  # fused attention with a bias cannot be traced
            for module in self.backbone.modules():
                if isinstance(module, Attention):
                    setattr(module, "fused_attn", False)  # noqa: B010 - timm declares it final
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        t = self.backbone.tokens((images - self.mean) / self.std)  # type: ignore[operator]
        return t.pooled, t.patches


def _onnx(encoder: Encoder, folder: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], str]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch writes with it
    except ImportError:
        raise UsageError("Writing ONNX needs its extra: pip install 'nolabel[onnx]'.") from None
    import logging
    import warnings

    path = folder / "model.onnx"
    x = torch.rand(2, encoder.channels, encoder.size, encoder.size)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Graph(encoder).eval(), (x,), path, input_names=["images"],
                output_names=["embedding", "patches"], dynamic_shapes={"images": {0: batch}},
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        quiet.setLevel(level)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (encoder.mean, encoder.std))

    def read_back(x: Tensor) -> dict[str, Tensor]:
        pixels = (x * std + mean).numpy()  # the graph normalises
        names = ("embedding", "patches")
        found = session.run(list(names), {"images": pixels})
        return {n: torch.from_numpy(v) for n, v in zip(names, found, strict=True)}

    return read_back, 'onnxruntime.InferenceSession("{folder}/model.onnx"), pixels in 0..1'


def card(encoder: Encoder, to: str, difference: float, loading: str) -> str:
    """A model card in Markdown."""
    b, meta = encoder.backbone, encoder.meta
    run = meta.get("run") or {}
    settings = run.get("settings", run) if isinstance(run, dict) else {}
    known = {
        "method": meta.get("method") or meta.get("family"), "branch": meta.get("branch"),
        "data": settings.get("data"), "steps": settings.get("steps"),
        "network": b.name, "embedding": b.dim,
        "images": f"{encoder.size} px, shorter side {encoder.resize} px, then the centre",
        "mean of pixels in 0..1": ", ".join(f"{v:g}" for v in encoder.mean),
        "deviation": ", ".join(f"{v:g}" for v in encoder.std),
        "licence": meta.get("licence") or meta.get("license"),
    }  # fmt: skip
    rows = "\n".join(f"| {k} | {v} |" for k, v in known.items() if v)
    inside = "ONNX takes pixels in 0..1 and normalises them itself." if to == "onnx" else (
        "Images have to be normalised as the table says."
    )  # fmt: skip
    return (
        f"# {Path(encoder.name).name}\n\nAn image encoder, pre-trained without labels with nolabel."
        f"\n\n| | |\n|---|---|\n{rows}\n\nLoad it:\n\n```python\n{loading}\n```\n\n{inside}\n\n"
        f"Read back and compared with the encoder it was made from, features differ by "
        f"{difference:.1e} at most.\n"
    )
