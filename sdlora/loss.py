"""The denoising objective: predict the noise ε that was added.  Ho et al. 2020, arXiv:2006.11239, eq. 14."""

import torch
from torch import Tensor


def noised(latents: Tensor, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """x_t = √ᾱ x₀ + √(1 − ᾱ) ε, (n, …) with ᾱ (n,).  arXiv:2006.11239, eq. 4."""
    bar = _per_sample(alphas_bar, latents)
    return bar.sqrt() * latents + (1 - bar).sqrt() * noise


def squared_error(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean over all but the first axis of (ε̂ − ε)², in fp32 at least: (n,)."""
    wide = predicted if predicted.dtype == torch.float64 else predicted.float()
    return (wide - noise.to(wide.dtype)).square().flatten(1).mean(1)


def min_snr_weight(alphas_bar: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's ε loss, min(SNR, γ) / SNR, shape of ᾱ.  Hang et al. 2023, arXiv:2303.09556, sec. 3.4.

    SNR = ᾱ / (1 − ᾱ), dimensionless. Nearly clean samples (SNR > γ) weigh γ / SNR, all others 1; as γ → ∞ every weight
    tends to 1, the plain loss. γ = 0 is read as "off" and weighs all alike as well.
    """
    snr = alphas_bar / (1 - alphas_bar)
    return (gamma / snr).clamp(max=1.0) if gamma > 0 else snr.new_ones(snr.shape)


def denoising_loss(predicted: Tensor, noise: Tensor, alphas_bar: Tensor, gamma: float = 0.0) -> Tensor:
    """The weighted ε loss of each sample, (n,) in fp32: min_snr_weight(ᾱ, γ) · mean (ε̂ − ε)²."""
    return min_snr_weight(alphas_bar, gamma) * squared_error(predicted, noise)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))
