"""Gradient norms of single examples over all parameters of a network."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dp4tl_ray.algorithms.memory import row_chunks
from dp4tl_ray.data.images import Images
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.inference import BATCH
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.worker import Worker

GRADIENT_BYTES = 2**30
"""Memory for the gradients of one pass."""


def gradient_norms(
    model: Classifier,
    images: Images,
    rows: npt.NDArray[np.int64],
    labels_N: npt.NDArray[np.int64],
    worker: Worker,
) -> npt.NDArray[np.float64]:
    """Return the norm of each example's gradient of the cross-entropy, (N,), higher is kept.

    GraNd (Paul et al. 2021, arXiv:2107.07075) over all parameters. In evaluation mode: batch norm
    uses its running statistics, so that an example's gradient does not depend on its neighbours.

    Memory: 4 n P bytes for P parameters and n examples per pass, beside the activations of n
    examples; n is GRADIENT_BYTES / 4 P, at least 1 and at most that of any pass.

    Args:
        model: The network.
        images: All images of the dataset.
        rows: Rows of the images, (N,).
        labels_N: Class of each of these rows.
        worker: Gives the device.

    Raises:
        ValueError: There is not one label per row.
    """
    if len(labels_N) != len(rows):
        raise ValueError(f"{len(labels_N)} labels, but {len(rows)} rows")
    model.to(worker.device).eval()
    # vmap has no rule for pooling channels last; `contiguous` would keep it where sizes are 1
    parameters = {name: _channels_first(p.detach()) for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], pixels_CHW: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, buffers), (pixels_CHW[None],))
        return F.cross_entropy(logits.float(), label[None])

    def norm(pixels_CHW: Tensor, label: Tensor) -> Tensor:
        gradients = grad(loss)(parameters, pixels_CHW, label)
        return torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()

    norm_N = np.empty(len(rows))
    num_parameters = sum(p.numel() for p in parameters.values())
    bytes_per_example = max(4 * num_parameters, GRADIENT_BYTES / BATCH)
    for part in row_chunks(len(rows), bytes_per_example, GRADIENT_BYTES):
        pixels = _channels_first(to_pixels(images[rows[part]], worker.device))
        labels_n = torch.from_numpy(np.array(labels_N[part])).to(worker.device)
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused ones
            norm_N[part] = vmap(norm)(pixels, labels_n).cpu().numpy()
    return norm_N


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
