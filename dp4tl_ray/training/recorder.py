"""What a network says about every training example while it trains, epoch after epoch.

Each example is seen once per epoch, as the training sees it: augmented, in training mode, before
the optimizer step of its batch. Shapes: E complete epochs, N examples, C classes, B rows of a
batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.memory import row_chunks
from dp4tl_ray.training.worker import Worker


@dataclass(frozen=True)
class Dynamics:
    """Histories over the complete epochs of a training."""

    correct_EN: npt.NDArray[np.bool_]
    """Whether the true class was predicted."""
    margin_EN: npt.NDArray[np.float32]
    """Logit of the true class minus the largest other logit."""
    true_probability_EN: npt.NDArray[np.float32]
    """Predicted probability of the true class."""
    divergence_EN: npt.NDArray[np.float32] | None
    """One row per step from an epoch to the next, E - 1 rows: sum over the classes of
    |p_next (log p_next - log p)|. None where divergences were not asked for."""


@dataclass(frozen=True)
class _Rows:
    """Rows of the stream of epochs, in its order."""

    positions_B: Tensor
    labels_B: Tensor
    logits_BC: Tensor

    def __len__(self) -> int:
        return len(self.positions_B)

    def part(self, part: slice) -> "_Rows":
        return _Rows(self.positions_B[part], self.labels_B[part], self.logits_BC[part])


class DynamicsRecorder:
    """Records a training that `fit` runs; every worker has one.

    The stream of batches is a concatenation of epochs. An epoch is closed once all its examples
    were seen: the workers then bring their parts together. An epoch that the training does not
    finish is dropped, so that every example counts as often as every other: where the batches do
    not fill a budget of whole epochs exactly, that is the last one.

    Memory on the CPU of each worker: 9 E N bytes, with divergences 13 E N + 4 N C (two epochs of
    log-probabilities in float16); the histories a second time while `dynamics` stacks them. On
    the device: 12 N bytes. The saved state holds the histories and, with divergences, 2 N C bytes.
    """

    def __init__(
        self, num_examples: int, num_classes: int, worker: Worker, *, divergences: bool
    ) -> None:
        self.num_examples, self.num_classes, self.worker = num_examples, num_classes, worker
        self.divergences = divergences
        names = ["correct", "margin", "true_probability"] + ["divergence"] * divergences
        self.history: dict[str, list[Tensor]] = {name: [] for name in names}
        # the epoch in progress: this worker's part, zero elsewhere
        self.statistics_3N = torch.zeros(3, num_examples, device=worker.device)
        # logarithms, because float16 resolves probabilities near 1, the common case, too coarsely
        size = (num_examples, num_classes) if divergences else (0, 0)
        self.log_p_NC = torch.zeros(size, dtype=torch.float16)
        self.last_log_p_NC = torch.zeros(size, dtype=torch.float16)
        self.early: list[tuple[int, _Rows]] = []  # rows of later epochs, and their first place
        self.open = self._no_rows(0)

    def record(
        self, first: int, positions: npt.NDArray[np.int64], labels_B: Tensor, logits_BC: Tensor
    ) -> None:
        """Note what the network says about this worker's share of a batch.

        Args:
            first: Place of the first row in the stream of epochs; the others follow it.
            positions: Which examples, (B,).
            labels_B: Their classes.
            logits_BC: Their logits.
        """
        positions_B = torch.from_numpy(positions).to(self.worker.device)
        rows = _Rows(positions_B, labels_B, logits_BC.detach().float())
        now = min(max(self._border - first, 0), len(rows))
        self._note(rows.part(slice(now)))
        if now < len(rows):
            self.early.append((first + now, rows.part(slice(now, None))))

    def end_epoch(self, seen: int) -> None:
        """Close each epoch that is complete; every worker calls this after the same step.

        Args:
            seen: Rows of the stream that all workers together have seen.
        """
        if seen < self._border:
            return
        early = self._gather_early(seen)
        self._close()
        for start in range(0, len(early), self.num_examples):
            self.open = early.part(slice(start, start + self.num_examples))
            self._note_open()
            if len(self.open) == self.num_examples:
                self._close()

    def dynamics(self) -> Dynamics:
        """Return the histories over the epochs that are complete, equal on every worker."""

        def table(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
            rows = [row.numpy() for row in self.history[name]]
            return np.array(rows, dtype).reshape(-1, self.num_examples)

        return Dynamics(
            table("correct", np.bool_),
            table("margin", np.float32),
            table("true_probability", np.float32),
            table("divergence", np.float32) if self.divergences else None,
        )

    def state(self) -> dict[str, Tensor]:
        """Return what `load` needs, for all workers; right after an epoch was closed."""
        tensors = {
            f"{name}.{epoch}": row
            for name, rows in self.history.items()
            for epoch, row in enumerate(rows)
        }
        return tensors | {
            "open.positions": self.open.positions_B,
            "open.labels": self.open.labels_B,
            "open.logits": self.open.logits_BC,
            "last_log_p": self.last_log_p_NC,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from a saved state; the recorder is fresh."""
        for name, rows in self.history.items():
            while (row := tensors.get(f"{name}.{len(rows)}")) is not None:
                rows.append(row)
        self.last_log_p_NC = tensors["last_log_p"]
        names = ("open.positions", "open.labels", "open.logits")
        self.open = _Rows(*(tensors[name].to(self.worker.device) for name in names))
        self._note_open()

    @property
    def _border(self) -> int:
        """Place in the stream where the next epoch begins."""
        return (len(self.history["margin"]) + 1) * self.num_examples

    def _no_rows(self, size: int) -> _Rows:
        device = self.worker.device
        nothing = torch.zeros(size, dtype=torch.int64, device=device)
        logits = torch.zeros(size, self.num_classes, device=device)
        return _Rows(nothing, nothing.clone(), logits)

    def _gather_early(self, seen: int) -> _Rows:
        """Bring together what all workers know of the later epochs, up to a place in the stream."""
        rows = self._no_rows(seen - self._border)
        for first, share in self.early:
            place = slice(first - self._border, first - self._border + len(share))
            rows.positions_B[place] = share.positions_B
            rows.labels_B[place] = share.labels_B
            rows.logits_BC[place] = share.logits_BC
        self.early = []
        self.worker.sum_([rows.positions_B, rows.labels_B, rows.logits_BC])
        return rows

    def _note_open(self) -> None:
        # all workers know these rows, and their parts of an epoch are added up
        if self.worker.rank == 0:
            self._note(self.open)

    def _note(self, rows: _Rows) -> None:
        """Write rows of the epoch in progress."""
        log_p_BC = F.log_softmax(rows.logits_BC, dim=1)
        label_B1 = rows.labels_B[:, None]
        true_B = rows.logits_BC.gather(1, label_B1)[:, 0]
        other_B = rows.logits_BC.scatter(1, label_B1, -torch.inf).amax(dim=1)
        correct_B = rows.logits_BC.argmax(dim=1) == rows.labels_B
        probability_B = log_p_BC.gather(1, label_B1)[:, 0].exp()
        self.statistics_3N[:, rows.positions_B] = torch.stack(
            [correct_B.float(), true_B - other_B, probability_B]
        )
        if self.divergences:
            self.log_p_NC[rows.positions_B.cpu()] = log_p_BC.half().cpu()

    def _close(self) -> None:
        """Bring the workers' parts of an epoch together and begin the next one."""
        self.worker.sum_([self.statistics_3N])
        # copies: a view would keep all three rows
        correct_N, margin_N, probability_N = (row.clone() for row in self.statistics_3N.cpu())
        self.statistics_3N.zero_()
        if self.divergences:
            divergence_N = torch.cat(list(self._divergences()))
            if self.history["margin"]:
                self.history["divergence"].append(divergence_N)
        self.history["correct"].append(correct_N > 0)
        self.history["margin"].append(margin_N)
        self.history["true_probability"].append(probability_N)
        self.open = self._no_rows(0)

    def _divergences(self) -> Iterator[Tensor]:
        """Yield the divergences from the last epoch in chunks, and make this epoch the last."""
        # float32: two epochs, the probabilities, the difference and their product
        for part in row_chunks(self.num_examples, 20 * self.num_classes):
            log_p_nC = self.log_p_NC[part].to(self.worker.device)
            self.worker.sum_([log_p_nC])
            last_nC = self.last_log_p_NC[part].to(self.worker.device).float()
            now_nC = log_p_nC.float()
            yield (now_nC.exp() * (now_nC - last_nC).abs()).sum(dim=1).cpu()
            self.last_log_p_NC[part] = log_p_nC.cpu()
            self.log_p_NC[part] = 0
