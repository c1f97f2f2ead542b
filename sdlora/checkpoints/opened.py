"""A base model on disk, opened: what it is and which tensor is which, before any weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdlora.checkpoints import build, tokenizer
from sdlora.checkpoints.identify import Prediction
from sdlora.errors import SdloraError
from sdlora.families import Family
from sdlora.stored import Stored

KINDS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}  # and each family's text encoders


@dataclass(frozen=True, eq=False)
class Opened:
    """A base model: components are "unet", "vae", "text_encoder" and for SDXL "text_encoder_2"."""

    path: Path
    family: Family
    prediction: Prediction
    schedule: dict[str, Any]  # a scheduler's configuration, as in diffusers' scheduler_config.json
    configs: dict[str, dict[str, Any]]  # of each component
    modules: dict[str, Any]  # the components on the meta device
    weights: dict[str, dict[str, Stored]]  # of each component, by plain names; not yet checked
    tokenizers: tuple[Path | str, ...]  # a folder; or, for CLIP's vocabulary in the package, what prompts are filled up with
    files: tuple[Path, ...]  # with the weights, in a fixed order
    vae_files: tuple[Path, ...] = ()  # of a VAE of its own
    zeros_for_empty: bool = False  # without a prompt the U-Net is told zeros (SDXL)
    surplus: tuple[str, ...] = ()  # names in the file that no component takes and that are not known to be idle
    notes: tuple[str, ...] = ()  # what else is to be said of it

    @property
    def name(self) -> str:
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    def missing(self, component: str) -> list[str]:
        return [name for name in build.shapes(self.modules[component]) if name not in self.weights[component]]

    def check(self) -> None:
        """SdloraError unless every component is complete and nothing strange is among the U-Net's tensors."""
        for component, module in self.modules.items():
            if component == "vae" and not self.weights["vae"]:
                raise SdloraError(f"{self.path} has no VAE; give one with it, a file or a folder")
            build.check(component, module, self.weights[component], self.path)
        strange = [name for name in self.surplus if name.startswith(("unet.", "model.diffusion_model."))]
        if strange:
            raise SdloraError(
                f"{self.path} has {len(strange)} tensors that the U-Net of {self.family.title} does not have: {build.some(strange)}; "
                "it is of another architecture, and only plain base models will do"
            )

    def check_vocabulary(self) -> None:
        """SdloraError where CLIP's vocabulary in the package would name tokens that a text encoder does not have."""
        for source, (component, _) in zip(self.tokenizers, self.family.text_encoders, strict=True):
            rows = self.modules[component].config.vocab_size
            if isinstance(source, str) and rows < tokenizer.SIZE:
                raise SdloraError(
                    f"{self.path}: the {component} knows {rows} tokens, and CLIP's vocabulary has {tokenizer.SIZE}; "
                    "give a folder in diffusers' layout with its tokenizer as the base, or as --config of base convert"
                )

    def loaded(self, component: str, device: str | torch.device, dtype: torch.dtype) -> Any:
        """The component with its weights; the meta one of `modules` becomes it."""
        return build.fill(self.modules[component], self.weights[component], device, dtype)


def kinds(family: Family) -> dict[str, str]:
    """Component -> the class that it is of, in diffusers or transformers."""
    return {**KINDS, **dict(family.text_encoders)}


def skeletons(family: Family, configs: Mapping[str, Mapping[str, Any]], where: object = "") -> dict[str, Any]:
    """Component -> network without memory; SdloraError for a configuration of which none can be made."""
    made = {}
    for component, kind in kinds(family).items():
        try:
            made[component] = build.skeleton(kind, configs[component])
        except Exception as error:  # diffusers and transformers raise many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SdloraError(f"{where}: the configuration of the {component} makes no {kind} ({reason}); copy the model anew") from error
    return made
