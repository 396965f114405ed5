import pytest
import torch
from torch import nn

from dp4tl_ray.training.batch_norm import GroupedBatchNorm2d


def norm(group_size: int, seed: int = 0) -> GroupedBatchNorm2d:
    module = GroupedBatchNorm2d(3, group_size=group_size)
    g = torch.Generator().manual_seed(seed)
    module.weight.data = torch.randn(3, generator=g)
    module.bias.data = torch.randn(3, generator=g)
    return module


def images(n: int = 12) -> torch.Tensor:
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_each_group_is_normalised_as_torch_would_alone() -> None:
    module, x = norm(4), images()
    y = module(x)
    for start in (0, 4, 8):
        oracle = norm(4)
        torch.testing.assert_close(
            y[start : start + 4], nn.BatchNorm2d.forward(oracle, x[start : start + 4])
        )


def test_one_group_is_exactly_torchs_batch_norm() -> None:
    module, oracle, x = norm(12), nn.BatchNorm2d(3), images()
    oracle.load_state_dict(module.state_dict())
    assert torch.equal(module(x), oracle(x))
    assert torch.equal(module.running_var, oracle.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_averaged_buffers_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    whole, x = norm(2), images()
    parts = [norm(2) for _ in range(workers)]
    for _ in range(5):
        whole(x)
        for part, share in zip(parts, x.chunk(workers), strict=True):
            part(share)
        x = x.roll(1, dims=0) * 1.1
    mean = torch.stack([p.running_mean for p in parts]).mean(0)  # type: ignore[misc]
    var = torch.stack([p.running_var for p in parts]).mean(0)  # type: ignore[misc]
    torch.testing.assert_close(mean, whole.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(var, whole.running_var, rtol=1e-6, atol=1e-7)


def test_evaluation_does_not_look_at_the_batch() -> None:
    module = norm(4)
    module(images())
    module.eval()
    x = images(12)
    torch.testing.assert_close(module(x)[:3], module(x[:3]))
