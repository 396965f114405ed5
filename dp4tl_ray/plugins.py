"""What other packages announce as entry points: scorers and datasets."""

from importlib.metadata import EntryPoint, entry_points

from dp4tl_ray.specs.base import did_you_mean


class PluginError(LookupError):
    """No installed package announces it; the message says which ones are there."""


def find_plugin(group: str, name: str) -> EntryPoint:
    """Find what a package announces in a group under a name.

    Raises:
        PluginError: None does.
    """
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        hint = did_you_mean(name, found) if found else "none is installed"
        raise PluginError(f"{name!r} is not installed (entry point group {group}); {hint}")
    return found[name]


def package_of(point: EntryPoint) -> str:
    """Name the package of a plug-in with its version, part of the identity of what it gives."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""
