"""The recipe of the embedded base model `emoji`, from icon sets to weights. Interrupted, run it again.

    npm pack @iconify-json/fluent-emoji-flat@1.2.6 …      # in --raw; `python train/base.py images` names all four
    python train/base.py all --raw RAW --work WORK        # images, tokenizer, vae, latents, unet, export

Each stage writes into WORK what the next one reads; a stage whose result is there is skipped.
"""

import argparse
import json
import os
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from emoji import loop, muon, networks, tokenizer
from emoji.examples import SIZE, Examples

SEED = 0
IMAGES = 49_152
VAE_STEPS, VAE_BATCH = 2_000, 16
UNET_STEPS, UNET_BATCH = 6_500, 96
SNR_RANGE = 0.1, 5.0  # the weight of the error in x₀
_examples: Examples | None = None


def open_examples(raw: Path) -> None:
    global _examples  # one set of pictures per worker process
    _examples = Examples(raw)


def one_example(index: int) -> tuple[np.ndarray, str, str, str]:
    e = _examples.example(SEED, index)
    return np.uint8(e.image * 255 + 0.5), e.caption, e.concept, e.style


def images(raw: Path, work: Path) -> None:
    """The pool of pictures and captions: images.npy (n, 64, 64, 3) uint8 and captions.json."""
    temporary = work / "images.tmp.npy"
    pool = np.lib.format.open_memmap(temporary, "w+", np.uint8, (IMAGES, SIZE, SIZE, 3))
    notes = []
    with Pool(os.cpu_count(), open_examples, (raw,)) as workers:
        for i, (image, *note) in enumerate(workers.imap(one_example, range(IMAGES), chunksize=256)):
            pool[i] = image
            notes.append(note)
    pool.flush()
    (work / "captions.json").write_text(json.dumps(notes))
    os.replace(temporary, work / "images.npy")


def pixels(pool: np.ndarray, picks: np.ndarray) -> torch.Tensor:
    """(n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(pool[np.sort(picks)]).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def vae_loss(vae: nn.Module, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """L1 + L2 + ½ L1 of the gradients + a light Kullback–Leibler penalty."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        mean, spread = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * spread).exp() * torch.randn(mean.shape, generator=generator)
        y = vae.decode(z).sample
    y = y.float()
    contours = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x)))
    kl = 0.5 * (mean**2 + spread.exp() - 1 - spread).mean()
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * contours + 1e-4 * kl


