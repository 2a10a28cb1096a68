"""For how long new heads learn alone before the network that `--init` brought (`--warm-heads`).

New heads have random weights, and their gradients would spoil a network that is good already. So
for the first steps the network stands still and the heads alone learn.
"""

from __future__ import annotations

import dataclasses

from nolabel.config import Run
from nolabel.engine.log import say
from nolabel.methods.base import Method

WARM = 0.05  # share of the run in which heads alone learn, unless told


def warm_heads(run: Run, method: Method, quiet: bool) -> Run:
    """Settles for how long new heads learn alone before a network that `--init` brought."""
    s = run.settings
    if not s.init or s.warm_heads is not None:
        return run
    steps = 0 if method.continued else max(round(WARM * int(s.steps or 0)), 1)
    if steps and not quiet:
        say(f"init: the new heads alone learn in the first {steps} steps")
    return dataclasses.replace(run, settings=dataclasses.replace(s, warm_heads=steps))
