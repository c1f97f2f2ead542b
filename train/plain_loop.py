"""The reference of the training benchmark: a plain loop of diffusers and PEFT, as diffusers' own text-to-image LoRA script has it.

    sdlora benchmark train configs/benchmark-training.toml      # the instrument that times it beside ours

LoRA on to_q, to_k, to_v and to_out.0 through `add_adapter`, the whole picture's mean squared error, PyTorch's AdamW and clipping.
Nothing here knows of sdlora. What the script does and this leaves out makes the reference faster, not slower: accelerate's
wrappers, the data loader's processes. The noise, the timesteps and the first A are handed in, so that the losses can be compared.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


class Plain:
    """One training. `networks` have "unet", "vae", "text_encoder" and "tokenizer", all frozen; the U-Net gets the adapter."""

    def __init__(
        self,
        networks: Mapping[str, Any],
        alphas_bar: Tensor,
        picture: Callable[[int], Tensor],
        captions: Sequence[str],
        rank: int,
        learning_rate: float,
        precision: torch.dtype,
        cached: bool,
    ):
        """`picture(i)` reads, cuts and scales picture i to (3, h, w) in [−1, 1]; it is called in every step, as a data loader would.

        `cached`: latents and embeddings are made once, before the first step, and the two encoders let go of.
        """
        from diffusers import DDPMScheduler
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        self.networks, self.picture, self.captions, self.dtype = dict(networks), picture, captions, precision
        self.unet = networks["unet"]
        self.device = self.unet.device
        betas = 1 - alphas_bar.double() / torch.cat([alphas_bar.new_ones(1).double(), alphas_bar[:-1].double()])
        self.scheduler = DDPMScheduler(len(betas), trained_betas=betas.cpu().numpy())
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
        cast_training_params(self.unet, dtype=torch.float32)
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.unet.train()
        self.kept: tuple[list[Tensor], list[Tensor]] | None = None  # latents and embeddings of each picture
        if cached:
            everything = range(len(captions))
            with torch.no_grad():
                self.kept = [self.encode([i]) for i in everything], [self.embed([i]) for i in everything]
            self.networks = {}

    def begin_with(self, first: Mapping[str, Tensor]) -> None:
        """`first`: layer of the U-Net -> A (r, in). KeyError for a layer without an adapter."""
        layers = {name: module for name, module in self.unet.named_modules() if hasattr(module, "lora_A")}
        if layers.keys() != first.keys():
            raise KeyError(f"{len(layers)} layers with an adapter, and A for {len(first)}")
        with torch.no_grad():
            for name, a in first.items():
                layers[name].lora_A["default"].weight.copy_(a)

    def encode(self, rows: Sequence[int]) -> Tensor:
        """The pictures' latents: the mean of the VAE's posterior, where the script draws from it."""
        vae = self.networks["vae"]
        pixels = torch.stack([self.picture(i) for i in rows]).to(self.device, vae.dtype)
        return vae.encode(pixels).latent_dist.mode().to(self.dtype) * vae.config.scaling_factor

    def embed(self, rows: Sequence[int]) -> Tensor:
        words, encoder = self.networks["tokenizer"], self.networks["text_encoder"]
        settings = {"padding": "max_length", "max_length": words.model_max_length, "truncation": True, "return_tensors": "pt"}
        ids = words([self.captions[i] for i in rows], **settings).input_ids
        return encoder(ids.to(self.device), return_dict=False)[0].to(self.dtype)

    def step(self, rows: Sequence[int], noise: Tensor, timesteps: Tensor) -> float:
        """One optimiser step on the pictures `rows`; its loss. noise (n, c, h, w), timesteps (n,) int64."""
        if self.kept is None:
            latents, context = self.encode(rows), self.embed(rows)
        else:
            latents, context = (torch.cat([part[i] for i in rows]) for part in self.kept)
        noise, timesteps = noise.to(self.device, self.dtype), timesteps.to(self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        with self.mixed():
            predicted = self.unet(noisy, timesteps, context, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        value = loss.detach().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def mixed(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
