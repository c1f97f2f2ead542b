"""A base model's components from disk: the built-in `emoji`, a folder in diffusers' layout, a single file, or a cached Hub id."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.checkpoints import Opened, configs, external, folder, hashes, hub, measure, single, tokenizer
from sdlora.checkpoints.opened import kinds, skeletons
from sdlora.errors import SdloraError, nearest
from sdlora.families import FAMILIES
from sdlora.schedule import alphas_bar, zero_terminal

BUILT_IN = {"emoji": Path(__file__).parent / "assets" / "emoji"}


@dataclass(frozen=True, eq=False)
class Components:
    """One base model, frozen and in evaluation mode."""

    name: str  # "emoji", or the name of the folder or file without its ending
    family: str  # a key of FAMILIES
    tokenizers: tuple[Any, ...]  # one per text encoder
    text_encoders: tuple[Any, ...]  # one, or two for SDXL
    unet: Any
    vae: Any
    alphas_bar: Tensor  # (1000,) fp32; its last entry is 0 under zero-terminal SNR
    prediction: str  # what the U-Net says: "epsilon" or "v_prediction"
    hash: str  # sha256 of the single file, or over a folder's weight files; with a VAE of its own, over both
    zeros_for_empty: bool = False  # without a prompt the U-Net is told zeros and not an encoded "" (SDXL)
    own_hash: str = ""  # sha256 of the base's files alone; differs from `hash` where the VAE is another
    vae_file: tuple[str, str] | None = None  # name and sha256 of a VAE that is not the base's own

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
        """The U-Net's; diffusers' own property walks through all its modules, in every step of a training."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype


def located(base: str | Path) -> Path:
    """The folder or file behind a base model's name, path or Hub id; SdloraError where there is none."""
    built_in = BUILT_IN.get(str(base))
    path = built_in or Path(base).expanduser()
    if path.is_file() or (path / folder.INDEX).is_file():
        return path
    if built_in:
        raise SdloraError(f"the built-in base {base} has no weights here; install the package anew, or make them with train/base.py")
    if path.is_dir():
        raise SdloraError(f"{path} has no model_index.json; a base model is a folder in diffusers' layout (with unet/, vae/, …) or a file")
    if path.suffix in single.SUFFIXES:
        raise SdloraError(f"there is no file {path}; put the base model there, or name another (base=… of a training, --base of others)")
    if hub.is_id(str(base)):
        return hub.folder(str(base))
    raise SdloraError(f"unknown base model {str(base)!r}: neither a built-in name nor a folder or file{nearest(str(base), BUILT_IN)}")


def opened(
    base: str | Path,
    *,
    family: str | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
) -> Opened:
    """What the base model on disk is, nothing read yet; the arguments are those of `load`."""
    path = located(base)
    if path.is_dir():
        if config is not None:
            raise SdloraError(f"{path} has configurations of its own; `config` is for single files")
        found = folder.opened(path, family, prediction, variant)
    elif variant is not None:
        raise SdloraError(f"{path} is a single file; a variant ({variant}) is of a folder in diffusers' layout")
    else:
        found = _single(path, family, prediction, None if config is None else Path(config))
    return found if vae is None else _with_vae(found, Path(vae))


def _single(path: Path, family: str | None, prediction: str | None, config: Path | None) -> Opened:
    if config is None:
        return single.opened(path, family, prediction)
    kind = folder.family_of(config)
    own = {component: folder.config_of(config / component) for component in kinds(kind)}
    found = single.opened(path, family, prediction, own)
    return replace(found, tokenizers=tuple(config / part for part in kind.tokenizers))


def _with_vae(base: Opened, path: Path) -> Opened:
    config, module, weights, files = external.opened(path, base.family)
    return replace(
        base,
        configs={**base.configs, "vae": config},
        modules={**base.modules, "vae": module},
        weights={**base.weights, "vae": weights},
        notes=(*base.notes, f"with the VAE {path}"),
        vae_files=tuple(files),
    )


