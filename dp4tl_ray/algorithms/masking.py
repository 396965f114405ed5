"""Does a network withstand an attack, or do its gradients only hide the way?

Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1, and Carlini
et al. 2019, "On evaluating adversarial robustness": what cannot be where gradients tell the truth.
"""

from dataclasses import dataclass

TOLERANCE = 0.02
"""Share of images by which a weaker attack may beat a stronger one by chance."""
MAX_UNBOUNDED, MAX_FLAT = 0.1, 0.05
"""Largest shares of images that withstand any perturbation, or have no gradient."""


@dataclass(frozen=True)
class Withstood:
    """Shares of correctly classified images, in [0, 1], that withstand an attack."""

    iterated: float
    """The attack that is in question, at its largest radius."""
    single: float
    """One step of the same radius."""
    noise: float
    """Random points of the same ball, each of several."""
    unbounded: float
    """As many steps in a ball that holds all images."""
    flat: float
    """Share whose gradient is zero everywhere."""


def masking_alarm(withstood: Withstood) -> str:
    """Say in words what speaks against a robust accuracy; empty if nothing does."""
    weaker = {"one step": withstood.single, "random noise": withstood.noise}
    signs = [
        f"{name} fools {withstood.iterated - share:.0%} more images than the attack does"
        for name, share in weaker.items()
        if share < withstood.iterated - TOLERANCE
    ]
    if withstood.unbounded > MAX_UNBOUNDED:
        signs.append(f"{withstood.unbounded:.0%} of images withstand a ball that holds all images")
    if withstood.flat > MAX_FLAT:
        signs.append(f"the gradient of {withstood.flat:.0%} of images is zero")
    return "gradients may be masked: " + "; ".join(signs) if signs else ""
