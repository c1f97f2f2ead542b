"""Pictures ⇄ latents, through the VAE in its own precision."""

import torch
from torch import Tensor

from sdlora.models import Components


@torch.no_grad()
def encode_image(components: Components, images: Tensor) -> Tensor:
    """(n, 3, H, W) in [−1, 1] -> (n, 4, H/f, W/f): the posterior's mean, scaled to unit variance.

    The mean is a function of the picture alone. AUTOMATIC1111 and diffusers draw from the posterior, with other numbers each time.
    """
    vae = components.vae
    return vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def decode(components: Components, latents: Tensor) -> Tensor:
    """(n, 4, h, w) scaled latents -> (n, 3, f h, f w), clamped to [−1, 1]."""
    vae = components.vae
    return vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.clamp(-1, 1)
