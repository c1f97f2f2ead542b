"""The denoising objective: what a U-Net that predicts ε or v should say of a noisy latent, and how much its error weighs."""

from torch import Tensor, float64

from sdlora.families import EPSILON


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
    wide = predicted if predicted.dtype == float64 else predicted.float()
    return (wide - wanted.to(wide.dtype)).square().flatten(1).mean(1)


def min_snr_weight(alphas_bar: Tensor, gamma: float, prediction: str = EPSILON) -> Tensor:
    """Weight of each sample's loss, shape of ᾱ.  Hang et al. 2023, arXiv:2303.09556, sec. 3.4.

    With SNR = ᾱ / (1 − ᾱ) the error of x₀ weighs min(SNR, γ). The error of ε is SNR times as large and that of v SNR + 1 times,
    so that they weigh min(SNR, γ) / SNR and min(SNR, γ) / (SNR + 1). As γ → ∞ both tend to the plain ε loss; γ = 0 is read as
    "off" and weighs all alike.
    """
    if gamma <= 0:
        return alphas_bar.new_ones(alphas_bar.shape)
    snr = alphas_bar / (1 - alphas_bar)
    return (gamma / snr).clamp(max=1.0) if prediction == EPSILON else snr.clamp(max=gamma) / (snr + 1)


def denoising_loss(predicted: Tensor, wanted: Tensor, alphas_bar: Tensor, gamma: float = 0.0, prediction: str = EPSILON) -> Tensor:
    """The weighted loss of each sample, (n,) in fp32: min_snr_weight(ᾱ, γ) · mean (predicted − wanted)²; see `target`."""
    return min_snr_weight(alphas_bar, gamma, prediction) * squared_error(predicted, wanted)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))
