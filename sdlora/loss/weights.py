"""How much a sample's error weighs by its noise: one function of the SNR for the error of x₀, and what it means for that of ε and of v.

With SNR = ᾱ / (1 − ᾱ) one estimate of x₀ has an error of ε that is SNR times as large and an error of v SNR + 1 times (Salimans & Ho
2022, arXiv:2202.00512, sec. 4). So a weighting w(SNR) of the error of x₀ is w / SNR of the error of ε and w / (SNR + 1) of v's.
"""

from torch import Tensor

from sdlora.errors import SdloraError, nearest
from sdlora.families import EPSILON

WEIGHTINGS = ("min_snr", "none", "debiased", "p2", "snr_range")


def weight(
    name: str,
    alphas_bar: Tensor,
    prediction: str = EPSILON,
    gamma: float = 5.0,
    p2: tuple[float, float] = (1.0, 1.0),
    snr_range: tuple[float, float] = (0.1, 5.0),
) -> Tensor:
    """The weight of each sample's error, shape of ᾱ: `name` of WEIGHTINGS, with γ of Min-SNR, (k, γ) of P2 and (lowest, highest) SNR."""
    match name:
        case "none":
            return alphas_bar.new_ones(alphas_bar.shape)
        case "min_snr":
            return min_snr_weight(alphas_bar, gamma, prediction)
        case "debiased":
            return debiased_weight(alphas_bar, prediction)
        case "p2":
            return p2_weight(alphas_bar, *p2, prediction)
        case "snr_range":
            return clamped_snr_weight(alphas_bar, *snr_range, prediction)
        case _:
            raise SdloraError(f"unknown weighting {name!r}{nearest(name, WEIGHTINGS)}")


def min_snr_weight(alphas_bar: Tensor, gamma: float, prediction: str = EPSILON) -> Tensor:
    """Weight of each sample's loss, shape of ᾱ.  Hang et al. 2023, arXiv:2303.09556, sec. 3.4.

    The error of x₀ weighs min(SNR, γ), so that of ε min(SNR, γ) / SNR and that of v min(SNR, γ) / (SNR + 1). As γ → ∞ both tend
    to the plain ε loss; γ = 0 is read as "off" and weighs all alike.
    """
    if gamma <= 0:
        return alphas_bar.new_ones(alphas_bar.shape)
    snr = alphas_bar / (1 - alphas_bar)
    return (gamma / snr).clamp(max=1.0) if prediction == EPSILON else snr.clamp(max=gamma) / (snr + 1)


def debiased_weight(alphas_bar: Tensor, prediction: str = EPSILON) -> Tensor:
    """1/√SNR for ε, √SNR/(SNR + 1) for v: √SNR for the error of x₀.  Yu et al. 2023, arXiv:2310.08442.

    In ᾱ: √((1 − ᾱ)/ᾱ) and √(ᾱ(1 − ᾱ)), so that v's is finite, 0, at pure noise.
    """
    return ((1 - alphas_bar) / alphas_bar).sqrt() if prediction == EPSILON else (alphas_bar * (1 - alphas_bar)).sqrt()


def p2_weight(alphas_bar: Tensor, k: float = 1.0, gamma: float = 1.0, prediction: str = EPSILON) -> Tensor:
    """1/(k + SNR)^γ for ε; times SNR/(SNR + 1) = ᾱ for v.  Choi et al. 2022, arXiv:2204.00227."""
    own = (k + alphas_bar / (1 - alphas_bar)) ** -gamma
    return own if prediction == EPSILON else alphas_bar * own


def clamped_snr_weight(alphas_bar: Tensor, lowest: float, highest: float, prediction: str = EPSILON) -> Tensor:
    """The error of x₀ weighs its SNR, clamped to [lowest, highest]; what the embedded base was trained with (0.1, 5).

    lowest = 0 is Min-SNR; highest = ∞, lowest = 1 the truncated SNR of Salimans & Ho 2022, arXiv:2202.00512, sec. 4.
    """
    snr = alphas_bar / (1 - alphas_bar)
    return snr.clamp(lowest, highest) / (snr if prediction == EPSILON else snr + 1)
