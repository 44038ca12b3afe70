"""What a run shows while it goes: a progress bar at a terminal, lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Terminal:
    """Progress with loss, examples a second and time left; silent in all processes but the first."""

    def __init__(self, console: Console, steps: int, done: int, batch_size: int):
        self._console = console
        self._batch_size = batch_size
        self._last = (time.perf_counter(), done)
        self._speed = 0.0
        self._bar: Progress | None = None
        if console.is_terminal and not console.quiet:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f} · {task.fields[speed]:,.0f} examples/s ·"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
            )
            self._task = self._bar.add_task("", total=steps, completed=done, loss=float("nan"), speed=0.0)
            self._bar.start()

    def advance(self, step: int, loss: float) -> float:
        """Shows a finished step; gives the examples a second since the last call."""
        now = time.perf_counter()
        before, done = self._last
        self._last = (now, step)
        self._speed = (step - done) * self._batch_size / max(now - before, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=step, loss=loss, speed=self._speed)
        return self._speed

    def pause(self) -> None:
        """Time that passes until the next step counts for no speed."""
        self._last = (time.perf_counter(), self._last[1])

    def say(self, message: str, **style: Any) -> None:
        """A line above the bar."""
        self._console.print(message, highlight=False, soft_wrap=True, **style)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()
