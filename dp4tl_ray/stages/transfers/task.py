"""What every transfer protocol is handed, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dp4tl_ray.data.draws import Draw, Rows
from dp4tl_ray.data.images import Images
from dp4tl_ray.specs.data import known_as
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages.bench import Job, Metrics, load_network
from dp4tl_ray.training.networks import Classifier

Logits = Callable[[Tensor], Tensor]
"""Pixels in [0, 1], (n, channels, height, width) -> logits, in evaluation mode."""


@dataclass(frozen=True)
class Outcome:
    """What a transfer has come to."""

    predicted: Rows
    """Class of each test image, (N,)."""
    chosen: Metrics
    """What was chosen, and its validation accuracy."""
    logits: Logits | None = None
    """The classifier, through which gradients of pixels go; null where there are none."""


@dataclass(frozen=True)
class Task:
    """A target as a seed draws it, and where the pretrained network is."""

    job: Job
    seed: int
    images: Images
    """Of all splits, (N, height, width, channels); memory-mapped."""
    labels: Rows
    """Class of each of these images, (N,)."""
    draw: Draw
    num_classes: int
    """The target's own; some may have no image in a draw."""

    @property
    def dataset(self) -> str:
        """What the target's dataset is known as."""
        spec = self.job.inputs["target"].manifest.spec
        assert isinstance(spec, DataStep)
        return known_as(spec.dataset)

    def network(self, group_size: int) -> Classifier:
        """Load the pretrained network, in the state that pretraining left.

        Args:
            group_size: Examples per batch-norm group, should it be trained further.
        """
        size = self.images.shape[1]
        return load_network(self.job.inputs["pretrain"], image_size=size, group_size=group_size)
