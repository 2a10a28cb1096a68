"""A method and a network of a user's own, as the text of files."""

MEAN_COLOUR = '''
from dataclasses import dataclass

from torch import nn

from nolabel.methods.base import Method
from nolabel.types import Step
from nolabel.views.plan import View, ViewPlan


class Mine(Method):
    """Predicts the mean colour of the image."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        weight: float = 1.0  # of the loss

    def __init__(self, backbone, options):
        super().__init__(backbone, options)
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 3)

    @classmethod
    def views(cls, options, image_size):
        return ViewPlan(views=(View(name="image", size=image_size),))

    def step(self, batch, clock):
        x = batch.views["image"][0]
        h = self.backbone(x)
        loss = (self.head(h) - x.mean((2, 3))).square().mean()
        return Step(self.options.weight * loss, features=h.detach())

    @property
    def encoder(self):
        return self.backbone
'''

CONV_NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        return self.conv(x)
"""


def changed(text: str, old: str, new: str) -> str:
    """The text with the first `old` replaced by `new`."""
    assert old in text, old
    return text.replace(old, new, 1)
