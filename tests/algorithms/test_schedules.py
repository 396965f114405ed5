import pytest

from dp4tl_ray.algorithms.schedules import lr_factor

NAMES = ["cyclic", "one_cycle", "cosine"]


@pytest.mark.parametrize("name", NAMES)
def test_rises_to_the_peak_and_falls_to_zero(name: str) -> None:
    values = [lr_factor(name, 0.25, i / 100) for i in range(101)]  # type: ignore[arg-type]
    assert values[0] == 0
    assert values[25] == pytest.approx(1)
    assert values[100] == pytest.approx(0)
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)


def test_cyclic_is_the_papers_triangle() -> None:
    # 16 epochs, peak at epoch 2, linear to 0 at the end
    assert lr_factor("cyclic", 2 / 16, 1 / 16) == pytest.approx(0.5)
    assert lr_factor("cyclic", 2 / 16, 9 / 16) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_the_warmup_range(name: str) -> None:
    assert lr_factor(name, 0.0, 0.0) == pytest.approx(1)  # type: ignore[arg-type]
    assert lr_factor(name, 1.0, 0.999) == pytest.approx(1, abs=1e-2)  # type: ignore[arg-type]
