import numpy as np
import pytest

from dp4tl_ray.training.batch_norm import MOMENTUM, movements
from dp4tl_ray.training.shares import microbatches, shares


@pytest.mark.parametrize("group_size", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [8, 20, 24, 37])
def test_shares_are_whole_groups_dealt_out_evenly(batch_size: int, group_size: int) -> None:
    groups = [
        range(start, min(start + group_size, batch_size))
        for start in range(0, batch_size, group_size)
    ]
    for parts in range(1, len(groups) + 1):
        expected = [
            [i for k in run for i in groups[k]]
            for run in np.array_split(np.arange(len(groups)), parts)
        ]
        found = [list(range(batch_size))[part] for part in shares(batch_size, group_size, parts)]
        assert found == expected


def test_fewer_groups_than_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch of 8 has 2 group\(s\) of 4, fewer than the 3"):
        shares(8, 4, 3)


@pytest.mark.parametrize(
    ("size", "lengths"), [(None, [20]), (3, [4] * 5), (8, [8, 8, 4]), (9, [12, 8]), (99, [20])]
)
def test_passes_are_whole_groups(size: int | None, lengths: list[int]) -> None:
    found = microbatches(slice(12, 32), 4, size)
    assert [rows.stop - rows.start for rows in found] == lengths
    assert [i for rows in found for i in range(rows.start, rows.stop)] == list(range(12, 32))


@pytest.mark.parametrize("sizes", [[8], [4, 4], [8, 8, 4], [4] * 7])
def test_movements_add_up_to_one_towards_the_mean_of_the_batch(sizes: list[int]) -> None:
    statistics = np.random.default_rng(0).normal(size=len(sizes))
    running = 3.0
    for movement, statistic in zip(movements(sizes), statistics, strict=True):
        running += movement * (statistic - running)
    mean = np.average(statistics, weights=sizes)
    assert running == pytest.approx((1 - MOMENTUM) * 3.0 + MOMENTUM * mean, rel=1e-12)
    assert movements([8]) == [MOMENTUM]  # exactly: one pass moves as torch's batch norm does
