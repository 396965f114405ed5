import pytest
import torch
from torch import nn

from dp4tl_ray.training.batch_norm import (
    GroupedBatchNorm,
    GroupedBatchNorm1d,
    GroupedBatchNorm2d,
)

Kind = tuple[type[GroupedBatchNorm], type[nn.BatchNorm1d] | type[nn.BatchNorm2d]]
VECTORS: Kind = (GroupedBatchNorm1d, nn.BatchNorm1d)
IMAGES: Kind = (GroupedBatchNorm2d, nn.BatchNorm2d)
both = pytest.mark.parametrize("kind", [VECTORS, IMAGES], ids=["1d", "2d"])


def norm(kind: Kind, group_size: int) -> GroupedBatchNorm:
    module = kind[0](3, group_size=group_size)
    g = torch.Generator().manual_seed(0)
    module.weight.data = torch.randn(3, generator=g)
    module.bias.data = torch.randn(3, generator=g)
    return module


def torchs(kind: Kind, of: GroupedBatchNorm) -> nn.Module:
    """torch's batch norm with the same weights and statistics."""
    oracle = kind[1](3)
    oracle.load_state_dict(of.state_dict())
    return oracle


def batch(kind: Kind, n: int = 12) -> torch.Tensor:
    shape = (n, 3) if kind is VECTORS else (n, 3, 4, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@both
def test_each_group_is_normalised_as_torch_would_alone(kind: Kind) -> None:
    module, x = norm(kind, 4), batch(kind)
    oracles = [torchs(kind, module) for _ in range(3)]
    y = torch.cat([oracle(part) for oracle, part in zip(oracles, x.chunk(3), strict=True)])
    torch.testing.assert_close(module(x), y)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([oracle.get_buffer(name) for oracle in oracles]).mean(dim=0)
        torch.testing.assert_close(module.get_buffer(name), mean)


@both
def test_gradients_are_those_of_torchs_over_the_groups(kind: Kind) -> None:
    module, x = norm(kind, 4), batch(kind).requires_grad_()
    oracle, ours = torchs(kind, module), x.detach().clone().requires_grad_()
    y, z = module(ours), torch.cat([oracle(part) for part in x.chunk(3)])
    here = torch.autograd.grad((y**3).sum(), [ours, module.weight])
    there = torch.autograd.grad((z**3).sum(), [x, oracle.get_parameter("weight")])
    torch.testing.assert_close(here, there)


@both
def test_one_group_is_exactly_torchs_batch_norm(kind: Kind) -> None:
    module, x = norm(kind, 12), batch(kind)
    oracle = torchs(kind, module)
    assert torch.equal(module(x), oracle(x))
    assert torch.equal(module.get_buffer("running_var"), oracle.get_buffer("running_var"))


@both
def test_two_views_at_once_are_two_batches_of_groups(kind: Kind) -> None:
    together, apart = norm(kind, 4), norm(kind, 4)
    first, second = batch(kind), batch(kind) * 2 + 1
    both_views = together(torch.cat([first, second]))
    torch.testing.assert_close(both_views, torch.cat([apart(first), apart(second)]))


@both
def test_passes_are_not_counted_on_any_path(kind: Kind) -> None:
    module = norm(kind, 6)
    for n in (6, 12):
        module(batch(kind, n))
    module.movement = torch.tensor(0.05)
    module(batch(kind, 6))
    assert module.get_buffer("num_batches_tracked") == 0


def test_vectors_and_images_are_told_apart() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        GroupedBatchNorm2d(3, group_size=4)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        GroupedBatchNorm1d(3, group_size=4)(torch.zeros(4, 3, 2, 2))


def test_without_weights_it_only_normalises() -> None:
    module = GroupedBatchNorm1d(3, group_size=4, affine=False)
    y = module(batch(VECTORS, 8))
    torch.testing.assert_close(y[:4].mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    assert not list(module.parameters())


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_averaged_buffers_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    whole, x = norm(IMAGES, 2), batch(IMAGES)
    parts = [norm(IMAGES, 2) for _ in range(workers)]
    for _ in range(5):
        whole(x)
        for part, share in zip(parts, x.chunk(workers), strict=True):
            part(share)
        x = x.roll(1, dims=0) * 1.1
    for name in ("running_mean", "running_var"):
        mean = torch.stack([part.get_buffer(name) for part in parts]).mean(dim=0)
        torch.testing.assert_close(mean, whole.get_buffer(name), rtol=1e-6, atol=1e-7)


def test_evaluation_does_not_look_at_the_batch() -> None:
    module, x = norm(IMAGES, 4), batch(IMAGES)
    module(x)
    module.eval()
    torch.testing.assert_close(module(x)[:3], module(x[:3]))
