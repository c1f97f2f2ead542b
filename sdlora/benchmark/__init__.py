"""What an adapter costs at generation time, measured so that it can be believed: `run(config)`, `analyse(file)`."""

from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.run import Outcome, Progress, analyse, run

__all__ = ["BenchmarkConfig", "Outcome", "Progress", "analyse", "run"]
