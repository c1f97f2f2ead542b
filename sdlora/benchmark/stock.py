"""The reference: diffusers' own pipeline over the same networks, with PEFT for the adapters. Nothing else of sdlora uses it."""

import copy
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.benchmark.turns import Pause
from sdlora.errors import SdloraError
from sdlora.families import FAMILIES
from sdlora.generation import Request, noise
from sdlora.generation.passes import size
from sdlora.models import Components

KNOWN = ("prompt", "negative", "seed", "steps", "guidance", "width", "height", "floor")  # what a reference picture can be asked for


class Stock:
    """A pipeline over layers of its own: PEFT wraps layers, and the base has to stay as it is."""

    def __init__(self, components: Components, fuses: bool):
        """`fuses`: fuse_lora will be called, so that the weights have to be copies too; else they are the base's own tensors."""
        self.components = components
        with _quiet():
            self.pipeline: Any = pipeline(components, fuses)
        self.pipeline.set_progress_bar_config(disable=True)
        self.folder = tempfile.TemporaryDirectory(prefix="sdlora-benchmark-")
        self.saved: dict[int, Path] = {}
        self.peft = find_spec("peft") is not None

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return tuple(getattr(self.pipeline, name) for name, _ in FAMILIES[self.components.family].text_encoders)

    def file(self, adapter: Adapter) -> Path:
        """`adapter` as a file with PEFT's names, written once."""
        if id(adapter) not in self.saved:
            path = Path(self.folder.name) / f"{len(self.saved)}.safetensors"
            self.saved[id(adapter)] = files.save(adapter, path, "peft")
        return self.saved[id(adapter)]

    def load(self, adapter: Adapter, name: str) -> None:
        path = self.file(adapter)
        with _quiet():  # or it warns every time that there is nothing for the text encoder
            self.pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)

    @contextmanager
    def carrying(self, weighted: Sequence[tuple[Adapter, float]], how: str | None) -> Iterator[Any]:
        """The pipeline with these adapters, and afterwards without: after fuse_lora up to PEFT's rounding, 1e-7 of a weight."""
        try:
            for i, (adapter, _) in enumerate(weighted):
                self.load(adapter, f"adapter{i}")
            if weighted:
                self.pipeline.set_adapters([f"adapter{i}" for i in range(len(weighted))], [eta for _, eta in weighted])
            if how == "fused":
                self.pipeline.fuse_lora()
            yield self.pipeline
        finally:
            if how == "fused":
                self.pipeline.unfuse_lora()
            if weighted:
                self.pipeline.unload_lora_weights()

    def draw(self, wanted: Sequence[Request], pause: Pause | None = None) -> list[Image.Image]:
        """The pictures of `wanted` in one batch, from the same noise as ours; `pause` is called after every step."""

        def after(_: Any, step: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
            assert pause is not None
            pause(step + 1)
            return state

        first, pipeline, factor = wanted[0], self.pipeline, self.components.factor
        height, width = size(self.components, first)
        shape = (pipeline.unet.config.in_channels, height // factor, width // factor)
        negative: list[str] | None = [request.negative for request in wanted]
        if self.components.zeros_for_empty and not any(negative or ()):
            negative = None  # SDXL's pipeline tells the U-Net zeros only if there is no negative prompt at all
        return pipeline(
            prompt=[request.prompt for request in wanted],
            negative_prompt=negative,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            height=height,
            width=width,
            callback_on_step_end=after if pause else None,
            latents=noise.drawn(noise.streams([request.seed for request in wanted], shape)).to(pipeline.unet.device, pipeline.unet.dtype),
        ).images


def check(request: Request) -> None:
    """SdloraError for a picture that the reference cannot draw as ours: it has Euler on its own schedule, and nothing else."""
    if request.steps < 2:
        raise SdloraError(
            "with a single step diffusers' Euler begins at the schedule's other end, so that the reference needs steps = 2 or more"
        )
    plain = Request(**{name: getattr(request, name) for name in KNOWN})
    ours = {name: value for name, value in vars(request).items() if name in Request.__dataclass_fields__ and value != getattr(plain, name)}
    if ours:
        words = ", ".join(f"{name} = {value!r}" for name, value in ours.items())
        raise SdloraError(
            f"the reference, stock diffusers, is compared with the sampler Euler alone, and not with {words}; leave that, or it, out"
        )


def pipeline(components: Components, fuses: bool) -> Any:
    import diffusers

    family = FAMILIES[components.family]
    parts: dict[str, Any] = {name: doubled(module, fuses) for name, module in components.modules.items()}
    parts |= dict(zip(family.tokenizers, components.tokenizers, strict=True))
    parts |= {"vae": components.vae, "scheduler": scheduler(components)}
    if family.pooled:
        extra: dict[str, Any] = {"force_zeros_for_empty_prompt": components.zeros_for_empty, "add_watermarker": False}
    else:
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, family.pipeline)(**parts, **extra)


def scheduler(components: Components) -> Any:
    """Euler from the base's own ᾱ, on the steps that ours takes."""
    from diffusers import EulerDiscreteScheduler

    bar = components.alphas_bar.double()
    betas = 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])
    return EulerDiscreteScheduler(len(bar), trained_betas=betas.numpy(), prediction_type=components.prediction, timestep_spacing="linspace")


def doubled(module: nn.Module, weights: bool) -> nn.Module:
    """The same layers anew; their tensors are copies if `weights`, else the very same ones."""
    shared = {} if weights else {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, dict(shared))


@contextmanager
def _quiet() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
        logging.enable_progress_bar()
        diffusers_logging.enable_progress_bar()
