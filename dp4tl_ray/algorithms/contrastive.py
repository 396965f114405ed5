"""Contrastive losses: tell an image's other view from views of other images.

Embeddings are brought to unit length here, and compared in fp32 even under autocast. Gradients flow
into every argument that asks for one: the papers' stop-gradient at the keys is the caller's.

Shapes: B images, D dimensions, K keys in the queue, A anchors (both views of all images).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of picking each query's own key among those of the queue.

    He et al. 2020 (MoCo), arXiv:1911.05722, equation 1.

    Args:
        query_BD: One view of each image.
        key_BD: The other view of the same images.
        queue_KD: Keys of other images; may be written to before the backward pass.
        temperature: Divides the cosine similarities.
    """
    query_BD, key_BD = _unit(query_BD), _unit(key_BD)
    own_B1 = (query_BD * key_BD).sum(dim=1, keepdim=True)
    logits = torch.cat([own_B1, _products(query_BD, _unit(queue_KD))], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def info_nce_in_batch(query_BD: Tensor, key_BD: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of picking each query's own key among the batch's, times 2T.

    One direction of the loss of Chen et al. 2021 (MoCo v3), arXiv:2104.02057, algorithm 1; the
    factor keeps gradients comparable between temperatures T.

    Args:
        query_BD: Predictions from one view of each image.
        key_BD: Embeddings of the other view of the same images.
        temperature: Divides the cosine similarities.
    """
    logits_BB = _products(_unit(query_BD), _unit(key_BD)) / temperature
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return 2 * temperature * F.cross_entropy(logits_BB, own_B)


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of picking each view's partner among all views but itself.

    Chen et al. 2020 (SimCLR), arXiv:2002.05709, equation 1 and algorithm 1.

    Args:
        first_BD: One view of each image.
        second_BD: The other view of the same images.
        temperature: Divides the cosine similarities.
    """
    anchor_AD = _unit(torch.cat([first_BD, second_BD]))
    logits_AA = _products(anchor_AD, anchor_AD) / temperature
    anchors = torch.arange(len(anchor_AD), device=anchor_AD.device)
    itself_AA = anchors[:, None] == anchors
    partner_A = anchors.roll(len(first_BD))
    return F.cross_entropy(logits_AA.masked_fill(itself_AA, -torch.inf), partner_A)


def _unit(embeddings: Tensor) -> Tensor:
    """Return rows of length 1, in fp32 or better."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """Return all inner products; autocast would take them in half precision."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ others.T