def report(name: str, steps: int, work: Path):
    def write(step: int, loss: float, seconds: float) -> None:
        line = {"stage": name, "step": step, "loss": round(loss, 5), "seconds": round(seconds, 1)}
        with open(work / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        print(f"{name} {step}/{steps}  loss {loss:.4f}  {seconds:.0f} s  {step / seconds:.2f} steps/s", flush=True)

    return write


def train_vae(work: Path, seconds: float) -> None:
    torch.manual_seed(SEED)
    pool = np.load(work / "images.npy", mmap_mode="r")
    modules = nn.ModuleDict({"vae": networks.vae()})
    training = loop.Training(modules, muon.optimizers(modules, 0.01, 2e-3, 0.0), VAE_STEPS, work / "vae-state.pt", 0.995)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng((SEED, 1, step))
        generator = torch.Generator().manual_seed(step)
        return vae_loss(modules["vae"], pixels(pool, rng.integers(0, IMAGES, VAE_BATCH)), generator)

    training.run(loss_of, seconds, report("vae", VAE_STEPS, work))
    finish_vae(training.average["vae"], pool, work)


@torch.no_grad()
def finish_vae(vae: nn.Module, pool: np.ndarray, work: Path) -> None:
    """Fold the latents' mean into the quantisation layers, put 1/std into the config, measure, save."""
    x = pixels(pool, np.arange(0, IMAGES, IMAGES // 2048)[:2048])
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])
    centre = z.mean((0, 2, 3))
    vae.quant_conv.bias[:4] -= centre
    weight = vae.post_quant_conv.weight[:, :, 0, 0]
    vae.post_quant_conv.bias += weight @ centre
    vae.register_to_config(scaling_factor=float(1 / (z - centre[:, None, None]).std()))
    y = torch.cat([vae.decode(part - centre[:, None, None]).sample for part in z[:256].split(64)])
    error = ((y.clamp(-1, 1) - x[:256]) / 2).pow(2).mean((1, 2, 3))
    print(f"vae: {-10 * error.log10().mean():.2f} dB PSNR on 256 training pictures, scale {vae.config.scaling_factor:.3f}")
    vae.save_pretrained(work / "vae")


@torch.no_grad()
def latents(work: Path) -> None:
    """latents.npy (n, 4, 16, 16) fp16: the scaled posterior means of the pool."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "vae")
    pool = np.load(work / "images.npy", mmap_mode="r")
    result = np.empty((IMAGES, 4, 16, 16), np.float16)
    for start in range(0, IMAGES, 32):
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(pixels(pool, np.arange(start, start + 32))).latent_dist.mean
        result[start : start + 32] = (z.float() * vae.config.scaling_factor).numpy()
    np.save(work / "latents.tmp.npy", result)
    os.replace(work / "latents.tmp.npy", work / "latents.npy")


def zero_outputs(unet: nn.Module) -> None:
    """Every residual branch starts as nothing, and the network as zero."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "to_out.0", "net.2")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def alphas_bar() -> torch.Tensor:
    """ᾱ of SD 1.5's scaled-linear schedule, 1000 timesteps."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)


def begin_from(folder: Path, unet: nn.Module, text: nn.Module) -> None:
    """The weights of an exported base instead of random ones: more training for a model whose state is gone."""
    for module, file in ((unet, "unet/diffusion_pytorch_model.safetensors"), (text, "text_encoder/model.safetensors")):
        weights = {name.removeprefix("text_model."): value.float() for name, value in load_file(folder / file).items()}
        module.load_state_dict(weights)


def train_unet(work: Path, seconds: float, start: Path | None = None) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(SEED)
    vocabulary = tokenizer.load(work / "tokenizer")
    pool = torch.from_numpy(np.load(work / "latents.npy"))
    captions = [note[0] for note in json.loads((work / "captions.json").read_text())]
    tokens = tokenizer.encode(vocabulary, captions)
    unet = networks.unet()
    unet.set_attn_processor(AttnProcessor())  # faster than SDPA at these sizes
    zero_outputs(unet)
    unet.to(memory_format=torch.channels_last)
    text = networks.text_encoder(len(vocabulary), vocabulary.bos_token_id, vocabulary.eos_token_id)
    if start:
        begin_from(start, unet, text)
    modules = nn.ModuleDict({"unet": unet, "text_encoder": text})
    training = loop.Training(modules, muon.optimizers(modules, 0.02, 1e-3), UNET_STEPS, work / "unet-state.pt")
    bar = alphas_bar()

    def loss_of(step: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(SEED + 7_919 * step)
        picks = torch.randint(0, IMAGES, (UNET_BATCH,), generator=g)
        x = pool[picks].float().to(memory_format=torch.channels_last)
        noise = torch.randn(x.shape, generator=g)
        strata = (torch.arange(UNET_BATCH) + torch.rand(UNET_BATCH, generator=g)) / UNET_BATCH
        t = (strata * 1000).long()
        a = bar[t].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            context = text(tokens[picks]).last_hidden_state
            predicted = unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, context).sample
        error = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        snr = bar[t] / (1 - bar[t])
        return (error * (snr.clamp(*SNR_RANGE) / snr)).mean()

    training.run(loss_of, seconds, report("unet", UNET_STEPS, work))


def export(work: Path, output: Path) -> None:
    from emoji.export import export as write

    write(work, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("images", "tokenizer", "vae", "latents", "unet", "export", "all"))
    parser.add_argument("--raw", type=Path, default=Path("raw"), help="folder of the four npm tarballs")
    parser.add_argument("--work", type=Path, default=Path("runs/base"), help="folder of intermediate results")
    parser.add_argument("--output", type=Path, default=Path("sdlora/assets/emoji"), help="where `export` writes")
    parser.add_argument("--vae-seconds", type=float, default=1e9, help="a time budget, where it is tighter than the steps")
    parser.add_argument("--unet-seconds", type=float, default=1e9)
    parser.add_argument("--start", type=Path, help="an exported base whose U-Net and text encoder are trained further")
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    stages = {
        "images": (work / "images.npy", lambda: images(options.raw, work)),
        "tokenizer": (work / "tokenizer", lambda: tokenizer.train(work / "captions.json", work / "tokenizer")),
        "vae": (work / "vae", lambda: train_vae(work, options.vae_seconds)),
        "latents": (work / "latents.npy", lambda: latents(work)),
        "unet": (None, lambda: train_unet(work, options.unet_seconds, options.start)),
        "export": (None, lambda: export(work, options.output)),
    }
    for name, (result, run) in stages.items():
        if options.stage in (name, "all") and not (result and result.exists()):
            run()


if __name__ == "__main__":
    main()
