"""Training an adapter: settings, plan, loop, resumable state."""

from sdlora.training.config import Prior, Samples, TrainConfig
from sdlora.training.loop import Step, steps
from sdlora.training.planning import Plan, plan
from sdlora.training.run import Run
from sdlora.training.session import train

__all__ = ["Plan", "Prior", "Run", "Samples", "Step", "TrainConfig", "plan", "steps", "train"]
