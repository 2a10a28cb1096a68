"""Speed of a training step, compared with a plain implementation and with lightly.

    python benchmarks/step.py [--what dino mae] [--batch B] [--rounds N] [--threads N]
    python benchmarks/step.py --render

dino  ViT-S/16, two crops of 224 px and eight of 96, 65,536 prototypes, teacher and update included
mae   ViT-B/16 at 224 px, the paper's decoder, update included

"plain" is a straightforward implementation: fp32, explicit attention, one loop over the crop sizes
and one over the pairs of views, torch's default AdamW, and a loop over the parameters for the EMA
teacher. "lightly" is the same step from lightly's modules and loss (if it is installed), as in its
documentation. All alternate in one run on the same random inputs; the median of several rounds is
reported. Each runs in fp32 and, if it supports it, in bf16 autocast; the faster one is reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page import write_between_marks

RESULTS = Path(__file__).parent / "results" / "step.json"
LOCAL, PROTOTYPES = 8, 65536
Work = Callable[[], None]


def ours(name: str, backbone: str, batch: int, precision: str) -> Work:
    import torch

    from nolabel import methods, recipes
    from nolabel.device import autocast
    from nolabel.engine.optimiser import build_optimiser, gradient_norm
    from nolabel.engine.step import apply_update
    from nolabel.engine.synthetic import build_on, noise_batch
    from nolabel.methods.base import RecipeContext
    from nolabel.types import Clock

    kind = methods.load(name)
    recipe = recipes.paper(kind, RecipeContext(image_size=224, images=1_281_167, patch_size=16))
    method = build_on(kind, recipe.options, backbone, 224)
    optimiser = build_optimiser(method, recipe.optim)
    images = noise_batch(kind.views(recipe.options, 224), batch)
    parameters = [p for p in method.parameters() if p.requires_grad]
    clock = Clock(50_000, 125_000, 1250)

    def step() -> None:
        with autocast(precision, torch.device("cpu")):
            loss = method.step(images, clock).loss
        loss.backward()
        gradient_norm(parameters)
        apply_update(method, optimiser, recipe.optim, clock)

    return step


def plain_vit(name: str, **kwargs: Any) -> Any:
    """timm's network with explicit attention instead of the fused kernel."""
    import timm

    net = timm.create_model(name, num_classes=0, **kwargs)
    for block in net.blocks:
        block.attn.fused_attn = False
    return net


def plain_dino(batch: int) -> Work:
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Head(nn.Module):
        def __init__(self, dim: int):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048),
                                     nn.GELU(), nn.Linear(2048, 256))  # fmt: skip
            self.last = nn.utils.parametrizations.weight_norm(
                nn.Linear(256, PROTOTYPES, bias=False)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(F.normalize(self.mlp(x), dim=-1))

    def network() -> nn.Module:
        net = plain_vit("vit_small_patch16_224", dynamic_img_size=True)
        return nn.Sequential(net, Head(net.embed_dim))

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4)
    big = [torch.randn(batch, 3, 224, 224) for _ in range(2)]
    small = [torch.randn(batch, 3, 96, 96) for _ in range(LOCAL)]
    centre = torch.zeros(1, PROTOTYPES)

    def step() -> None:
        with torch.no_grad():
            seen = teacher(torch.cat(big)).chunk(2)
        out = [*student(torch.cat(big)).chunk(2), *student(torch.cat(small)).chunk(LOCAL)]
        loss, terms = torch.zeros(()), 0
        for t, q in enumerate(seen):
            target = F.softmax((q - centre) / 0.04, dim=-1)
            for v, s in enumerate(out):
                if v != t:
                    loss = loss - (target * F.log_softmax(s / 0.1, dim=-1)).sum(-1).mean()
                    terms += 1
        (loss / terms).backward()
        for p in student.parameters():
            if p.grad is not None:
                norm = p.grad.norm()
                if norm > 3:
                    p.grad.mul_(3 / norm)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
                a.mul_(0.996).add_(b, alpha=0.004)
            centre.mul_(0.9).add_(torch.cat(seen).mean(0, keepdim=True), alpha=0.1)

    return step


