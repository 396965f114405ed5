"""Self-supervised training: two views of each image, embedded share by share, compared as a batch.

Every worker embeds its share of a batch. All embeddings are then brought together, and every worker
computes the loss of the whole batch and its gradient with respect to its own embeddings, from which
it goes backward. So negatives are those of the whole batch, and the number of workers changes
nothing but the order of float additions. No label is read.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dp4tl_ray.algorithms.collapse import effective_rank, embedding_spread
from dp4tl_ray.specs.self_supervised import AnySelfSupervised
from dp4tl_ray.training.examples import Examples
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.base import Objective
from dp4tl_ray.training.objectives.learner import Embeddings, Learner, Wanted
from dp4tl_ray.training.objectives.learners import build_learner
from dp4tl_ray.training.parallel import Parallel, is_sharded
from dp4tl_ray.training.passes import GradientSum, Pass, cut_passes
from dp4tl_ray.training.reading import View, draw, read
from dp4tl_ray.training.worker import Worker, seed_for

LOOKED_AT = 2048
"""Embeddings of the last steps that say whether a training has collapsed, at most an epoch's."""


@dataclass(frozen=True)
class _Images:
    """Some rows of a batch under two views."""

    first: View
    second: View


@dataclass(frozen=True)
class _Share:
    """What one pass needs: images to embed, and images for keys where those are others."""

    one: Pass
    queries: _Images
    keys: _Images | None
    """Null where this worker has them among the queries."""


@dataclass(frozen=True)
class _Batch:
    shares: list[_Share]
    key_rows: npt.NDArray[np.int64]
    """Row of the batch whose key is the n-th to be embedded, (B,)."""


