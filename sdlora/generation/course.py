"""A batch's way through its steps: which conditions hold, and how strong the adapters are, from one step to the next."""

from collections.abc import Sequence

from sdlora.generation.adapters import Active
from sdlora.generation.conditions import Conditions, Texts, conditions
from sdlora.generation.request import Request


class Course:
    """Encodes all that a batch is told, each text under the strengths of its step; then follows the sampler."""

    def __init__(self, requests: Sequence[Request], texts: Texts, active: Active):
        """The requests have one number of steps, and all are guided or none is."""
        self.active = active
        self.told: list[Conditions] = []
        for step in range(active.steps):
            states = [active.text_state(step, picture) for picture in range(len(requests))]
            told = conditions(requests, texts, states, step, self.face)
            self.told.append(self.told[-1] if self.told and told.same(self.told[-1]) else told)
        self.enter(0)

    def enter(self, step: int) -> None:
        """`step` counts from 0; behind the last one nothing changes any more."""
        self.step = min(step, len(self.told) - 1)

    def face(self, owners: Sequence[int]) -> None:
        """The next call of the U-Net has these pictures' rows."""
        self.active.face(self.step, owners)

    def now(self) -> Conditions:
        return self.told[self.step]
