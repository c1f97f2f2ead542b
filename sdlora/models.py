"""A base model's components from disk: the built-in `emoji` or any Stable Diffusion 1.x folder in diffusers' layout."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.errors import SdloraError, nearest
from sdlora.families import FAMILIES
from sdlora.schedule import alphas_bar

BUILT_IN = {"emoji": Path(__file__).parent / "assets" / "emoji"}
PARTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
WEIGHTS = ("text_encoder", "unet", "vae")
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, eq=False)
class Components:
    """One base model, frozen and in evaluation mode."""

    name: str  # as the user named it: "emoji" or the folder's name
    family: str  # a key of FAMILIES
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    alphas_bar: Tensor  # (1000,) fp32
    prediction: str  # what the U-Net says: "epsilon" or "v_prediction"
    hash: str  # sha256 over the weight files

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What adapters go onto."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side: 4 for `emoji`, 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """The side, in pixels, of the pictures that the base was trained on."""
        return self.unet.config.sample_size * self.factor

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype


def folder_of(base: str | Path) -> Path:
    """The folder behind a base model's name or path; SdloraError where there is none."""
    built_in = BUILT_IN.get(str(base))
    folder = built_in or Path(base)
    if (folder / "model_index.json").is_file():
        return folder
    if built_in:
        raise SdloraError(f"the built-in base {base} has no weights here; install the package anew, or make them with train/base.py")
    if folder.is_dir():
        raise SdloraError(f"{folder} has no model_index.json; a base model is a folder in diffusers' layout (with unet/, vae/, …)")
    raise SdloraError(f"unknown base model {str(base)!r}: neither a built-in name nor a folder{nearest(str(base), BUILT_IN)}")


def load(base: str | Path = "emoji", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Components:
    """The components of `base` on `device` in `dtype`, frozen. Nothing is downloaded."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = folder_of(base)
    family = _family(folder)
    bar, prediction = _schedule(folder)
    try:
        with _quiet():
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).to(dtype)
            unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, local_files_only=True)
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, local_files_only=True)
    except Exception as error:  # the libraries raise many kinds for a damaged folder
        raise SdloraError(f"cannot load the base model in {folder}: {_first_line(error)}") from error
    for module in (text_encoder, unet, vae):
        module.to(device).eval().requires_grad_(False)
    name = str(base) if str(base) in BUILT_IN else folder.resolve().name
    return Components(name, family, tokenizer, text_encoder, unet, vae, bar, prediction, base_hash(folder))


def skeleton(base: str | Path = "emoji") -> dict[str, nn.Module]:
    """The U-Net and the text encoder of `base` without weights (meta device): their layers' names and shapes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = folder_of(base)
    _family(folder)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(_json(folder / "unet" / "config.json"))
        text_encoder = CLIPTextModel(CLIPTextConfig(**_json(folder / "text_encoder" / "config.json")))
    return {"unet": unet, "text_encoder": text_encoder}


@torch.no_grad()
def encode_text(components: Components, prompts: Sequence[str]) -> Tensor:
    """(n, 77, width): the text encoder's last hidden states, after its final norm; longer prompts are cut."""
    tokenizer = components.tokenizer
    ids = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    return components.text_encoder(ids.input_ids.to(components.device)).last_hidden_state


@torch.no_grad()
def encode_image(components: Components, images: Tensor) -> Tensor:
    """(n, 3, H, W) in [−1, 1] -> (n, 4, H/f, W/f): the posterior's mean, scaled to unit variance."""
    vae = components.vae
    return vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def decode(components: Components, latents: Tensor) -> Tensor:
    """(n, 4, h, w) scaled latents -> (n, 3, f h, f w), clamped to [−1, 1]."""
    vae = components.vae
    return vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.clamp(-1, 1)


def base_hash(folder: Path) -> str:
    """sha256 over the weight files that are loaded, in a fixed order; remembered while they stay unchanged."""
    files = [path for part in WEIGHTS for path in _weight_files(folder / part)]
    return _hash(tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@lru_cache(maxsize=16)
def _hash(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """What from_pretrained reads: safetensors before pickles, and no variants (`….fp16.safetensors`)."""
    for suffix in ("safetensors", "bin"):
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
            files = [*folder.glob(f"{stem}.{suffix}"), *folder.glob(f"{stem}-*-of-*.{suffix}")]
            if files:
                return sorted(files)
    raise SdloraError(f"{folder} has no weights (model.safetensors or diffusion_pytorch_model.safetensors)")


def _family(folder: Path) -> str:
    for part in PARTS:
        if not (folder / part).is_dir():
            raise SdloraError(f"the base model {folder} has no folder {part}/; copy the whole model")
    pipeline = _json(folder / "model_index.json").get("_class_name", "nothing")
    for family in FAMILIES.values():
        if family.pipeline == pipeline:
            return family.name
    known = ", ".join(f.pipeline for f in FAMILIES.values())
    raise SdloraError(f"{folder} is a {pipeline}; this version of sdlora knows {known}")


def _schedule(folder: Path) -> tuple[Tensor, str]:
    """ᾱ and the prediction type, from scheduler_config.json."""
    config = _json(folder / "scheduler" / "scheduler_config.json")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise SdloraError(f"{folder}: unknown prediction_type {prediction!r}{nearest(prediction, PREDICTIONS)}")
    if config.get("trained_betas") is not None:
        raise SdloraError(f"{folder}: a scheduler with its own list of betas (trained_betas) is not supported")
    bar = alphas_bar(config["beta_start"], config["beta_end"], config["beta_schedule"], config["num_train_timesteps"])
    return bar, prediction


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}; the base model's folder is not complete") from error
    except ValueError as error:
        raise SdloraError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar: a base model loads in a moment, and the terminal is the command's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
