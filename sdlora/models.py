"""A base model's components from disk: the built-in `emoji`, or a Stable Diffusion 1.x, 2.x or XL folder in diffusers' layout."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.errors import SdloraError, nearest
from sdlora.families import EPSILON, FAMILIES, PREDICTIONS, Family
from sdlora.schedule import alphas_bar, zero_terminal

BUILT_IN = {"emoji": Path(__file__).parent / "assets" / "emoji"}


@dataclass(frozen=True, eq=False)
class Components:
    """One base model, frozen and in evaluation mode."""

    name: str  # as the user named it: "emoji" or the folder's name
    family: str  # a key of FAMILIES
    tokenizers: tuple[Any, ...]  # one per text encoder
    text_encoders: tuple[Any, ...]  # one, or two for SDXL
    unet: Any
    vae: Any
    alphas_bar: Tensor  # (1000,) fp32; its last entry is 0 under zero-terminal SNR
    prediction: str  # what the U-Net says: "epsilon" or "v_prediction"
    hash: str  # sha256 over the weight files
    zeros_for_empty: bool = False  # without a prompt the U-Net is told zeros and not an encoded "" (SDXL)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What adapters go onto: "unet", "text_encoder" and for SDXL "text_encoder_2"."""
        names = (name for name, _ in FAMILIES[self.family].text_encoders)
        return {"unet": self.unet, **dict(zip(names, self.text_encoders, strict=True))}

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
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = folder_of(base)
    family = _family(folder)
    bar, prediction = _schedule(folder)
    try:
        with _quiet():
            tokenizers = tuple(
                transformers.CLIPTokenizer.from_pretrained(folder / part, local_files_only=True) for part in family.tokenizers
            )
            text_encoders = tuple(
                getattr(transformers, kind).from_pretrained(folder / part, local_files_only=True).to(dtype)
                for part, kind in family.text_encoders
            )
            unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, local_files_only=True)
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
    except Exception as error:  # the libraries raise many kinds for a damaged folder
        raise SdloraError(f"cannot load the base model in {folder}: {_first_line(error)}") from error
    vae.to(vae_dtype(dtype, vae.config.force_upcast))
    for module in (*text_encoders, unet, vae):
        module.to(device).eval().requires_grad_(False)
    name = str(base) if str(base) in BUILT_IN else folder.resolve().name
    zeros = family.pooled and _json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
    return Components(name, family.name, tokenizers, text_encoders, unet, vae, bar, prediction, base_hash(folder), zeros)


def vae_dtype(dtype: torch.dtype, upcast: bool) -> torch.dtype:
    """What the VAE computes in: fp32 instead of fp16 where its config says that its activations overflow (SDXL's do)."""
    return torch.float32 if dtype == torch.float16 and upcast else dtype


def skeleton(base: str | Path = "emoji") -> dict[str, nn.Module]:
    """The U-Net and the text encoders of `base` without weights (meta device): their layers' names and shapes."""
    import transformers
    from diffusers import UNet2DConditionModel

    folder = folder_of(base)
    modules: dict[str, nn.Module] = {}
    with torch.device("meta"):
        modules["unet"] = UNet2DConditionModel.from_config(_json(folder / "unet" / "config.json"))
        for part, kind in _family(folder).text_encoders:
            modules[part] = getattr(transformers, kind)(transformers.CLIPTextConfig(**_json(folder / part / "config.json")))
    return modules


def base_hash(folder: Path) -> str:
    """sha256 over the weight files that are loaded, in a fixed order; remembered while they stay unchanged."""
    encoders = [name for name, _ in _family(folder).text_encoders]
    files = [path for part in (*encoders, "unet", "vae") for path in _weight_files(folder / part)]
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


def _family(folder: Path) -> Family:
    """By the pipeline's class and, where families share it, by the U-Net's projections; complete, or a SdloraError."""
    pipeline = _json(folder / "model_index.json").get("_class_name", "nothing")
    alike = [family for family in FAMILIES.values() if family.pipeline == pipeline]
    if not alike:
        known = ", ".join(dict.fromkeys(f.pipeline for f in FAMILIES.values()))
        raise SdloraError(f"{folder} is a {pipeline}; this version of sdlora knows {known}")
    for part in dict.fromkeys(part for family in alike for part in family.folders):
        if not (folder / part).is_dir():
            raise SdloraError(f"the base model {folder} has no folder {part}/; copy the whole model")
    linear = bool(_json(folder / "unet" / "config.json").get("use_linear_projection", False))
    for family in alike:
        if family.linear == linear:
            return family
    raise SdloraError(f"{folder} is a {pipeline}, but its U-Net has {'' if linear else 'no '}linear projections: not {alike[0].title}")


def _schedule(folder: Path) -> tuple[Tensor, str]:
    """ᾱ and the prediction type, from scheduler_config.json."""
    config = _json(folder / "scheduler" / "scheduler_config.json")
    prediction = config.get("prediction_type", EPSILON)
    if prediction not in PREDICTIONS:
        raise SdloraError(f"{folder}: unknown prediction_type {prediction!r}{nearest(prediction, PREDICTIONS)}")
    if config.get("trained_betas") is not None:
        raise SdloraError(f"{folder}: a scheduler with its own list of betas (trained_betas) is not supported")
    bar = alphas_bar(config["beta_start"], config["beta_end"], config["beta_schedule"], config["num_train_timesteps"])
    if not config.get("rescale_betas_zero_snr", False):
        return bar, prediction
    if prediction == EPSILON:
        raise SdloraError(
            f"{folder}/scheduler: rescale_betas_zero_snr contradicts prediction_type epsilon (pure noise says nothing of the picture); "
            "set prediction_type to v_prediction, or take the rescaling out"
        )
    return zero_terminal(bar), prediction


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
