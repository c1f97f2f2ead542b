"""The reference of the training benchmark: a plain loop of diffusers and PEFT, as diffusers' own text-to-image LoRA script has it.

    sdlora benchmark train configs/benchmark-training.toml      # the instrument that times it beside ours
    python train/plain_loop.py --images datasets/high-contrast --output runs/plain --targets attention feed_forward \
        --batch-size 16 --learning-rate 4e-3 --snr-gamma 5      # a training by itself; the adapter is PEFT's own file

LoRA on to_q, to_k, to_v and to_out.0 through `add_adapter`, the whole picture's mean squared error, PyTorch's AdamW and clipping.
Nothing here knows of sdlora. What the script does and this leaves out makes the reference faster, not slower: accelerate's
wrappers, the data loader's processes. The noise, the timesteps and the first A are handed in, so that the losses can be compared.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
NAMED = {"attention": TARGETS, "feed_forward": ["ff.net.0.proj", "ff.net.2"]}


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
        targets: Sequence[str] = TARGETS,
        snr_gamma: float | None = None,
    ):
        """`picture(i)` reads, cuts and scales picture i to (3, h, w) in [−1, 1]; it is called in every step, as a data loader would.

        `cached`: latents and embeddings are made once, before the first step, and the two encoders let go of.
        `snr_gamma`: each picture's error weighs min(SNR, γ) / SNR (Hang et al. 2023, arXiv:2303.09556, for ε).
        """
        from diffusers import DDPMScheduler
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        self.networks, self.picture, self.captions, self.dtype = dict(networks), picture, captions, precision
        self.unet = networks["unet"]
        self.device = self.unet.device
        betas = 1 - alphas_bar.double() / torch.cat([alphas_bar.new_ones(1).double(), alphas_bar[:-1].double()])
        self.scheduler = DDPMScheduler(len(betas), trained_betas=betas.cpu().numpy())
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets)))
        cast_training_params(self.unet, dtype=torch.float32)
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.snr_gamma = snr_gamma
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
        loss = self.error(predicted.float(), noise.float(), timesteps)
        value = loss.detach().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def error(self, predicted: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.snr_gamma is None:
            return F.mse_loss(predicted, noise, reduction="mean")
        from diffusers.training_utils import compute_snr

        snr = compute_snr(self.scheduler, timesteps)
        errors = F.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))
        return (snr.clamp(max=self.snr_gamma) / snr * errors).mean()

    def save(self, folder: Path) -> Path:
        """By the writers of PEFT and diffusers."""
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        return folder / "pytorch_lora_weights.safetensors"

    def mixed(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def parts(base: Path) -> tuple[dict[str, Any], Tensor]:
    """The networks of a folder in diffusers' layout, frozen, and the ᾱ of its schedule."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    networks = {name: kind.from_pretrained(base / name).requires_grad_(False) for name, kind in kinds.items()}
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    return {**networks, "tokenizer": tokenizer}, DDPMScheduler.from_pretrained(base / "scheduler").alphas_cumprod


def opened(path: Path, side: int) -> Tensor:
    """(3, side, side) in [-1, 1], on white."""
    import numpy as np
    from PIL import Image

    picture = Image.open(path).convert("RGBA")
    flat = (
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        .convert("RGB")
        .resize((side, side), Image.Resampling.LANCZOS)
    )
    return torch.from_numpy(np.asarray(flat, np.float32) / 127.5 - 1).permute(2, 0, 1)


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches without end, each picture once in an epoch; what does not fill a batch is left out, as `drop_last` does."""
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def main() -> None:
    from diffusers.optimization import get_scheduler

    parser = argparse.ArgumentParser(description="Train a LoRA with diffusers and PEFT.")
    parser.add_argument("--base", type=Path, default=Path(__file__).parent.parent / "sdlora/assets/emoji")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", choices=NAMED, default=["attention"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--snr-gamma", type=float)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    networks, alphas_bar = parts(o.base)
    unet, files = networks["unet"], sorted(o.images.glob("*.png"))
    side = unet.config.sample_size * 2 ** (len(networks["vae"].config.block_out_channels) - 1)
    captions = [file.with_suffix(".txt").read_text().strip() for file in files]
    torch.manual_seed(o.seed)
    targets = [layer for name in o.targets for layer in NAMED[name]]
    settings = (o.rank, o.learning_rate, torch.float32, o.cached, targets, o.snr_gamma)
    training = Plain(networks, alphas_bar, lambda i: opened(files[i], side), captions, *settings)
    rate = get_scheduler("cosine", training.optimizer, num_warmup_steps=o.warmup, num_training_steps=o.steps)
    generator = torch.Generator().manual_seed(o.seed)
    batches, shape = shuffled(len(files), min(o.batch_size, len(files)), generator), (4, unet.config.sample_size, unet.config.sample_size)
    start, busy, losses = time.perf_counter(), time.process_time(), []
    for _ in range(o.steps):
        rows = next(batches)
        noise = torch.randn((len(rows), *shape), generator=generator)
        timesteps = torch.randint(len(alphas_bar), (len(rows),), generator=generator)
        losses.append(training.step(rows, noise, timesteps))
        rate.step()
    busy, wall, last = time.process_time() - busy, time.perf_counter() - start, losses[-math.ceil(o.steps / 10) :]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{o.steps} steps: {wall:.0f} s, processor {busy:.0f} s, {busy / o.steps * 1e3:.0f} ms a step; at most {peak:.0f} MiB")
    print(f"loss of the last tenth {sum(last) / len(last):.4f}; {training.save(o.output)}")


if __name__ == "__main__":
    main()
