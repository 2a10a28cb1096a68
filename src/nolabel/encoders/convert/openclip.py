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
    """The image side as an encoder; its `meta["text"]` is the text side.

    Args:
        spec: NAME/TAG, as open_clip lists them, or NAME/FILE with the weights.
        image_size: side in pixels at which it will be used; None is its own.

    Raises:
        UsageError: the extra `clip` is missing; unknown names; or a network of another kind than
            CLIP's ViTs.
        NolabelError: the weights could not be fetched.
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
    except Exception as error:  # its hub and the network raise many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NolabelError(
            f"The weights of openclip:{spec} could not be fetched ({reason}). Check the network "
            "connection and try again; weights fetched once are kept and work offline."
        ) from error
    visual = model.visual
    if not (hasattr(visual, "transformer") and hasattr(visual, "ln_post")):
        raise UsageError(
            f"{name!r} is a {type(visual).__name__}; CLIP's own ViTs alone are supported. Use one "
            "such as ViT-B-32, or timm:NAME for the image side."
        )
    state = dict(model.state_dict())
    if hasattr(model, "text"):  # a tower of its own, whose names begin with it
        state = {k.removeprefix("text."): v for k, v in state.items()}
    quick = any(type(m).__name__ == "QuickGELU" for m in visual.modules())
    found = import_state(
        state, "clip", name=f"openclip:{spec}", quick_gelu=quick, image_size=image_size,
        heads=visual.transformer.resblocks[0].attn.num_heads,
        text_heads=_text_heads(model),
        mean=getattr(visual, "image_mean", None), std=getattr(visual, "image_std", None),
    )  # fmt: skip
    if found.text and found.text[0]["vocabulary"] == PUBLISHED:
        kwargs, weights = found.text
        with preserve_rng():
            shared = SharedSpace(**kwargs)
        shared.load_state_dict(weights)
        words = Tokenizer.published(kwargs["context"])
        text = TextEncoder(shared, words, name=found.encoder.name, meta={})
        found.encoder.meta["text"] = text
    return found.encoder


def _text_heads(model: Any) -> int | None:
    transformer = getattr(model, "transformer", None) or getattr(model.text, "transformer", None)
    blocks = getattr(transformer, "resblocks", None)
    return blocks[0].attn.num_heads if blocks else None
