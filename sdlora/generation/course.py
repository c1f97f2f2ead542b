"""A batch's way through its steps: which conditions hold, and how strong the adapters are, from one step to the next."""

from collections.abc import Sequence

from sdlora.generation.adapters import Active
from sdlora.generation.conditions import Conditions, Texts, conditions
from sdlora.generation.passes import Pass
from sdlora.generation.request import Request


class Course:
    """Encodes all that a batch is told, each text under the strengths of its step; then follows the sampler through its passes.

    Prompts and strengths count the steps that are drawn, out of `Request.steps`: a pass that begins further down the noise levels
    begins with what holds at the first step, as in AUTOMATIC1111. In the second pass of a hires picture prompts go on counting from
    1.0, and strengths stay at their last value.
    """

    def __init__(self, requests: Sequence[Request], texts: Texts, active: Active, walk: Sequence[Pass]):
        """The requests have one number of steps and the same passes, and all are guided or none is."""
        self.active = active
        self.told: list[Conditions] = []
        self.strengths: list[int] = []  # for each step of all passes the step whose strengths hold
        for number, one in enumerate(walk):
            span = (one.steps, active.steps) if number else (active.steps, 0)
            for step in range(one.steps):
                of = active.steps - 1 if number else step
                states = [active.text_state(of, picture) for picture in range(len(requests))]
                told = conditions(requests, texts, states, step, span, self.face)
                self.told.append(self.told[-1] if self.told and told.same(self.told[-1]) else told)
                self.strengths.append(of)
        self.enter(0)

    def enter(self, step: int) -> None:
        """`step` counts from 0 through all passes; behind the last one nothing changes any more."""
        self.step = min(step, len(self.told) - 1)

    def face(self, owners: Sequence[int]) -> None:
        """The next call of the U-Net has these pictures' rows."""
        self.active.face(self.strengths[self.step], owners)

    def now(self) -> Conditions:
        return self.told[self.step]
