"""From settings to files: what a drawing can be told, reading pictures back, long runs, grids and previews.

from sdlora.drawing import Drawing, carry_out
carry_out(Drawing(prompt=("a robot, flat emoji",), seed="1-4", output=Path("pictures")))
"""

from importlib import import_module
from typing import Any

from sdlora.drawing.settings import Drawing

# imported at first use: the settings alone are wanted by `sdlora --help`
_LATER = {
    "Grid": "grid",
    "Preview": "preview",
    "carry_out": "work",
    "recalled": "recall",
    "requests": "translate",
}
__all__ = ["Drawing", *_LATER]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'sdlora.drawing' has no attribute {name!r}")
    return getattr(import_module(f"sdlora.drawing.{_LATER[name]}"), name)