def plain_mae(batch: int) -> Work:
    import timm
    import torch
    from torch import nn

    net = plain_vit("vit_base_patch16_224")
    block = timm.models.vision_transformer.Block
    decoder = nn.Sequential(*(block(512, 16, qkv_bias=True) for _ in range(8)))
    for b in decoder:
        b.attn.fused_attn = False
    embed, predict = nn.Linear(768, 512), nn.Linear(512, 768)
    token, places = nn.Parameter(torch.zeros(1, 1, 512)), torch.randn(1, 197, 512)
    parts = nn.ModuleList([net, decoder, embed, predict])
    optimiser = torch.optim.AdamW([*parts.parameters(), token], lr=1e-4, betas=(0.9, 0.95))
    x = torch.randn(batch, 3, 224, 224)

    def step() -> None:
        tokens = net.patch_embed(x) + net.pos_embed[:, 1:]
        order = torch.rand(batch, 196).argsort(1)
        keep, back = order[:, :49], order.argsort(1)
        seen = tokens.gather(1, keep[..., None].expand(-1, -1, 768))
        first = (net.cls_token + net.pos_embed[:, :1]).expand(batch, -1, -1)
        z = embed(net.norm(net.blocks(torch.cat([first, seen], 1))))
        full = torch.cat([z[:, 1:], token.expand(batch, 147, -1)], 1)
        full = full.gather(1, back[..., None].expand(-1, -1, 512))
        y = predict(decoder(torch.cat([z[:, :1], full], 1) + places))[:, 1:]
        goal = x.reshape(batch, 3, 14, 16, 14, 16).permute(0, 2, 4, 3, 5, 1).reshape(batch, 196, -1)
        goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = torch.ones(batch, 196)
        mask[:, :49] = 0
        mask = mask.gather(1, back)
        ((((y - goal) ** 2).mean(-1) * mask).sum() / mask.sum()).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def lightly_dino(batch: int, precision: str) -> Work:
    import timm
    import torch
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from torch import nn

    def network() -> nn.Module:
        net = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True)
        return nn.Sequential(net, DINOProjectionHead(384, 2048, 256, PROTOTYPES))

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(output_dim=PROTOTYPES, warmup_teacher_temp_epochs=0)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4)
    crops = [torch.randn(batch, 3, s, s) for s in [224] * 2 + [96] * LOCAL]

    def step() -> None:
        update_momentum(student, teacher, m=0.996)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            seen = [teacher(x) for x in crops[:2]]
            loss = criterion(seen, [student(x) for x in crops], epoch=50)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def works(what: str, batch: int) -> dict[str, Work]:
    backbone = {"dino": "vit_small_patch16_224", "mae": "vit_base_patch16_224"}[what]
    found = {f"nolabel {p}": ours(what, backbone, batch, p) for p in ("fp32", "bf16")}
    found["plain fp32"] = {"dino": plain_dino, "mae": plain_mae}[what](batch)
    if what == "dino" and importlib.util.find_spec("lightly"):
        found |= {f"lightly {p}": lightly_dino(batch, p) for p in ("fp32", "bf16")}
    return found


def measure(what: str, batch: int, rounds: int) -> dict[str, Any]:
    """Images per second of each candidate, alternating; the first round is a warm-up."""
    times: dict[str, list[float]] = {}
    some = works(what, batch)
    for i in range(rounds + 1):
        for name, work in some.items():
            began = time.perf_counter()
            work()
            if i:
                times.setdefault(name, []).append(time.perf_counter() - began)
    rates = {n: batch / sorted(t)[len(t) // 2] for n, t in times.items()}
    best = {k: max(v for n, v in rates.items() if n.startswith(k)) for k in ("nolabel", "plain")}
    row = {"batch": batch, "rounds": rounds, "images_per_second": rates,
           "times_plain": best["nolabel"] / best["plain"]}  # fmt: skip
    print(what, {n: round(r, 2) for n, r in rates.items()}, f"{row['times_plain']:.2f} times",
          flush=True)  # fmt: skip
    return row


def render(found: dict[str, Any]) -> None:
    lines = ["| step | " + " | ".join(NAMES) + " | speed-up over plain |",
             "|---" * (len(NAMES) + 2) + "|"]  # fmt: skip
    for what, row in found["rows"].items():
        rates = row["images_per_second"]
        cells = [f"{rates[n]:.2f}" if n in rates else "-" for n in NAMES]
        lines.append(f"| {what}, batch {row['batch']} | " + " | ".join(cells)
                     + f" | {row['times_plain']:.2f} |")  # fmt: skip
    machine = f"Images per second, {found['threads']} threads of a CPU ({found['cpu']})."
    write_between_marks("step", "\n".join([machine, "", *lines, ""]), page="distributed.md")


NAMES = ("nolabel bf16", "nolabel fp32", "plain fp32", "lightly fp32", "lightly bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="*", default=["dino", "mae"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="only write the table of the docs")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else {"rows": {}}
    if not args.render:
        import torch

        from nolabel.engine.environment import environment

        torch.set_num_threads(args.threads)
        for what in args.what:
            found["rows"][what] = measure(what, args.batch, args.rounds)
        about = environment()
        found |= {"threads": args.threads, "environment": about, "cpu": about["cpu"]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    render(found)


if __name__ == "__main__":
    main()
