"""The progress display: one bar on a terminal, nothing elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from dp4tl_ray.runners.board import Summary, share_done
from dp4tl_ray.runners.status import State, StatusFile, duration

EMPTY = Summary(0, 0, 0, (), 0.0, 0.0, 0, 0, True)
EARLY = 0.03
"""Share of the work below which an estimate of the rest would be a guess."""


class Display:
    """Steps done, running, failed and to go, with an estimate of the time left.

    Args:
        title: Name of the study.
        status: Written along with it, for other machines; null writes nothing.
    """

    def __init__(self, title: str, status: StatusFile | None = None) -> None:
        self.status, self.latest = status, EMPTY
        # bound now, because what Ray prints is diverted from sys.stderr while it runs
        self.console = Console(file=sys.stderr)
        self.started = time.perf_counter()
        self.cost_before: float | None = None
        self.bar = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=len(title))),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[counts]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=1.0, counts="starting")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        if self.status is not None and self.latest is not EMPTY:
            ended: State = "failed" if kind or self.latest.failed else "done"
            interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
            self.status.close(
                "interrupted" if interrupted else ended, self.latest.done, self.latest.failed
            )

    def update(self, summary: Summary, lanes: int = 1, note: str = "") -> None:
        """Draw the state of the board, with the lanes at work and what they wait for."""
        self.latest = summary
        if self.cost_before is None:
            self.cost_before = summary.cost_done
        partial = sum(share_done(step.progress) for step in summary.running)
        to_go = summary.total - summary.done - summary.failed - len(summary.running)
        text = f"{summary.done} done, {len(summary.running)} running, {to_go} to go"
        if summary.failed:
            text += f", [red]{summary.failed} failed[/red]"
        seconds_left = self._seconds_left(summary)
        if seconds_left is not None:
            text += f", about {duration(seconds_left)} left"
        if self.status is not None:
            self.status.update(summary, seconds_left, lanes)
        text += f" | {note}" if note else ""
        for step in summary.running[:1]:
            text += f" | {step.stage} {step.name}"
            text += f" {share_done(step.progress):.0%}" if step.progress else ""
        done = (summary.done + summary.failed + partial) / max(1, summary.total)
        self.bar.update(self.task, completed=done, counts=text)

    def _seconds_left(self, summary: Summary) -> float | None:
        gained = summary.cost_done - (self.cost_before or 0.0)
        left = summary.cost_total - summary.cost_done
        if left <= 0 or gained < EARLY * left:
            return None
        return (time.perf_counter() - self.started) * left / gained
