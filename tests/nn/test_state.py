"""What is collected in a step and applied after its update."""

from __future__ import annotations

import torch

from nolabel.nn.queue import Queue
from nolabel.nn.state import Centre, StepBuffer


def test_a_buffer_joins_the_micro_batches_of_one_step():
    buffer = StepBuffer()
    buffer.add(3, torch.ones(2, 4, requires_grad=True), torch.tensor([1, 2]))
    buffer.add(3, torch.zeros(1, 4), torch.tensor([5]))
    x, ids = buffer.take()
    assert x.tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] and not x.requires_grad
    assert ids.tolist() == [1, 2, 5]
    assert buffer.take() == ()


def test_a_rejected_step_leaves_no_trace():
    buffer = StepBuffer()
    buffer.add(0, torch.tensor([1.0]))  # whose update never came
    buffer.add(1, torch.tensor([2.0]))
    assert torch.cat(buffer.take()).tolist() == [2.0]


def test_a_centre_of_micro_batches_is_that_of_the_large_batch():
    x = torch.randn(12, 5)
    whole, parts, rejected = (Centre(5, 0.9) for _ in range(3))
    whole.observe(x, 1)
    rejected.observe(torch.full((3, 5), torch.nan), 0)
    for some in x.split(5):
        parts.observe(some, 1)
        rejected.observe(some, 1)
    for centre in (whole, parts, rejected):
        centre.update()
        torch.testing.assert_close(centre.value, 0.1 * x.mean(0, keepdim=True))


def test_a_centre_that_saw_nothing_stays():
    centre = Centre(3)
    centre.value.fill_(2.0)
    centre.update()
    centre.observe(torch.zeros(0, 3), 0)
    centre.update()
    assert centre.value.tolist() == [[2.0] * 3]


def test_a_queue_replaces_its_oldest_rows():
    queue = Queue(4, 1)
    for step, values in enumerate(([1.0, 2.0, 3.0], [4.0, 5.0])):
        for v in values:
            queue.observe(torch.tensor([[v]]), step)
        queue.update()
    assert queue.full and queue.value.flatten().tolist() == [5.0, 2.0, 3.0, 4.0]
    assert torch.equal(queue.local_rows(), queue.value)
