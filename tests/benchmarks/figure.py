"""One measured figure."""

Figure = dict[str, str | float]


def figure(name: str, ours: float, reference: float, unit: str) -> Figure:
    """Return a figure as it is printed; ratio = ours / reference."""
    ratio = ours / reference if reference else float("nan")
    values = {"ours": ours, "reference": reference, "ratio": ratio}
    return {"figure": name, **{k: round(v, 4) for k, v in values.items()}, "unit": unit}
