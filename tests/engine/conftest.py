"""A trainer of a toy method, built without a whole run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nolabel.config import Run, Settings, complete
from nolabel.data.creatures.world import Creatures
from nolabel.engine.trainer import Trainer
from nolabel.methods.base import Method
from nolabel.methods.simclr import SimCLR
from nolabel.types import Batch, Clock, Optim, Step
from nolabel.views import View, ViewPlan

PLAN = ViewPlan(views=(View(name="view", size=32),))
SOURCE = Creatures("train", size=32, count=32)
STEPS = 6


class Toy(Method):
    """Batch norm, dropout and a linear layer on a network's features; `factor` scales the loss."""

    factor = 1.0

    def __init__(self, backbone):
        super().__init__(backbone, None)
        self.backbone, self.norm = backbone, nn.BatchNorm1d(backbone.dim)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(backbone.dim, 4)

    def step(self, batch: Batch, clock: Clock) -> Step:
        z = self.norm(self.backbone(batch.views["view"][0]))
        loss = (self.head(self.drop(z)) - 1).square().mean()
        return Step(loss * self.factor, {"own": 2.0}, z.detach())

    @property
    def encoder(self):
        return self.backbone


@pytest.fixture
def toy_trainer(tmp_path):
    """Makes a trainer of `STEPS` steps of 8 images; `notes` has its lines for the user."""
    from nolabel.backbones import build

    def make(start=0, state=None, **asked):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        given = {"steps": STEPS, "batch_size": 8, "workers": 0, "precision": "fp32",
                 "device": "cpu", "image_size": 32, "accumulate": 1, **asked}  # fmt: skip
        settings = complete(Settings(out=str(folder), **given), continued=False)
        run = Run(
            method="simclr", settings=settings, options=SimCLR.Options(),
            optim=Optim(lr=1e-3, warmup_epochs=0.0), images=len(SOURCE), steps_per_epoch=4,
        )  # fmt: skip
        torch.manual_seed(0)
        method = Toy(build("vit_pico", image_size=32))
        notes: list[str] = []
        trainer = Trainer(
            run, method, PLAN, SOURCE, torch.device("cpu"), start=start, state=state,
            note=notes.append,
        )  # fmt: skip
        return trainer, notes

    return make
