"""The course of a training: who consumes its steps, and decides when to log, validate, save, draw and stop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sdlora import apply, hardware
from sdlora.errors import SdloraError
from sdlora.training import intervals, metrics, processes, saving, tracking, units, validation
from sdlora.training.layout import Layout
from sdlora.training.loop import Step, steps
from sdlora.training.progress import Silent
from sdlora.training.run import Run
from sdlora.training.validation import Score

MOMENT = 2.0  # seconds
# (a saved adapter, its step). The components carry no trainable updates meanwhile; what the steps do without may wait in the CPU's
# memory, from where `generate(…, offload=components.device)` brings it in for its turn.
Draw = Callable[[Path, int], None]


@dataclass(eq=False)
class Course:
    """A run, its folder, and what goes on beside the steps. Only the main process writes, draws and speaks."""

    run: Run
    place: Layout
    report: Silent
    save_every: int  # steps, 0: only at the end
    draw: Draw | None = None
    trackers: tracking.Trackers = field(default_factory=tracking.Trackers)
    scores: list[Score] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.run.config.steps

    @property
    def validate_every(self) -> int:
        return self.run.config.validation.every or max(1, self.last // 10)

    def carry_out(self) -> Path:
        """Go on from the newest state, or begin, to the last step; the adapter's path."""
        self.resume()
        with self.trackers, stoppable() as stop:
            for step in self.guarded():
                self.after(step)
                if self.run.world.any(stop()) and step.number < self.last:
                    if self.run.world.main:
                        saving.state(self.run, self.place)
                    self.run.world.wait()  # who ends takes the others along
                    raise KeyboardInterrupt(f"stopped after step {step.number} of {self.last}; the same command goes on from there")
        self.conclude()
        return self.place.adapter

    def resume(self) -> None:
        run, place = self.run, self.place
        state = saving.newest(place, self.report.say)
        if state:
            run.load_state(state)
        alike = run.world.same(run.step)  # and all are here: nobody deletes or replaces what another still reads
        if not alike:
            raise SdloraError(f"the processes found states of different steps in {place.folder}; all machines have to share that folder")
        if run.world.main:
            self.trackers.start(run.step)
            if state:
                self.complete()
                self.report.say(f"{'finished already' if run.step == self.last else 'going on'} at step {run.step} of {self.last}")
            metrics.rewind(place.metrics, run.step)
            self.remember()
        if run.world.any(run.world.main and run.step == 0 and not self.scores):
            self.validate()
        self.report.start(run.step)
        run.world.wait()

    def remember(self) -> None:
        """The validations so far, as far as they can be compared with those to come."""
        if self.run.held is None:
            return
        self.scores, others = validation.rewind(self.place.validation, self.run.step, self.run.held)
        if others:
            self.report.say(f"{others} validation losses were of other pictures or timesteps and are forgotten; the best is sought anew")

    def guarded(self) -> Iterator[Step]:
        """The steps; a failure also says what is left."""
        try:
            yield from steps(self.run)
        except SdloraError as error:
            kept = saving.newest(self.place)
            last = f"the last good state is {kept}" if kept else "no state had been saved yet"
            raise SdloraError(f"{error}; {last}") from error

    def after(self, step: Step) -> None:
        """What is done once a step is made. The state comes last but for the pictures: what precedes it is there when it is."""
        main = self.run.world.main
        if main:
            metrics.append(self.place.metrics, step)
            self.trackers.log(metrics.numbers(step), step.number)
            self.report.step(step)
        if intervals.due(step.number, self.validate_every, self.last):
            self.validate()
        if main and intervals.due(step.number, self.save_every, self.last):
            saving.adapter(self.run, self.place)
            saving.state(self.run, self.place)
            self.picture()

    def validate(self) -> None:
        """The validation loss of this step; the adapter is kept if none was better. Of a base that is split, all processes compute it."""
        held, world = self.run.held, self.run.world
        if held is None or not (world.main or world.sharding):
            return
        found = validation.score(self.run, held)
        if not world.main:
            return
        so_far = validation.best(self.scores)
        if found.step > 0 and (so_far is None or found.loss < so_far.loss):
            saving.write(self.run, self.place.best)
        validation.append(self.place.validation, found)
        self.scores.append(found)
        self.trackers.log({"validation loss": found.loss}, found.step)
        self.report.validated(found.loss)

    def picture(self) -> None:
        if self.draw is None:
            return
        components = self.run.components
        with apply.suspended(components.modules), hardware.plain(components.unet), units.apart(components.unet):
            with hardware.resident(self.run.originals, components.device):
                self.draw(saving.file(self.run, self.place), self.run.step)
        self.trackers.picture(self.place.grid, self.run.step)

    def complete(self) -> None:
        """What should be there at the step of the state that was loaded, and is not: an interruption can fall between two files."""
        if intervals.due(self.run.step, self.save_every, self.last):
            if not saving.file(self.run, self.place).exists():
                saving.adapter(self.run, self.place)
            self.picture()

    def conclude(self) -> None:
        words = validation.verdict(self.scores)
        if words and self.run.world.main:
            self.report.say(f"{words}: {self.place.best}")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that the state is whole; a second one stops at once. Of several processes
    each gets Ctrl-C from the terminal and once more from their launcher: within a moment they are one."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[float] = []
    moment = MOMENT if processes.launched() > 1 else 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        if asked and time.monotonic() - asked[0] >= moment:
            raise KeyboardInterrupt("stopped at once")
        asked.append(time.monotonic())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
