"""The progress display: one bar on a terminal, nothing elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from dp4tl_ray.runners.board import Summary, share_done

EARLY = 0.03
"""Share of the work below which an estimate of the rest would be a guess."""


def duration(seconds: float) -> str:
    """Write a duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Display:
    """Steps done, running, failed and to go, with an estimate of the time left."""

    def __init__(self, title: str) -> None:
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

    def update(self, summary: Summary) -> None:
        """Draw the state of the board."""
        if self.cost_before is None:
            self.cost_before = summary.cost_done
        partial = sum(share_done(progress) for _, progress in summary.running)
        to_go = summary.total - summary.done - summary.failed - len(summary.running)
        text = f"{summary.done} done, {len(summary.running)} running, {to_go} to go"
        if summary.failed:
            text += f", [red]{summary.failed} failed[/red]"
        text += self._eta(summary)
        for name, progress in summary.running[:1]:
            text += f" | {name}" + (f" {share_done(progress):.0%}" if progress else "")
        done = (summary.done + summary.failed + partial) / max(1, summary.total)
        self.bar.update(self.task, completed=done, counts=text)

    def _eta(self, summary: Summary) -> str:
        gained = summary.cost_done - (self.cost_before or 0.0)
        left = summary.cost_total - summary.cost_done
        if left <= 0 or gained < EARLY * left:
            return ""
        elapsed = time.perf_counter() - self.started
        return f", about {duration(elapsed * left / gained)} left"