class TwoViewObjective(Objective[_Batch]):
    """The loss of a batch of embeddings under two views."""

    kept = "network."

    def __init__(
        self,
        model: Classifier,
        examples: Examples,
        recipe: AnySelfSupervised,
        seed: int,
        worker: Worker,
        total: int,
    ) -> None:
        learner = build_learner(model, recipe, seed)
        # a share at once: its embeddings are needed before anything can go backward
        passes = cut_passes(recipe, worker, None, together=is_sharded(worker))
        super().__init__(learner, passes, worker)
        self.examples, self.recipe, self.seed, self.total = examples, recipe, seed, total
        self.shuffles = learner.shuffles
        first, second = recipe.augmentation, recipe.second_augmentation
        self.views = (first, first if second is None else second)
        # a training is never continued from within the steps that are looked at
        steps_per_epoch = len(examples) / recipe.batch_size
        last_epoch = math.ceil((math.ceil(total / steps_per_epoch) - 1) * steps_per_epoch)
        enough = math.ceil(LOOKED_AT / recipe.batch_size)
        self.look_from = max(min(last_epoch, total - 1), total - enough)
        self.looked_at = list[Tensor]()

    def gather(self, step: int, positions: npt.NDArray[np.int64]) -> _Batch:
        """Bring this worker's shares of a batch into memory, and the images of their keys."""
        size = self.recipe.batch_size
        streams = [seed_for(self.seed, name, step) for name in ("first view", "second view")]
        rngs = [np.random.default_rng(stream) for stream in streams]
        changes = draw(self.views, self.examples, positions, rngs)
        stored, side = self.examples.images, self.examples.images.shape[1]

        def images(rows: npt.NDArray[np.int64]) -> _Images:
            mine, views = self.examples.rows[positions[rows]], [c.rows(rows) for c in changes]
            return _Images(*read(stored, mine, views, side, self.worker))

        key_rows, elsewhere = np.arange(size), self.shuffles and self.worker.world_size > 1
        if self.shuffles:
            # every worker can draw the same order, and read the images: none are sent
            key_rows = np.random.default_rng(seed_for(self.seed, "keys", step)).permutation(size)
        shares = [
            _Share(
                one,
                images(np.arange(one.rows.start, one.rows.stop)),
                images(key_rows[one.rows]) if elsewhere else None,
            )
            for [one] in self.passes
        ]
        return _Batch(shares, key_rows)

    def backward(self, parallel: Parallel, batch: _Batch, step: int) -> Tensor:
        """Leave the gradient of the batch's loss in the parameters."""
        learner = cast(Learner, parallel.model)
        learner.advance(step, self.total)
        wanted, of_keys = learner.query_views, learner.key_views
        if self.worker.world_size == 1:  # whose keys are of the same views
            wanted = (wanted[0] or of_keys[0], wanted[1] or of_keys[1])
        views = [self._two_views(share.queries, wanted) for share in batch.shares]
        keyed = self._key_views(batch, views, of_keys)
        embedded = [
            self._embed(parallel, share.one, *two, *key_two)
            for share, two, key_two in zip(batch.shares, views, keyed, strict=True)
        ]
        rows = [share.one.rows for share in batch.shares]
        queries = self._whole([queries for queries, _ in embedded], rows)
        keys = self._whole([keys for _, keys in embedded], rows)
        keys = [_unshuffled(key, batch.key_rows) for key in keys]
        for query in queries:
            query.requires_grad_()
        loss = learner.loss(queries, keys)
        gradients = torch.autograd.grad(loss, queries)
        learner.end_batch(keys)
        if step >= self.look_from:
            self.looked_at.append(queries[0].detach())
        total = GradientSum(parallel.model, self.worker.shards)
        for (mine, _), here in zip(embedded, rows, strict=True):
            # the mean over the shares is then the gradient of the whole
            scaled = [gradient[here] * self.worker.parts for gradient in gradients]
            torch.autograd.backward(mine, [g.to(m) for g, m in zip(scaled, mine, strict=True)])
            total.end_share()
        total.give_back()
        return loss.detach()

    def can_pause(self, step: int) -> bool:
        """Say whether embeddings that are looked at in the end are still to come."""
        return step <= self.look_from

    def facts(self) -> dict[str, float]:
        """Measure how much of their space the last embeddings fill."""
        embeddings = torch.cat(self.looked_at)
        return {
            "num_embeddings": len(embeddings),
            "embedding_spread": embedding_spread(embeddings),
            "embedding_rank": effective_rank(embeddings),
        }

    def _embed(self, parallel: Parallel, one: Pass, *views: Tensor) -> tuple[Embeddings, ...]:
        """Embed a share: what gradients go back through, and what they do not."""
        self.movement.fill_(one.movement)
        device, bf16 = self.worker.device.type, self.recipe.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            outputs: tuple[Embeddings, ...] = parallel.forward(*views)
        return outputs

    def _key_views(
        self, batch: _Batch, views: list[tuple[Tensor, Tensor]], wanted: Wanted
    ) -> list[tuple[Tensor, Tensor]]:
        """Give the views of which each share embeds keys; made anew only where they are others."""
        if not self.shuffles:
            return views
        if self.worker.world_size > 1:
            return [self._two_views(share.keys, wanted) for share in batch.shares if share.keys]
        first, second = (torch.cat(all_of_them) for all_of_them in zip(*views, strict=True))
        rows = [batch.key_rows[share.one.rows] for share in batch.shares]
        return [(first[here], second[here]) for here in rows]

    def _two_views(self, images: _Images, wanted: Wanted = (True, True)) -> tuple[Tensor, Tensor]:
        """Make two views; one that is not wanted, and not looked at, is the image itself."""
        both = (images.first, images.second)
        first, second = (
            view.show(spec if asked else None, self.worker)
            for spec, view, asked in zip(self.views, both, wanted, strict=True)
        )
        return first, second

    def _whole(self, shares: list[tuple[Tensor, ...]], rows: list[slice]) -> list[Tensor]:
        """Bring the embeddings of all shares together, those of other workers too."""
        wholes = []
        for outputs in zip(*shares, strict=True):
            whole = outputs[0].new_zeros(self.recipe.batch_size, outputs[0].shape[1]).float()
            for output, here in zip(outputs, rows, strict=True):
                whole[here] = output.detach().float()
            wholes.append(whole)
        self.worker.sum_(wholes)
        return wholes


def _unshuffled(keys: Tensor, key_rows: npt.NDArray[np.int64]) -> Tensor:
    """Put each key back into the row of its own query."""
    in_order = torch.empty_like(keys)
    in_order[torch.from_numpy(key_rows).to(keys.device)] = keys
    return in_order
