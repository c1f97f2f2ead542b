"""What a training tells the person who waits: a bar with loss, speed and time left, or a line now and then."""

import time
from types import TracebackType
from typing import Any

from sdlora.training.loop import Step

SMOOTHING = 0.95  # of the loss shown: a single step's says little, since it depends on the timesteps drawn
LINE_EVERY = 15.0  # seconds, where the output is no terminal


class Silent:
    """Says nothing; the other reporters are like it."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def start(self, done: int) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def validated(self, loss: float) -> None:
        pass


class Terminal(Silent):
    """rich's progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.total, self.mean, self.last = total, 0.0, 0.0
        self.weight, self.held = 0.0, ""
        self.began, self.first = 0.0, 0
        self.console = Console(stderr=True)
        words = "step {task.completed:.0f}/{task.total:.0f}  loss {task.fields[loss]}  {task.fields[speed]}"
        words += "{task.fields[held]}"
        columns = TextColumn("training"), BarColumn(), TextColumn(words), TimeRemainingColumn()
        self.bar: Any = Progress(*columns, console=self.console, disable=self.plain)
        self.task: Any = None

    @property
    def plain(self) -> bool:
        return not self.console.is_terminal

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)  # a path may have [brackets] and :colons:

    def start(self, done: int) -> None:
        self.began, self.last, self.first = time.monotonic(), time.monotonic(), done
        if done < self.total:
            self.task = self.bar.add_task("", total=self.total, completed=done, loss="–", speed="", held=self.held)
            self.bar.start()

    def step(self, step: Step) -> None:
        self.mean = SMOOTHING * self.mean + (1 - SMOOTHING) * step.loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        now = time.monotonic()
        speed = (step.number - self.first) / max(1e-9, now - self.began)
        loss, pace = f"{self.mean / self.weight:.4f}", f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / max(speed, 1e-9):.1f} s/step"
        if not self.plain:
            self.bar.update(self.task, completed=step.number, loss=loss, speed=pace, held=self.held)
        elif now - self.last > LINE_EVERY or step.number == self.total:
            self.last = now
            left = (self.total - step.number) / max(1e-9, speed)
            self.say(f"step {step.number}/{self.total}  loss {loss}  {pace}  {left:.0f} s left{self.held}")

    def validated(self, loss: float) -> None:
        self.held = f"  validation {loss:.4f}"
