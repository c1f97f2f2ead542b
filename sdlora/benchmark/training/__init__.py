"""What a training step costs, ours beside the plain loop of diffusers and PEFT: `run(config)`, `analyse(file)`."""

from sdlora.benchmark.training.config import TrainingBenchmarkConfig
from sdlora.benchmark.training.result import FORMAT
from sdlora.benchmark.training.run import Outcome, analyse, run

__all__ = ["FORMAT", "Outcome", "TrainingBenchmarkConfig", "analyse", "run"]
