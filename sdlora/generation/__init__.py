"""Pictures from prompts, with any number of adapters.

from sdlora.generation import draw
for picture in draw("a robot, flat emoji", {"style.safetensors": 0.8}, seeds=range(1, 5)):
    picture.image.save(f"robot-{picture.request.seed}.png")
"""

from sdlora.generation.adapters import AUTO
from sdlora.generation.generate import Picture, generate
from sdlora.generation.passes import steps
from sdlora.generation.request import Request, parse_adapter, parse_pair, parse_seeds
from sdlora.generation.sampler import State
from sdlora.generation.samplers import SAMPLERS
from sdlora.generation.session import draw, find_tagged, load, load_adapters, load_named, own

__all__ = [
    "AUTO",
    "SAMPLERS",
    "Picture",
    "Request",
    "State",
    "draw",
    "find_tagged",
    "generate",
    "load",
    "load_adapters",
    "load_named",
    "own",
    "parse_adapter",
    "parse_pair",
    "parse_seeds",
    "steps",
]
