"""Out-of-memory errors, explained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from nolabel import distributed
from nolabel.config import Run
from nolabel.errors import OutOfMemory


def ran_out(error: BaseException) -> bool:
    """Whether an error of torch is an out-of-memory error, of a GPU or of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def explain_out_of_memory(run: Run) -> Iterator[None]:
    """Turns an out-of-memory error inside into an error that says what to change.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        s, processes = run.settings, distributed.world_size()
        images = s.batch_size // processes // s.accumulate  # of a micro-batch
        more = f"--accumulate {2 * s.accumulate} (the same batch in smaller micro-batches)"
        options = [more] if images > 1 else []
        if not s.checkpoint_activations:
            options.append("--checkpoint-activations (slower)")
        if processes > 1 and not s.shard:
            options.append("--shard")
        if s.precision == "fp32":
            options.append("--precision bf16")
        raise OutOfMemory(
            f"Memory ran out with micro-batches of {images} images of a batch of {s.batch_size}. "
            f"Use {', '.join([*options, 'a smaller --batch-size'])}. `nolabel plan` shows "
            f"what takes how much. (torch: {str(error).splitlines()[0][:200]})"
        ) from error
