"""The denoising objective: what a U-Net that predicts ε or v should say of a noisy latent, and how its error is measured."""

from dataclasses import dataclass

from torch import Tensor, float64

from sdlora.families import EPSILON
from sdlora.loss.errors import ROBUST, error, threshold
from sdlora.loss.weights import weight


def noised(latents: Tensor, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """x_t = √ᾱ x₀ + √(1 − ᾱ) ε, (n, …) with ᾱ (n,).  Ho et al. 2020, arXiv:2006.11239, eq. 4."""
    bar = _per_sample(alphas_bar, latents)
    return bar.sqrt() * latents + (1 - bar).sqrt() * noise


def target(latents: Tensor, noise: Tensor, alphas_bar: Tensor, prediction: str = EPSILON) -> Tensor:
    """ε (arXiv:2006.11239, eq. 14), or v = √ᾱ ε − √(1 − ᾱ) x₀ (Salimans & Ho 2022, arXiv:2202.00512, app. D); (n, …)."""
    if prediction == EPSILON:
        return noise
    bar = _per_sample(alphas_bar, latents)
    return bar.sqrt() * noise - (1 - bar).sqrt() * latents


def squared_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean over all but the first axis of (predicted − wanted)², in fp32 at least: (n,)."""
    return mean_error(predicted, wanted)


def mean_error(predicted: Tensor, wanted: Tensor, kind: str = "mse", c: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Mean error of each sample, (n,), in fp32 at least: Σ w e / Σ w over all but the first axis.

    `weights` (n, 1, h, w) ≥ 0 is a mask at latent size. Each sample's is normalised by itself, so that a small subject counts as
    much as a large one and the loss keeps its scale; a sample whose mask is empty has the loss 0 and no gradient.
    """
    wide = predicted if predicted.dtype == float64 else predicted.float()
    each = error(kind, wide - wanted.to(wide.dtype), c)
    if weights is None:
        return each.flatten(1).mean(1)
    w = weights.to(each.dtype).expand_as(each).flatten(1)
    total = w.sum(1)
    return (w * each.flatten(1)).sum(1) / total.where(total > 0, 1.0)


@dataclass(frozen=True)
class Objective:
    """Which error, with which threshold, weighed how: all that the loss of a sample depends on beside the prediction itself."""

    kind: str = "mse"  # a key of ERRORS
    c: float = 0.1  # threshold of huber and smooth_l1
    c_schedule: str = "snr"  # a key of THRESHOLDS
    c_scale: float = 1.0
    weighting: str = "min_snr"  # one of WEIGHTINGS
    gamma: float = 5.0  # of Min-SNR; 0: off
    p2: tuple[float, float] = (1.0, 1.0)  # k and γ of P2
    snr_range: tuple[float, float] = (0.1, 5.0)

    def loss(
        self, predicted: Tensor, wanted: Tensor, alphas_bar: Tensor, share: Tensor, prediction: str = EPSILON, masks: Tensor | None = None
    ) -> Tensor:
        """The weighted loss of each sample, (n,), in fp32 at least. ᾱ (n,); share (n,) = t / T; masks (n, 1, h, w) or None."""
        c = threshold(self.c_schedule, self.c, share, alphas_bar, self.c_scale) if self.kind in ROBUST else None
        weights = weight(self.weighting, alphas_bar, prediction, self.gamma, self.p2, self.snr_range)
        return weights * mean_error(predicted, wanted, self.kind, c, masks)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))
