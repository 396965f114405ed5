from dp4tl_ray.algorithms.halving import rungs, survivors


def test_rungs_rise_to_all_epochs_by_threes() -> None:
    assert rungs(27) == [3, 9, 27]
    assert rungs(30) == [3, 10, 30]
    assert rungs(4) == [1, 4]
    assert rungs(1) == [1]


def test_the_better_third_goes_on_and_ties_go_to_the_earlier() -> None:
    assert survivors({"a": 0.1, "b": 0.9, "c": 0.5, "d": 0.9}) == ["b", "d"]
    assert survivors({"a": 0.5, "b": 0.5, "c": 0.5}) == ["a"]
    assert survivors({"a": 0.5}) == ["a"]
    assert survivors({}) == []
