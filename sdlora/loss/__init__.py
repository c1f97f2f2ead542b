"""The denoising objective, each formula with its source: docs/losses.md lists them all."""

from sdlora.loss.errors import ERRORS, THRESHOLDS, error, threshold
from sdlora.loss.objective import Objective, mean_error, noised, squared_error, target
from sdlora.loss.weights import WEIGHTINGS, min_snr_weight, weight

__all__ = [
    "ERRORS",
    "THRESHOLDS",
    "WEIGHTINGS",
    "Objective",
    "error",
    "mean_error",
    "min_snr_weight",
    "noised",
    "squared_error",
    "target",
    "threshold",
    "weight",
]
