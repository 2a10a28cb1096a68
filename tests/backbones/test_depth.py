"""Which layer a parameter belongs to, in each kind of network."""

import torch

from nolabel.backbones import build
from nolabel.backbones.depth import layer_numbers, skips_weight_decay


def numbers(name, **kwargs):
    net = build(name, image_size=32, kwargs=kwargs)
    names = [n for n, _ in net.named_parameters()]
    return layer_numbers(f"student.backbone.{n}" for n in names)


def test_a_vit_begins_with_its_tokens_and_ends_with_its_norm():
    layers, last = numbers("vit_pico", patch_size=8)
    depth = last - 1
    at = {name.removeprefix("student.backbone.net."): layer for name, layer in layers.items()}
    assert {at["cls_token"], at["pos_embed"], at["patch_embed.proj.weight"]} == {0}
    assert [at[f"blocks.{i}.attn.qkv.weight"] for i in range(depth)] == [*range(1, depth + 1)]
    assert at["norm.weight"] == last


def test_a_resnet_counts_the_blocks_of_its_stages():
    layers, last = numbers("resnet_nano")
    at = {name.removeprefix("student.backbone.net."): layer for name, layer in layers.items()}
    assert at["conv1.weight"] == at["bn1.weight"] == 0
    blocks = sorted({tuple(map(int, (n[5], n[7]))) for n in at if n.startswith("layer")})
    assert last == len(blocks) + 1
    for i, (stage, block) in enumerate(blocks):
        assert at[f"layer{stage}.{block}.conv1.weight"] == i + 1


def test_heads_come_last_and_a_mask_token_first():
    layers, last = layer_numbers(["mask_token", "net.blocks.0.x", "head.mlp.0.weight"])
    assert layers == {"mask_token": 0, "net.blocks.0.x": 1, "head.mlp.0.weight": 2} and last == 2


def test_merging_of_patches_belongs_to_the_block_in_front_of_it():
    names = ["net.layers.0.blocks.0.a", "net.layers.0.blocks.1.a", "net.layers.1.downsample.norm.a",
             "net.layers.1.blocks.0.a"]  # fmt: skip
    layers, last = layer_numbers(names)
    assert list(layers.values()) == [1, 2, 2, 3] and last == 4


def test_vectors_biases_and_tables_of_relative_positions_are_plain():
    matrix = torch.zeros(3, 3)
    assert skips_weight_decay("a.weight", torch.zeros(3)) and skips_weight_decay("a.bias", matrix)
    assert skips_weight_decay("attn.relative_position_bias_table", matrix)
    assert not skips_weight_decay("a.weight", matrix) and not skips_weight_decay(
        "cls_token", torch.zeros(1, 1, 3)
    )
