"""The two ends of an optimiser step: the update, and a rejected step that is undone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from nolabel.engine.optimiser import clip_gradients
from nolabel.errors import GuardStop
from nolabel.methods.base import Method
from nolabel.nn.random_state import RngState, rng_state
from nolabel.types import Clock, Optim


def apply_update(method: Method, optimiser: Optimizer, optim: Optim, clock: Clock) -> None:
    """Updates the weights by the gradients that are in the parameters.

    Clips, calls the method's gradient edits, steps, clears the gradients, and calls the method's
    moving averages. It is the project's only optimiser step of a method.

    Args:
        optimiser: of the method's parameters, with the rates of this step (`set_rates`).
        optim: says how gradients are clipped.
    """
    clip_gradients(method, optim)
    method.before_update(clock)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    method.after_update(clock)


class NonFiniteGuard:
    """Accepts a step if its loss and gradients are finite; stops after `limit` others in a row."""

    def __init__(self, limit: int = 3):
        self.limit = limit
        self.consecutive = 0

    def check(self, loss: Tensor | float, gradient_norm: Tensor | float) -> bool:
        """Whether to update; otherwise the step is to be skipped.

        `consecutive` is the guard's whole state: save it, and set it on resume.

        Raises:
            GuardStop: `limit` steps in a row were not finite.
        """
        loss, gradient_norm = torch.as_tensor(loss), torch.as_tensor(gradient_norm)
        if bool(torch.isfinite(loss) & torch.isfinite(gradient_norm)):  # one device sync
            self.consecutive = 0
            return True
        self.consecutive += 1
        if self.consecutive >= self.limit:
            what = "loss" if not bool(torch.isfinite(loss)) else "gradient norm"
            raise GuardStop(
                f"The {what} was not finite, {self.limit} steps in a row without a good one (the "
                f"last: loss {float(loss):g}, gradient norm {float(gradient_norm):g}); the weights "
                "are those of the last good step and the last checkpoint is whole. Likely causes: "
                "a learning rate that is too high, or too little precision. Try --optim.lr a third "
                "as large, --precision fp32, or --optim.clip 1."
            )
        return False


class StepSnapshot:
    """What a step changes even if its update is left out: the running statistics of batch norms,
    and the random state. Everything else changes in `apply_update` alone.

    Attributes:
        rng: the random state before the step.
    """

    def __init__(self, method: nn.Module):
        norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
        buffers = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
        self._live = [b for some in buffers for b in some if b is not None]
        self._copies = [b.clone() for b in self._live]
        self.rng: RngState = rng_state()

    def take(self) -> None:
        """Copies the state; called before each step."""
        self.rng = rng_state()
        if self._live:
            torch._foreach_copy_(self._copies, self._live)

    def restore_statistics(self) -> None:
        """Puts the batch norms' statistics back: one NaN would stay in them for ever."""
        if self._live:
            torch._foreach_copy_(self._live, self._copies)
