"""What an adapter costs at generation time, measured so that it can be believed: `run(config)`."""

from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.run import Outcome, Progress, run

__all__ = ["BenchmarkConfig", "Outcome", "Progress", "run"]
