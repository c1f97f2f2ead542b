"""The same networks with less around the arithmetic, for drawing on a CPU: packed convolutions, and blocks without detours."""

from sdlora.lean.install import copies, lean, pays

__all__ = ["copies", "lean", "pays"]