def load(
    base: str | Path = "emoji",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    family: str | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Components:
    """The components of `base` on `device` in `dtype`, frozen. Nothing is downloaded.

    `family` (a key of FAMILIES) and `prediction` ("epsilon" or "v_prediction") are found, or as given: a family that the tensors
    contradict is an error. `vae`: a folder or file with another VAE. `variant`: "fp16" for a folder's files of that name.
    `config`: a folder in diffusers' layout with configurations and tokenizers for a single file of unusual widths.
    `say` gets a line that tells what was found.
    """
    found = opened(base, family=family, prediction=prediction, vae=vae, variant=variant, config=config)
    found.check()
    words = tokenizers(found)
    text_encoders = tuple(found.loaded(component, device, dtype) for component, _ in found.family.text_encoders)
    unet = found.loaded("unet", device, dtype)
    foretold, why = _foretold(found, unet, words[0], text_encoders[0])
    upcast = found.family.pooled and found.modules["vae"].config.force_upcast
    if say:
        say("; ".join([f"{found.path.name}: {found.family.title}, predicts {foretold} ({why})", *found.notes]))
    return Components(
        name=str(base) if str(base) in BUILT_IN else found.name,
        family=found.family.name,
        tokenizers=words,
        text_encoders=text_encoders,
        unet=unet,
        vae=found.loaded("vae", device, vae_dtype(dtype, upcast)),
        alphas_bar=_schedule(found),
        prediction=foretold,
        hash=_identity(found),
        zeros_for_empty=found.zeros_for_empty,
        own_hash=hashes.sha256(found.files),
        vae_file=(Path(vae).expanduser().stem, hashes.sha256(found.vae_files)) if vae is not None and found.vae_files else None,
    )


def _foretold(found: Opened, unet: Any, words: Any, text_encoder: nn.Module) -> tuple[str, str]:
    """(the prediction type, how it is known); where it had to be measured, the U-Net is told the size that goes with it."""
    if found.prediction.kind is not None:
        return found.prediction.kind, found.prediction.why
    kind, why = _measured(unet, words, text_encoder)
    unet.register_to_config(sample_size=configs.packaged(found.family.name, kind)["unet"]["sample_size"])
    return kind, why


def _measured(unet: nn.Module, words: Any, text_encoder: nn.Module) -> tuple[str, str]:
    """(the prediction type, how it was found) of a loaded U-Net whose file does not tell."""
    ids = words("", padding="max_length", max_length=words.model_max_length, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        cosine = measure.alignment(unet, text_encoder(ids.to(text_encoder.device)).last_hidden_state)
    return measure.prediction(cosine), f"measured: what it says of pure noise has a cosine of {cosine:.2f} with it; --prediction sets it"


def tokenizers(found: Opened) -> tuple[Any, ...]:
    """One per text encoder; no weights are read."""
    found.check_vocabulary()
    return tuple(_tokenizer(source) for source in found.tokenizers)


def _tokenizer(source: Path | str) -> Any:
    """A folder's tokenizer, or CLIP's from the package."""
    if isinstance(source, str):
        return tokenizer.tokenizer(source)
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged folder
        raise SdloraError(
            f"cannot load the tokenizer in {source}: {str(error).strip().splitlines()[0]}; copy the whole model anew"
        ) from error


def vae_dtype(dtype: torch.dtype, upcast: bool) -> torch.dtype:
    """What the VAE computes in: fp32 instead of fp16 where its config says that its activations overflow (SDXL's do)."""
    return torch.float32 if dtype == torch.float16 and upcast else dtype


def skeleton(base: str | Path = "emoji") -> dict[str, nn.Module]:
    """The U-Net and the text encoders of `base` without weights (meta device): their layers' names and shapes."""
    path = located(base)
    if path.is_file():
        modules = single.opened(path).modules
    else:
        family = folder.family_of(path)
        modules = skeletons(family, {component: folder.config_of(path / component) for component in kinds(family)}, path)
    return {component: module for component, module in modules.items() if component != "vae"}


def base_hash(base: str | Path) -> str:
    """sha256 of a single file, or over the weight files of a folder in a fixed order; remembered while they stay unchanged."""
    return _identity(opened(base))


def _identity(found: Opened) -> str:
    """What cached latents and texts depend on: the weights of the base and, if it has one of its own, of the VAE."""
    return hashes.combined([files for files in (found.files, found.vae_files) if files])


def _schedule(found: Opened) -> Tensor:
    """ᾱ of the base's scheduler."""
    config = found.schedule
    if config.get("trained_betas") is not None:
        raise SdloraError(
            f"{found.path}: a scheduler with its own list of betas (trained_betas) is not supported; only plain base models will do"
        )
    try:
        bar = alphas_bar(config["beta_start"], config["beta_end"], config["beta_schedule"], config["num_train_timesteps"])
    except KeyError as error:
        raise SdloraError(f"{found.path}: scheduler_config.json does not say {error}; copy the whole model") from None
    return zero_terminal(bar) if found.prediction.zero_snr else bar
