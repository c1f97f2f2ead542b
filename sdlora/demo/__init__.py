"""Everything in one go on the sample images: two adapters are trained, drawn with and timed. `run(Demo(output))`."""

from sdlora.demo.run import Demo, Result, run

__all__ = ["Demo", "Result", "run"]
