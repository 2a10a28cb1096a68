"""The update of an optimiser step, and the guard that skips non-finite steps."""

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
    """Updates the weights with the gradients in `.grad`.

    Clips the gradients, calls `before_update`, steps, sets the gradients to None, and calls
    `after_update`. This is the only optimiser step of methods in the project.

    Args:
        optimiser: of the method's parameters, with this step's learning rates (`set_rates`).
        optim: for gradient clipping.
    """
    clip_gradients(method, optim)
    method.before_update(clock)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    method.after_update(clock)


class NonFiniteGuard:
    """Accepts steps with finite loss and gradients; stops after `limit` non-finite ones in a row.

    Attributes:
        consecutive: non-finite steps in a row so far; the guard's only state, in checkpoints.
    """

    def __init__(self, limit: int = 3):
        self.limit = limit
        self.consecutive = 0

    def check(self, loss: Tensor | float, gradient_norm: Tensor | float) -> bool:
        """Whether to update; if not, the step must be skipped.

        Args:
            loss: scalar.
            gradient_norm: scalar, over all gradients.

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
                f"The {what} was not finite; {self.limit} steps in a row were skipped (the "
                f"last: loss {float(loss):g}, gradient norm {float(gradient_norm):g}); the weights "
                "are those of the last good step and the last checkpoint is intact. Likely causes: "
                "a learning rate that is too high, or too little precision. Try --optim.lr a third "
                "as large, --precision fp32, or --optim.clip 1."
            )
        return False


class StepSnapshot:
    """The state that a step changes before its update: running statistics of batch norms, and the
    random state. Everything else changes in `apply_update`.

    Attributes:
        rng: the random state before the step.
    """

    def __init__(self, method: nn.Module):
        norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
        buffers = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
        self._live = [b for triple in buffers for b in triple if b is not None]
        self._copies = [b.clone() for b in self._live]
        self.rng: RngState = rng_state()

    def take(self) -> None:
        """Copies the state; called before each step."""
        self.rng = rng_state()
        if self._live:
            torch._foreach_copy_(self._copies, self._live)

    def restore_statistics(self) -> None:
        """Restores the batch norms' running statistics: a NaN would stay in them."""
        if self._live:
            torch._foreach_copy_(self._live, self._copies)
