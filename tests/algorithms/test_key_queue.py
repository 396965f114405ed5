from collections import deque

import numpy as np
import pytest
import torch

from dp4tl_ray.algorithms.key_queue import enqueue, random_queue


@pytest.mark.parametrize("size", [1, 7, 12])
def test_the_queue_is_a_deque(size: int) -> None:
    rng, g = np.random.default_rng(size), torch.Generator().manual_seed(size)
    queue, pointer = random_queue(size, 3, g), torch.zeros((), dtype=torch.int64)
    oracle = deque(queue.tolist(), maxlen=size)
    for _ in range(60):
        keys = torch.randn(int(rng.integers(0, size + 1)), 3, generator=g)
        enqueue(queue, pointer, keys)
        oracle.extend(keys.tolist())
        assert queue.roll(-int(pointer), 0).tolist() == list(oracle)
    assert pointer.shape == () and pointer.dtype == torch.int64


def test_keys_carry_no_gradient_into_the_queue_and_are_brought_to_its_type() -> None:
    queue, pointer = torch.zeros(4, 2), torch.tensor(3)
    keys = torch.tensor([[1.5, 2.0], [3.0, 4.0]], dtype=torch.bfloat16, requires_grad=True)
    enqueue(queue, pointer, keys)
    assert queue.tolist() == [[3, 4], [0, 0], [0, 0], [1.5, 2]] and not queue.requires_grad
    assert int(pointer) == 1


def test_more_keys_than_the_queue_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="5 keys do not fit into a queue of 4"):
        enqueue(torch.zeros(4, 2), torch.tensor(0), torch.ones(5, 2))


def test_a_random_queue_is_of_unit_vectors_in_all_directions() -> None:
    queue = random_queue(4000, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(4000))
    # variance 1/3 per dimension, and no dimension leans on another
    torch.testing.assert_close(queue.T @ queue / 4000, torch.eye(3) / 3, atol=0.03, rtol=0)
    assert torch.equal(queue, random_queue(4000, 3, torch.Generator().manual_seed(0)))
