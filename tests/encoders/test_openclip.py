"""openclip:NAME/TAG: a model of open_clip as an encoder with its text tower."""

from __future__ import annotations

import json

import pytest
import torch

import nolabel as nl
from nolabel.data.creatures.world import Creatures
from nolabel.encoders.text import text_of
from nolabel.errors import DataError, UsageError

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model in open_clip's list, and its weights in a file."""
    folder = tmp_path_factory.mktemp("openclip")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32,
                       "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2,
                     "layers": 2},
    }  # fmt: skip
    (folder / "ViT-tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "ViT-tiny-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-tiny-test").eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    return model, folder / "weights.pt"


def test_both_towers_equal_open_clips(tiny):
    model, file = tiny
    encoder = nl.load(f"openclip:ViT-tiny-test/{file}")
    assert encoder.image_size == 32 and encoder.backbone.net.blocks[0].attn.num_heads == 2
    assert encoder.mean == tuple(model.visual.image_mean)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    words = ["a photo of a cat", "two red birds"]
    text = text_of(encoder)
    with torch.no_grad():
        images = model.encode_image(x, normalize=True)
        texts = model.encode_text(open_clip.tokenize(words, context_length=20), normalize=True)
    torch.testing.assert_close(text.project(encoder.forward(x)), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(text.embed(words), texts, atol=1e-5, rtol=0)


def test_zero_shot_takes_it(tiny):
    report = nl.evaluate(
        "zeroshot", f"openclip:ViT-tiny-test/{tiny[1]}", test=Creatures("test", count=50)
    )
    assert any(r["metric"] == "top1" for r in report.rows)


def test_published_templates_and_names_of_a_file(tiny, tmp_path):
    given = {"test": Creatures("test", count=30)}
    spec = f"openclip:ViT-tiny-test/{tiny[1]}"
    report = nl.evaluate("zeroshot", spec, templates="imagenet80", **given)
    assert "10 classes, 80 templates" in report.rows[0]["setting"]
    assert "and 72 more" in report.notes[0]
    file = tmp_path / "names.txt"
    file.write_text("\n".join(Creatures.classes))
    same = nl.evaluate("zeroshot", spec, names=str(file), **given)
    assert same.rows == nl.evaluate("zeroshot", spec, **given).rows
    file.write_text("a\nb\n")
    with pytest.raises(DataError, match="2 names, the test set 10 classes"):
        nl.evaluate("zeroshot", spec, names=str(file), **given)
    with pytest.raises(DataError, match="1000 names"):
        nl.evaluate("zeroshot", spec, names="imagenet", **given)


def test_unknown_names_and_tags_are_said_clearly():
    with pytest.raises(UsageError, match="Did you mean"):
        nl.load("openclip:ViT-B-3/openai")
    with pytest.raises(UsageError, match="It has: openai"):
        nl.load("openclip:ViT-B-32/none")
    with pytest.raises(UsageError, match="no text tower"):
        text_of(nl.load("random:vit_pico"))
