"""A batch's way through its steps: which conditions hold, and how strong the adapters are, from one step to the next."""

from collections.abc import Sequence

from sdlora.generation.adapters import Active
from sdlora.generation.conditions import Conditions, Texts, conditions
from sdlora.generation.passes import Pass
from sdlora.generation.request import Request


class Course:
    """Encodes all that a batch is told, each text under the strengths of its step; then follows the sampler through its passes.

    Strengths run from 0 to 1 over the steps that are drawn, in each pass anew: img2img with a denoise of 0.3 and the second pass of a
    hires picture go through all of them. AUTOMATIC1111's extensions for this (loractl) count so, over the sampling steps of the pass.
    Prompts count the steps that are drawn out of `Request.steps`, and in a second pass go on from 1.0, as AUTOMATIC1111 itself does.
    """

    def __init__(self, requests: Sequence[Request], texts: Texts, active: Active, walk: Sequence[Pass]):
        """The requests have one number of steps and the same passes, and all are guided or none is."""
        self.active = active
        self.told: list[Conditions] = []
        self.fractions: list[float] = []  # for each step of all passes how much of its pass lies behind
        asked = requests[0].steps
        for number, one in enumerate(walk):
            span = (one.steps, asked) if number else (asked, 0)
            for step in range(one.steps):
                fraction = step / one.steps
                states = [active.text_state(fraction, picture) for picture in range(len(requests))]
                told = conditions(requests, texts, states, step, span, self.face)
                self.told.append(self.told[-1] if self.told and told.same(self.told[-1]) else told)
                self.fractions.append(fraction)
        self.enter(0)

    def enter(self, step: int) -> None:
        """`step` counts from 0 through all passes; behind the last one nothing changes any more."""
        self.step = min(step, len(self.told) - 1)

    def face(self, owners: Sequence[int]) -> None:
        """The next call of the U-Net has these pictures' rows."""
        self.active.face(self.fractions[self.step], owners)

    def now(self) -> Conditions:
        return self.told[self.step]
