"""Drawings that take turns: each goes on for one step, then the next one does, all of them on one thread.

On threads of their own PyTorch would give each drawing a pool of workers, and those of the waiting one would spin on the cores of the
other. Greenlets change places within a thread in about a microsecond, so that our loop and a pipeline of diffusers are left as they are.
"""

import contextvars
from collections.abc import Callable, Sequence
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from sdlora.benchmark.clock import synchronise, uncollected

Pause = Callable[[int], None]  # called by a drawing after each step, with its number from 1; returns when it is its turn again


class Turn(NamedTuple):
    seconds: float
    cpu: float  # the processor's time, over all threads
    step: int  # the one that it ended with, from 1 in every batch; 0 where the drawing ended

    @property
    def pure(self) -> bool:
        """Whether it is a step and nothing else: before a first step stand texts and noise, behind a last one the VAE."""
        return self.step > 1


class Player:
    """A drawing that can be called for a turn, and what its turns took."""

    def __init__(self, draw: Callable[[Pause], Any], device: torch.device):
        self.device = device
        self.turns: list[Turn] = []
        self.result: Any = None
        host = getcurrent()
        self.own = greenlet(lambda: draw(lambda step: host.switch(step)))
        self.own.gr_context = contextvars.copy_context()

    @property
    def over(self) -> bool:
        return bool(self.own.dead)

    def turn(self) -> None:
        """On to the end of the next step, or of the drawing."""
        synchronise(self.device)
        cpu, begun = process_time(), perf_counter()
        found = self.own.switch()
        synchronise(self.device)
        seconds, cpu = perf_counter() - begun, process_time() - cpu
        self.turns.append(Turn(seconds, cpu, 0 if self.over else found))
        if self.over:
            self.result = found

    def stop(self) -> None:
        """Ends a drawing that is not over, so that whatever it holds is let go."""
        if not self.over:
            self.own.throw(GreenletExit)


def together(drawings: Sequence[Callable[[Pause], Any]], device: torch.device) -> list[Player]:
    """All `drawings` to their ends, in turns of one step, in the order given: each step comes after one of another drawing."""
    players = [Player(draw, device) for draw in drawings]
    with torch.inference_mode(), uncollected():  # a drawing that ends first would else leave the others' inference mode
        try:
            while waiting := [player for player in players if not player.over]:
                for player in waiting:
                    player.turn()
        finally:
            for player in players:
                player.stop()
    return players
