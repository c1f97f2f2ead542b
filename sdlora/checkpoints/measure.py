"""Which of ε and v a U-Net predicts, from what it says of pure noise: for files that do not tell."""

from typing import Any

import torch
from torch.nn import functional as F

from sdlora.families import EPSILON, V

SIDE = 32  # latents
BORDER = 0.5


@torch.no_grad()
def alignment(unet: Any, context: torch.Tensor) -> float:
    """The cosine between noise at the last timestep and what `unet` says of it, told `context` (1, tokens, width).

    There ᾱ is almost 0, so x ≈ ε. A U-Net that predicts ε gives back about x: the cosine is near 1. One that predicts
    v = √ᾱ ε − √(1 − ᾱ) x₀ (Salimans & Ho 2022, arXiv:2202.00512, app. D) gives about −x₀, which noise tells nothing of: near 0.
    """
    x = torch.randn((1, 4, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(unet.device, unet.dtype)
    said = unet(x, torch.tensor([999], device=unet.device), encoder_hidden_states=context, return_dict=False)[0]
    return F.cosine_similarity(said.flatten().double(), x.flatten().double(), dim=0).item()


def prediction(cosine: float) -> str:
    return EPSILON if cosine > BORDER else V
