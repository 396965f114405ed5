"""All of a dataset, decoded: what the tests compare with."""

from typing import get_args

import numpy as np

from dp4tl_ray.data.decode import decoded, square
from dp4tl_ray.data.images import LabeledImages, Role
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.specs.data import Dataset, channels


def load_images(spec: Dataset, role: Role) -> LabeledImages:
    """Decode every picture of a dataset, one after the other."""
    assert role in get_args(Role)
    pictures = open_pictures(spec, role)
    contents = (decoded(pictures.read(i), channels(spec)) for i in range(len(pictures)))
    return LabeledImages(
        np.stack([square(content, spec.image_size) for content in contents]),
        pictures.labels,
        pictures.splits,
        tuple(pictures.ids),
        pictures.class_names,
    )
