"""What to do when memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from nolabel import distributed
from nolabel.config import Run
from nolabel.errors import OutOfMemory


def ran_out(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def explain_out_of_memory(run: Run) -> Iterator[None]:
    """Turns torch's out-of-memory error inside into advice for the user.

    Raises:
        OutOfMemory: memory ran out; the text says what helps.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        s, processes = run.settings, distributed.world_size()
        parts = s.accumulate
        at_once = s.batch_size // processes // parts
        ways = (
            [f"--accumulate {2 * parts} (the same batch in smaller pieces)"] if at_once > 1 else []
        )
        if not s.checkpoint_activations:
            ways.append("--checkpoint-activations (slower)")
        if processes > 1 and not s.shard:
            ways.append("--shard")
        if s.precision == "fp32":
            ways.append("--precision bf16")
        raise OutOfMemory(
            f"Memory ran out with {at_once} images at a time of a batch of {s.batch_size}. Use "
            f"{', '.join([*ways, 'a smaller --batch-size'])}. `nolabel plan` says what needs how "
            f"much. (torch: {str(error).splitlines()[0][:200]})"
        ) from error
