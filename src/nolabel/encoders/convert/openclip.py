"""`openclip:NAME/TAG`: image-text models of open_clip, with their text tower."""

from __future__ import annotations

import os
from typing import Any

from nolabel.backbones.text import SharedSpace
from nolabel.data.text.tokenizer import PUBLISHED, Tokenizer
from nolabel.encoders.convert.official import import_state
from nolabel.encoders.encoder import Encoder
from nolabel.encoders.text import TextEncoder
from nolabel.errors import NolabelError, UsageError, unknown
from nolabel.nn.random_state import preserve_rng


def load_openclip(spec: str, image_size: int | None) -> Encoder:
    """Loads the image tower as an encoder; its `meta["text"]` is the text tower.

    Args:
        spec: NAME/TAG, as open_clip lists them, or NAME/FILE with a file of weights.
        image_size: side in pixels at which it will be used; None is its own.

    Raises:
        UsageError: the extra `clip` is missing; unknown names; or an image tower other than
            CLIP's ViT.
        NolabelError: the weights could not be downloaded.
    """
    try:
        import open_clip
    except ImportError:
        raise UsageError(
            "openclip:NAME/TAG needs open_clip_torch: pip install 'nolabel[clip]'."
        ) from None
    name, _, tag = spec.partition("/")
    if name not in open_clip.list_models():
        raise unknown("model of open_clip", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and not os.path.isfile(tag):
        listed = ", ".join(tags) or "none: give a file, openclip:NAME/FILE"
        raise UsageError(f"open_clip has no weights {tag!r} of {name!r}. It has: {listed}.")
    try:
        with preserve_rng():
            model: Any = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # the hub and the network raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NolabelError(
            f"The weights of openclip:{spec} could not be downloaded ({reason}). Check the "
            "network connection and try again; downloaded weights are cached and work offline."
        ) from error
    visual = model.visual
    if not (hasattr(visual, "transformer") and hasattr(visual, "ln_post")):
        raise UsageError(
            f"{name!r} is a {type(visual).__name__}; only CLIP's own ViTs are supported. Use one "
            "such as ViT-B-32, or timm:NAME for the image side."
        )
    state = dict(model.state_dict())
    if hasattr(model, "text"):  # CustomTextCLIP: the text tower is a submodule
        state = {k.removeprefix("text."): v for k, v in state.items()}
    quick_gelu = any(type(m).__name__ == "QuickGELU" for m in visual.modules())
    imported = import_state(
        state, "clip", name=f"openclip:{spec}", quick_gelu=quick_gelu, image_size=image_size,
        heads=visual.transformer.resblocks[0].attn.num_heads,
        text_heads=_text_heads(model),
        mean=getattr(visual, "image_mean", None), std=getattr(visual, "image_std", None),
    )  # fmt: skip
    if imported.text and imported.text[0]["vocabulary"] == PUBLISHED:
        kwargs, weights = imported.text
        with preserve_rng():
            shared = SharedSpace(**kwargs)
        shared.load_state_dict(weights)
        tokenizer = Tokenizer.published(kwargs["context"])
        text = TextEncoder(shared, tokenizer, name=imported.encoder.name, meta={})
        imported.encoder.meta["text"] = text
    return imported.encoder


def _text_heads(model: Any) -> int | None:
    transformer = getattr(model, "transformer", None) or getattr(model.text, "transformer", None)
    blocks = getattr(transformer, "resblocks", None)
    return blocks[0].attn.num_heads if blocks else None
