"""Samplers: small functions that walk down the noise levels, one file per family, and the table of their names."""

from sdlora.generation.samplers.step import Model, Noise, Steps
from sdlora.generation.samplers.table import OPTIONS, SAMPLERS, Method, Sampler, method

__all__ = ["OPTIONS", "SAMPLERS", "Method", "Model", "Noise", "Sampler", "Steps", "method"]
